//! Multiple choice: the likelihood of each choice after its context, and what follows from it.
//!
//! [`task`] makes items of files, [`encode`] cuts them into tokens, [`score`] asks the model, and here accuracies are
//! made of scores. Two conventions stand beside each other by name: whose prompts, how texts are cut into tokens, which score is the headline.

pub mod encode;
mod python;
mod rows;
pub mod score;
pub mod task;

use serde::Serialize;

use encode::Pair;
pub(super) use python::words;
use score::{Rows, Score, Scored};
pub use task::{Convention, Described, Found, Item, Items, Layout, find, read};

use super::Grain;
use crate::compute::Result;
use crate::compute::comm::Comm;
use crate::compute::data::TextTokenizer;
use crate::compute::model::{Mask, Net};
use crate::record::{Column, Items as Table};

/// What a model chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Number of the item in its file.
    pub number: usize,
    /// The right choice.
    pub gold: usize,
    /// Score of each choice.
    pub scores: Vec<Score>,
    /// The choice with the largest log-likelihood.
    pub by_sum: usize,
    /// With the largest log-likelihood a character.
    pub by_characters: usize,
    /// With the largest log-likelihood a byte.
    pub by_bytes: usize,
    /// With the largest log-likelihood a token.
    pub by_tokens: usize,
}

impl Outcome {
    fn new(item: &Item, scores: Vec<Score>) -> Self {
        let best = |length: &dyn Fn(usize) -> f64| {
            let values = scores.iter().enumerate().map(|(i, s)| s.log_likelihood / length(i));
            first_largest(values)
        };
        Self {
            number: item.number,
            gold: item.gold,
            by_sum: best(&|_| 1.0),
            by_characters: best(&|i| item.characters(i) as f64),
            by_bytes: best(&|i| item.choices[i].len() as f64),
            by_tokens: best(&|i| scores[i].tokens as f64),
            scores,
        }
    }

    /// The choice that a convention's headline is about.
    pub fn chosen(&self, convention: Convention) -> usize {
        match convention {
            Convention::LmEval => self.by_sum,
            Convention::Seed => self.by_tokens,
        }
    }
}

/// Index of the largest value; of the first of equals. A choice without a length has no value.
fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

/// A part of items that were right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Right ones over all.
    pub value: f64,
    /// Its standard error: sample standard deviation over the root of n; absent for one item.
    pub stderr: Option<f64>,
}

impl Accuracy {
    /// Of one answer an item.
    pub(super) fn of(right: impl Iterator<Item = bool>) -> Self {
        let (right, n) = right.fold((0usize, 0usize), |(right, n), one| (right + usize::from(one), n + 1));
        let value = right as f64 / n as f64;
        // The sample variance of zeros and ones.
        let stderr = (n > 1).then(|| (value * (1.0 - value) / (n - 1) as f64).sqrt());
        Self { value, stderr }
    }
}

/// A task's result.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// By log-likelihood.
    pub acc: Accuracy,
    /// By log-likelihood a character of the choice.
    pub acc_norm: Accuracy,
    /// By log-likelihood a byte of the choice.
    pub acc_bytes: Accuracy,
    /// By mean log-probability of a token.
    pub acc_tokens: Accuracy,
    /// What guessing reaches: the mean over items of 1 / choices.
    pub mean_chance: f64,
    /// 1 / mean number of choices, as the prefill study has it.
    pub chance_of_mean: f64,
    /// Of each item, in the order of the file.
    pub outcomes: Vec<Outcome>,
    /// Attention layers that took another mask than a causal one, as counted in every pass.
    pub patched_layers: usize,
}

impl TaskResult {
    /// The accuracy that a convention reports as the task's.
    pub fn headline(&self, convention: Convention) -> Accuracy {
        match convention {
            Convention::LmEval => self.acc,
            Convention::Seed => self.acc_tokens,
        }
    }

    /// What a convention calls chance.
    pub fn chance(&self, convention: Convention) -> f64 {
        match convention {
            Convention::LmEval => self.mean_chance,
            Convention::Seed => self.chance_of_mean,
        }
    }

