//! Greedy generation: prompts in, texts out.
//!
//! [`task`] makes prompts of a file's items, [`engine`] says which token follows, [`stop`] when a text has ended, and
//! [`answer`] what it answers. Here rows are led from their prompt to their end. In fp32 on the CPU rows enter and
//! leave as they begin and end; on other engines they go in groups that follow from the list of prompts alone. Either
//! way a text does not depend on the batch size, the number of ranks or the texts beside it.

pub mod answer;
pub mod engine;
pub mod stop;
pub mod task;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::compute::comm::Comm;
use crate::compute::kernels::attention::Cache;
use crate::compute::model::libtorch::CachedDecoder;
use crate::compute::model::native::{NativeDecoder, Step};
use crate::compute::{ComputeError, Result};
pub use engine::Engine;
use stop::Stops;

/// New tokens that go through a native decoder together, at most, unless one prompt is longer.
const STEP_TOKENS: usize = 2048;

/// When texts end, and how many are in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// New tokens of a text, at most; at least 1.
    pub max_new_tokens: usize,
    /// Ids that end a text; they are no part of it.
    pub ends: Vec<u32>,
    /// Strings that end a text; it is cut before the first of them.
    pub stops: Vec<String>,
    /// Rows in flight: speed and memory only.
    pub batch_rows: usize,
    /// Rows of a group, where rows go in groups: part of what bf16 and GPUs compute.
    pub grain_rows: usize,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model said so, by an id that ends a text.
    End,
    /// A stop string came.
    Stop,
    /// It had as many tokens as were allowed.
    Length,
    /// It filled the model's context.
    Context,
}

impl Finish {
    /// All, in the order of the enum.
    pub const ALL: [Self; 4] = [Self::End, Self::Stop, Self::Length, Self::Context];

    /// Its word in results.
    pub fn word(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
        }
    }
}

/// A text that was generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// Its tokens, without the id that ended it; those of a stop string are among them.
    pub ids: Vec<u32>,
    /// The text, cut before the first stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// The stop string that ended it, by its place in the list.
    pub stop: Option<usize>,
}

/// What makes text of ids.
pub type Decode<'a> = dyn Fn(&[u32]) -> Result<String> + 'a;

/// Continues every prompt. Every rank calls it with the same prompts and gets all texts, in order.
///
/// # Errors
/// A prompt is empty or fills the context, logits are not finite, the tokenizer refuses ids, or a rank is gone.
pub fn generate(
    engine: &mut Engine<'_>,
    decode: &Decode<'_>,
    comm: &Comm,
    prompts: &[Vec<u32>],
    settings: &Settings,
) -> Result<Vec<Generated>> {
    let context = engine.context();
    for (number, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= context {
            return Err(ComputeError::Config(format!(
                "prompt {number} has {} tokens, and the model a context of {context}: it must have at least one, and leave room for the answer",
                prompt.len()
            )));
        }
    }
    if settings.max_new_tokens == 0 || settings.batch_rows == 0 || settings.grain_rows == 0 {
        return Err(ComputeError::Config(
            "`max_new_tokens`, `batch_size` and `grain_rows` must be at least 1".to_owned(),
        ));
    }
    // The longest first, so that memory runs out at once or never, and rows of a group differ little.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(prompts[i].len()), i));
    let unit = if engine.takes_groups() { settings.grain_rows } else { 1 };
    let groups: Vec<&[usize]> = order.chunks(unit).skip(comm.rank()).step_by(comm.size()).collect();
    let mut texts = Vec::new();
    match engine {
        Engine::Native(decoder) => {
            let mut leader = Leader { decode, settings, context, prompts, texts: &mut texts };
            leader.continuous(decoder, &groups.concat())?;
        }
        Engine::Libtorch(decoder) => {
            for group in groups {
                Leader { decode, settings, context, prompts, texts: &mut texts }.group(decoder, group)?;
            }
        }
    }
    gathered(comm, &texts, prompts.len())
}

/// Everybody's texts, in the order of the prompts.
fn gathered(comm: &Comm, mine: &[(usize, Generated)], count: usize) -> Result<Vec<Generated>> {
    let broken =
        |e: serde_json::Error| ComputeError::Failed(format!("texts of a rank cannot be read ({e}): report this"));
    let parts = comm.collect(&serde_json::to_vec(mine).map_err(broken)?)?;
    let mut all: Vec<(usize, Generated)> = Vec::new();
    for part in &parts {
        all.extend(serde_json::from_slice::<Vec<(usize, Generated)>>(part).map_err(broken)?);
    }
    all.sort_by_key(|(number, _)| *number);
    let bytes = comm.broadcast(&serde_json::to_vec(&all).map_err(broken)?)?;
    let all: Vec<(usize, Generated)> = serde_json::from_slice(&bytes).map_err(broken)?;
    if all.len() != count {
        return Err(ComputeError::Failed(format!("{} of {count} texts came: report this", all.len())));
    }
    Ok(all.into_iter().map(|(_, text)| text).collect())
}

