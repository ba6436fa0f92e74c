//! Log-likelihoods of continuations.
//!
//! Pairs that are equal are scored once. The others go through the model in groups whose membership and padded length
//! follow from the list of pairs alone, sorted by length; how many groups are in flight, and which rank takes which,
//! changes no bit. Only the positions that predict a continuation reach the output matrix.

use std::collections::BTreeMap;

use tch::Tensor;

use super::encode::Pair;
use crate::compute::comm::Comm;
use crate::compute::data::IGNORED;
use crate::compute::evaluate::{Grain, to_f64};
use crate::compute::model::libtorch::{Ask, Keep, Source, Want};
use crate::compute::model::{Batch, Mask, Net};
use crate::compute::{ComputeError, Result};

/// Padded lengths are multiples of this.
const LENGTH_STEP: usize = 8;

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Sum of the log-probabilities of its tokens, nats.
    pub log_likelihood: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// Scores every pair, in order. Every rank calls it with the same list and gets all scores.
///
/// # Errors
/// A continuation is empty or longer than the model's context, the model refuses, a score is not finite, or a rank is
/// gone.
pub fn score(net: &Net, comm: &Comm, pairs: &[Pair], mask: Mask, grain: Grain) -> Result<Vec<Score>> {
    let context = usize::try_from(net.config().max_position_embeddings).unwrap_or(usize::MAX);
    for pair in pairs {
        if pair.continuation.is_empty() {
            return Err(ComputeError::Config("a continuation has no token: correct the item".to_owned()));
        }
        if pair.continuation.len() > context {
            return Err(ComputeError::Config(format!(
                "a continuation of {} tokens is longer than the model's context of {context}: leave the item out",
                pair.continuation.len()
            )));
        }
    }
    // The longest first, so that memory runs out at once or never; among equals the order of their ids.
    let mut places: BTreeMap<&Pair, usize> = BTreeMap::new();
    let mut unique: Vec<&Pair> = pairs.iter().collect();
    unique.sort_by(|a, b| length(b).cmp(&length(a)).then_with(|| a.cmp(b)));
    unique.dedup();
    for (place, pair) in unique.iter().enumerate() {
        places.insert(pair, place);
    }
    let groups: Vec<&[&Pair]> = unique.chunks(grain.grain_rows).collect();
    let mine: Vec<&[&Pair]> = groups.iter().copied().skip(comm.rank()).step_by(comm.size()).collect();
    let scores = of_groups(net, &mine, mask, context, (grain.batch_rows / grain.grain_rows).max(1))?;
    let all = gathered(comm, &scores, groups.iter().map(|g| g.len()))?;
    Ok(pairs.iter().map(|pair| all[places[pair]]).collect())
}

fn length(pair: &Pair) -> usize {
    pair.context.len() + pair.continuation.len()
}

/// Scores of the groups of this rank, group after group.
fn of_groups(net: &Net, groups: &[&[&Pair]], mask: Mask, context: usize, in_flight: usize) -> Result<Vec<Score>> {
    let _no_grad = tch::no_grad_guard();
    let mut scores = Vec::new();
    for groups in groups.chunks(in_flight) {
        let passes: Vec<Group> =
            groups.iter().map(|group| Group::run(net, group, mask, context)).collect::<Result<_>>()?;
        // Copied only now: on a device the passes above are under way at the same time.
        for pass in passes {
            pass.read(&mut scores)?;
        }
    }
    Ok(scores)
}

/// A forward pass that may still be under way.
struct Group {
    rows: usize,
    /// NLL of every scored position, 0 elsewhere, `[B, T]`.
    nll_bt: Tensor,
    /// Tokens of each continuation.
    tokens: Vec<usize>,
}

impl Group {
    fn run(net: &Net, group: &[&Pair], mask: Mask, context: usize) -> Result<Self> {
        let rows: Vec<Vec<u32>> = group.iter().map(|pair| pair.cut_to(context)).collect();
        let longest = rows.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let seq_len = longest.next_multiple_of(LENGTH_STEP).min(context);
        let mut batch = Batch { rows: rows.len(), seq_len, mask, ..Batch::default() };
        let (mut tokens, mut key_lens, mut prompt_lens) = (Vec::new(), Vec::new(), Vec::new());
        for (r, (row, pair)) in rows.iter().zip(group).enumerate() {
            // Ids and lengths fit i32: no vocabulary or context is longer than 2^24.
            let (read, n) = (row.len() - 1, pair.continuation.len());
            let end = (r + 1) * seq_len;
            batch.ids.extend(row[..read].iter().map(|&id| id as i32));
            batch.ids.resize(end, 0);
            batch.targets.resize(end - seq_len + read - n, IGNORED as i32);
            batch.targets.extend(pair.continuation.iter().map(|&id| id as i32));
            batch.targets.resize(end, IGNORED as i32);
            tokens.push(n);
            key_lens.push(read as i32);
            prompt_lens.push((read + 1 - n) as i32);
        }
        // Under a causal mask no token sees the padding behind it.
        batch.key_lens = (mask != Mask::Causal).then_some(key_lens);
        batch.prompt_lens = (mask == Mask::Prefix).then_some(prompt_lens);
        let places = net.places(&batch)?;
        let ask = Ask { nll: true, ..Ask::default() };
        let want = Want { params: false, inputs: false };
        let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want))?;
        let nll_bt = pass.outputs.nll_bt.ok_or_else(|| ComputeError::Failed("no losses: report this".to_owned()))?;
        Ok(Self { rows: rows.len(), nll_bt, tokens })
    }

    fn read(self, scores: &mut Vec<Score>) -> Result<()> {
        let nll = to_f64(&self.nll_bt)?;
        let seq_len = nll.len() / self.rows;
        for (row, tokens) in nll.chunks_exact(seq_len).zip(self.tokens) {
            let log_likelihood = -row.iter().sum::<f64>();
            if !log_likelihood.is_finite() {
                return Err(ComputeError::Failed(
                    "the log-likelihood of a continuation is not finite: the model diverged; look at its training stage"
                        .to_owned(),
                ));
            }
            scores.push(Score { log_likelihood, tokens });
        }
        Ok(())
    }
}

/// Everybody's scores in the order of the groups; group g was rank g mod n's.
fn gathered(comm: &Comm, mine: &[Score], lens: impl Iterator<Item = usize>) -> Result<Vec<Score>> {
    let parts: Vec<Vec<Score>> = comm.collect(&encoded(mine))?.iter().map(|bytes| decoded(bytes)).collect();
    let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    if comm.is_first() {
        for (g, len) in lens.enumerate() {
            all.extend(parts[g % comm.size()].by_ref().take(len));
        }
    }
    Ok(decoded(&comm.broadcast(&encoded(&all))?))
}

fn encoded(scores: &[Score]) -> Vec<u8> {
    scores.iter().flat_map(|s| [s.log_likelihood.to_le_bytes(), (s.tokens as u64).to_le_bytes()].concat()).collect()
}

fn decoded(bytes: &[u8]) -> Vec<Score> {
    // chunks_exact(16) yields slices of 16 bytes.
    let word = |b: &[u8]| b.try_into().unwrap_or_default();
    let score = |c: &[u8]| Score {
        log_likelihood: f64::from_le_bytes(word(&c[..8])),
        tokens: u64::from_le_bytes(word(&c[8..])) as usize,
    };
    bytes.chunks_exact(16).map(score).collect()
}
