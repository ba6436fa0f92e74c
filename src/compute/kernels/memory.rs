//! Aligned memory for kernels: rows that begin at cache lines are read and written fastest.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of f32 that begins at a multiple of 64 bytes.
#[derive(Debug, Clone, Default)]
pub struct Floats {
    lines: Vec<Line>,
    len: usize,
}

impl Floats {
    /// Makes it `len` long. What it held is kept as far as it fits, what is new is zero; memory once taken is not
    /// given back.
    pub fn resize(&mut self, len: usize) {
        self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
        self.len = len;
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen floats without padding, and there are enough for `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the exclusive borrow keeps other slices away.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_has_the_length_asked_for() {
        let mut floats = Floats::default();
        assert!(floats.is_empty());
        for len in [1, 16, 17, 1000, 5] {
            floats.resize(len);
            floats[len - 1] = len as f32;
            assert_eq!((floats.len(), floats[len - 1]), (len, len as f32));
            assert_eq!(floats.as_ptr().align_offset(64), 0);
        }
    }
}