/// A row on its way.
struct Row {
    number: usize,
    ids: Vec<u32>,
    stops: Stops,
}

/// Leads rows of one rank to their ends.
struct Leader<'a> {
    decode: &'a Decode<'a>,
    settings: &'a Settings,
    context: usize,
    prompts: &'a [Vec<u32>],
    texts: &'a mut Vec<(usize, Generated)>,
}

impl Leader<'_> {
    fn row(&self, number: usize) -> Row {
        Row { number, ids: Vec::new(), stops: Stops::new(&self.settings.stops) }
    }

    /// Tokens that a row may have with its prompt.
    fn room(&self, prompt: usize) -> usize {
        (prompt + self.settings.max_new_tokens).min(self.context)
    }

    /// The next token of a row; true if the row has ended with it.
    fn take(&mut self, row: &mut Row, id: u32) -> Result<bool> {
        let mut finish = None;
        if self.settings.ends.contains(&id) {
            finish = Some(Finish::End);
        } else {
            row.ids.push(id);
            let stopped = row.stops.is_reached(&row.ids, self.decode)?;
            let whole = self.prompts[row.number].len() + row.ids.len();
            if stopped {
                finish = Some(Finish::Stop);
            } else if row.ids.len() == self.settings.max_new_tokens {
                finish = Some(Finish::Length);
            } else if whole == self.context {
                finish = Some(Finish::Context);
            }
        }
        let Some(finish) = finish else { return Ok(false) };
        let (text, stop) = row.stops.cut((self.decode)(&row.ids)?);
        self.texts.push((row.number, Generated { ids: std::mem::take(&mut row.ids), text, finish, stop }));
        Ok(true)
    }

    /// Rows enter as others leave.
    fn continuous(&mut self, decoder: &mut NativeDecoder, order: &[usize]) -> Result<()> {
        let mut waiting = order.iter().copied().peekable();
        let mut rows: Vec<(Row, Cache, Vec<u32>)> = Vec::new();
        let vocab = decoder.vocab();
        loop {
            let mut tokens = rows.len();
            while let Some(&number) = waiting.peek().filter(|_| rows.len() < self.settings.batch_rows) {
                let prompt = &self.prompts[number];
                if tokens > 0 && tokens + prompt.len() > STEP_TOKENS {
                    break;
                }
                tokens += prompt.len();
                rows.push((self.row(number), decoder.cache(self.room(prompt.len())), prompt.clone()));
                waiting.next();
            }
            if rows.is_empty() {
                return Ok(());
            }
            let mut steps: Vec<Step<'_>> = rows
                .iter_mut()
                .map(|(row, cache, new)| Step { cache, ids: new, prompt: self.prompts[row.number].len(), wanted: 1 })
                .collect();
            let logits = decoder.advance(&mut steps)?;
            let next: Vec<u32> = logits.chunks_exact(vocab).map(greedy).collect::<Result<_>>()?;
            let mut going = Vec::new();
            for ((mut row, cache, mut new), id) in rows.drain(..).zip(next) {
                if !self.take(&mut row, id)? {
                    new.clear();
                    new.push(id);
                    going.push((row, cache, new));
                }
            }
            rows = going;
        }
    }

    /// Rows begin together, and the group ends with its last one.
    fn group(&mut self, decoder: &CachedDecoder<'_>, group: &[usize]) -> Result<()> {
        let prompts: Vec<&[u32]> = group.iter().map(|&number| self.prompts[number].as_slice()).collect();
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        let (mut kept, mut logits) = decoder.begin(&prompts, self.room(longest))?;
        let mut rows: Vec<(Row, bool)> = group.iter().map(|&number| (self.row(number), true)).collect();
        loop {
            let vocab = usize::try_from(logits.size()[1]).unwrap_or(0);
            let all = crate::compute::model::as_f32(&logits).chunks_exact(vocab);
            let mut next = Vec::new();
            for ((row, goes), logits) in rows.iter_mut().zip(all) {
                // A row that has ended goes on with any token, so that shapes stay.
                let id = if *goes { greedy(logits)? } else { 0 };
                if *goes && self.take(row, id)? {
                    *goes = false;
                }
                next.push(id);
            }
            let going: Vec<bool> = rows.iter().map(|(_, goes)| *goes).collect();
            if !going.contains(&true) {
                return Ok(());
            }
            logits = decoder.next(&mut kept, &next, &going)?;
        }
    }
}

/// The id with the largest logit, the lowest among equals.
fn greedy(logits: &[f32]) -> Result<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(ComputeError::Failed(
                "a logit is not finite: the model diverged; look at its training stage".to_owned(),
            ));
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    // No vocabulary is larger than 2^24.
    Ok(best.0 as u32)
}
