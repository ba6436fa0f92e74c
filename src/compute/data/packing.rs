//! How documents become rows of T inputs: computed once, from lengths only.
//!
//! A *piece* is a run of one document: all of it, or T inputs of a longer one. A row is one piece and filling
//! ([`Packing::Document`]), or several pieces ([`Packing::BestFit`]). A document is cut only if it is longer
//! than a row. [`Packing::Stream`] needs no table: row i begins at token i T.

use std::collections::{BTreeMap, VecDeque};

use super::Tokens;

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// The documents, each ended by its end-of-text id, as one stream that is cut every T tokens.
    Stream,
    /// Windows of one document each, the last one filled up with ids that carry no label.
    Document,
    /// The windows of [`Self::Document`] without their filling, several in a row.
    BestFit,
}

impl Packing {
    /// Words in a study.
    pub const WORDS: &'static [&'static str] = &["stream", "document", "best_fit"];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "stream" => Some(Self::Stream),
            "document" => Some(Self::Document),
            "best_fit" => Some(Self::BestFit),
            _ => None,
        }
    }
}

/// What becomes of a document that is longer than a row, where rows are made of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Long {
    /// Its rest is in further pieces.
    #[default]
    Windows,
    /// Its first T tokens are all of it.
    Cut,
}

/// Pieces among which the best fit is sought. What a row is made of lies at most so far apart in the file, and
/// the work grows with the number of pieces only.
const WINDOW: usize = 1 << 16;

/// A run of inputs within one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its document.
    pub document: usize,
    /// Its first token, counted from the document's start.
    pub offset: u64,
}

/// The rows of a split, as lists of pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    pieces: Vec<Piece>,
    /// Where row i's pieces begin, and one more for the end. Absent: one piece a row.
    first: Option<Vec<usize>>,
}

impl Rows {
    /// One piece a row. `labelled(document)` is the first token of a document that is predicted where
    /// something comes before it; pieces that predict nothing are left out.
    pub fn of_documents(tokens: &Tokens, seq_len: usize, long: Long, labelled: impl Fn(usize) -> u64) -> Self {
        let t = seq_len as u64;
        let mut pieces = Vec::new();
        for document in 0..tokens.documents() {
            let range = tokens.document(document);
            let (len, labelled) = (range.end - range.start, labelled(document));
            let len = if long == Long::Cut { len.min(t) } else { len };
            // A piece predicts up to the token behind its inputs; the document's last token predicts nothing.
            let mut offset = 0;
            while offset + 1 < len {
                if (offset + t).min(len - 1) >= labelled {
                    pieces.push(Piece { document, offset });
                }
                offset += t;
            }
        }
        Self { pieces, first: None }
    }

    /// The same pieces, packed into rows of `seq_len` inputs: best fit, the longest first, within windows of
    /// the file; or next fit over all of it, should that need fewer rows.
    pub fn packed(self, tokens: &Tokens, seq_len: usize) -> Self {
        let len = |piece: &Piece| piece_len(tokens, piece, seq_len);
        let lens: Vec<usize> = self.pieces.iter().map(len).collect();
        let best = best_fit(&lens, seq_len, WINDOW);
        let next = next_fit(&lens, seq_len);
        let rows = if next.len() < best.len() { next } else { best };
        let mut first = Vec::with_capacity(rows.len() + 1);
        let mut pieces = Vec::with_capacity(self.pieces.len());
        for row in &rows {
            first.push(pieces.len());
            pieces.extend(row.iter().map(|&i| self.pieces[i]));
        }
        first.push(pieces.len());
        Self { pieces, first: Some(first) }
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u64 {
        self.pieces.len() as u64
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.first.as_ref().map_or(self.pieces.len(), |first| first.len() - 1) as u64
    }

    /// The pieces of row `i`; none beyond the last.
    pub fn row(&self, i: u64) -> &[Piece] {
        if i >= self.len() {
            return &[];
        }
        let i = i as usize;
        match &self.first {
            None => &self.pieces[i..i + 1],
            Some(first) => &self.pieces[first[i]..first[i + 1]],
        }
    }
}

/// Inputs of a piece.
pub fn piece_len(tokens: &Tokens, piece: &Piece, seq_len: usize) -> usize {
    let range = tokens.document(piece.document);
    // At most T, which is a usize.
    (range.end - range.start - piece.offset).min(seq_len as u64) as usize
}

/// Best fit decreasing, window after window: the longest piece goes into the fullest row of its window that
/// has room for it, the first one that became so full; equally long ones in their order. Rows are lists of
/// indices in file order, and are ordered by their first. No length is above `room`.
fn best_fit(lens: &[usize], room: usize, window: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for start in (0..lens.len()).step_by(window) {
        let mut order: Vec<usize> = (start..lens.len().min(start + window)).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lens[i]), i));
        let first = rows.len();
        // Rows of this window by what is left in them.
        let mut open: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
        for i in order {
            let (left, row) = match open.range_mut(lens[i]..).next() {
                Some((&left, fitting)) => {
                    let row = fitting.pop_front();
                    if fitting.is_empty() {
                        open.remove(&left);
                    }
                    (left, row)
                }
                None => (room, None),
            };
            let row = row.unwrap_or_else(|| {
                rows.push(Vec::new());
                rows.len() - 1
            });
            rows[row].push(i);
            open.entry(left - lens[i]).or_default().push_back(row);
        }
        rows[first..].iter_mut().for_each(|row| row.sort_unstable());
        rows[first..].sort_unstable();
    }
    rows
}

/// Piece after piece, a new row where one does not fit any more.
fn next_fit(lens: &[usize], room: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut left = 0;
    for (i, &len) in lens.iter().enumerate() {
        match rows.last_mut() {
            Some(row) if len <= left => row.push(i),
            _ => {
                rows.push(vec![i]);
                left = room;
            }
        }
        left -= len;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn best_fit_by_hand() {
        // 6 opens a row (4 left), 5 another (5 left), 4 fills the first, 3 goes to the second (2 left), 2 fills it.
        assert_eq!(best_fit(&[3, 6, 4, 2, 5], 10, 99), [vec![0, 3, 4], vec![1, 2]]);
        // The fullest row that has room, not the first: 7, 6; then 3 goes beside 7.
        assert_eq!(best_fit(&[6, 7, 3], 10, 99), [vec![0], vec![1, 2]]);
        // Windows do not mix.
        assert_eq!(best_fit(&[6, 1, 4, 9], 10, 2), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(next_fit(&[6, 4, 1, 9, 1], 10), [vec![0, 1], vec![2, 3], vec![4]]);
        assert!(best_fit(&[], 10, 2).is_empty() && next_fit(&[], 10).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn every_piece_is_in_one_row_and_fits(
            lens in prop::collection::vec(1usize..=40, 0..200), window in 1usize..220
        ) {
            let best = best_fit(&lens, 40, window);
            prop_assert!(best.iter().all(|row| row.iter().all(|i| i / window == row[0] / window)));
            for rows in [best, next_fit(&lens, 40)] {
                prop_assert!(rows.iter().all(|row| row.iter().map(|&i| lens[i]).sum::<usize>() <= 40));
                prop_assert!(rows.iter().all(|row| row.is_sorted() && !row.is_empty()) && rows.is_sorted());
                let mut all: Vec<usize> = rows.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..lens.len()).collect::<Vec<_>>());
            }
        }
    }
}
