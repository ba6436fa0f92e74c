//! Attacks on language models: universal triggers ([`uat`]) and token flips ([`hotflip`]).
//!
//! Both report every loss in two scopes and judge success by three metrics, side by side ([`success`]): which
//! conclusion holds often depends on these choices, so no number is given without them. Nothing here is
//! drawn from a stateful generator. Rows go through the model ([`victim`]) a few at a time and are shared among ranks
//! ([`share`]); neither the number of rows nor of ranks changes a result. What a search needs to go on after a kill lies in
//! one file ([`state`]).

pub mod hotflip;
pub mod share;
pub mod state;
pub mod success;
pub mod survival;
pub mod uat;
pub mod victim;

use std::ops::Range;

use crate::compute::data::{IGNORED, Samples};
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// A text to attack: `ids[..T]` are inputs, `ids[1..]` are targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Row number in its split.
    pub id: u64,
    /// T + 1 ids.
    pub ids: Vec<i64>,
}

/// Rows of ids with what is scored: what goes through a model at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// B.
    pub count: usize,
    /// T.
    pub len: usize,
    /// `[B, T]`.
    pub inputs: Vec<i64>,
    /// What follows each input, or [`IGNORED`] where nothing is scored, `[B, T]`.
    pub targets: Vec<i64>,
}

impl Rows {
    /// No rows of `len` tokens.
    pub fn of(len: usize) -> Self {
        Self { len, ..Self::default() }
    }

    /// Adds the row that reads all of `ids` but the last and scores from target `first` on, of which the first one is 1.
    /// A shorter row is filled with its last id: under a causal mask nothing sees what follows it.
    pub fn push(&mut self, ids: impl Iterator<Item = i64> + Clone, first: usize) {
        let targets = ids.clone().skip(1).enumerate().map(|(i, id)| if i + 1 < first { IGNORED } else { id });
        let (start, mut count, mut last) = (self.inputs.len(), 0, 0);
        for (id, target) in ids.zip(targets) {
            self.inputs.push(id);
            self.targets.push(target);
            (count, last) = (count + 1, id);
        }
        debug_assert!(count <= self.len);
        self.inputs.resize(start + self.len, last);
        self.targets.resize(start + self.len, IGNORED);
        self.count += 1;
    }

    /// Some of them.
    pub fn range(&self, range: Range<usize>) -> Self {
        let part = |ids: &[i64]| ids[range.start * self.len..range.end * self.len].to_vec();
        Self { count: range.len(), len: self.len, inputs: part(&self.inputs), targets: part(&self.targets) }
    }

    /// The scored positions of each row, in order.
    fn scored(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.chunks_exact(self.len.max(1)).map(|row| row.iter().filter(|&&t| t != IGNORED).count())
    }

    /// The NLL of each row, from those of all scored positions.
    fn split<'a>(&'a self, nll: &'a [f64]) -> impl Iterator<Item = &'a [f64]> + 'a {
        let mut at = 0;
        self.scored().map(move |n| {
            at += n;
            &nll[at - n..at]
        })
    }
}

/// Refuses a loss that is no number.
fn finite(values: &[f64]) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(ComputeError::Failed("a loss is not finite: the model diverged; look at its training stage".to_owned()))
}

fn no_gradient() -> ComputeError {
    ComputeError::Failed(
        "the gradient by the embeddings is not finite: the model diverged; look at its training stage".to_owned(),
    )
}

/// Whether a search goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    GoOn,
    /// It was asked to stop; its state is kept.
    Stop,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It has found what it finds.
    Done,
    /// Somebody asked it to stop.
    Stopped,
}

/// `count` different full rows of a split, drawn by (seed, draw); the same for every model.
///
/// # Errors
/// The split has fewer rows.
pub fn draw_texts(samples: &Samples, count: usize, seed: u32) -> Result<Vec<Text>> {
    let available = samples.len();
    if (available as usize) < count {
        return Err(ComputeError::Config(format!(
            "the attack wants {count} texts, but the {} split has {available} rows of {} tokens: lower `num_samples` or give the study more text",
            samples.tokens().info().split,
            samples.seq_len()
        )));
    }
    let rows = Rng::new(seed, Purpose::AttackSamples, 0, 0).distinct(available as usize, count);
    let text = |row: usize| {
        let start = row as u64 * samples.seq_len() as u64;
        let ids = samples.tokens().ids(start..start + samples.seq_len() as u64 + 1);
        Text { id: row as u64, ids: ids.into_iter().map(i64::from).collect() }
    };
    Ok(rows.into_iter().map(text).collect())
}

