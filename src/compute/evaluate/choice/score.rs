//! Log-likelihoods of continuations.
//!
//! Pairs that are equal are scored once. Two engines answer. The hand-written one (fp32 in memory) computes a common
//! beginning once ([`super::rows`]), and its bits depend on a pair and the model alone. On libtorch (other types, GPUs,
//! adapters) every pair has a row of its own, and rows go through the model in groups whose membership and padded length
//! follow from the list of pairs. Either way, how much is in flight and which rank takes what changes no bit, and only the
//! positions that predict a continuation reach the output matrix.

use tch::Tensor;

use super::encode::Pair;
pub use super::rows::Rows;
use super::rows::rows;
use crate::compute::comm::Comm;
use crate::compute::data::IGNORED;
use crate::compute::evaluate::{Grain, to_f64};
use crate::compute::model::libtorch::{Ask, Keep, Source, Want};
use crate::compute::model::native::score::{Answers, Branching, Limits, Scorer};
use crate::compute::model::{Batch, Mask, Net};
use crate::compute::{ComputeError, Result};

/// Padded lengths are multiples of this.
const LENGTH_STEP: usize = 8;

/// Tokens of a pass of the hand-written engine: enough that weights are read rarely, few enough that activations stay in
/// a cache.
const PASS_TOKENS: usize = 512;

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Sum of the log-probabilities of its tokens, nats.
    pub log_likelihood: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Hand-written kernels: fp32 in memory, without an adapter.
    Native,
    /// libtorch: everything else.
    Libtorch,
}

impl Engine {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Libtorch => "libtorch",
        }
    }

    /// Who multiplies its matrices, by the names of records.
    pub fn gemm(self) -> &'static str {
        match self {
            Self::Native => "builtin",
            Self::Libtorch => "libtorch",
        }
    }
}

/// Who scores with `net`.
///
/// # Errors
/// The net's layout is not that of its configuration.
pub fn engine(net: &Net) -> Result<Engine> {
    Ok(if Scorer::of(net)?.is_some() { Engine::Native } else { Engine::Libtorch })
}

/// Scores every pair, in order. Every rank calls it with the same list and gets all scores. Common beginnings share a row
/// where they can.
///
/// # Errors
/// A continuation is empty, without a token before it or longer than the model's context, the model refuses, a score is
/// not finite, or a rank is gone.
pub fn score(net: &Net, comm: &Comm, pairs: &[Pair], mask: Mask, grain: Grain) -> Result<Vec<Score>> {
    Ok(score_as(net, comm, pairs, (mask, grain), Rows::Packed)?.scores)
}

/// Scores, and how they were made.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Of every pair.
    pub scores: Vec<Score>,
    /// Attention layers that took another mask than a causal one: in every pass of every rank so many; 0 if there was none.
    pub patched_layers: usize,
}

/// As [`score`], with common beginnings computed once or not: that changes speed only.
///
/// # Errors
/// As [`score`]; or some layer did not take the mask.
pub fn score_as(net: &Net, comm: &Comm, pairs: &[Pair], (mask, grain): (Mask, Grain), how: Rows) -> Result<Scored> {
    let context = usize::try_from(net.config().max_position_embeddings).unwrap_or(usize::MAX);
    check(pairs, context, mask, net.config().vocab_size)?;
    // The longest first, so that memory runs out at once or never; among equals the order of their ids.
    let mut unique: Vec<&Pair> = pairs.iter().collect();
    unique.sort_by(|a, b| order(a, b));
    unique.dedup();
    let shared = match Scorer::of(net)? {
        Some(scorer) => by_rows(&scorer, comm, &unique, (mask, grain, context), how)?,
        None => by_groups(net, comm, &unique, (mask, grain, context))?,
    };
    let patched_layers = patched(net, comm, mask, shared.patched_layers)?;
    let all = gathered(comm, &shared.mine, shared.units.iter().map(Vec::len))?;
    let mut found = vec![f64::NAN; unique.len()];
    for (pair, log_likelihood) in shared.units.into_iter().flatten().zip(all) {
        found[pair] = log_likelihood;
    }
    // Only now, so that all ranks know.
    if found.iter().any(|f| !f.is_finite()) {
        return Err(ComputeError::Failed(
            "the log-likelihood of a continuation is not finite: the model diverged; look at its training stage"
                .to_owned(),
        ));
    }
    let score = |pair: &Pair| {
        // Every pair is among the unique ones.
        let at = unique.binary_search_by(|other| order(other, pair)).unwrap_or_default();
        Score { log_likelihood: found[at], tokens: pair.continuation.len() }
    };
    Ok(Scored { scores: pairs.iter().map(score).collect(), patched_layers })
}

