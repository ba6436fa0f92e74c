//! The forward pass of new tokens beside a cache of keys and values, for fp32 on the CPU: what generation computes.
//!
//! Rows of any lengths go through together, without padding: the prompt of one, the next token of another. Weights
//! are packed once, for a step of few rows takes as long as they take to be read. Every operation and its order is
//! that of the training passes with the builtin products, and each result depends on its own row only: the same
//! bits for a row in one piece, token by token, alone or among others, with any number of threads.

use std::sync::Arc;

use super::block::norm_forward;
use super::maps::{Linear, Maps};
use super::{Weights, foreign_mask};
use crate::compute::kernels::attention::{Attention, Cache, New, Span};
use crate::compute::kernels::gemm::{Backend, Gemm, Mat, MatMut, Packed, Scratch};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Accumulate, Isa, Pool, activation, embedding, residual, rotary};
use crate::compute::model::{Mask, Model};
use crate::compute::{ComputeError, Result};

/// Rows above which a product takes the weights as they lie: packing them costs less than the product then.
const THIN: usize = 64;

/// Floats of a row-wise part below which other threads are not woken.
const ALONE: usize = 1 << 14;

/// Tokens of one row that are new.
#[derive(Debug)]
pub struct Step<'a> {
    /// What is known of the row; the new tokens are added.
    pub cache: &'a mut Cache,
    /// Ids of the new tokens.
    pub ids: &'a [u32],
    /// Tokens of the row's prompt: for [`Mask::Prefix`]. They come in one step.
    pub prompt: usize,
    /// The last so many of the new tokens have logits.
    pub wanted: usize,
}

/// A decoder that reads its weights and caches.
#[derive(Debug)]
pub struct NativeDecoder {
    maps: Maps,
    weights: Weights,
    blocks: Vec<Thin>,
    head: Packed,
    pool: Arc<Pool>,
    gemm: Gemm,
    attention: Attention,
    table: rotary::Table,
    mask: Mask,
    memory: Memory,
}

/// Packed maps of a block, and its biases.
#[derive(Debug)]
struct Thin {
    qkv: Map,
    out: Map,
    up: Map,
    down: Map,
}

#[derive(Debug)]
struct Map {
    packed: Packed,
    bias: Option<Vec<f32>>,
}

/// Memory of a step; it grows to the largest one.
#[derive(Debug, Default)]
struct Memory {
    ids: Vec<i32>,
    positions: Vec<u32>,
    x: Floats,
    norm: Floats,
    statistics: [Floats; 2],
    qkv: Floats,
    attended: Floats,
    branch: Floats,
    middle: Floats,
    up: Floats,
    active: Floats,
    wanted: Floats,
    logits: Floats,
    packed: Scratch,
}

impl Map {
    fn new(linear: &Linear, weights: &[f32], scratch: &mut Floats) -> Self {
        let packed = Packed::transposed(Isa::best(), linear.whole(weights, scratch), linear.outputs, linear.inputs);
        let mut room = vec![0.0; linear.outputs];
        Self { packed, bias: linear.bias(weights, &mut room).map(<[f32]>::to_vec) }
    }
}

impl NativeDecoder {
    /// Of a model, whose weights are read now and must not change while it lives.
    ///
    /// # Errors
    /// The mask lets tokens see what is yet to be generated, the layout is not the configuration's, or the system
    /// gives no threads.
    pub fn new(model: &Model, mask: Mask, threads: usize) -> Result<Self> {
        if mask == Mask::Full {
            return Err(foreign_mask());
        }
        let pool = Pool::new(threads)
            .map_err(|e| ComputeError::Failed(format!("{threads} threads cannot be started ({e}): ask for fewer")))?;
        let pool = Arc::new(pool);
        let maps = Maps::new(model.config(), model.layout())?;
        let mut weights = Weights::of(model.layout(), model.flats(), &model.signs);
        (0..model.flats().len()).for_each(|group| weights.prepare(group));
        let mut scratch = Floats::default();
        let mut blocks = Vec::new();
        for (i, at) in maps.blocks.iter().enumerate() {
            let w = weights.group(i + 1).weights;
            let mut map = |linear: &Linear| Map::new(linear, w, &mut scratch);
            blocks.push(Thin { qkv: map(&at.qkv), out: map(&at.out), up: map(&at.up), down: map(&at.down) });
        }
        let head = Packed::transposed(Isa::best(), weights.head(&maps).0.out, maps.vocab, maps.hidden);
        let gemm = Gemm::new(Backend::Builtin, Arc::clone(&pool));
        let attention = Attention::new(Arc::clone(&pool));
        let table = rotary::Table::new(&maps.frequencies, 0);
        Ok(Self { maps, weights, blocks, head, pool, gemm, attention, table, mask, memory: Memory::default() })
    }

