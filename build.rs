//! Gives the binaries and tests an rpath to libtorch, so that they run with no exported variable; with the feature
//! `compute`, builds the one file of C++ that reaches libtorch's oneDNN.

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
    #[cfg(feature = "compute")]
    build_onednn_shim(std::path::Path::new(&libtorch));
    // The link `.libtorch` may move; a job that is queued for days must find what it was built with.
    if let Ok(dir) = std::fs::canonicalize(&libtorch) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.join("lib").display());
    }
}

/// Compiles the shim against libtorch's headers; what it calls is linked with tch.
#[cfg(feature = "compute")]
fn build_onednn_shim(libtorch: &std::path::Path) {
    let shim = "src/compute/kernels/gemm/onednn.cpp";
    println!("cargo:rerun-if-changed={shim}");
    // As system headers, so that their warnings are not ours.
    let include = libtorch.join("include");
    cc::Build::new().cpp(true).std("c++17").flag("-isystem").flag(&include).file(shim).compile("seedbed_onednn");
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
