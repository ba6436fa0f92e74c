//! Forward passes for scoring: negative log-likelihoods of chosen tokens in rows that branch.
//!
//! A row is a trunk and branches, each of which sees the trunk and itself: several continuations of one context are
//! computed with one copy of the context. Rows lie one behind the other without padding. Behind the last attention only
//! positions that are asked go on, and of their logits only a block of the vocabulary exists at a time.
//!
//! Promises: the bits of a number depend on the weights, on what its position sees and on the target only. Which rows
//! are computed together, in how many passes, by how many threads, and whether a continuation is a branch or a row of its
//! own changes none. Nothing is kept for a backward pass.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::block::{Block, Engines, Grain, norm_forward};
use super::head::Head;
use super::maps::{Group, Maps};
use super::memory::{Kept, Scratch};
use super::seen::Seen;
use super::{Weights, table};
use crate::compute::kernels::attention::Attention;
use crate::compute::kernels::gemm::{Backend, Gemm, Mat};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Isa, Pool, cross_entropy, embedding, rotary};
use crate::compute::model::{Mask, Net};
use crate::compute::{ComputeError, Result};

/// Columns of the vocabulary whose logits exist together: part of what the bits are.
const COLUMNS: usize = 512;

/// Positions whose logits exist together: each time all of the output matrix is read.
const HEAD_ROWS: usize = 512;

/// A row of tokens that branches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Branching {
    /// What all branches see, at positions from 0.
    pub trunk: Vec<u32>,
    /// What follows the trunk, each at once: branches do not see each other. Under [`Mask::Full`] there are none.
    pub branches: Vec<Vec<u32>>,
    /// Tokens of the trunk that see each other in both directions, under [`Mask::Prefix`].
    pub prompt: usize,
    /// What is asked of it.
    pub asks: Vec<Ask>,
}

/// A token at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Counted through trunk and branches: the place that predicts.
    pub place: usize,
    /// The token whose negative log-likelihood is asked.
    pub target: u32,
}

impl Branching {
    /// Tokens of trunk and branches.
    pub fn tokens(&self) -> usize {
        self.trunk.len() + self.branches.iter().map(Vec::len).sum::<usize>()
    }

    /// The longest sequence in it.
    fn longest(&self) -> usize {
        self.trunk.len() + self.branches.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// How much is computed at once: speed and memory only.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of a pass, at least 1.
    pub rows: usize,
    /// Tokens of a pass, unless one row alone has more.
    pub tokens: usize,
    /// Threads, each with passes of its own.
    pub threads: usize,
}

/// What [`Scorer::nll`] finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Of every row, of each of its asks, nats.
    pub nll: Vec<Vec<f64>>,
    /// The fewest layers that took another mask than a causal one in a pass; none without a pass.
    pub patched_layers: Option<usize>,
}

/// The decoder of a net whose weights are fp32 in memory.
#[derive(Debug)]
pub struct Scorer {
    maps: Maps,
    weights: Weights,
}

impl Scorer {
    /// Of `net`, whose memory it shares; none if the weights are elsewhere, of another type, or under an adapter.
    ///
    /// # Errors
    /// The layout is not this configuration's.
    pub fn of(net: &Net) -> Result<Option<Self>> {
        let Some((config, layout, flats, signs)) = net.plain() else { return Ok(None) };
        let mut weights = Weights::of(layout, flats, signs);
        (0..layout.groups.len()).for_each(|group| weights.prepare(group));
        Ok(Some(Self { maps: Maps::new(config, layout)?, weights }))
    }

