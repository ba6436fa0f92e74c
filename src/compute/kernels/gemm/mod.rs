//! Products of fp32 matrices: `C = A B` or `C += A B`, of views with any strides.
//!
//! Three backends, of which a run records one: ours, the `sgemm` in libtorch's MKL, and its oneDNN. Ours gives
//! the same bits on every instruction set and with any number of threads; the others promise that only for one
//! machine and one number of threads, and read views of which one stride is 1.

mod builtin;
mod matrix;
mod mkl;
mod onednn;
mod pack;
mod packed;
mod speed;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

pub use matrix::{Mat, MatMut};
pub use pack::Scratch;
pub(super) use pack::{PANEL, pack_b};
pub use packed::Packed;
pub use speed::{Shape, gflops};
pub(super) use tile::{Start, Tile, run_tile, tile_rows};

use std::sync::Arc;

use super::{Accumulate, Isa, Pool};

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our own kernels.
    Builtin,
    /// The MKL in libtorch.
    Mkl,
    /// The oneDNN in libtorch.
    OneDnn,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Builtin, Self::Mkl, Self::OneDnn];

    /// Its name in parameters and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Mkl => "mkl",
            Self::OneDnn => "onednn",
        }
    }
}

/// Why there is no product.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GemmError {
    /// Only ours reads such a view.
    #[error("MKL and oneDNN multiply matrices with contiguous rows or columns only: use the backend `builtin`")]
    Strides,
    /// A size beyond what SGEMM takes.
    #[error("MKL's sgemm takes sizes below 2^31: use the backend `builtin`")]
    Large,
    /// What oneDNN said.
    #[error("oneDNN refused a product ({0}): use the backend `builtin`")]
    OneDnn(String),
}

/// Computes products; keeps its scratch between them, so that a shape seen before allocates nothing.
#[derive(Debug)]
pub struct Gemm {
    backend: Backend,
    isa: Isa,
    pool: Arc<Pool>,
    blocks: Vec<builtin::Blocks>,
}

impl Gemm {
    /// `pool` is used by the builtin backend; the others use libtorch's threads.
    pub fn new(backend: Backend, pool: Arc<Pool>) -> Self {
        Self::with_isa(backend, pool, Isa::best())
    }

    /// With the instructions of `isa` instead of the best, where the backend is ours.
    pub fn with_isa(backend: Backend, pool: Arc<Pool>, isa: Isa) -> Self {
        let blocks = std::iter::repeat_with(Default::default).take(pool.threads()).collect();
        Self { backend, isa, pool, blocks }
    }

    /// Who multiplies.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// `C = A B` or `C += A B`; A is [m, k], B [k, n], C [m, n]. Without k the sum is zero.
    ///
    /// # Errors
    /// The backend cannot: see [`GemmError`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn run(&mut self, a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: Accumulate) -> Result<(), GemmError> {
        // Rows of C are contiguous from here on.
        let (a, b, c) = if c.col_stride == 1 { (a, b, c) } else { (b.t(), a.t(), c.t()) };
        self.product(a, b, c, how, None)
    }

    /// `C = A B + bias`, the bias [n] added to every row of C, which are contiguous.
    ///
    /// # Errors
    /// The backend cannot: see [`GemmError`].
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn run_bias(&mut self, a: Mat<'_>, b: Mat<'_>, bias: &[f32], c: MatMut<'_>) -> Result<(), GemmError> {
        assert!(bias.len() == c.cols && c.col_stride == 1, "a bias has an element for every column");
        self.product(a, b, c, Accumulate::Assign, Some(bias))
    }

    /// `C = A B` in blocks of `width` columns, of which only one exists at a time: in `room`, rows contiguous, until `each`
    /// has seen it with the number of its first column. Our own kernels whatever the backend, on the calling thread; the
    /// bits are those of [`Self::run`].
    ///
    /// # Panics
    /// If the shapes do not fit, or `room` does not hold a block.
    pub fn by_columns(
        &mut self,
        a: Mat<'_>,
        b: Mat<'_>,
        (width, room): (usize, &mut [f32]),
        each: impl FnMut(usize, &mut [f32]),
    ) {
        assert!(a.cols == b.rows && width > 0, "the shapes of a product fit");
        assert!(room.len() >= a.rows * width.min(b.cols), "a block of columns has room");
        builtin::blocks(self.isa, &mut self.blocks[0], a, b, (width, room), each);
    }

    fn product(
        &mut self,
        a: Mat<'_>,
        b: Mat<'_>,
        c: MatMut<'_>,
        how: Accumulate,
        bias: Option<&[f32]>,
    ) -> Result<(), GemmError> {
        assert_eq!((a.rows, a.cols, b.cols), (c.rows, b.rows, c.cols), "the shapes of a product fit");
        if self.backend == Backend::Builtin || a.cols == 0 || c.rows == 0 || c.cols == 0 {
            builtin::run(self.isa, &self.pool, &mut self.blocks, a, b, c, how, bias);
            return Ok(());
        }
        let how = match bias {
            Some(bias) => {
                let cols = c.cols;
                for row in c.data.chunks_mut(c.row_stride.max(cols)).take(c.rows) {
                    row[..cols].copy_from_slice(bias);
                }
                Accumulate::Add
            }
            None => how,
        };
        match self.backend {
            Backend::OneDnn => onednn::run(a, b, c, how),
            _ => mkl::run(a, b, c, how),
        }
    }
}
