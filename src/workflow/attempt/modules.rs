//! Whether the modules of the cluster file are loaded here. The job script loads them and stops where that fails; but some
//! module systems report no failure, and a module may be pushed out by a later one.

/// Why the cell must not run: modules of `wanted` that are not in `loaded`, the value of `LOADEDMODULES`. What that
/// variable does not tell cannot be checked.
pub fn missing(wanted: &[String], loaded: Option<&str>) -> Option<String> {
    let loaded: Vec<&str> = loaded?.split(':').filter(|name| !name.is_empty()).collect();
    let is_loaded = |name: &&String| {
        let full = |there: &&str| {
            // `gcc` finds `gcc/12.2.0`, and so do `gcc/12` and `gcc/12.2`.
            there.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
        };
        loaded.iter().any(|there| full(&there))
    };
    let lost: Vec<String> = wanted.iter().filter(|name| !is_loaded(name)).map(|name| format!("`{name}`")).collect();
    (!lost.is_empty()).then(|| {
        let there = if loaded.is_empty() { "none".to_owned() } else { loaded.join(", ") };
        format!(
            "module {} of the cluster file is not loaded on this node (loaded: {there}): write each name in `modules` as \
             `module list` shows it, and leave out what another one replaces; then `run_all` again",
            lost.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_versions() {
        let check = |wanted: &[&str], loaded: &str| {
            let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
            missing(&wanted, Some(loaded))
        };
        assert_eq!(check(&["gcc", "openmpi/4.1", "cuda/12.4"], "StdEnv:gcc/12.2.0:openmpi/4.1.5:cuda/12.4"), None);
        assert_eq!(check(&[], ""), None);
        let why = check(&["gcc/12", "cud"], "gcc/11.3:cuda/12.4").unwrap();
        assert!(why.contains("`gcc/12`, `cud`") && why.contains("loaded: gcc/11.3, cuda/12.4"), "{why}");
        assert!(check(&["gcc"], "").unwrap().contains("loaded: none"));
        assert_eq!(missing(&["gcc".to_owned()], None), None, "nobody can tell");
    }
}