/// What all ranks counted, which must be every layer under a mask that is not causal and none under one that is. A rank
/// without work has counted nothing.
fn patched(net: &Net, comm: &Comm, mask: Mask, counted: Option<usize>) -> Result<usize> {
    let number = |count: Option<usize>| count.map_or(-1.0, |n| n as f64);
    let mut counts = Vec::new();
    if comm.size() > 1 {
        let parts = comm.collect(&encoded(&[number(counted)]))?;
        counts = decoded(&comm.broadcast(&parts.concat())?);
    } else {
        counts.push(number(counted));
    }
    counts.retain(|n| *n >= 0.0);
    let layers = if mask == Mask::Causal { 0 } else { usize::try_from(net.config().num_hidden_layers).unwrap_or(0) };
    match counts.iter().find(|n| **n != layers as f64) {
        Some(count) => Err(ComputeError::Failed(format!(
            "{count} attention layers took a mask that is not causal, and {layers} must have: report this"
        ))),
        None => Ok(if counts.is_empty() { 0 } else { layers }),
    }
}

/// What every rank refuses alike.
fn check(pairs: &[Pair], context: usize, mask: Mask, vocab: i64) -> Result<()> {
    // What predicts and is predicted must be read: under a full mask that is one token more.
    let most = context - usize::from(mask == Mask::Full);
    for pair in pairs {
        let outside = pair.context.iter().chain(&pair.continuation).find(|id| i64::from(**id) >= vocab);
        let said = if pair.continuation.is_empty() {
            "a continuation has no token: correct the item".to_owned()
        } else if pair.context.is_empty() {
            "a continuation has no token before it: put the token before it that begins a text".to_owned()
        } else if pair.continuation.len() > most {
            let tokens = pair.continuation.len();
            format!(
                "a continuation of {tokens} tokens is longer than the {most} that the model's context of {context} leaves: leave the item out"
            )
        } else if let Some(id) = outside {
            format!("token id {id} is outside the vocabulary of {vocab}: use the tokenizer of this model")
        } else {
            continue;
        };
        return Err(ComputeError::Config(said));
    }
    Ok(())
}

fn order(a: &Pair, b: &Pair) -> std::cmp::Ordering {
    let length = |pair: &Pair| pair.context.len() + pair.continuation.len();
    length(b).cmp(&length(a)).then_with(|| a.cmp(b))
}

/// Work that ranks share: unit u is rank u mod n's.
struct Shared {
    /// The pairs of every unit, by number.
    units: Vec<Vec<usize>>,
    /// The log-likelihoods of this rank's units, one after the other.
    mine: Vec<f64>,
    /// The fewest layers that took another mask than a causal one in a pass of this rank; none without a pass.
    patched_layers: Option<usize>,
}

/// With rows of pairs that begin alike.
fn by_rows(
    scorer: &Scorer,
    comm: &Comm,
    pairs: &[&Pair],
    (mask, grain, context): (Mask, Grain, usize),
    how: Rows,
) -> Result<Shared> {
    let rows = rows(pairs, context, mask, how);
    let (tokens, owners): (Vec<Branching>, Vec<_>) =
        rows.iter().skip(comm.rank()).step_by(comm.size()).map(|row| (row.tokens.clone(), &row.owners)).unzip();
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let limits = Limits { rows: grain.batch_rows, tokens: PASS_TOKENS, threads };
    let Answers { nll, patched_layers } = scorer.nll(&tokens, mask, limits)?;
    let sum = |nll: &[f64], asks: &[usize]| -> f64 { asks.iter().map(|&ask| -nll[ask]).sum() };
    let mine = nll.iter().zip(owners).flat_map(|(nll, owners)| owners.iter().map(|(_, asks)| sum(nll, asks)));
    let mine = mine.collect();
    let units = rows.iter().map(|row| row.owners.iter().map(|(pair, _)| *pair).collect()).collect();
    Ok(Shared { units, mine, patched_layers })
}

