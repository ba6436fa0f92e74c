//! Continuations that greedy decoding would write, and their log-likelihoods: what LAMBADA asks.

use tch::{Kind, Tensor};

use super::choice::encode::Pair;
use super::{Grain, to_f64};
use crate::compute::data::IGNORED;
use crate::compute::model::libtorch::{Ask, Keep, Source, Want};
use crate::compute::model::{Batch, Mask, Net};
use crate::compute::{ComputeError, Result};

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// Sum of the log-probabilities of its tokens, nats.
    pub log_likelihood: f64,
    /// Whether each of its tokens is the most likely one behind those before it.
    pub greedy: bool,
}

/// Asks for every pair, in order, under a causal mask. Pairs go in groups of `grain_rows`, in their order: the
/// same list gives the same bits.
///
/// # Errors
/// A continuation is empty or longer than the model's context, the model refuses, or a value is not finite.
pub fn say(net: &Net, pairs: &[Pair], grain: Grain) -> Result<Vec<Said>> {
    let _no_grad = tch::no_grad_guard();
    let context = usize::try_from(net.config().max_position_embeddings).unwrap_or(usize::MAX);
    let mut said = Vec::with_capacity(pairs.len());
    for group in pairs.chunks(grain.grain_rows) {
        say_group(net, group, context, &mut said)?;
    }
    Ok(said)
}

fn say_group(net: &Net, group: &[Pair], context: usize, said: &mut Vec<Said>) -> Result<()> {
    let rows: Vec<Vec<u32>> = group.iter().map(|pair| pair.read(context, Mask::Causal).0).collect();
    let seq_len = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut batch = Batch { rows: rows.len(), seq_len, ..Batch::default() };
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (r, (row, pair)) in rows.iter().zip(group).enumerate() {
        let (read, n) = (row.len(), pair.continuation.len());
        if n == 0 || n > read {
            return Err(ComputeError::Config(format!(
                "a continuation of {n} tokens does not fit a context of {context}: leave the item out"
            )));
        }
        // Ids and lengths fit i32 and i64.
        batch.ids.extend(row.iter().map(|&id| id as i32));
        batch.ids.resize((r + 1) * seq_len, 0);
        positions.extend((read - n..read).map(|p| (r * seq_len + p) as i64));
        targets.extend(pair.continuation.iter().map(|&id| i64::from(id)));
    }
    batch.targets = vec![IGNORED as i32; batch.ids.len()];
    let places = net.places(&batch)?;
    let ask = Ask { logits_at: positions, ..Ask::default() };
    let want = Want { params: false, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want))?;
    let logits_pv = pass.outputs.logits_pv.ok_or_else(|| ComputeError::Failed("no logits: report this".to_owned()))?;
    let log_p = logits_pv.f_to_kind(Kind::Float)?.f_log_softmax(-1, Kind::Float)?;
    let target = Tensor::f_from_slice(&targets)?.f_to(log_p.device())?;
    let values = to_f64(&log_p.f_gather(1, &target.f_unsqueeze(1)?, false)?)?;
    let best = to_f64(&log_p.f_argmax(-1, false)?.f_eq_tensor(&target)?)?;
    let mut at = 0;
    for pair in group {
        let own = at..at + pair.continuation.len();
        at = own.end;
        let log_likelihood = values[own.clone()].iter().sum::<f64>();
        if !log_likelihood.is_finite() {
            return Err(ComputeError::Failed(
                "the log-likelihood of a continuation is not finite: the model diverged; look at its training stage"
                    .to_owned(),
            ));
        }
        said.push(Said { log_likelihood, greedy: best[own].iter().all(|&is| is == 1.0) });
    }
    Ok(())
}