/// Ids that an attack may use: those that occur in the training split and are not special.
/// A token that the model never saw would make any model look weak.
pub fn allowed_ids(counts: &[u64], special: &[u32]) -> Vec<i64> {
    let seen = counts.iter().enumerate().filter(|&(id, &n)| n > 0 && !special.contains(&(id as u32)));
    seen.map(|(id, _)| id as i64).collect()
}

/// Which targets are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every target, the adversarial tokens among them: as the historic runs did.
    All,
    /// Only targets that the attack did not touch, in the clean text and in the attacked one.
    UntouchedTargets,
}

impl Scope {
    /// Both, in the order in which they are reported.
    pub const ALL: [Self; 2] = [Self::All, Self::UntouchedTargets];

    /// Its word in studies and results.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::UntouchedTargets => "untouched_targets",
        }
    }

    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// Mean NLL of one text before and after, nats, in one scope.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair {
    /// Before.
    pub clean: f64,
    /// After.
    pub attacked: f64,
}

/// A sum of NLL and the number of targets in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    nll: f64,
    tokens: i64,
}

impl Sum {
    pub(crate) fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.tokens += 1;
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
    }

    /// Nats per token; 0 if every target was touched.
    pub(crate) fn mean(self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.nll / self.tokens as f64 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::victim::{Derived, Swaps, Victim};
    use super::*;
    use crate::compute::model::{Family, Model, ModelConfig, Sizes};
    use tch::{Kind, Tensor};

    const DOUBLE: (Kind, tch::Device) = (Kind::Double, tch::Device::Cpu);

    /// A causal decoder of two blocks in fp64, by autograd: attention of one head and a tanh layer, each added to the
    /// stream.
    pub(crate) struct Exact {
        pub e_vh: Tensor,
        blocks: Vec<[Tensor; 6]>,
        /// Rows that went through it, forward and with gradients.
        pub seen: [usize; 2],
    }

    impl Exact {
        pub(crate) fn new(vocab: i64, h: i64, seed: u32) -> Self {
            let matrix = |rows: i64, cols: i64, tensor: u32, scale: f64| {
                let mut rng = Rng::new(seed, Purpose::Init, tensor, 0);
                let values: Vec<f64> = (0..rows * cols).map(|_| rng.normal() * scale).collect();
                Tensor::from_slice(&values).view([rows, cols])
            };
            let block = |b: u32| {
                let m = |i: u32, rows, cols| matrix(rows, cols, 1 + 6 * b + i, 0.4);
                [m(0, h, h), m(1, h, h), m(2, h, h), m(3, h, h), m(4, h, 2 * h), m(5, 2 * h, h)]
            };
            Self { e_vh: matrix(vocab, h, 0, 1.0), blocks: vec![block(0), block(1)], seen: [0; 2] }
        }

        /// NLL `[B, T]`, 0 where nothing is scored.
        pub(crate) fn nll_of(&self, x_bth: &Tensor, targets_bt: &Tensor) -> Tensor {
            let [t, h] = [x_bth.size()[1], x_bth.size()[2]];
            let later = Tensor::ones([t, t], DOUBLE).triu(1) * -1e9;
            let mut x = x_bth.shallow_clone();
            for [q, k, v, o, up, down] in &self.blocks {
                let scores = x.matmul(q).matmul(&x.matmul(k).transpose(1, 2)) / (h as f64).sqrt() + &later;
                x = &x + scores.softmax(-1, Kind::Double).matmul(&x.matmul(v)).matmul(o);
                x = &x + x.matmul(up).tanh().matmul(down);
            }
            let logp = x.tanh().matmul(&self.e_vh.transpose(0, 1)).log_softmax(-1, Kind::Double);
            let picked = logp.gather(-1, &targets_bt.clamp_min(0).unsqueeze(-1), false).squeeze_dim(-1);
            -picked * targets_bt.ne(IGNORED).to_kind(Kind::Double)
        }

        pub(crate) fn tensors(&self, rows: &Rows) -> (Tensor, Tensor) {
            let shape = [rows.count as i64, rows.len as i64];
            let x = self.e_vh.index_select(0, &Tensor::from_slice(&rows.inputs)).view([shape[0], shape[1], -1]);
            (x, Tensor::from_slice(&rows.targets).view(shape))
        }

        fn scored(&self, nll: &Tensor, rows: &Rows) -> Vec<f64> {
            let nll = Vec::<f64>::try_from(nll.detach().contiguous().view(-1)).unwrap();
            nll.into_iter().zip(&rows.targets).filter(|(_, t)| **t != IGNORED).map(|(v, _)| v).collect()
        }
    }

    impl Victim for Exact {
        fn max_len(&self) -> usize {
            64
        }

        fn width(&self) -> usize {
            self.e_vh.size()[1] as usize
        }

        fn nll(&mut self, rows: &Rows) -> Result<Vec<f64>> {
            self.seen[0] += rows.count;
            let (x, targets) = self.tensors(rows);
            Ok(self.scored(&self.nll_of(&x, &targets), rows))
        }

        fn gradient(&mut self, rows: &Rows) -> Result<Derived> {
            self.seen[1] += rows.count;
            let (x, targets) = self.tensors(rows);
            let x = x.detach().set_requires_grad(true);
            let nll = self.nll_of(&x, &targets);
            nll.sum(Kind::Double).backward();
            let by_inputs = Vec::<f64>::try_from(x.grad().contiguous().view(-1)).unwrap();
            Ok(Derived { nll: self.scored(&nll, rows), by_inputs })
        }

        fn products(&mut self, g: &[f64]) -> Result<Vec<f64>> {
            Ok(Vec::<f64>::try_from(self.e_vh.matmul(&Tensor::from_slice(g))).unwrap())
        }

        fn swaps(&mut self, g: &[f64], here: &[i64], allowed: &[i64], most: usize) -> Result<Vec<Swaps>> {
            let mut found = Vec::new();
            for (g, &id) in g.chunks_exact(self.width()).zip(here) {
                let scores = self.products(g)?;
                let mut others: Vec<(i64, f64)> =
                    allowed.iter().filter(|&&a| a != id).map(|&a| (a, scores[a as usize])).collect();
                others.sort_by(|a, b| b.1.total_cmp(&a.1));
                others.truncate(most);
                found.push(Swaps { here: scores[id as usize], others });
            }
            Ok(found)
        }
    }

    /// A small GPT-NeoX, or a Qwen2 with a tied head.
    pub(crate) fn model(tied: bool) -> Model {
        let sizes = Sizes {
            hidden_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            intermediate_size: 64,
            vocab_size: 40,
            max_position_embeddings: 48,
        };
        let mut config = ModelConfig::new(if tied { Family::Qwen2 } else { Family::GptNeox }, sizes);
        config.tie_word_embeddings = tied;
        let mut model = Model::random(&config, 3).unwrap();
        // Away from the start, where attacks could do nothing.
        for (g, flat) in model.flats_mut().iter_mut().enumerate() {
            let mut rng = Rng::new(8, Purpose::Init, g as u32, 1);
            crate::compute::model::as_f32_mut(flat).iter_mut().for_each(|x| *x += 0.25 * rng.normal() as f32);
        }
        model
    }

    /// Random rows of which some positions are not scored.
    pub(crate) fn rows(count: usize, len: usize, vocab: u64) -> Rows {
        let mut rng = Rng::new(5, Purpose::AttackSamples, 9, 0);
        let mut draw = || (0..count * len).map(|_| rng.below(vocab) as i64).collect::<Vec<_>>();
        let (inputs, mut targets) = (draw(), draw());
        targets.iter_mut().step_by(4).for_each(|t| *t = IGNORED);
        Rows { count, len, inputs, targets }
    }

    /// Texts of `length` targets over ids from 2 on.
    pub(crate) fn texts(count: u64, length: usize, vocab: u64) -> Vec<Text> {
        let text = |id| {
            let mut rng = Rng::new(6, Purpose::AttackSamples, 3, id);
            Text { id, ids: (0..=length).map(|_| 2 + rng.below(vocab - 2) as i64).collect() }
        };
        (0..count).map(text).collect()
    }

    #[test]
    fn rows_are_filled_and_scored_from_a_target_on() {
        let mut rows = Rows::of(4);
        rows.push([7, 8, 9, 10, 11].into_iter(), 3);
        rows.push([1, 2, 3].into_iter(), 1);
        assert_eq!(rows.inputs, [7, 8, 9, 10, 1, 2, 2, 2]);
        assert_eq!(rows.targets, [-100, -100, 10, 11, 2, 3, -100, -100]);
        let split: Vec<&[f64]> = rows.split(&[0.5, 1.5, 2.5, 3.5]).collect();
        assert_eq!(split, [[0.5, 1.5], [2.5, 3.5]]);
        assert_eq!(rows.range(1..2).inputs, [1, 2, 2, 2]);
    }

    #[test]
    fn special_and_unseen_ids_are_not_allowed() {
        assert_eq!(allowed_ids(&[9, 9, 3, 0, 1], &[0, 1]), [2, 4]);
    }
}