    /// A row an item: what was chosen by each rule, and each choice's log-likelihood (nats) and lengths.
    pub fn table(&self, convention: Convention, items: &[Item]) -> Table {
        let outcomes = &self.outcomes;
        let integers =
            |of: &dyn Fn(&Outcome) -> usize| Column::Integers(outcomes.iter().map(|o| of(o) as i64).collect());
        let mut columns = vec![
            ("id".to_owned(), integers(&|o| o.number)),
            ("gold".to_owned(), integers(&|o| o.gold)),
            ("chosen".to_owned(), integers(&|o| o.chosen(convention))),
            ("right".to_owned(), integers(&|o| usize::from(o.chosen(convention) == o.gold))),
            ("choices".to_owned(), integers(&|o| o.scores.len())),
            ("by_sum".to_owned(), integers(&|o| o.by_sum)),
            ("by_characters".to_owned(), integers(&|o| o.by_characters)),
            ("by_bytes".to_owned(), integers(&|o| o.by_bytes)),
            ("by_tokens".to_owned(), integers(&|o| o.by_tokens)),
        ];
        let most = outcomes.iter().map(|o| o.scores.len()).max().unwrap_or(0);
        for k in 0..most {
            let of_choice = |of: &dyn Fn(&Outcome, &Item) -> usize| {
                let values = outcomes.iter().zip(items).map(|(o, item)| match o.scores.get(k) {
                    Some(_) => of(o, item) as i64,
                    None => -1,
                });
                Column::Integers(values.collect())
            };
            let log_likelihoods = outcomes.iter().map(|o| o.scores.get(k).map_or(f64::NAN, |s| s.log_likelihood));
            columns.push((format!("ll_{k}"), Column::Floats(log_likelihoods.collect())));
            columns.push((format!("tokens_{k}"), of_choice(&|o, _| o.scores[k].tokens)));
            columns.push((format!("characters_{k}"), of_choice(&|_, item| item.characters(k))));
            columns.push((format!("bytes_{k}"), of_choice(&|_, item| item.choices[k].len())));
        }
        Table { columns }
    }
}

/// Context and continuation of every choice of every item, in order, as ids.
///
/// # Errors
/// The tokenizer refuses a text.
pub fn pairs(items: &[Item], tokenizer: &TextTokenizer, convention: Convention) -> Result<Vec<Pair>> {
    let texts = items.iter().flat_map(|item| &item.pairs);
    texts.map(|(context, continuation)| Pair::new(tokenizer, convention.cutting(), context, continuation)).collect()
}

/// Evaluates the items of a task. Every rank calls it alike and gets the whole result.
///
/// # Errors
/// The tokenizer or the model refuses a text, or a rank is gone.
pub fn evaluate(
    (net, tokenizer): (&Net, &TextTokenizer),
    comm: &Comm,
    items: &[Item],
    convention: Convention,
    mask: Mask,
    grain: Grain,
) -> Result<TaskResult> {
    let pairs = pairs(items, tokenizer, convention)?;
    let Scored { scores, patched_layers } = score::score_as(net, comm, &pairs, (mask, grain), Rows::Packed)?;
    let mut scores = scores.into_iter();
    let outcomes: Vec<Outcome> =
        items.iter().map(|item| Outcome::new(item, scores.by_ref().take(item.pairs.len()).collect())).collect();
    let accuracy = |chosen: &dyn Fn(&Outcome) -> usize| Accuracy::of(outcomes.iter().map(|o| chosen(o) == o.gold));
    let n = outcomes.len() as f64;
    let choices: usize = items.iter().map(|item| item.choices.len()).sum();
    Ok(TaskResult {
        acc: accuracy(&|o| o.by_sum),
        acc_norm: accuracy(&|o| o.by_characters),
        acc_bytes: accuracy(&|o| o.by_bytes),
        acc_tokens: accuracy(&|o| o.by_tokens),
        mean_chance: items.iter().map(|item| 1.0 / item.choices.len() as f64).sum::<f64>() / n,
        chance_of_mean: n / choices as f64,
        outcomes,
        patched_layers,
    })
}

#[cfg(test)]
mod tests;
