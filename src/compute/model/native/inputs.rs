//! Losses position by position, and their gradient by the input embeddings: what attacks ask of the passes.
//!
//! No gradient by a parameter is made: the products by weights, about a third of a backward pass, are left out. What a pass
//! leaves is held: if the next one has the same rows but for their ends (a flip changes a row from its position on), the
//! forward pass computes those ends only, and the head only what they or new targets change. The backward pass is whole:
//! a change is felt by everything before it.
//!
//! Promises: the bits are those of a whole pass, with the builtin products (`kernels::gemm`), because there the bits of
//! a row do not depend on its company.

use super::block::{Block, Grain, norm_forward, norm_gradient};
use super::maps::{Gradient, Maps};
use super::memory::{Kept, Memory, Scratch, bytes_of};
use super::prefixes::fit_block;
use super::{Activations, NativePasses};
use crate::compute::kernels::cross_entropy::{self, Backward};
use crate::compute::kernels::dropout::Site;
use crate::compute::kernels::embedding;
use crate::compute::kernels::gemm::{Gemm, Mat, MatMut};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Accumulate, Isa};
use crate::compute::model::batch::{Batch, Mask};
use crate::compute::model::passes::NoHooks;
use crate::compute::{ComputeError, Result};

/// What the last pass with an input gradient left, besides the activations in [`Memory`].
#[derive(Debug, Default)]
pub struct Held {
    /// Its batch; none if the memory holds something else by now.
    batch: Option<Batch>,
    /// NLL of every place, 0 where nothing is scored, and its gradient by what the last norm gave, `[N, h]`.
    nll: Vec<f64>,
    dnorm: Floats,
    /// The ends of rows: positions, streams before and after a block, and a block's memory.
    positions: Vec<u32>,
    x: Floats,
    y: Floats,
    kept: Kept,
    scratch: Scratch,
}

impl Held {
    /// The memory is about to hold something else.
    pub fn forget(&mut self) {
        self.batch = None;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let ids = self.batch.as_ref().map_or(0, |b| b.ids.len() + b.targets.len());
        let own = bytes_of([&self.dnorm, &self.x, &self.y]) + 8 * self.nll.len() + 4 * (self.positions.len() + ids);
        self.kept.bytes() + self.scratch.bytes() + own
    }

    /// The first place of each row from which on its ids differ from those of the last pass; none if nothing of that can
    /// be used.
    fn ends(&self, batch: &Batch) -> Option<Vec<usize>> {
        let plain = |b: &Batch| {
            b.mask == Mask::Causal
                && b.positions.is_none()
                && b.segments.is_none()
                && b.key_lens.is_none()
                && b.prompt_lens.is_none()
        };
        let last = self.batch.as_ref()?;
        if (last.rows, last.seq_len) != (batch.rows, batch.seq_len) || !plain(last) || !plain(batch) {
            return None;
        }
        let rows = batch.ids.chunks(batch.seq_len.max(1)).zip(last.ids.chunks(batch.seq_len.max(1))).enumerate();
        let first = |(b, (now, before)): (usize, (&[i32], &[i32]))| {
            let same = now.iter().zip(before).take_while(|(a, b)| a == b).count();
            b * batch.seq_len + same
        };
        Some(rows.map(first).collect())
    }
}

