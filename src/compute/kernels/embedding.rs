//! Rows of an embedding by token id, and the gradient back into them, in the order of tokens.
//!
//! Shapes: N ids, table `[V, h]`, x and dx `[N, h]`.

/// The first id that is not a row of a table of `rows` rows.
pub fn out_of_range(ids: &[i32], rows: usize) -> Option<i32> {
    ids.iter().copied().find(|&id| usize::try_from(id).map_or(true, |id| id >= rows))
}

/// x = table[ids]. Ids were checked by [`out_of_range`].
///
/// # Panics
/// An id is out of range.
pub fn gather(table: &[f32], ids: &[i32], h: usize, x: &mut [f32]) {
    for (x, &id) in x.chunks_exact_mut(h).zip(ids) {
        x.copy_from_slice(&table[id as usize * h..][..h]);
    }
}

/// dtable[ids] += dx, token after token.
///
/// # Panics
/// An id is out of range.
pub fn scatter_add(dtable: &mut [f32], ids: &[i32], h: usize, dx: &[f32]) {
    for (dx, &id) in dx.chunks_exact(h).zip(ids) {
        for (dtable, &dx) in dtable[id as usize * h..][..h].iter_mut().zip(dx) {
            *dtable += dx;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_and_go() {
        let table = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
        let mut x = [0.0; 8];
        gather(&table, &[2, 0, 2, 1], 2, &mut x);
        assert_eq!(x, [20.0, 21.0, 0.0, 1.0, 20.0, 21.0, 10.0, 11.0]);
        let mut dtable = [0.5; 6];
        scatter_add(&mut dtable, &[2, 0, 2, 1], 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(dtable, [3.5, 4.5, 7.5, 8.5, 6.5, 8.5]);
        assert_eq!(out_of_range(&[0, 2, 1], 3), None);
        assert_eq!(out_of_range(&[0, 3, -1], 3), Some(3));
        assert_eq!(out_of_range(&[0, -1], 3), Some(-1));
    }
}
