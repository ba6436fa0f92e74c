//! The GPU of a rank: whether libtorch computes on it, its name, and what it could do at best.

use std::ffi::CString;

use tch::Device;

use super::train::Precision;
use super::{ComputeError, Result};

/// Where NVIDIA's kernel module tells what it drives: a directory a GPU.
const DRIVEN: &str = "/proc/driver/nvidia/gpus";

/// FLOP/s of dense bf16 products, by a word of the name (NVIDIA's data sheets).
const BF16_PEAKS: [(&str, f64); 8] = [
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
];

/// Makes libtorch's CUDA part known, also to a program that was linked where there was none. Called before
/// anything else of libtorch: it looks for devices once.
///
/// # Errors
/// There is no such part, or no GPU: the message says what to type.
pub fn load() -> Result<()> {
    let library = CString::from(c"libtorch_cuda.so");
    // SAFETY: loading it runs its initialisers, which register its kernels and have no preconditions. It stays loaded.
    let loaded = !unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null();
    if tch::Cuda::is_available() {
        return Ok(());
    }
    Err(ComputeError::Config(if loaded {
        "libtorch sees no GPU here: ask for one (`gpus_per_node = 1` in [stage.resources]), look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or set device = \"cpu\""
            .to_owned()
    } else {
        "this program's libtorch computes on the CPU only (libtorch_cuda.so cannot be loaded): build with LIBTORCH set to a libtorch 2.11 with CUDA, or put its directory into LD_LIBRARY_PATH; or set device = \"cpu\""
            .to_owned()
    }))
}

/// What computes on `device`, for the numerics record: `cpu`, or the GPU's name.
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        // The GPUs of a node are of one kind, wherever jobs are scheduled by their number.
        _ => std::fs::read_dir(DRIVEN)
            .ok()
            .and_then(|list| {
                list.flatten().find_map(|gpu| std::fs::read_to_string(gpu.path().join("information")).ok())
            })
            .and_then(|text| model(&text))
            .unwrap_or_else(|| "cuda".to_owned()),
    }
}

fn model(information: &str) -> Option<String> {
    let line = information.lines().find_map(|l| l.strip_prefix("Model:"))?;
    Some(line.trim().to_owned()).filter(|name| !name.is_empty())
}

/// What MFU is relative to on a GPU of this name; `None` where that is not known.
pub fn peak_flops(name: &str, precision: Precision) -> Option<f64> {
    if precision != Precision::Bf16 {
        return None;
    }
    BF16_PEAKS.iter().find(|(word, _)| name.contains(word)).map(|(_, peak)| *peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_peaks_are_read() {
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 200\nGPU UUID: \t GPU-0\n";
        assert_eq!(model(text).as_deref(), Some("NVIDIA H200"));
        assert_eq!(model("Model:\n"), None);
        assert_eq!(peak_flops("NVIDIA H200", Precision::Bf16), Some(989e12));
        assert_eq!(peak_flops("NVIDIA H100 PCIe", Precision::Bf16), Some(756e12));
        assert_eq!(peak_flops("NVIDIA A100-SXM4-80GB", Precision::Bf16), Some(312e12));
        assert_eq!(peak_flops("NVIDIA H200", Precision::Fp32), None);
        assert_eq!(peak_flops("another", Precision::Bf16), None);
        assert_eq!(name(Device::Cpu), "cpu");
    }

    #[test]
    fn without_cuda_it_says_what_to_type() {
        if let Err(error) = load() {
            assert_eq!(error.exit_code(), crate::record::exit::USAGE);
            assert!(error.to_string().contains("device = \"cpu\""), "{error}");
        }
    }
}
