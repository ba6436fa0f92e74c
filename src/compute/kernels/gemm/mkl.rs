//! The `sgemm` of the MKL that libtorch_cpu carries. It uses as many threads as libtorch does.

use super::matrix::{Mat, MatMut};
use super::{Accumulate, GemmError};

unsafe extern "C" {
    /// Fortran's SGEMM: column-major, everything by reference.
    fn sgemm_(
        trans_a: *const u8,
        trans_b: *const u8,
        m: *const i32,
        n: *const i32,
        k: *const i32,
        alpha: *const f32,
        a: *const f32,
        lda: *const i32,
        b: *const f32,
        ldb: *const i32,
        beta: *const f32,
        c: *mut f32,
        ldc: *const i32,
    );
}

/// C by rows.
pub(super) fn run(a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: Accumulate) -> Result<(), GemmError> {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    // By columns, C's transpose is B's times A's.
    let (trans_b, ldb) = operand(b)?;
    let (trans_a, lda) = operand(a)?;
    let beta = match how {
        Accumulate::Assign => 0f32,
        Accumulate::Add => 1f32,
    };
    let [m, n, k, ldc] = [int(m)?, int(n)?, int(k)?, int(c.row_stride.max(n))?];
    // SAFETY: the views' bounds were checked when they were made; leading dimensions are their strides.
    unsafe {
        sgemm_(
            &trans_b,
            &trans_a,
            &n,
            &m,
            &k,
            &1f32,
            b.data.as_ptr(),
            &ldb,
            a.data.as_ptr(),
            &lda,
            &beta,
            c.data.as_mut_ptr(),
            &ldc,
        );
    }
    Ok(())
}

/// As SGEMM sees a view's transpose: `N` if its rows are contiguous.
fn operand(x: Mat<'_>) -> Result<(u8, i32), GemmError> {
    if x.col_stride == 1 || x.cols <= 1 {
        Ok((b'N', int(x.row_stride.max(x.cols).max(1))?))
    } else if x.row_stride == 1 || x.rows <= 1 {
        Ok((b'T', int(x.col_stride.max(x.rows).max(1))?))
    } else {
        Err(GemmError::Strides)
    }
}

fn int(n: usize) -> Result<i32, GemmError> {
    i32::try_from(n).map_err(|_| GemmError::Large)
}
