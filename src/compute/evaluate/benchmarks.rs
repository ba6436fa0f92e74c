//! Four public benchmarks beside perplexity: LAMBADA, HellaSwag, WinoGrande, TruthfulQA, as the `lm-eval` package asks them.

use std::path::Path;

use serde_json::{Value, json};

use super::Grain;
use super::choice::encode::{Cutting, Pair};
use super::choice::task::{Fields, Item, Items as Questions, truthfulqa};
use super::choice::{self, Accuracy, Convention, Layout, TaskResult};
use super::{greedy, rows};
use crate::compute::comm::Comm;
use crate::compute::data::TextTokenizer;
use crate::compute::model::{Mask, Net};
use crate::compute::{ComputeError, Result};
use crate::record::{Column, Items};

/// The benchmarks, by their names in results and of their files, and the split that the package evaluates.
pub const SPLITS: &[(&str, &str)] =
    &[("lambada", "test"), ("hellaswag", "validation"), ("winogrande", "validation"), ("truthfulqa", "validation")];

/// What a benchmark gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// `accuracy` and its kin, for the value tree.
    pub values: Value,
    /// A row an item.
    pub items: Items,
}

/// Asks a benchmark whose rows lie in `dir` ([`rows::find`]), the first `limit` of them.
///
/// # Errors
/// Its rows are not there ([`ComputeError::Missing`]) or cannot be used, or the model refuses.
pub fn run(asked: (&Net, &TextTokenizer), name: &str, dir: &Path, limit: Option<usize>, grain: Grain) -> Result<Found> {
    let split = SPLITS.iter().find(|(known, _)| *known == name).map(|(_, split)| *split);
    let split = split.ok_or_else(|| ComputeError::Config(format!("`{name}` is no benchmark that is known")))?;
    let files = rows::find(dir, name, split)?;
    match name {
        "lambada" => {
            let mut texts = Vec::new();
            rows::each_row(&files, limit, &mut |path, number, row| {
                let text = Fields(&row).text("text");
                texts.push(text.map_err(|why| ComputeError::input(path, format!("has a row {number} that {why}")))?);
                Ok(())
            })?;
            if texts.is_empty() {
                return Err(ComputeError::missing(&files[0], "has no row: check that it is LAMBADA's file"));
            }
            lambada(asked, &texts, grain)
        }
        "truthfulqa" => {
            let mut sets = Vec::new();
            rows::each_row(&files, limit, &mut |path, number, row| {
                let wrong = |why: String| ComputeError::input(path, format!("has a row {number} that {why}"));
                sets.push(Answers::of(&row, number).map_err(wrong)?);
                Ok(())
            })?;
            let one = choice::read(&files, &Layout::Truthfulqa, Convention::LmEval, limit)?;
            let one = questions(asked, &one, grain)?;
            with_mc2(asked, one, &sets, grain)
        }
        _ => {
            let layout = if name == "hellaswag" { Layout::Hellaswag } else { Layout::Winogrande };
            questions(asked, &choice::read(&files, &layout, Convention::LmEval, limit)?, grain)
        }
    }
}

fn questions((net, tokenizer): (&Net, &TextTokenizer), read: &Questions, grain: Grain) -> Result<Found> {
    let convention = Convention::LmEval;
    let result = choice::evaluate((net, tokenizer), &Comm::Solo, &read.items, convention, Mask::Causal, grain)?;
    let TaskResult { acc, acc_norm, mean_chance, .. } = &result;
    Ok(Found {
        values: json!({
            "accuracy": acc.value,
            "stderr": acc.stderr,
            "acc_norm": acc_norm.value,
            "acc_norm_stderr": acc_norm.stderr,
            "chance": mean_chance,
            "total": read.items.len(),
            "without_answer": read.without_answer,
        }),
        items: result.table(convention, &read.items),
    })
}

/// The last word of each text behind all before it.
fn lambada((net, tokenizer): (&Net, &TextTokenizer), texts: &[String], grain: Grain) -> Result<Found> {
    let pair = |text: &String| {
        let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
        Pair::new(tokenizer, Cutting::Together, context, &format!(" {word}"))
    };
    let pairs = texts.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let said = greedy::say(net, &pairs, grain)?;
    let accuracy = Accuracy::of(said.iter().map(|s| s.greedy));
    let nll = -said.iter().map(|s| s.log_likelihood).sum::<f64>() / said.len() as f64;
    Ok(Found {
        values: json!({
            "accuracy": accuracy.value,
            "stderr": accuracy.stderr,
            "perplexity": nll.exp(),
            "total": said.len(),
        }),
        items: Items {
            columns: vec![
                ("id".into(), Column::Integers((0..said.len() as i64).collect())),
                ("right".into(), Column::Integers(said.iter().map(|s| i64::from(s.greedy)).collect())),
                ("ll".into(), Column::Floats(said.iter().map(|s| s.log_likelihood).collect())),
                ("tokens".into(), Column::Integers(pairs.iter().map(|p| p.continuation.len() as i64).collect())),
            ],
        },
    })
}

/// A question of TruthfulQA with several true answers.
struct Answers {
    item: Item,
    /// As many of the first answers are true.
    true_ones: usize,
}

impl Answers {
    fn of(row: &Value, number: usize) -> choice::task::Parsed<Self> {
        let fields = Fields(row);
        let context = truthfulqa(&fields)?;
        let choices = fields.texts("mc2_targets.choices")?;
        let flags = fields.flags("mc2_targets.labels")?;
        let true_ones = flags.iter().position(|is| !is).unwrap_or(flags.len());
        if flags.len() != choices.len()
            || true_ones == 0
            || true_ones == flags.len()
            || flags[true_ones..].contains(&true)
        {
            return Err("has `mc2_targets` that are not true answers and then false ones: correct it".to_owned());
        }
        let pairs = choices.iter().map(|choice| (context.clone(), format!(" {choice}"))).collect();
        Ok(Self { item: Item { number, pairs, choices, gold: 0 }, true_ones })
    }
}

/// Adds the second score: the part of the probability of all answers that the true ones have.
fn with_mc2((net, tokenizer): (&Net, &TextTokenizer), mut one: Found, sets: &[Answers], grain: Grain) -> Result<Found> {
    let items: Vec<Item> = sets.iter().map(|set| set.item.clone()).collect();
    let result = choice::evaluate((net, tokenizer), &Comm::Solo, &items, Convention::LmEval, Mask::Causal, grain)?;
    let parts: Vec<f64> = result
        .outcomes
        .iter()
        .zip(sets)
        .map(|(outcome, set)| {
            let p: Vec<f64> = outcome.scores.iter().map(|s| s.log_likelihood.exp()).collect();
            p[..set.true_ones].iter().sum::<f64>() / p.iter().sum::<f64>()
        })
        .collect();
    // Probabilities of long answers may all be 0: lm-eval's mean is then no number either.
    let n = parts.len() as f64;
    let mean = parts.iter().sum::<f64>() / n;
    let variance = parts.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let finite = |x: f64| x.is_finite().then_some(x);
    one.values["mc2"] = json!(finite(mean));
    one.values["mc2_stderr"] = json!(finite((variance / n).sqrt()));
    // Items without a first true answer are not among those of the first score.
    if one.items.len() == parts.len() {
        one.items.columns.push(("mc2".into(), Column::Floats(parts)));
    }
    Ok(one)
}