    /// For every row the negative log-likelihood of each of its asks, nats.
    ///
    /// # Errors
    /// A token is not in the vocabulary, a row is longer than the model's context, or branches stand under a mask that
    /// allows none.
    pub fn nll(&self, rows: &[Branching], mask: Mask, limits: Limits) -> Result<Answers> {
        rows.iter().try_for_each(|row| self.check(row, mask))?;
        let longest = rows.iter().map(Branching::longest).max().unwrap_or(0);
        let table = table(&self.maps, longest);
        let model = self.shared(&table, mask);
        let passes = passes(rows, limits);
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Pass>> {
            let mut worker = Worker::new();
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(pass) = passes.get(number) else { return Ok(done) };
                let nll = worker.pass(&model, &rows[pass.clone()])?;
                done.push(Pass { number, nll, patched_layers: worker.seen.patched_layers() });
            }
        };
        let threads = limits.threads.clamp(1, passes.len().max(1));
        let parts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            std::iter::once(own).chain(others.collect::<Vec<_>>()).collect::<Result<Vec<_>>>()
        })?;
        let mut found: Vec<Pass> = parts.into_iter().flatten().collect();
        found.sort_by_key(|pass| pass.number);
        let patched_layers = found.iter().map(|pass| pass.patched_layers).min();
        Ok(Answers { nll: found.into_iter().flat_map(|pass| pass.nll).collect(), patched_layers })
    }

    fn shared<'a>(&'a self, table: &'a rotary::Table, mask: Mask) -> Shared<'a> {
        let groups = (0..=self.maps.head_group()).map(|g| self.weights.group(g)).collect();
        Shared { maps: &self.maps, table, groups, head: self.weights.head(&self.maps).0, mask }
    }

    /// What kernels rely on.
    fn check(&self, row: &Branching, mask: Mask) -> Result<()> {
        let (context, vocab) = (self.maps.context, self.maps.vocab);
        if row.longest() > context {
            return Err(ComputeError::Config(format!(
                "an input of {} positions is longer than the model's context of {context}: shorten it",
                row.longest()
            )));
        }
        let ids = row.trunk.iter().chain(row.branches.iter().flatten()).copied();
        if let Some(id) = ids.chain(row.asks.iter().map(|a| a.target)).find(|&id| id as usize >= vocab) {
            return Err(ComputeError::Config(format!(
                "token id {id} is outside the vocabulary of {vocab}: use the tokenizer of this model"
            )));
        }
        let fits = row.asks.iter().all(|a| a.place < row.tokens())
            && row.prompt <= row.trunk.len()
            && (mask != Mask::Full || row.branches.is_empty());
        if !fits {
            return Err(ComputeError::Failed("a row of choices does not fit its mask: report this".to_owned()));
        }
        Ok(())
    }
}

/// Runs of rows that are computed together.
fn passes(rows: &[Branching], limits: Limits) -> Vec<Range<usize>> {
    let mut passes = Vec::new();
    let (mut begin, mut tokens) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        if i > begin && (i - begin >= limits.rows || tokens + row.tokens() > limits.tokens) {
            passes.push(begin..i);
            (begin, tokens) = (i, 0);
        }
        tokens += row.tokens();
    }
    if begin < rows.len() {
        passes.push(begin..rows.len());
    }
    passes
}

/// What came of a run of rows.
struct Pass {
    number: usize,
    nll: Vec<Vec<f64>>,
    patched_layers: usize,
}

/// What all threads read.
struct Shared<'a> {
    maps: &'a Maps,
    table: &'a rotary::Table,
    groups: Vec<Group<'a>>,
    head: Head<'a>,
    mask: Mask,
}

/// What one thread writes. N tokens of a pass, M positions of it that are asked.
struct Worker {
    engines: Engines,
    ids: Vec<i32>,
    positions: Vec<u32>,
    seen: Seen,
    /// Positions that are asked, ascending.
    asked: Vec<usize>,
    /// The stream before and after a block, `[N, h]`.
    streams: [Floats; 2],
    /// Of the stream, what the last block's second half reads, `[M, h]`.
    picked: Floats,
    kept: Kept,
    last: Kept,
    scratch: Scratch,
    /// The last norm's result and statistics.
    norm: Floats,
    mean: Floats,
    rstd: Floats,
}

