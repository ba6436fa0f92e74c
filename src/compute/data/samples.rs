//! Samples of T inputs and T targets: what a row shows, what it predicts, and where its documents begin.
//!
//! Sample i is a function of the split and of a [`Reading`]. The order in which samples are read is
//! [`super::Permutation`]'s, how they go together [`super::grains`]'.

use std::sync::Arc;

use crate::compute::model::{Batch, Mask};
use crate::compute::{ComputeError, Result};

use super::packing::{self, Long, Rows};
use super::{Packing, Tokens};

/// Target that carries no label.
pub const IGNORED: i64 = -100;

/// What is predicted, and what a prediction may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Every token from those before it.
    Causal,
    /// Every token of a response, from those before it.
    Response,
    /// Every token of a response, from those before it; the tokens of a prompt see each other.
    Prefix,
}

impl Objective {
    /// Words in a study.
    pub const WORDS: &'static [&'static str] = &["causal", "response", "prefix"];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "causal" => Some(Self::Causal),
            "response" => Some(Self::Response),
            "prefix" => Some(Self::Prefix),
            _ => None,
        }
    }
}

/// How a split is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// How documents become rows.
    pub packing: Packing,
    /// What becomes of documents that are longer than a row.
    pub long: Long,
    /// What is predicted.
    pub objective: Objective,
    /// Who sees whom; [`Objective::Prefix`] has a prefix mask whatever is said here.
    pub mask: Mask,
    /// Whether attention stays inside a document.
    pub reset_attention: bool,
    /// Whether positions count from each document's beginning.
    pub reset_positions: bool,
}

impl Reading {
    /// Every token predicted from all before it in its row.
    pub fn causal(packing: Packing) -> Self {
        Self {
            packing,
            long: Long::Windows,
            objective: Objective::Causal,
            mask: Mask::Causal,
            reset_attention: false,
            reset_positions: false,
        }
    }

    /// Who sees whom.
    pub fn mask(&self) -> Mask {
        if self.objective == Objective::Prefix { Mask::Prefix } else { self.mask }
    }

