//! The arithmetic of training on a CPU, over plain slices: matrix products, attention, and the element-wise and
//! row-wise parts between them.
//!
//! A kernel is chosen by instruction set at run time, by an [`Isa`]. Every kernel fixes its order of additions
//! and uses fused multiply-adds in the same places whatever the instruction set, so the bits of a result depend
//! on its shapes and inputs only: not on the processor, on alignment, or on the number of threads. Nothing here
//! allocates once its scratch has grown to a shape; nothing here knows models, tensors or ranks.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gemm;
pub mod math;
pub mod memory;
pub mod norm;
pub mod residual;
pub mod rotary;

mod isa;
mod pool;
mod sums;
#[cfg(test)]
mod testing;

pub(crate) use isa::for_each_isa;
pub use isa::{Isa, Level};
pub use pool::Pool;

/// What happens to what a result's memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// It is overwritten.
    Assign,
    /// The result is added to it.
    Add,
}
