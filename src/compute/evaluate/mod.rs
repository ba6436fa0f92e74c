//! Perplexity of a split, and the forward passes that evaluations share.
//!
//! Rows go through the model in groups of `grain_rows` whose membership and shape follow from the list of rows
//! alone; `batch_rows` only says how many groups are in flight. Sums are f64, counts are i64, added in
//! order, so the same list gives the same bits with any batch size.

pub mod benchmarks;
pub mod choice;
pub mod greedy;
pub mod rolling;
pub mod rows;

use tch::{Kind, Tensor};

use crate::compute::data::{IGNORED, Sample, Samples, Tokens};
use crate::compute::model::{Input, Model};
use crate::compute::{ComputeError, Result};

/// What evaluation needs of a model. Inputs and targets are ids `[B,T]`, i64; a target of -100
/// carries no label.
pub trait LanguageModel {
    /// Negative log-likelihood of every target, nats, `[B,T]`; 0 where there is no label.
    ///
    /// # Errors
    /// Shapes or ids do not fit the model.
    fn nll(&self, inputs_bt: &Tensor, targets_bt: &Tensor) -> Result<Tensor>;

    /// Longest input, tokens.
    fn max_len(&self) -> usize;
}

impl LanguageModel for Model {
    fn nll(&self, inputs_bt: &Tensor, targets_bt: &Tensor) -> Result<Tensor> {
        Self::nll(self, &Input::Tokens(inputs_bt.shallow_clone()), targets_bt)
    }

    fn max_len(&self) -> usize {
        usize::try_from(self.config().max_position_embeddings).unwrap_or(0)
    }
}

/// How rows are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// Rows of one forward pass: part of what a number means.
    pub grain_rows: usize,
    /// Rows in flight: only speed and memory.
    pub batch_rows: usize,
}

impl Grain {
    /// # Errors
    /// One of them is 0.
    pub fn new(grain_rows: usize, batch_rows: usize) -> Result<Self> {
        if grain_rows == 0 || batch_rows == 0 {
            return Err(ComputeError::Config("`grain_rows` and `batch_size` must be at least 1".to_owned()));
        }
        Ok(Self { grain_rows, batch_rows })
    }

    /// Rows of all groups in flight.
    pub fn in_flight(self) -> usize {
        (self.batch_rows / self.grain_rows).max(1) * self.grain_rows
    }
}

/// A row of ids and what should follow each: T inputs and T targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Input ids.
    pub inputs: Vec<i64>,
    /// Target ids, or [`IGNORED`].
    pub targets: Vec<i64>,
}

impl From<Sample> for Row {
    fn from(sample: Sample) -> Self {
        Self { inputs: sample.inputs, targets: sample.targets }
    }
}

/// `[B,T]` inputs and targets of rows of one length.
///
/// # Errors
/// The rows differ in length.
pub fn to_tensors(rows: &[Row]) -> Result<(Tensor, Tensor)> {
    let t = rows.first().map_or(0, |r| r.inputs.len());
    if rows.iter().any(|r| r.inputs.len() != t || r.targets.len() != t) {
        return Err(ComputeError::Failed("rows of one group differ in length".to_owned()));
    }
    let shape = [rows.len() as i64, t as i64];
    let inputs: Vec<i64> = rows.iter().flat_map(|r| r.inputs.iter().copied()).collect();
    let targets: Vec<i64> = rows.iter().flat_map(|r| r.targets.iter().copied()).collect();
    Ok((Tensor::f_from_slice(&inputs)?.f_reshape(shape)?, Tensor::f_from_slice(&targets)?.f_reshape(shape)?))
}

/// NLL of every position of every row, in order: `each(i, nll)` with T values, 0 where there is no label.
/// Rows `k * grain_rows ..` form a group, whoever asks and however many are in flight.
///
/// # Errors
/// The model refuses, or a value is not finite.
pub fn nll_of_rows(
    model: &dyn LanguageModel,
    count: usize,
    row: &dyn Fn(usize) -> Row,
    grain: Grain,
    each: &mut dyn FnMut(usize, &[f64]),
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let in_flight = grain.in_flight();
    let mut start = 0;
    while start < count {
        let end = (start + in_flight).min(count);
        let mut outputs = Vec::new();
        let mut group = start;
        while group < end {
            let last = (group + grain.grain_rows).min(end);
            let rows: Vec<Row> = (group..last).map(row).collect();
            let (inputs, targets) = to_tensors(&rows)?;
            outputs.push((group, rows.len(), model.nll(&inputs, &targets)?));
            group = last;
        }
        // Copied only now: on a device the passes above are under way at the same time.
        for (first, rows, nll) in outputs {
            let values = to_f64(&nll)?;
            let t = values.len() / rows;
            for (k, values) in values.chunks_exact(t).enumerate() {
                if values.iter().any(|v| !v.is_finite()) {
                    return Err(ComputeError::Failed(format!(
                        "the loss of row {} is not finite: the model diverged; look at its training stage",
                        first + k
                    )));
                }
                each(first + k, values);
            }
        }
        start = end;
    }
    Ok(())
}

