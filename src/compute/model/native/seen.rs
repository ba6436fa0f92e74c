//! Which keys each query sees: masks, segments, windows and padding of a batch as one interval a query.

use std::cell::Cell;

use super::score::Branching;
use crate::compute::model::batch::{Batch, Mask};
use crate::compute::{ComputeError, Result};

/// Keys that each query sees: `first[i]..end[i]` in its row without those of its gap, `[N]`.
#[derive(Debug, Default, Clone)]
pub struct Ranges {
    pub first: Vec<u32>,
    pub end: Vec<u32>,
    /// Empty if no query has a gap.
    pub gaps: Vec<[u32; 2]>,
}

/// [`Ranges`] of a batch, without a window and with it.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    all: Ranges,
    windowed: Ranges,
    is_causal: bool,
    /// Of each block, whether its attention took a mask that is not causal.
    patched: Vec<Cell<bool>>,
}

impl Seen {
    /// Of a batch, for `blocks` blocks with and without a window of `window` positions.
    ///
    /// # Errors
    /// A segment is in two parts.
    pub fn fill(&mut self, batch: &Batch, window: Option<usize>, blocks: usize) -> Result<()> {
        self.begin(batch.mask, blocks);
        self.all.fill(batch, u32::MAX)?;
        if let Some(window) = window {
            self.windowed.fill(batch, u32::try_from(window).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    /// Of rows that branch, one behind the other in one long row, for `blocks` blocks.
    pub fn fill_branching<'r>(
        &mut self,
        rows: impl Iterator<Item = &'r Branching> + Clone,
        mask: Mask,
        window: Option<usize>,
        blocks: usize,
    ) {
        self.begin(mask, blocks);
        self.all.fill_branching(rows.clone(), mask, u32::MAX);
        if let Some(window) = window {
            self.windowed.fill_branching(rows, mask, u32::try_from(window).unwrap_or(u32::MAX));
        }
    }

    fn begin(&mut self, mask: Mask, blocks: usize) {
        self.is_causal = mask == Mask::Causal;
        self.patched.clear();
        self.patched.resize(blocks, Cell::new(false));
    }

    /// For block `number`, which now takes it.
    pub fn taken_by(&self, number: usize, window: Option<usize>) -> &Ranges {
        if let (false, Some(patched)) = (self.is_causal, self.patched.get(number)) {
            patched.set(true);
        }
        if window.is_some() { &self.windowed } else { &self.all }
    }
}

impl Seen {
    /// Attention layers that took another mask than a causal one since the last [`Self::fill`].
    pub fn patched_layers(&self) -> usize {
        self.patched.iter().filter(|patched| patched.get()).count()
    }
}

impl Ranges {
    /// Of a batch, for blocks without a window.
    ///
    /// # Errors
    /// A segment is in two parts.
    pub fn of(batch: &Batch) -> Result<Self> {
        let mut ranges = Self::default();
        ranges.fill(batch, u32::MAX)?;
        Ok(ranges)
    }

    fn fill(&mut self, batch: &Batch, window: u32) -> Result<()> {
        self.clear();
        let seq_len = batch.seq_len as u32;
        for row in 0..batch.rows {
            let at = |lens: &Option<Vec<i32>>, none: u32| {
                lens.as_ref().map_or(none, |l| u32::try_from(l[row]).unwrap_or(0).min(seq_len))
            };
            let (keys, prompt) = (at(&batch.key_lens, seq_len), at(&batch.prompt_lens, 0));
            let segments = batch.segments.as_ref().map(|s| &s[row * batch.seq_len..][..batch.seq_len]);
            let (mut begin, mut stop) = (0, 0);
            for t in 0..seq_len {
                if t == stop {
                    begin = t;
                    stop = run_end(segments, t, seq_len);
                    refuse_second_part(segments, begin)?;
                }
                let end = match batch.mask {
                    Mask::Causal => t + 1,
                    Mask::Full => seq_len,
                    Mask::Prefix => prompt.max(t + 1),
                };
                let end = end.min(stop).min(keys);
                let first = begin.max((t + 1).saturating_sub(window)).min(end);
                self.first.push(first);
                self.end.push(end);
            }
        }
        Ok(())
    }
}

impl Ranges {
    fn clear(&mut self) {
        self.first.clear();
        self.end.clear();
        self.gaps.clear();
    }

    fn fill_branching<'r>(&mut self, rows: impl Iterator<Item = &'r Branching>, mask: Mask, window: u32) {
        self.clear();
        let mut start = 0;
        for row in rows {
            // A row has far fewer than 2^32 tokens.
            let (trunk, prompt) = (row.trunk.len() as u32, row.prompt as u32);
            for t in 0..trunk {
                let end = match mask {
                    Mask::Causal => t + 1,
                    Mask::Full => trunk,
                    Mask::Prefix => prompt.max(t + 1),
                };
                self.push(start + (t + 1).saturating_sub(window), start + end, [0, 0]);
            }
            let mut begin = start + trunk;
            for branch in &row.branches {
                for t in 0..branch.len() as u32 {
                    // What is behind the window, counted from the row's beginning; first of the trunk, then of the branch.
                    let hidden = (trunk + t + 1).saturating_sub(window);
                    let end = begin + t + 1;
                    if hidden < trunk {
                        self.push(start + hidden, end, [start + trunk, begin]);
                    } else {
                        self.push(begin + (hidden - trunk), end, [0, 0]);
                    }
                }
                begin += branch.len() as u32;
            }
            start = begin;
        }
    }

    fn push(&mut self, first: u32, end: u32, gap: [u32; 2]) {
        self.first.push(first);
        self.end.push(end);
        self.gaps.push(gap);
    }
}

/// Where the run of equal segments that begins at `t` ends.
fn run_end(segments: Option<&[i32]>, t: u32, seq_len: u32) -> u32 {
    let Some(segments) = segments else { return seq_len };
    let own = segments[t as usize];
    segments[t as usize..].iter().position(|&s| s != own).map_or(seq_len, |n| t + n as u32)
}

fn refuse_second_part(segments: Option<&[i32]>, begin: u32) -> Result<()> {
    let Some(segments) = segments else { return Ok(()) };
    let own = segments[begin as usize];
    if segments[..begin as usize].contains(&own) {
        return Err(ComputeError::Failed(format!(
            "segment {own} of a row is in two parts: tokens of a segment must follow each other"
        )));
    }
    Ok(())
}