    /// Longest row, tokens.
    pub fn context(&self) -> usize {
        self.maps.context
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> usize {
        self.maps.vocab
    }

    /// An empty cache for a row of at most `tokens` tokens.
    pub fn cache(&self, tokens: usize) -> Cache {
        Cache::new(self.maps.heads.layout, self.maps.blocks.len(), tokens)
    }

    /// Bytes of packed weights and of a step's memory.
    pub fn bytes(&self) -> usize {
        let maps = self.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down]);
        let m = &self.memory;
        let [mean, rstd] = &m.statistics;
        let memory = [&m.x, &m.norm, mean, rstd, &m.qkv, &m.attended, &m.branch, &m.middle, &m.up, &m.active];
        let memory = memory.into_iter().chain([&m.wanted, &m.logits]).map(|f| 4 * f.len());
        maps.map(|map| map.packed.bytes()).sum::<usize>() + self.head.bytes() + memory.sum::<usize>()
    }

    /// Runs the new tokens of every row, and adds their keys and values to the caches. Returns logits `[M, V]` of the
    /// wanted tokens, row after row.
    ///
    /// # Errors
    /// An id is not in the vocabulary, a row is longer than the model's context or its cache, a prompt under a prefix
    /// mask comes in parts, or a product fails.
    pub fn advance(&mut self, steps: &mut [Step<'_>]) -> Result<&[f32]> {
        for step in &*steps {
            self.check(step)?;
        }
        let longest = steps.iter().map(|s| s.cache.tokens() + s.ids.len()).max().unwrap_or(0);
        self.reach(longest);
        let (blocks, stands) = self.begin(steps);
        let mut rows: Vec<New<'_>> = steps
            .iter_mut()
            .scan(0, |at, step| {
                let first = *at;
                *at += step.ids.len();
                Some(New { cache: &mut *step.cache, at: first, first: Vec::new(), end: Vec::new() })
            })
            .collect();
        let mut window = None;
        for block in 0..blocks {
            let own = self.maps.blocks[block].window;
            if block == 0 || own != window {
                window = own;
                for (row, sight) in rows.iter_mut().zip(self.sights(&stands, window)) {
                    (row.first, row.end) = sight;
                }
            }
            self.block(block, &mut rows)?;
        }
        for row in &mut rows {
            let new = row.first.len();
            row.cache.grow(new);
        }
        self.logits(&stands)
    }

    fn check(&self, step: &Step<'_>) -> Result<()> {
        let (known, new) = (step.cache.tokens(), step.ids.len());
        if known + new > self.maps.context {
            return Err(ComputeError::Config(format!(
                "a row of {} tokens is longer than the model's context of {}: shorten it",
                known + new,
                self.maps.context
            )));
        }
        if let Some(id) = step.ids.iter().find(|&&id| id as usize >= self.maps.vocab) {
            return Err(ComputeError::Config(format!(
                "token id {id} is outside the vocabulary of {}: use the tokenizer of this model",
                self.maps.vocab
            )));
        }
        let in_parts = self.mask == Mask::Prefix && known < step.prompt && (known > 0 || new < step.prompt);
        if new == 0 || known + new > step.cache.capacity() || step.wanted > new || in_parts {
            return Err(ComputeError::Failed(format!(
                "a step of {new} tokens behind {known} does not fit its row: report this"
            )));
        }
        Ok(())
    }

    /// Makes rotations of so many positions.
    fn reach(&mut self, longest: usize) {
        if longest <= self.table.positions() {
            return;
        }
        let maps = &self.maps;
        // Grown by halves, at most to the model's context, which holds every position.
        let positions = (longest + longest / 2).min(maps.context);
        let config = &maps.config;
        // No context is longer than 2^24.
        let query = |position: usize| config.query_factor(position as i64);
        self.table = rotary::Table::scaled(&maps.frequencies, config.rotation_factor(), positions, query);
    }

    /// Embeds the tokens and makes room. Returns the number of blocks, and of each row where it stands.
    fn begin(&mut self, steps: &[Step<'_>]) -> (usize, Vec<Stand>) {
        let (maps, memory) = (&self.maps, &mut self.memory);
        memory.ids.clear();
        memory.positions.clear();
        let mut stands = Vec::new();
        for step in steps {
            let known = step.cache.tokens();
            let stand = Stand { known, new: step.ids.len(), prompt: step.prompt, wanted: step.wanted };
            // No vocabulary or context is longer than 2^24.
            memory.ids.extend(step.ids.iter().map(|&id| id as i32));
            memory.positions.extend(known as u32..(known + stand.new) as u32);
            stands.push(stand);
        }
        let (n, h) = (memory.ids.len(), maps.hidden);
        for stream in [&mut memory.x, &mut memory.norm, &mut memory.branch] {
            stream.resize(n * h);
        }
        memory.middle.resize(if maps.parallel_residual { 0 } else { n * h });
        memory.statistics.iter_mut().for_each(|s| s.resize(n));
        memory.qkv.resize(n * maps.heads.layout.row);
        memory.attended.resize(n * maps.heads.layout.out_row());
        memory.up.resize(n * maps.up_width());
        memory.active.resize(n * maps.intermediate);
        let table = &self.weights.group(0).weights[maps.embedding.clone()];
        embedding::gather(table, &memory.ids, h, &mut memory.x);
        (maps.blocks.len(), stands)
    }

    /// Keys that the new tokens of each row see in a block with this window.
    fn sights(&self, stands: &[Stand], window: Option<usize>) -> Vec<(Vec<u32>, Vec<u32>)> {
        let window = window.unwrap_or(usize::MAX);
        let sight = |stand: &Stand| {
            let positions = stand.known..stand.known + stand.new;
            let end = |t: usize| if self.mask == Mask::Prefix { stand.prompt.max(t + 1) } else { t + 1 };
            // No context is longer than 2^24.
            let first = positions.clone().map(|t| (t + 1).saturating_sub(window) as u32).collect();
            (first, positions.map(|t| end(t) as u32).collect())
        };
        stands.iter().map(sight).collect()
    }

    fn block(&mut self, number: usize, rows: &mut [New<'_>]) -> Result<()> {
        let Self { maps, weights, blocks, pool, gemm, attention, table, memory, .. } = self;
        let (at, thin, w) = (&maps.blocks[number], &blocks[number], weights.group(number + 1).weights);
        let (h, f) = (maps.hidden, maps.intermediate);
        let Memory { positions, x, norm, statistics, qkv, attended, branch, middle, up, active, packed, .. } = memory;
        let [mean, rstd] = statistics;
        let mut multiply = |linear: &Linear, map: &Map, x: &[f32], y: &mut [f32]| -> Result<()> {
            if positions.len() > THIN {
                return linear.forward(gemm, w, x, y);
            }
            map.packed.product(Isa::best(), pool, x, y, packed);
            Ok(())
        };
        norm_forward(maps, &at.norm1, w, x, norm, (&mut mean[..], &mut rstd[..]));
        multiply(&at.qkv, &thin.qkv, norm, qkv)?;
        let layout = maps.heads.layout;
        let turned =
            rotary::Heads { row: layout.row, starts: &maps.heads.turned, queries: layout.queries, dim: layout.dim };
        rotary::forward(Isa::best(), table, turned, positions, thin.qkv.bias.as_deref(), qkv);
        let scale = 1.0 / (layout.dim as f32).sqrt();
        attention.cached(layout, scale, number, rows, qkv, attended);
        multiply(&at.out, &thin.out, attended, branch)?;
        if maps.parallel_residual {
            // Before the stream becomes the sum.
            norm_forward(maps, &at.norm2, w, x, norm, (&mut mean[..], &mut rstd[..]));
            residual::add_branch(Isa::best(), h, branch, thin.out.bias.as_deref(), x);
        } else {
            residual::add(Isa::best(), h, x, branch, thin.out.bias.as_deref(), middle);
            norm_forward(maps, &at.norm2, w, middle, norm, (&mut mean[..], &mut rstd[..]));
        }
        multiply(&at.up, &thin.up, norm, up)?;
        let (bias, width) = (thin.up.bias.as_deref(), maps.up_width());
        by_rows(pool, f, width, up, active, |up, active| {
            if maps.gated {
                activation::gated_forward(Isa::best(), maps.function, f, bias, up, active);
            } else {
                activation::forward(Isa::best(), maps.function, f, bias, up, active);
            }
        });
        multiply(&at.down, &thin.down, active, branch)?;
        let bias = thin.down.bias.as_deref();
        if maps.parallel_residual {
            residual::add_branch(Isa::best(), h, branch, bias, x);
        } else {
            std::mem::swap(x, middle);
            residual::add_branch(Isa::best(), h, branch, bias, x);
        }
        Ok(())
    }

    /// Logits of the wanted tokens.
    fn logits(&mut self, stands: &[Stand]) -> Result<&[f32]> {
        let Self { maps, weights, head, pool, gemm, memory, .. } = self;
        let Memory { x, norm, statistics, wanted, logits, packed, .. } = memory;
        let h = maps.hidden;
        wanted.resize(stands.iter().map(|s| s.wanted).sum::<usize>() * h);
        let (mut at, mut to) = (0, 0);
        for stand in stands {
            let (first, len) = ((at + stand.new - stand.wanted) * h, stand.wanted * h);
            wanted[to..to + len].copy_from_slice(&x[first..first + len]);
            (at, to) = (at + stand.new, to + len);
        }
        let n = wanted.len() / h;
        logits.resize(n * maps.vocab);
        let [mean, rstd] = statistics;
        let (last, norm) = (weights.head(maps).0, &mut norm[..n * h]);
        norm_forward(maps, &maps.last_norm, last.norm, wanted, norm, (&mut mean[..n], &mut rstd[..n]));
        if n > THIN {
            let out = Mat::rows(last.out, maps.vocab, h);
            gemm.run(Mat::rows(norm, n, h), out.t(), MatMut::rows(logits, n, maps.vocab), Accumulate::Assign)?;
        } else {
            head.product(Isa::best(), pool, norm, logits, packed);
        }
        Ok(logits)
    }
}

/// Where a row stands in a step.
#[derive(Debug, Clone, Copy)]
struct Stand {
    known: usize,
    new: usize,
    prompt: usize,
    wanted: usize,
}

/// Runs a row-wise function over rows of `u` (of `width` floats) and `a` (of `f`), shared among the threads.
fn by_rows(
    pool: &Pool,
    f: usize,
    width: usize,
    u: &mut [f32],
    a: &mut [f32],
    each: impl Fn(&mut [f32], &mut [f32]) + Sync,
) {
    let rows = a.len() / f;
    if a.len() < ALONE || pool.threads() == 1 {
        return each(u, a);
    }
    let (threads, u, a) = (pool.threads(), Span::new(u), Span::new(a));
    pool.run(&|thread| {
        let (first, end) = (thread * rows / threads, (thread + 1) * rows / threads);
        // SAFETY: each thread has rows of its own.
        unsafe { each(u.slice(first * width, (end - first) * width), a.slice(first * f, (end - first) * f)) };
    });
}
