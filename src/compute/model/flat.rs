//! Slices over the memory of contiguous fp32 tensors on the CPU. All access to raw tensor memory is here.

use tch::{Device, Kind, Tensor};

/// The elements of a contiguous fp32 tensor on the CPU.
///
/// # Panics
/// It is something else: an error of the caller, which made the tensor.
pub fn as_f32(tensor: &Tensor) -> &[f32] {
    check(tensor);
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: checked above to be numel() contiguous f32 on the CPU, alive as long as `tensor` is borrowed.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// As [`as_f32`], to be changed. Nothing else may read the same storage meanwhile.
///
/// # Panics
/// As [`as_f32`].
pub fn as_f32_mut(tensor: &mut Tensor) -> &mut [f32] {
    check(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as above; the exclusive borrow keeps other slices of this handle away.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

fn check(tensor: &Tensor) {
    assert!(
        tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous(),
        "flat access needs a contiguous fp32 tensor on the CPU"
    );
}
