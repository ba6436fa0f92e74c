//! Gives the binaries and tests an rpath to libtorch, so that they run with no exported variable.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_COMPUTE").is_none() {
        return;
    }
    let Some(libtorch) = std::env::var_os("LIBTORCH") else { return };
    // The link `.libtorch` may move; a job that is queued for days must find what it was built with.
    if let Ok(dir) = std::fs::canonicalize(&libtorch) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.join("lib").display());
    }
}