impl Worker {
    fn new() -> Self {
        let pool = Arc::new(Pool::alone());
        Self {
            engines: Engines { gemm: Gemm::new(Backend::Builtin, Arc::clone(&pool)), attention: Attention::new(pool) },
            ids: Vec::new(),
            positions: Vec::new(),
            seen: Seen::default(),
            asked: Vec::new(),
            streams: Default::default(),
            picked: Floats::default(),
            kept: Kept::default(),
            last: Kept::default(),
            scratch: Scratch::default(),
            norm: Floats::default(),
            mean: Floats::default(),
            rstd: Floats::default(),
        }
    }

    /// The asks of `rows`, row by row.
    fn pass(&mut self, model: &Shared<'_>, rows: &[Branching]) -> Result<Vec<Vec<f64>>> {
        self.begin(model, rows);
        self.blocks(model)?;
        let mut nll = self.head(model, rows).into_iter();
        Ok(rows.iter().map(|row| nll.by_ref().take(row.asks.len()).collect()).collect())
    }

    /// Lays the rows one behind the other, and makes room.
    fn begin(&mut self, model: &Shared<'_>, rows: &[Branching]) {
        self.ids.clear();
        self.positions.clear();
        self.asked.clear();
        for row in rows {
            let start = self.ids.len();
            // Ids and positions were checked to be below the vocabulary and the context, which fit 2^31.
            self.ids.extend(row.trunk.iter().chain(row.branches.iter().flatten()).map(|&id| id as i32));
            let trunk = row.trunk.len() as u32;
            self.positions.extend(0..trunk);
            self.positions.extend(row.branches.iter().flat_map(|b| trunk..trunk + b.len() as u32));
            self.asked.extend(row.asks.iter().map(|ask| start + ask.place));
        }
        self.asked.sort_unstable();
        self.asked.dedup();
        let window = model.maps.blocks.iter().find_map(|b| b.window);
        self.seen.fill_branching(rows.iter(), model.mask, window, model.maps.blocks.len());
        let (maps, n, m) = (model.maps, self.ids.len(), self.asked.len());
        let h = maps.hidden;
        self.streams.iter_mut().for_each(|stream| stream.resize(n * h));
        self.picked.resize(m * h);
        self.kept.fit(maps, n, if maps.blocks.len() > 1 { n } else { 0 });
        self.last.fit(maps, 0, m);
        self.norm.resize(m * h);
        self.mean.resize(m);
        self.rstd.resize(m);
        self.scratch.branch.resize(n * h);
        self.scratch.bias.resize(2 * maps.heads.layout.row.max(maps.up_width()).max(h));
        self.scratch.logits.resize(m.min(HEAD_ROWS) * COLUMNS.min(maps.vocab));
    }

    /// From ids to the stream of the asked positions behind the last block, in `streams[0]`.
    fn blocks(&mut self, model: &Shared<'_>) -> Result<()> {
        let (maps, h) = (model.maps, model.maps.hidden);
        let Self { engines, positions, seen, kept, last, scratch, streams, .. } = self;
        let grain =
            Grain { maps, table: model.table, positions, rows: 1, seq_len: positions.len(), seen, dropout: None };
        let [x, y] = streams;
        embedding::gather(&model.groups[0].weights[maps.embedding.clone()], &self.ids, h, x);
        let count = maps.blocks.len();
        for (number, at) in maps.blocks.iter().enumerate() {
            let block = Block { number, at, group: model.groups[number + 1] };
            if number + 1 < count {
                block.forward(engines, &grain, x, kept, scratch, y)?;
                std::mem::swap(x, y);
                continue;
            }
            block.attend(engines, &grain, x, kept, scratch)?;
            pick(x, h, &self.asked, &mut self.picked);
            pick(&kept.attended, maps.heads.layout.out_row(), &self.asked, &mut last.attended);
            y.resize(self.asked.len() * h);
            block.finish(engines, &grain, &self.picked, last, scratch, y)?;
            std::mem::swap(x, y);
        }
        Ok(())
    }

