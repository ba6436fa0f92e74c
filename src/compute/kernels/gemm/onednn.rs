//! oneDNN's matrix product as libtorch_cpu carries it, through a shim in C++ (`onednn.cpp`). It uses as many
//! threads as libtorch does.

use std::ffi::{CStr, c_char, c_int};

use super::matrix::{Mat, MatMut};
use super::{Accumulate, GemmError};

unsafe extern "C" {
    fn seedbed_onednn_matmul(
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        m: i64,
        n: i64,
        k: i64,
        a_strides: *const i64,
        b_strides: *const i64,
        c_row: i64,
        beta: f32,
        why: *mut c_char,
        why_len: usize,
    ) -> c_int;
}

/// C by rows.
pub(super) fn run(a: Mat<'_>, b: Mat<'_>, c: MatMut<'_>, how: Accumulate) -> Result<(), GemmError> {
    let (a_strides, b_strides) = (strides(a)?, strides(b)?);
    let beta = match how {
        Accumulate::Assign => 0.0,
        Accumulate::Add => 1.0,
    };
    let mut why: [c_char; 512] = [0; 512];
    // SAFETY: the views' bounds were checked when they were made; sizes fit an i64 because their products fit an
    // isize; the shim lets no exception through and ends `why` with a zero.
    let status = unsafe {
        seedbed_onednn_matmul(
            a.data.as_ptr(),
            b.data.as_ptr(),
            c.data.as_mut_ptr(),
            c.rows as i64,
            c.cols as i64,
            a.cols as i64,
            a_strides.as_ptr(),
            b_strides.as_ptr(),
            c.row_stride.max(c.cols) as i64,
            beta,
            why.as_mut_ptr(),
            why.len(),
        )
    };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim wrote a string with its zero.
    let why = unsafe { CStr::from_ptr(why.as_ptr()) }.to_string_lossy();
    Err(GemmError::OneDnn(why.lines().next().unwrap_or_default().to_owned()))
}

/// Strides that libtorch takes for dense ones: of a single row or column they are free.
fn strides(x: Mat<'_>) -> Result<[i64; 2], GemmError> {
    let (row, col) = if x.col_stride == 1 || x.cols <= 1 {
        (x.row_stride.max(x.cols), 1)
    } else if x.row_stride == 1 || x.rows <= 1 {
        (1, x.col_stride.max(x.rows))
    } else {
        return Err(GemmError::Strides);
    };
    Ok([row as i64, col as i64])
}
