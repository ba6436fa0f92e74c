//! Losses of rows that begin alike: what several rows share is computed once.
//!
//! Under a causal mask a position depends on the ids up to it and on nothing else, so rows are a tree of ids, and every
//! node is computed once: a trigger before many texts, or the part of it that candidates have in common. What the first
//! block makes of a token before it attends depends on its id alone, and is computed once an id. Products and norms go
//! over nodes; only attention sees whole rows, a few at a time, and those stay in the cache.
//!
//! Promises: the bits of a loss are those that its row has alone, with the builtin products (`kernels::gemm`), because
//! there the bits of a row do not depend on its company.

use std::collections::HashMap;

use super::NativePasses;
use super::block::{Block, Engines, Grain, norm_forward};
use super::inputs::{Scores, check_unweighted, scores};
use super::maps::Maps;
use super::memory::{Kept, Scratch, bytes_of};
use crate::compute::Result;
use crate::compute::kernels::dropout::Site;
use crate::compute::kernels::embedding;
use crate::compute::kernels::memory::Floats;
use crate::compute::model::batch::{Batch, Mask};

/// Floats of queries, keys and values that are laid out in rows at a time: half of a small second-level cache.
const ROWS_FLOATS: usize = 1 << 17;

/// Rows as a tree of ids.
#[derive(Debug, Default)]
struct Tree {
    /// Id and position of every node.
    ids: Vec<i32>,
    positions: Vec<u32>,
    /// Node of every place, `[B, T]`; and the first place of every node.
    node: Vec<u32>,
    first: Vec<u32>,
    /// Different ids, and which of them every node has.
    words: Vec<i32>,
    word: Vec<u32>,
}