    /// Refuses what cannot be read.
    ///
    /// # Errors
    /// What does not go together, as a fragment that names the keys of a study.
    pub fn check(&self) -> std::result::Result<(), String> {
        let prompts = self.objective != Objective::Causal;
        if prompts && self.packing == Packing::Stream {
            // A row that begins inside an item would show a response without its prompt.
            return Err("`packing` = \"stream\" cuts prompts from their responses: use \"document\" or, for `objective` = \"response\", \"best_fit\"".to_owned());
        }
        match (self.mask(), self.packing) {
            (Mask::Prefix, Packing::BestFit) if self.objective == Objective::Prefix => {
                Err("`objective` = \"prefix\" has one prompt a row: use `packing` = \"document\"".to_owned())
            }
            (Mask::Prefix, Packing::BestFit | Packing::Stream) => {
                Err("`mask` = \"prefix\" has one prompt a row: use `packing` = \"document\"".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// T input ids.
    pub inputs: Vec<i64>,
    /// T targets: the id that follows, or [`IGNORED`].
    pub targets: Vec<i64>,
    /// T segment numbers: which document of the row a position belongs to, from 0. Filling is one more.
    pub segments: Vec<i64>,
    /// Where each input stands in `tokens.bin`, and its target behind it; of filling, the number of tokens.
    pub origins: Vec<u64>,
}

/// One row, in the types of a [`Batch`]. Every row has all of this, whether its reading needs it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    ids: Vec<i32>,
    targets: Vec<i32>,
    segments: Vec<i32>,
    /// Positions within the segments.
    positions: Vec<i32>,
    /// Inputs that the first piece's prompt has.
    prompt_len: usize,
    /// Inputs that are no filling.
    filled: usize,
    origins: Vec<u64>,
}

/// The samples of a split.
#[derive(Debug, Clone)]
pub struct Samples {
    tokens: Arc<Tokens>,
    seq_len: usize,
    reading: Reading,
    /// Absent for a stream.
    rows: Option<Rows>,
}

impl Samples {
    /// Samples of `seq_len` inputs, every token predicted from all before it in its row.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn new(tokens: Arc<Tokens>, seq_len: usize, packing: Packing) -> Result<Self> {
        Self::read(tokens, seq_len, Reading::causal(packing))
    }

    /// Samples of `seq_len` inputs.
    ///
    /// # Errors
    /// `seq_len` is 0, the reading cannot be, it wants prompts and there are none, or the split does not hold
    /// one sample.
    pub fn read(tokens: Arc<Tokens>, seq_len: usize, reading: Reading) -> Result<Self> {
        if seq_len == 0 {
            return Err(ComputeError::Config("the sequence length is 0: set `seq_len` to at least 1".to_owned()));
        }
        reading.check().map_err(ComputeError::Config)?;
        if !tokens.has_prompts() && (reading.objective != Objective::Causal || reading.mask() == Mask::Prefix) {
            let other = if reading.objective == Objective::Causal { "mask" } else { "objective" };
            return Err(ComputeError::Config(format!(
                "the {} split has no prompts: set `jsonl_prompt_field` in the setup stage, or `{other}` = \"causal\"",
                tokens.info().split
            )));
        }
        let labelled = |document| if reading.objective == Objective::Causal { 0 } else { tokens.prompt(document) };
        let rows = match reading.packing {
            Packing::Stream => None,
            Packing::Document => Some(Rows::of_documents(&tokens, seq_len, reading.long, labelled)),
            Packing::BestFit => {
                Some(Rows::of_documents(&tokens, seq_len, reading.long, labelled).packed(&tokens, seq_len))
            }
        };
        let samples = Self { tokens, seq_len, reading, rows };
        if samples.is_empty() {
            return Err(ComputeError::Config(format!(
                "the {} split holds {} tokens, fewer than one sample of {}: give it more text or lower `seq_len`",
                samples.tokens.info().split,
                samples.tokens.len(),
                seq_len + 1
            )));
        }
        Ok(samples)
    }

    /// Samples in one epoch.
    pub fn len(&self) -> u64 {
        match &self.rows {
            None => (self.tokens.len().saturating_sub(1)) / self.seq_len as u64,
            Some(rows) => rows.len(),
        }
    }

    /// True if there is none; never after [`Self::new`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a global batch that an epoch cannot fill.
    ///
    /// # Errors
    /// The split holds fewer than `global_batch` samples.
    pub fn check_batch(&self, global_batch: u64) -> Result<()> {
        if self.len() < global_batch {
            return Err(ComputeError::Config(format!(
                "the {} split holds {} samples of {} tokens, fewer than one batch of {global_batch}: give it more text, or lower `global_batch` or `seq_len`",
                self.tokens.info().split,
                self.len(),
                self.seq_len
            )));
        }
        Ok(())
    }

    /// T.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// How the split is read.
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// Documents of which nothing is predicted: the epoch does not hold them.
    pub fn dropped(&self) -> u64 {
        let whole = self.reading.long == Long::Cut;
        match &self.rows {
            Some(rows) if whole => self.tokens.documents() as u64 - rows.pieces(),
            _ => 0,
        }
    }

    /// Documents of which only the beginning is there.
    pub fn truncated(&self) -> u64 {
        let longer = |i: &usize| {
            let range = self.tokens.document(*i);
            range.end - range.start > self.seq_len as u64
        };
        if self.reading.long == Long::Cut { (0..self.tokens.documents()).filter(longer).count() as u64 } else { 0 }
    }

    /// The split they are cut from.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Part of the positions of an epoch that is filling, 0 to 1.
    pub fn filling(&self) -> f64 {
        let Some(rows) = &self.rows else { return 0.0 };
        let pieces = (0..rows.len()).flat_map(|i| rows.row(i));
        let filled: u64 = pieces.map(|p| packing::piece_len(&self.tokens, p, self.seq_len) as u64).sum();
        1.0 - filled as f64 / (rows.len() * self.seq_len as u64) as f64
    }

    /// Sample `i` in file order; beyond the last it holds no label.
    pub fn sample(&self, i: u64) -> Sample {
        let row = self.row(i);
        let wide = |narrow: Vec<i32>| narrow.into_iter().map(i64::from).collect();
        Sample { inputs: wide(row.ids), targets: wide(row.targets), segments: wide(row.segments), origins: row.origins }
    }

    /// Some rows as a model sees them; a row that is `None` is filling, and holds no label.
    ///
    /// What a causal mask over a whole row does anyway is left out, so that a model can take its fastest path:
    /// `segments` and `positions` are there where they are reset within rows. Filling lies behind everything
    /// that is predicted, where neither a causal nor a prefix mask looks, so `key_lens` is there for a full one only.
    pub fn batch(&self, rows: impl IntoIterator<Item = Option<u64>>) -> Batch {
        let within = self.reading.packing != Packing::Document;
        let wanted = |reset: bool| (within && reset).then(Vec::new);
        let mask = self.reading.mask();
        let mut batch = Batch {
            mask,
            segments: wanted(self.reading.reset_attention),
            positions: wanted(self.reading.reset_positions),
            prompt_lens: (mask == Mask::Prefix).then(Vec::new),
            key_lens: (mask == Mask::Full).then(Vec::new),
            ..Batch::causal(0, self.seq_len, Vec::new(), Vec::new())
        };
        for row in rows {
            let row = row.map_or_else(|| self.blank(), |i| self.row(i));
            batch.rows += 1;
            batch.ids.extend_from_slice(&row.ids);
            batch.targets.extend_from_slice(&row.targets);
            if let Some(segments) = &mut batch.segments {
                segments.extend_from_slice(&row.segments);
            }
            if let Some(positions) = &mut batch.positions {
                positions.extend_from_slice(&row.positions);
            }
            if let Some(prompt_lens) = &mut batch.prompt_lens {
                // At most T, which a model's context bounds far below 2^31.
                prompt_lens.push(row.prompt_len as i32);
            }
            if let Some(key_lens) = &mut batch.key_lens {
                key_lens.push(row.filled as i32);
            }
        }
        batch
    }

    /// A row of filling.
    fn blank(&self) -> Row {
        let t = self.seq_len;
        Row {
            // Ids are below the vocabulary, which an embedding's size bounds far below 2^31.
            ids: vec![self.tokens.info().special.filler() as i32; t],
            targets: vec![IGNORED as i32; t],
            segments: vec![0; t],
            positions: (0..t as i32).collect(),
            prompt_len: 0,
            filled: 0,
            origins: vec![self.tokens.len(); t],
        }
    }

    fn row(&self, i: u64) -> Row {
        let mut row = self.blank();
        match &self.rows {
            None => self.fill_from_stream(&mut row, i.saturating_mul(self.seq_len as u64)),
            Some(rows) => self.fill_with_pieces(&mut row, rows.row(i)),
        }
        if row.filled > 0 {
            let last = row.segments[row.filled - 1];
            row.segments[row.filled..].fill(last + 1);
            row.positions[row.filled..].iter_mut().zip(0..).for_each(|(position, k)| *position = k);
        }
        row
    }

    /// The tokens from `start` on, each predicted by the one before it, over the ends of documents.
    fn fill_from_stream(&self, row: &mut Row, start: u64) {
        let t = self.seq_len;
        let ids = self.tokens.ids(start..start.saturating_add(t as u64 + 1));
        row.filled = ids.len().min(t);
        if row.filled == 0 {
            return;
        }
        for (target, &id) in row.targets.iter_mut().zip(&ids[1..]) {
            *target = id as i32;
        }
        let mut document = self.tokens.document_of(start);
        let mut end = self.tokens.document(document).end;
        let (mut segment, mut position) = (0, 0);
        for (k, &id) in ids[..row.filled].iter().enumerate() {
            if start + k as u64 >= end {
                (document, segment, position) = (document + 1, segment + 1, 0);
                end = self.tokens.document(document).end;
            }
            (row.ids[k], row.segments[k], row.positions[k]) = (id as i32, segment, position);
            row.origins[k] = start + k as u64;
            position += 1;
        }
    }

    /// Piece after piece, nothing predicted over the end of one.
    fn fill_with_pieces(&self, row: &mut Row, pieces: &[packing::Piece]) {
        for (segment, piece) in (0..).zip(pieces) {
            let document = self.tokens.document(piece.document);
            let (start, len) = (document.start + piece.offset, packing::piece_len(&self.tokens, piece, self.seq_len));
            let prompt = self.tokens.prompt(piece.document);
            let labelled = if self.reading.objective == Objective::Causal { 0 } else { prompt };
            // Of a document that is cut, nothing behind its inputs is predicted.
            let more = u64::from(self.reading.long == Long::Windows);
            let ids = self.tokens.ids(start..(start + len as u64 + more).min(document.end));
            if segment == 0 {
                row.prompt_len = prompt.saturating_sub(piece.offset).min(len as u64) as usize;
            }
            let first = row.filled;
            row.filled += len;
            for k in 0..len {
                let at = first + k;
                (row.ids[at], row.segments[at], row.positions[at]) = (ids[k] as i32, segment, k as i32);
                row.origins[at] = start + k as u64;
                if piece.offset + k as u64 + 1 >= labelled
                    && let Some(&next) = ids.get(k + 1)
                {
                    row.targets[at] = next as i32;
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