    /// The negative log-likelihood of every ask.
    fn head(&mut self, model: &Shared<'_>, rows: &[Branching]) -> Vec<f64> {
        let (maps, head, h, vocab) = (model.maps, model.head, model.maps.hidden, model.maps.vocab);
        let statistics = (&mut self.mean[..], &mut self.rstd[..]);
        norm_forward(maps, &maps.last_norm, head.norm, &self.streams[0], &mut self.norm, statistics);
        // By asked position: targets, and where their number goes.
        let mut wanted: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        let (mut start, mut count) = (0, 0);
        for row in rows {
            for ask in &row.asks {
                wanted.entry(start + ask.place).or_default().push((ask.target as usize, count));
                count += 1;
            }
            start += row.tokens();
        }
        let wanted: Vec<Vec<(usize, usize)>> = wanted.into_values().collect();
        let (mut logits_at, mut nll) = (vec![0f32; count], vec![0f64; count]);
        // Chunks of nearly equal height.
        let chunks = wanted.len().div_ceil(HEAD_ROWS);
        let first = |chunk: usize| chunk * wanted.len() / chunks.max(1);
        for chunk in 0..chunks {
            let (from, to) = (first(chunk), first(chunk + 1));
            let n = to - from;
            let left = Mat::rows(&self.norm[from * h..], n, h);
            let (mut max, mut total) = (vec![f32::NEG_INFINITY; n], vec![0f32; n]);
            let right = Mat::rows(head.out, vocab, h);
            let room = (COLUMNS, &mut self.scratch.logits[..]);
            self.engines.gemm.by_columns(left, right.t(), room, |begin, logits| {
                let cols = COLUMNS.min(vocab - begin);
                cross_entropy::take_block(Isa::best(), cols, logits, &mut max, &mut total);
                for (row, wanted) in logits.chunks_exact(cols).zip(&wanted[from..to]) {
                    for &(target, number) in wanted.iter().filter(|(t, _)| (begin..begin + cols).contains(t)) {
                        logits_at[number] = row[target - begin];
                    }
                }
            });
            for (i, wanted) in wanted[from..to].iter().enumerate() {
                for &(_, number) in wanted {
                    nll[number] = cross_entropy::nll_of(logits_at[number], max[i], total[i]);
                }
            }
        }
        nll
    }
}

/// Copies some rows of `width` floats.
fn pick(from: &[f32], width: usize, rows: &[usize], to: &mut [f32]) {
    for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
        to.copy_from_slice(&from[row * width..][..width]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::libtorch::Base;
    use crate::compute::model::{Family, Model, ModelConfig, Sizes};

    #[test]
    fn logits_exist_for_asked_positions_and_a_block_of_the_vocabulary_only() {
        let sizes = Sizes {
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 24,
            vocab_size: 1300,
            max_position_embeddings: 64,
        };
        let model = Model::random(&ModelConfig::new(Family::GptNeox, sizes), 5).unwrap();
        let net = Net::of(&model, Base::Frozen, tch::Kind::Float, tch::Device::Cpu).unwrap();
        let scorer = Scorer::of(&net).unwrap().unwrap();
        let row = |asked: usize| Branching {
            trunk: (0..60).collect(),
            asks: (0..asked).map(|place| Ask { place, target: 7 }).collect(),
            ..Branching::default()
        };
        let table = table(&scorer.maps, 60);
        let mut worker = Worker::new();
        for (rows, asked, logits) in [(4, 3, 12 * COLUMNS), (20, 60, HEAD_ROWS * COLUMNS)] {
            let rows: Vec<Branching> = (0..rows).map(|_| row(asked)).collect();
            let nll = worker.pass(&scorer.shared(&table, Mask::Causal), &rows).unwrap();
            assert_eq!(nll.iter().map(Vec::len).sum::<usize>(), rows.len() * asked);
            assert_eq!(worker.scratch.logits.len(), logits);
        }
    }
}