/// Values of a tensor, row-major, on the host.
pub(crate) fn to_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?;
    Ok(Vec::<f64>::try_from(&flat)?)
}

/// What one document contributed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DocumentLoss {
    /// Number of the document in its split.
    pub document: usize,
    /// Sum of negative log-likelihoods, nats.
    pub nll: f64,
    /// Tokens that were predicted.
    pub tokens: i64,
}

/// Perplexity of a split.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Sum of NLL over sum of tokens, nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub total_tokens: i64,
    /// What was summed, by document; documents without a predicted token are not there.
    pub documents: Vec<DocumentLoss>,
}

impl Evaluation {
    fn from_documents(documents: Vec<DocumentLoss>) -> Result<Self> {
        let (nll, total_tokens) = documents.iter().fold((0.0, 0), |(nll, tokens), d| (nll + d.nll, tokens + d.tokens));
        if total_tokens == 0 {
            return Err(ComputeError::Config("no token was predicted: give the split more text".to_owned()));
        }
        let loss = nll / total_tokens as f64;
        Ok(Self { loss, perplexity: loss.exp(), total_tokens, documents })
    }
}

/// Perplexity over the first `max_samples` rows of a split (all of them, and what is left over, if `None`).
/// A token belongs to the document that holds it, whichever row predicts it; the very first token of a
/// stream is never predicted.
///
/// # Errors
/// The model refuses, a loss is not finite, or nothing was predicted.
pub fn perplexity(
    model: &dyn LanguageModel,
    samples: &Samples,
    max_samples: Option<u64>,
    grain: Grain,
) -> Result<Evaluation> {
    let tokens = samples.tokens();
    // One more than there are full rows: the remainder of a stream, which may hold no label.
    let count = max_samples.map_or(samples.len() + 1, |m| m.min(samples.len())) as usize;
    let mut sums = vec![(0.0f64, 0i64); tokens.documents()];
    nll_of_rows(model, count, &|i| samples.sample(i as u64).into(), grain, &mut |i, nll| {
        let sample = samples.sample(i as u64);
        for (k, (&value, &target)) in nll.iter().zip(&sample.targets).enumerate() {
            if target != IGNORED {
                let sum = &mut sums[tokens.document_of(sample.origins[k] + 1)];
                sum.0 += value;
                sum.1 += 1;
            }
        }
    })?;
    let documents = sums.into_iter().enumerate().filter(|(_, (_, n))| *n > 0);
    Evaluation::from_documents(
        documents.map(|(document, (nll, tokens))| DocumentLoss { document, nll, tokens }).collect(),
    )
}