/// With a row a pair, in groups.
fn by_groups(net: &Net, comm: &Comm, pairs: &[&Pair], (mask, grain, context): (Mask, Grain, usize)) -> Result<Shared> {
    let _no_grad = tch::no_grad_guard();
    let groups: Vec<&[&Pair]> = pairs.chunks(grain.grain_rows).collect();
    let own: Vec<&[&Pair]> = groups.iter().copied().skip(comm.rank()).step_by(comm.size()).collect();
    let (mut mine, mut patched_layers) = (Vec::new(), None);
    for groups in own.chunks((grain.batch_rows / grain.grain_rows).max(1)) {
        let passes: Vec<Group> =
            groups.iter().map(|group| Group::run(net, group, mask, context)).collect::<Result<_>>()?;
        // Copied only now: on a device the passes above are under way at the same time.
        for pass in passes {
            patched_layers = Some(patched_layers.map_or(pass.patched_layers, |n: usize| n.min(pass.patched_layers)));
            pass.read(&mut mine)?;
        }
    }
    let mut next = 0..pairs.len();
    let units = groups.iter().map(|group| next.by_ref().take(group.len()).collect()).collect();
    Ok(Shared { units, mine, patched_layers })
}

/// A forward pass that may still be under way.
struct Group {
    rows: usize,
    /// NLL of every scored position, 0 elsewhere, `[B, T]`.
    nll_bt: Tensor,
    /// Layers that took another mask than a causal one.
    patched_layers: usize,
}

impl Group {
    fn run(net: &Net, group: &[&Pair], mask: Mask, context: usize) -> Result<Self> {
        let rows: Vec<(Vec<u32>, usize)> = group.iter().map(|pair| pair.read(context, mask)).collect();
        let longest = rows.iter().map(|(read, _)| read.len()).max().unwrap_or(1);
        let seq_len = longest.next_multiple_of(LENGTH_STEP).min(context);
        let mut batch = Batch { rows: rows.len(), seq_len, mask, ..Batch::default() };
        let (mut key_lens, mut prompt_lens) = (Vec::new(), Vec::new());
        for (r, ((read, prompt), pair)) in rows.iter().zip(group).enumerate() {
            // Ids and lengths fit i32: no vocabulary or context is longer than 2^24.
            let end = (r + 1) * seq_len;
            batch.ids.extend(read.iter().map(|&id| id as i32));
            batch.ids.resize(end, 0);
            batch.targets.resize(end - seq_len + prompt - 1, IGNORED as i32);
            batch.targets.extend(pair.continuation.iter().map(|&id| id as i32));
            batch.targets.resize(end, IGNORED as i32);
            key_lens.push(read.len() as i32);
            prompt_lens.push(*prompt as i32);
        }
        // Under a causal mask no token sees the padding behind it.
        batch.key_lens = (mask != Mask::Causal).then_some(key_lens);
        batch.prompt_lens = (mask == Mask::Prefix).then_some(prompt_lens);
        let places = net.places(&batch)?;
        let ask = Ask { nll: true, ..Ask::default() };
        let want = Want { params: false, inputs: false };
        let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want))?;
        let nll_bt = pass.outputs.nll_bt.ok_or_else(|| ComputeError::Failed("no losses: report this".to_owned()))?;
        Ok(Self { rows: rows.len(), nll_bt, patched_layers: places.patched_layers() })
    }

    fn read(self, log_likelihoods: &mut Vec<f64>) -> Result<()> {
        let nll = to_f64(&self.nll_bt)?;
        log_likelihoods.extend(nll.chunks_exact(nll.len() / self.rows).map(|row| -row.iter().sum::<f64>()));
        Ok(())
    }
}

/// Everybody's numbers in the order of the units.
fn gathered(comm: &Comm, mine: &[f64], lens: impl Iterator<Item = usize>) -> Result<Vec<f64>> {
    let mut parts: Vec<_> = comm.collect(&encoded(mine))?.iter().map(|bytes| decoded(bytes).into_iter()).collect();
    let mut all = Vec::new();
    if comm.is_first() {
        for (unit, len) in lens.enumerate() {
            all.extend(parts[unit % comm.size()].by_ref().take(len));
        }
    }
    Ok(decoded(&comm.broadcast(&encoded(&all))?))
}

fn encoded(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn decoded(bytes: &[u8]) -> Vec<f64> {
    // chunks_exact(8) yields slices of 8 bytes.
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
}