impl NativePasses {
    /// NLL of every position with a label, in order, nats; and the gradient of their sum by the input embeddings,
    /// `[B, T, h]`, which is overwritten by the next pass.
    ///
    /// # Errors
    /// An id is out of range, the batch is longer than the context, or it has loss weights.
    pub fn input_gradient(&mut self, batch: &Batch) -> Result<(Vec<f64>, &[f32])> {
        check_unweighted(batch)?;
        let ends = self.held.ends(batch).filter(|_| self.options.activations == Activations::Keep);
        let before = self.held.batch.take();
        match &ends {
            Some(ends) => {
                self.look(batch)?;
                self.forward_ends(batch, ends)?;
            }
            None => {
                self.begin(batch, self.options.activations)?;
                self.forward(batch, None, &mut NoHooks)?;
            }
        }
        let Self { maps, weights, engines, memory, table, positions, seen, held, .. } = self;
        let grain = Grain { maps, table, positions, rows: batch.rows, seq_len: batch.seq_len, seen, dropout: None };
        let h = maps.hidden;
        let mut room = vec![0.0; 2 * h];
        let mut unwanted = Gradient::unwanted(&mut room);
        let head = weights.head(maps).0;
        let Memory { streams, kept, mean, rstd, norm, dstream, scratch, .. } = &mut *memory;
        let last = &streams[maps.blocks.len()];
        norm_forward(maps, &maps.last_norm, head.norm, last, norm, (&mut mean[..], &mut rstd[..]));

        // What the head must say anew: behind a changed id, and where the target is another.
        let t = batch.seq_len;
        let changed = |place: usize| match (&ends, &before) {
            (Some(ends), Some(before)) => place >= ends[place / t] || before.targets[place] != batch.targets[place],
            _ => true,
        };
        held.nll.resize(batch.targets.len(), 0.0);
        held.dnorm.resize(batch.targets.len() * h);
        let mut labelled: Vec<(usize, i32)> = Vec::new();
        for (place, &target) in batch.targets.iter().enumerate().filter(|(place, _)| changed(*place)) {
            if target >= 0 {
                labelled.push((place, target));
            } else {
                held.nll[place] = 0.0;
                held.dnorm[place * h..][..h].fill(0.0);
            }
        }
        let room = Scores { rows: &mut scratch.branch, logits: &mut scratch.logits };
        let back = Some((&mut *dstream, &mut held.dnorm));
        let found = scores(&mut engines.gemm, maps, head.out, norm, &labelled, room, back)?;
        labelled.iter().zip(found).for_each(|(&(place, _), nll)| held.nll[place] = nll);
        dstream.fill(0.0);
        let (statistics, row) = ((&mean[..], &rstd[..]), &mut scratch.row);
        norm_gradient(maps, &maps.last_norm, head.norm, last, statistics, &held.dnorm, dstream, &mut unwanted, row);

        for (number, at) in maps.blocks.iter().enumerate().rev() {
            let block = Block { number, at, group: weights.group(number + 1) };
            let n = kept.len();
            let kept = &mut kept[number % n];
            let (before, after) = streams.split_at_mut(number + 1);
            if self.options.activations == Activations::Recompute && number + 1 < maps.blocks.len() {
                block.forward(engines, &grain, &before[number], kept, scratch, &mut after[0])?;
            }
            block.backward(engines, &grain, &before[number], kept, scratch, dstream, &mut unwanted)?;
        }
        held.batch = Some(batch.clone());
        let scored = held.nll.iter().zip(&batch.targets).filter(|(_, target)| **target >= 0);
        Ok((scored.map(|(nll, _)| *nll).collect(), &memory.dstream))
    }

    /// The forward pass of rows from `ends` on; before them the memory holds what they need.
    fn forward_ends(&mut self, batch: &Batch, ends: &[usize]) -> Result<()> {
        let Self { maps, weights, engines, memory, table, positions, seen, held, .. } = self;
        let t = batch.seq_len;
        let ranges: Vec<std::ops::Range<usize>> =
            ends.iter().enumerate().map(|(b, &first)| first..(b + 1) * t).filter(|r| !r.is_empty()).collect();
        let places = || ranges.iter().cloned().flatten();
        let ids: Vec<i32> = places().map(|place| batch.ids[place]).collect();
        let Held { positions: own, x, y, kept: k, scratch: s, .. } = held;
        own.clear();
        own.extend(places().map(|place| positions[place]));
        let (n, h, layout) = (ids.len(), maps.hidden, maps.heads.layout);
        fit_block(k, s, maps, n);
        x.resize(n * h);
        y.resize(n * h);
        let grain = Grain { maps, table, positions: own, rows: batch.rows, seq_len: t, seen, dropout: None };
        embedding::gather(&weights.group(0).weights[maps.embedding.clone()], &ids, h, x);
        scatter(x, &ranges, h, &mut memory.streams[0]);
        for (number, at) in maps.blocks.iter().enumerate() {
            let block = Block { number, at, group: weights.group(number + 1) };
            let all = &mut memory.kept[number];
            block.project(&mut engines.gemm, &grain, x, k, s)?;
            scatter(&k.qkv, &ranges, layout.row, &mut all.qkv);
            // All queries: those before the ends find the same again.
            let heads = grain.heads_of(number, at, 0..batch.rows);
            engines.attention.forward(heads, &all.qkv, &mut all.attended, &mut all.lse);
            gather(&all.attended, &ranges, layout.out_row(), &mut k.attended);
            let gemm = &mut engines.gemm;
            if maps.parallel_residual {
                block.add_attended(gemm, &grain, x, k, s, y)?;
                block.norm(maps, &at.norm2, x, &mut k.norm2, &mut k.mean2, &mut k.rstd2);
                block.feed(gemm, &grain, k, s)?;
                block.add_branch(&grain, &at.down, Site::Mlp, None, s, y);
            } else {
                let mut middle = std::mem::take(&mut k.middle);
                block.add_attended(gemm, &grain, x, k, s, &mut middle)?;
                block.norm(maps, &at.norm2, &middle, &mut k.norm2, &mut k.mean2, &mut k.rstd2);
                block.feed(gemm, &grain, k, s)?;
                block.add_branch(&grain, &at.down, Site::Mlp, Some(&middle), s, y);
                scatter(&middle, &ranges, h, &mut all.middle);
                k.middle = middle;
            }
            // What the backward pass reads: the results of norms and the activation serve gradients by weights only.
            scatter(&k.up, &ranges, maps.up_width(), &mut all.up);
            for (from, to) in [
                (&k.mean1, &mut all.mean1),
                (&k.rstd1, &mut all.rstd1),
                (&k.mean2, &mut all.mean2),
                (&k.rstd2, &mut all.rstd2),
            ] {
                scatter(from, &ranges, 1, to);
            }
            scatter(y, &ranges, h, &mut memory.streams[number + 1]);
            std::mem::swap(x, y);
        }
        Ok(())
    }
}