impl Tree {
    /// The tree of a batch; where something other than the ids before it decides what a position sees, every place is a
    /// node of its own.
    fn fill(&mut self, batch: &Batch, positions: &[u32]) {
        let plain = batch.mask == Mask::Causal
            && batch.positions.is_none()
            && batch.segments.is_none()
            && batch.key_lens.is_none()
            && batch.prompt_lens.is_none();
        self.ids.clear();
        self.positions.clear();
        self.node.clear();
        self.first.clear();
        // A batch has far fewer than 2^32 positions.
        let mut children: HashMap<(u32, i32), u32> = HashMap::new();
        for row in 0..batch.rows {
            let mut parent = u32::MAX;
            for place in row * batch.seq_len..(row + 1) * batch.seq_len {
                let (id, fresh) = (batch.ids[place], self.ids.len() as u32);
                let node = if plain { *children.entry((parent, id)).or_insert(fresh) } else { fresh };
                if node == fresh {
                    self.ids.push(id);
                    self.positions.push(positions[place]);
                    self.first.push(place as u32);
                }
                self.node.push(node);
                parent = node;
            }
        }
        self.words.clear();
        self.word.clear();
        let mut known: HashMap<i32, u32> = HashMap::new();
        for &id in &self.ids {
            let fresh = self.words.len() as u32;
            let word = *known.entry(id).or_insert(fresh);
            if word == fresh {
                self.words.push(id);
            }
            self.word.push(word);
        }
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    /// Bytes held.
    fn bytes(&self) -> usize {
        let Self { ids, positions, node, first, words, word } = self;
        4 * (ids.len() + words.len() + positions.len() + node.len() + first.len() + word.len())
    }
}

/// Memory of these passes: of one block, and of one chunk of rows.
#[derive(Debug, Default)]
pub struct Room {
    tree: Tree,
    /// The stream before and after a block, by node.
    x: Floats,
    y: Floats,
    kept: Kept,
    scratch: Scratch,
    /// The stream at the start, and what the first block makes of it, by id.
    words: Floats,
    kept_words: Kept,
    scratch_words: Scratch,
    /// Queries, keys and values of some rows, and what attention gives.
    rows: Floats,
    attended: Floats,
    lse: Floats,
    mean: Floats,
    rstd: Floats,
}

impl Room {
    fn fit(&mut self, maps: &Maps, rows: usize, seq_len: usize, scored: usize) {
        let (nodes, words, h) = (self.tree.len(), self.tree.words.len(), maps.hidden);
        fit_block(&mut self.kept, &mut self.scratch, maps, nodes);
        fit_block(&mut self.kept_words, &mut self.scratch_words, maps, words);
        for (floats, len) in [(&mut self.x, nodes * h), (&mut self.y, nodes * h), (&mut self.words, words * h)] {
            floats.resize(len);
        }
        let (layout, places) = (&maps.heads.layout, rows * seq_len);
        self.rows.resize(places * layout.row);
        self.attended.resize(places * layout.out_row());
        self.lse.resize(places * layout.queries);
        self.mean.resize(nodes);
        self.rstd.resize(nodes);
        let chunk = scored.min(maps.rows_of_logits());
        self.scratch.logits.resize(chunk * maps.vocab);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let blocks = self.kept.bytes() + self.scratch.bytes() + self.kept_words.bytes() + self.scratch_words.bytes();
        let own = [&self.x, &self.y, &self.words, &self.rows, &self.attended, &self.lse, &self.mean, &self.rstd];
        self.tree.bytes() + blocks + bytes_of(own)
    }
}

/// Room for one block of `n` positions, forward.
pub fn fit_block(k: &mut Kept, s: &mut Scratch, maps: &Maps, n: usize) {
    let h = maps.hidden;
    for statistic in [&mut k.mean1, &mut k.rstd1, &mut k.mean2, &mut k.rstd2] {
        statistic.resize(n);
    }
    for stream in [&mut k.norm1, &mut k.norm2, &mut s.branch] {
        stream.resize(n * h);
    }
    k.qkv.resize(n * maps.heads.layout.row);
    k.attended.resize(n * maps.heads.layout.out_row());
    k.middle.resize(if maps.parallel_residual { 0 } else { n * h });
    k.up.resize(n * maps.up_width());
    k.active.resize(n * maps.intermediate);
    s.bias.resize(2 * maps.heads.layout.row.max(maps.up_width()).max(h));
}

impl NativePasses {
    /// NLL of every position with a label, in order, nats. Logits are made for those positions only, and what rows begin
    /// with alike is computed once.
    ///
    /// # Errors
    /// An id is out of range, the batch is longer than the context, or it has loss weights.
    pub fn nll(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        check_unweighted(batch)?;
        self.look(batch)?;
        (0..self.maps.head_group() + 1).for_each(|group| self.weights.prepare(group));
        let Self { maps, weights, engines, table, positions, seen, prefixes: room, .. } = self;
        room.tree.fill(batch, positions);
        let labelled: Vec<(usize, i32)> = batch
            .targets
            .iter()
            .enumerate()
            .filter(|(_, target)| **target >= 0)
            .map(|(place, target)| (room.tree.node[place] as usize, *target))
            .collect();
        let (t, h) = (batch.seq_len, maps.hidden);
        let at_a_time = (ROWS_FLOATS / (t * maps.heads.layout.row).max(1)).clamp(1, batch.rows.max(1));
        room.fit(maps, at_a_time, t, labelled.len());
        let Room { tree, x, y, kept, scratch, words, kept_words, scratch_words, rows, attended, lse, mean, rstd } =
            room;
        let grain =
            Grain { maps, table, positions: &tree.positions, rows: batch.rows, seq_len: t, seen, dropout: None };

        let embedding = &weights.group(0).weights[maps.embedding.clone()];
        embedding::gather(embedding, &tree.words, h, words);
        spread(words, &tree.word, h, x);
        for (number, at) in maps.blocks.iter().enumerate() {
            let block = Block { number, at, group: weights.group(number + 1) };
            let gemm = &mut engines.gemm;
            if number == 0 {
                block.norm(maps, &at.norm1, words, &mut kept_words.norm1, &mut kept_words.mean1, &mut kept_words.rstd1);
                at.qkv.forward(gemm, block.group.weights, &kept_words.norm1, &mut kept_words.qkv)?;
                spread(&kept_words.qkv, &tree.word, maps.heads.layout.row, &mut kept.qkv);
                block.turn(&grain, &mut kept.qkv, scratch);
            } else {
                block.project(gemm, &grain, x, kept, scratch)?;
            }
            attend(engines, &grain, &block, tree, at_a_time, (rows, attended, lse), kept);
            let gemm = &mut engines.gemm;
            if maps.parallel_residual {
                block.add_attended(gemm, &grain, x, kept, scratch, y)?;
                if number == 0 {
                    block.norm(
                        maps,
                        &at.norm2,
                        words,
                        &mut kept_words.norm2,
                        &mut kept_words.mean2,
                        &mut kept_words.rstd2,
                    );
                    block.feed(gemm, &grain, kept_words, scratch_words)?;
                    spread(&scratch_words.branch, &tree.word, h, &mut scratch.branch);
                } else {
                    block.norm(maps, &at.norm2, x, &mut kept.norm2, &mut kept.mean2, &mut kept.rstd2);
                    block.feed(gemm, &grain, kept, scratch)?;
                }
                block.add_branch(&grain, &at.down, Site::Mlp, None, scratch, y);
            } else {
                let mut middle = std::mem::take(&mut kept.middle);
                block.add_attended(gemm, &grain, x, kept, scratch, &mut middle)?;
                block.norm(maps, &at.norm2, &middle, &mut kept.norm2, &mut kept.mean2, &mut kept.rstd2);
                block.feed(gemm, &grain, kept, scratch)?;
                block.add_branch(&grain, &at.down, Site::Mlp, Some(&middle), scratch, y);
                kept.middle = middle;
            }
            std::mem::swap(x, y);
        }
        let head = weights.head(maps).0;
        // The memory of a block's norm serves for the last one.
        let norm = &mut kept.norm1;
        norm_forward(maps, &maps.last_norm, head.norm, x, norm, (&mut mean[..], &mut rstd[..]));
        // The stream before the last block is not read again.
        y.resize(labelled.len().min(maps.rows_of_logits()) * h);
        let room = Scores { rows: y, logits: &mut scratch.logits };
        scores(&mut engines.gemm, maps, head.out, norm, &labelled, room, None)
    }
}

/// to[i] = from[which[i]], rows of `width`.
fn spread(from: &[f32], which: &[u32], width: usize, to: &mut [f32]) {
    for (to, &i) in to.chunks_exact_mut(width).zip(which) {
        to.copy_from_slice(&from[i as usize * width..][..width]);
    }
}

/// Attention of whole rows, `at_a_time` of them; what it gives each node is taken from the node's first place.
fn attend(
    engines: &mut Engines,
    grain: &Grain<'_>,
    block: &Block<'_>,
    tree: &Tree,
    at_a_time: usize,
    (rows, attended, lse): (&mut Floats, &mut Floats, &mut Floats),
    kept: &mut Kept,
) {
    let (t, layout) = (grain.seq_len, grain.maps.heads.layout);
    let width = layout.out_row();
    for first in (0..grain.rows).step_by(at_a_time) {
        let last = (first + at_a_time).min(grain.rows);
        let places = first * t..last * t;
        let n = places.len();
        spread(&kept.qkv, &tree.node[places.clone()], layout.row, &mut rows[..n * layout.row]);
        let (out, lse) = (&mut attended[..n * width], &mut lse[..n * layout.queries]);
        engines.attention.forward(
            grain.heads_of(block.number, block.at, first..last),
            &rows[..n * layout.row],
            out,
            lse,
        );
        for (place, out) in places.zip(out.chunks_exact(width)) {
            let node = tree.node[place] as usize;
            if tree.first[node] as usize == place {
                kept.attended[node * width..][..width].copy_from_slice(out);
            }
        }
    }
}