/// Perplexity of `test` under the frequencies of `train`, each count plus one: what a model that ignores
/// context can reach. A held-out perplexity above it says that a model learned nothing.
///
/// # Errors
/// The two splits were made with different tokenizers.
pub fn unigram_perplexity(train: &Tokens, test: &Tokens) -> Result<f64> {
    if train.info().tokenizer != test.info().tokenizer {
        return Err(ComputeError::Config(
            "training and test tokens were made with different tokenizers: run the setup stage again".to_owned(),
        ));
    }
    let counts = train.counts();
    let total = (train.len() + counts.len() as u64) as f64;
    let seen = test.counts();
    let nll: f64 = counts.iter().zip(&seen).map(|(&c, &n)| -(((c + 1) as f64 / total).ln()) * n as f64).sum();
    Ok((nll / test.len() as f64).exp())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compute::data::Packing;
    use crate::compute::data::tokens::{SpecialIds, TokensHeader, write};
    use crate::compute::rng::{Purpose, Rng};
    use crate::record::Digest;
    use std::sync::Arc;

    /// A small causal model in fp64: state = tanh(A mean of embeddings so far + B embedding), logits = E state.
    pub(crate) struct TinyModel {
        pub e_vh: Tensor,
        pub a_hh: Tensor,
        pub b_hh: Tensor,
    }

    impl TinyModel {
        pub(crate) fn new(vocab: i64, hidden: i64, seed: u32) -> Self {
            let matrix = |rows: i64, tensor: u32, scale: f64| {
                let mut rng = Rng::new(seed, Purpose::Init, tensor, 0);
                let values: Vec<f64> = (0..rows * hidden).map(|_| rng.normal() * scale).collect();
                Tensor::from_slice(&values).view([rows, hidden])
            };
            Self { e_vh: matrix(vocab, 0, 1.0), a_hh: matrix(hidden, 1, 0.8), b_hh: matrix(hidden, 2, 0.4) }
        }

        pub(crate) fn nll_of_embeddings(&self, x_bth: &Tensor, targets_bt: &Tensor) -> Tensor {
            let t = x_bth.size()[1];
            let n_t = Tensor::arange_start(1, t + 1, (Kind::Double, tch::Device::Cpu)).view([1, t, 1]);
            let mean_bth = x_bth.cumsum(1, Kind::Double) / n_t;
            let state_bth = (mean_bth.matmul(&self.a_hh) + x_bth.matmul(&self.b_hh)).tanh();
            let logp_btv = state_bth.matmul(&self.e_vh.transpose(0, 1)).log_softmax(-1, Kind::Double);
            let label = targets_bt.ne(IGNORED);
            let picked = logp_btv.gather(-1, &targets_bt.clamp_min(0).unsqueeze(-1), false).squeeze_dim(-1);
            -picked * label.to_kind(Kind::Double)
        }
    }

    impl LanguageModel for TinyModel {
        fn nll(&self, inputs_bt: &Tensor, targets_bt: &Tensor) -> Result<Tensor> {
            let x_bth = self.e_vh.f_index_select(0, &inputs_bt.view([-1]))?;
            let size = [inputs_bt.size()[0], inputs_bt.size()[1], -1];
            Ok(self.nll_of_embeddings(&x_bth.view(size), targets_bt))
        }

        fn max_len(&self) -> usize {
            64
        }
    }

    pub(crate) fn tokens(documents: Vec<Vec<u32>>, vocab_size: u32) -> (tempfile::TempDir, Arc<Tokens>) {
        let dir = tempfile::tempdir().unwrap();
        let header = TokensHeader {
            split: "test".into(),
            vocab_size,
            tokenizer: Digest::of_bytes(b"t"),
            special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
            sources: Vec::new(),
        };
        write(dir.path(), &header, documents.into_iter().map(Ok)).unwrap();
        let tokens = Arc::new(Tokens::open(dir.path()).unwrap());
        (dir, tokens)
    }

    fn random_documents(n: u64, vocab: u64) -> Vec<Vec<u32>> {
        let mut rng = Rng::new(9, Purpose::Corpus, 0, 0);
        (0..n).map(|i| (0..5 + i % 7).map(|_| 2 + rng.below(vocab - 2) as u32).collect()).collect()
    }

    #[test]
    fn sums_by_document_agree_with_one_pass_over_the_stream() {
        let (_dir, tokens) = tokens(random_documents(20, 30), 30);
        let model = TinyModel::new(30, 6, 1);
        let all = tokens.len();
        // One row holds the whole stream, so that nothing depends on windows.
        let samples = Samples::new(tokens.clone(), all as usize - 1, Packing::Stream).unwrap();
        let found = perplexity(&model, &samples, None, Grain::new(4, 4).unwrap()).unwrap();
        let ids: Vec<i64> = tokens.ids(0..all).into_iter().map(i64::from).collect();
        let inputs = Tensor::from_slice(&ids[..ids.len() - 1]).view([1, -1]);
        let targets = Tensor::from_slice(&ids[1..]).view([1, -1]);
        let expected = f64::try_from(model.nll(&inputs, &targets).unwrap().sum(Kind::Double)).unwrap();
        assert_eq!(found.total_tokens, all as i64 - 1);
        assert!((found.loss * found.total_tokens as f64 - expected).abs() < 1e-9);
        assert_eq!(found.perplexity, found.loss.exp());
        assert_eq!(found.documents.len(), 20);
        assert_eq!(found.documents[3].tokens, 5 + 3 + 1);
    }

    #[test]
    fn batch_size_changes_no_bit_and_the_remainder_is_scored() {
        let (_dir, tokens) = tokens(random_documents(40, 30), 30);
        let model = TinyModel::new(30, 6, 2);
        for packing in [Packing::Stream, Packing::Document] {
            let samples = Samples::new(tokens.clone(), 8, packing).unwrap();
            let run = |batch| perplexity(&model, &samples, None, Grain::new(3, batch).unwrap()).unwrap();
            let one = run(1);
            for batch in [2, 3, 7, 64] {
                assert_eq!(run(batch), one);
            }
            let unpredicted = if packing == Packing::Stream { 1 } else { tokens.documents() as i64 };
            assert_eq!(one.total_tokens, tokens.len() as i64 - unpredicted);
        }
    }

    #[test]
    fn unigram_perplexity_by_hand() {
        // Training: ids 2 2 3 0; counts + 1 of 5 ids: 2 1 3 2 1, of 9 in all.
        let (_a, train) = tokens(vec![vec![2, 2, 3]], 5);
        let (_b, test) = tokens(vec![vec![2, 4]], 5);
        let expected = ((9.0f64 / 3.0) * (9.0 / 1.0) * (9.0 / 2.0)).powf(1.0 / 3.0);
        assert!((unigram_perplexity(&train, &test).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn a_diverged_model_is_an_error_and_not_a_number() {
        let (_dir, tokens) = tokens(random_documents(4, 30), 30);
        let mut model = TinyModel::new(30, 6, 3);
        model.a_hh = &model.a_hh * f64::NAN;
        let samples = Samples::new(tokens, 8, Packing::Stream).unwrap();
        let error = perplexity(&model, &samples, None, Grain::new(3, 3).unwrap()).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }
}
