//! Gives the binaries and tests an rpath to libtorch, so that they run with no exported variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // Every submission keeps a copy of the programs it runs: without the standard library's debug
    // information they are a quarter of the size.
    println!("cargo:rustc-link-arg-bins=-Wl,--strip-debug");
    if std::env::var_os("CARGO_FEATURE_COMPUTE").is_none() {
        return;
    }
    let Some(libtorch) = std::env::var_os("LIBTORCH") else { return };
    println!("cargo:rustc-env=SEEDBED_LIBTORCH_VERSION={}", version(std::path::Path::new(&libtorch)));
    // The link `.libtorch` may move; a job that is queued for days must find what it was built with.
    if let Ok(dir) = std::fs::canonicalize(&libtorch) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.join("lib").display());
    }
}

/// `2.11.0` as the headers say, or `unknown`: it is recorded with every result.
fn version(libtorch: &std::path::Path) -> String {
    let text = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"]
        .iter()
        .find_map(|file| std::fs::read_to_string(libtorch.join(file)).ok())
        .unwrap_or_default();
    let part = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(&format!("#define TORCH_VERSION_{name} ")))?;
        line.split_whitespace().nth(2).map(str::to_owned)
    };
    let parts: Vec<String> = ["MAJOR", "MINOR", "PATCH"].iter().filter_map(|n| part(n)).collect();
    if parts.len() == 3 { parts.join(".") } else { "unknown".to_owned() }
}
