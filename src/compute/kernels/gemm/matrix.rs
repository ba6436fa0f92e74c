//! Views of matrices in slices, with any strides.

/// A matrix that is read: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A view with strides.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, col_stride) <= data.len(), "a matrix view is larger than its data");
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// `rows` contiguous rows of `cols`.
    ///
    /// # Panics
    /// If `data` is shorter than that.
    pub fn rows(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// Its transpose, in place.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The address of an element.
    pub(in crate::compute::kernels) fn address(self, i: usize, j: usize) -> *const f32 {
        debug_assert!(i < self.rows && j < self.cols);
        self.data[i * self.row_stride + j * self.col_stride..].as_ptr()
    }

    /// Rows `first..first + rows`, all columns.
    pub(super) fn row_range(self, first: usize, rows: usize) -> Self {
        debug_assert!(first + rows <= self.rows);
        let skip = if rows == 0 || self.cols == 0 { 0 } else { first * self.row_stride };
        Self { data: &self.data[skip..], rows, ..self }
    }

    /// Columns `first..first + cols`, all rows.
    pub(super) fn col_range(self, first: usize, cols: usize) -> Self {
        self.t().row_range(first, cols).t()
    }
}

/// A matrix that is written. One of its strides is 1, and its elements do not overlap.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub row_stride: usize,
    /// Elements from a column to the next.
    pub col_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A view with strides, of which one is 1 and the other at least the length of a row or column.
    ///
    /// # Panics
    /// If that does not hold, or an element lies outside `data`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        assert!(extent(rows, cols, row_stride, col_stride) <= data.len(), "a matrix view is larger than its data");
        let by_rows = col_stride == 1 && (row_stride >= cols || rows <= 1);
        let by_cols = row_stride == 1 && (col_stride >= rows || cols <= 1);
        assert!(by_rows || by_cols, "a result's rows or columns must be contiguous and apart");
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// `rows` contiguous rows of `cols`.
    ///
    /// # Panics
    /// If `data` is shorter than that.
    pub fn rows(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols.max(1), 1)
    }

    /// Its transpose, in place.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Elements that a view spans.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}