/// Losses position by position are as they are: a batch whose losses are to count unequally is refused.
pub fn check_unweighted(batch: &Batch) -> Result<()> {
    match batch.loss_weights {
        None => Ok(()),
        Some(_) => Err(ComputeError::Failed(
            "loss weights were given where losses are told position by position, without weights: report this"
                .to_owned(),
        )),
    }
}

/// Rows of `width` that follow each other go to the places of `ranges`.
fn scatter(from: &[f32], ranges: &[std::ops::Range<usize>], width: usize, to: &mut [f32]) {
    let mut at = 0;
    for range in ranges {
        let len = range.len() * width;
        to[range.start * width..][..len].copy_from_slice(&from[at..at + len]);
        at += len;
    }
}

/// Rows of `width` at the places of `ranges`, one after the other.
fn gather(from: &[f32], ranges: &[std::ops::Range<usize>], width: usize, to: &mut [f32]) {
    let mut at = 0;
    for range in ranges {
        let len = range.len() * width;
        to[at..at + len].copy_from_slice(&from[range.start * width..][..len]);
        at += len;
    }
}

/// Room for [`scores`]: rows `[n, h]` and logits `[n, V]` of at least [`Maps::rows_of_logits`] of them, or of all.
pub struct Scores<'a> {
    pub rows: &'a mut Floats,
    pub logits: &'a mut Floats,
}

/// NLL of the targets at rows of `norm` `[N, h]`, nats: only the logits of these rows are made, some at a time. With
/// `back`, a room `[n, h]` and a gradient `[N, h]`, the gradient of their sum by those rows is written into the latter.
///
/// # Errors
/// The GEMM backend refuses.
pub fn scores(
    gemm: &mut Gemm,
    maps: &Maps,
    out: &[f32],
    norm: &[f32],
    labelled: &[(usize, i32)],
    room: Scores<'_>,
    mut back: Option<(&mut Floats, &mut Floats)>,
) -> Result<Vec<f64>> {
    let (h, vocab) = (maps.hidden, maps.vocab);
    let out = Mat::rows(out, vocab, h);
    let mut nll = Vec::with_capacity(labelled.len());
    for chunk in labelled.chunks(maps.rows_of_logits()) {
        let n = chunk.len();
        let rows = &mut room.rows[..n * h];
        for (row, &(i, _)) in rows.chunks_exact_mut(h).zip(chunk) {
            row.copy_from_slice(&norm[i * h..][..h]);
        }
        let logits = &mut room.logits[..n * vocab];
        gemm.run(Mat::rows(rows, n, h), out.t(), MatMut::rows(logits, n, vocab), Accumulate::Assign)?;
        let how = if back.is_some() { Backward::Yes } else { Backward::No };
        for (logits, &(_, target)) in logits.chunks_exact_mut(vocab).zip(chunk) {
            nll.push(cross_entropy::nll(Isa::best(), vocab, logits, &[target], None, how));
        }
        if let Some((drows, dnorm)) = &mut back {
            let drows = &mut drows[..n * h];
            gemm.run(Mat::rows(logits, n, vocab), out, MatMut::rows(drows, n, h), Accumulate::Assign)?;
            for (drow, &(i, _)) in drows.chunks_exact(h).zip(chunk) {
                dnorm[i * h..][..h].copy_from_slice(drow);
            }
        }
    }
    Ok(nll)
}
