//! Instruction data: JSON lines with `instruction`, optional `input` and `output`, in the prompt blocks of Alpaca
//! (Taori et al. 2023) without their preamble, as supervised items: the prompt is shown, the output and the end of the
//! text are predicted.
//!
//! Order and split are functions of the lines and the seed. Nothing is trimmed, joined or left out here; what a row's
//! length leaves of an item, and which items it leaves without a label, is counted by [`super::Samples`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError};

use super::tokens::TokensHeader;
use super::{Item, SourceDigest, Special, TextTokenizer, Tokens};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What is asked, in its blocks.
    pub prompt: String,
    /// What is answered.
    pub response: String,
}

/// The lines of a file.
#[derive(Debug, Clone)]
pub struct Instructions {
    path: PathBuf,
    source: SourceDigest,
    items: Vec<Instruction>,
}

/// The blocks before a response. An input of nothing has no block.
pub fn prompt(instruction: &str, input: &str) -> String {
    let input = if input.is_empty() { String::new() } else { format!("### Input:\n{input}\n\n") };
    format!("### Instruction:\n{instruction}\n\n{input}### Response:\n")
}

impl Instructions {
    /// Reads a file of JSON lines; empty lines are passed over.
    ///
    /// # Errors
    /// The file cannot be read or holds no line; a line is no JSON object with texts under `instruction` and `output`,
    /// or its `input` is neither a text nor null: the message has the line.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ComputeError::missing(path, "is not there: put the instructions there as JSON lines"));
            }
            bytes => bytes.map_err(RecordError::io("read", path))?,
        };
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| ComputeError::input(path, format!("is no UTF-8 ({e}): save it as UTF-8")))?;
        let mut items = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            items.push(instruction(line).map_err(|why| ComputeError::input(path, format!("line {} {why}", i + 1)))?);
        }
        if items.is_empty() {
            return Err(ComputeError::missing(path, "holds no instruction: write one JSON object a line"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = SourceDigest { name, bytes: bytes.len() as u64, digest: Digest::of_bytes(&bytes) };
        Ok(Self { path: path.to_path_buf(), source, items })
    }

    /// The items, in the order of the file.
    pub fn items(&self) -> &[Instruction] {
        &self.items
    }

    /// Takes `fraction` of the items away, at least one, drawn by `seed`: (the rest, they), both in the order of the
    /// file.
    ///
    /// # Errors
    /// There are fewer than two items.
    pub fn split(self, seed: u32, fraction: f64) -> Result<(Self, Self)> {
        let n = self.items.len();
        if n < 2 {
            return Err(ComputeError::input(
                &self.path,
                "holds one instruction, and training and evaluation need one each: write more lines",
            ));
        }
        let mut order: Vec<usize> = (0..n).collect();
        Rng::new(seed, Purpose::Split, 1, 0).shuffle(&mut order);
        // A fraction of a count is a count.
        let taken = ((fraction * n as f64).round() as usize).clamp(1, n - 1);
        let mut is_taken = vec![false; n];
        order[..taken].iter().for_each(|&i| is_taken[i] = true);
        let part = |wanted: bool| {
            let items = self.items.iter().zip(&is_taken).filter(|(_, taken)| **taken == wanted);
            Self { items: items.map(|(item, _)| item.clone()).collect(), ..self.clone() }
        };
        Ok((part(false), part(true)))
    }

    /// The first `most` items.
    #[must_use]
    pub fn first(mut self, most: Option<u64>) -> Self {
        self.items.truncate(most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX));
        self
    }

    /// The items as tokens in memory, for a model of `vocab_size` ids. Prompt and response are encoded apart: a token
    /// that spans both would show the answer.
    ///
    /// # Errors
    /// The tokenizer does not fit the model, or refuses a text.
    pub fn tokens(&self, split: &str, tokenizer: &TextTokenizer, vocab_size: i64) -> Result<Tokens> {
        tokenizer.check_model(vocab_size)?;
        let header = TokensHeader {
            split: split.to_owned(),
            vocab_size: u32::try_from(vocab_size)
                .map_err(|_| ComputeError::Config(format!("a vocabulary of {vocab_size} is too large")))?,
            tokenizer: tokenizer.digest().clone(),
            special: tokenizer.special(),
            sources: vec![self.source.clone()],
        };
        let item = |instruction: &Instruction| {
            let mut ids = tokenizer.encode(&instruction.prompt, Special::None)?;
            let prompt = ids.len();
            ids.extend(tokenizer.encode(&instruction.response, Special::None)?);
            Ok(Item { ids, prompt })
        };
        Tokens::of_items(&self.path, &header, self.items.iter().map(item))
    }
}

fn instruction(line: &str) -> std::result::Result<Instruction, String> {
    let value: Value =
        serde_json::from_str(line).map_err(|e| format!("is no JSON ({e}): correct or remove that line"))?;
    let text = |key: &str| {
        let found = value.get(key).and_then(Value::as_str);
        found.ok_or_else(|| format!("has no text under {key:?}: write {{\"instruction\": \"..\", \"output\": \"..\"}}"))
    };
    let input = match value.get("input") {
        None | Some(Value::Null) => "",
        Some(Value::String(input)) => input,
        Some(_) => return Err("has an \"input\" that is no text: put it in quotes".to_owned()),
    };
    Ok(Instruction { prompt: prompt(text("instruction")?, input), response: text("output")?.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::compute::data::{IGNORED, Long, Objective, Packing, Reading, Samples};
    use crate::compute::model::Mask;

    fn file(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sft.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        (dir, path)
    }

    const LINES: [&str; 5] = [
        r#"{"instruction": "Add the numbers.", "input": "1 and 2", "output": "3"}"#,
        r#"{"instruction": "Say hello.", "input": "", "output": "hello there"}"#,
        "",
        r#"{"instruction": "Say nothing.", "output": "", "id": 7}"#,
        r#"{"instruction": "Repeat: a a a a a a a a a a a a a a a a a a a a", "input": null, "output": "no"}"#,
    ];

    fn tokenizer(dir: &Path) -> TextTokenizer {
        TextTokenizer::train(dir, 300, LINES).unwrap()
    }

    #[test]
    fn prompts_have_the_blocks_of_alpaca() {
        let (_dir, path) = file(&LINES);
        let read = Instructions::read(&path).unwrap();
        let prompts: Vec<&str> = read.items().iter().map(|i| i.prompt.as_str()).collect();
        assert_eq!(
            prompts[..3],
            [
                "### Instruction:\nAdd the numbers.\n\n### Input:\n1 and 2\n\n### Response:\n",
                "### Instruction:\nSay hello.\n\n### Response:\n",
                "### Instruction:\nSay nothing.\n\n### Response:\n",
            ]
        );
        let responses: Vec<&str> = read.items().iter().map(|i| i.response.as_str()).collect();
        assert_eq!(responses, ["3", "hello there", "", "no"]);
    }

    #[test]
    fn bad_lines_are_named() {
        for (line, named) in [
            ("{\"instruction\": ", "line 2 is no JSON"),
            ("{\"instruction\": \"x\"}", "line 2 has no text under \"output\""),
            ("{\"output\": \"x\"}", "line 2 has no text under \"instruction\""),
            ("{\"instruction\": \"x\", \"output\": 3}", "line 2 has no text under \"output\""),
            ("{\"instruction\": \"x\", \"output\": \"y\", \"input\": [1]}", "line 2 has an \"input\" that is no text"),
            ("[]", "line 2 has no text"),
        ] {
            let (_dir, path) = file(&[LINES[0], line]);
            let error = Instructions::read(&path).unwrap_err();
            assert!(error.to_string().contains(named) && error.to_string().contains("sft.jsonl"), "{error}");
            assert_eq!(error.exit_code(), crate::record::exit::USAGE);
        }
        let (_dir, path) = file(&["", " "]);
        assert!(Instructions::read(&path).unwrap_err().to_string().contains("holds no instruction"));
        let error = Instructions::read(&path.with_extension("nowhere")).unwrap_err();
        assert_eq!(error.exit_code(), crate::record::exit::MISSING_INPUT);
    }

    /// Labels are on the response and the end of the text, and on nothing else; what is cut has no end.
    #[test]
    fn the_response_and_the_end_are_predicted() {
        let (dir, path) = file(&LINES);
        let tokenizer = tokenizer(dir.path());
        let read = Instructions::read(&path).unwrap();
        let tokens = Arc::new(read.tokens("train", &tokenizer, 300).unwrap());
        let longest = (0..4).map(|i| tokens.document(i)).map(|d| (d.end - d.start) as usize).max().unwrap();
        let eos = i64::from(tokenizer.special().eos);
        let lengths = [longest + 3, longest, longest - 1, tokens.prompt(1) as usize + 3];
        for (seq_len, packing) in lengths.into_iter().flat_map(|t| [(t, Packing::Document), (t, Packing::BestFit)]) {
            let reading = Reading { objective: Objective::Response, long: Long::Cut, ..Reading::causal(packing) };
            let samples = Samples::read(tokens.clone(), seq_len, reading).unwrap();
            // Every label, by the token that it stands before, in the order of the split.
            let mut labels: Vec<(u64, i64)> = (0..samples.len())
                .map(|i| samples.sample(i))
                .flat_map(|row| row.origins.into_iter().zip(row.targets))
                .filter(|(_, target)| *target != IGNORED)
                .collect();
            labels.sort_unstable();
            let (mut expected, mut dropped, mut truncated) = (Vec::new(), 0, 0);
            for (i, item) in read.items().iter().enumerate() {
                let prompt = tokenizer.encode(&item.prompt, Special::None).unwrap();
                let mut all = prompt.clone();
                all.extend(tokenizer.encode(&item.response, Special::None).unwrap());
                let mut all: Vec<i64> = all.into_iter().map(i64::from).chain([eos]).collect();
                truncated += u64::from(all.len() > seq_len);
                all.truncate(seq_len);
                dropped += u64::from(all.len() <= prompt.len());
                let first = tokens.document(i).start;
                expected.extend((prompt.len()..all.len()).map(|k| (first + k as u64 - 1, all[k])));
            }
            assert_eq!(labels, expected, "{seq_len} {packing:?}");
            assert_eq!((samples.dropped(), samples.truncated()), (dropped, truncated), "{seq_len} {packing:?}");
        }
        // A row that ends with the longest prompt predicts nothing of its response.
        let prompts: Vec<u64> = (0..4).map(|i| tokens.prompt(i)).collect();
        let longest = prompts.iter().copied().max().unwrap();
        let reading = Reading { objective: Objective::Response, long: Long::Cut, ..Reading::causal(Packing::Document) };
        let prefix = Reading { mask: Mask::Prefix, ..reading };
        let cut = Samples::read(tokens.clone(), longest as usize, prefix).unwrap();
        let kept: Vec<i32> = prompts.iter().filter(|n| **n < longest).map(|&n| n as i32).collect();
        assert!(cut.dropped() == 1 && kept.len() == 3, "{prompts:?}");
        assert_eq!(cut.batch((0..cut.len()).map(Some)).prompt_lens, Some(kept));
    }

    #[test]
    fn a_split_is_disjoint_complete_and_the_seeds_own() {
        let lines: Vec<String> =
            (0..100).map(|i| format!("{{\"instruction\": \"say {i}\", \"output\": \"{i}\"}}")).collect();
        let (_dir, path) = file(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let split = |seed| Instructions::read(&path).unwrap().split(seed, 0.02).unwrap();
        let (train, eval) = split(1);
        assert_eq!((train.items().len(), eval.items().len()), (98, 2));
        let number = |i: &Instruction| i.response.parse::<usize>().unwrap();
        for part in [&train, &eval] {
            assert!(part.items().iter().map(number).is_sorted(), "the order of the file");
        }
        let mut all: Vec<usize> = train.items().iter().chain(eval.items()).map(number).collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let of = |seed| split(seed).1.items().to_vec();
        assert_eq!(of(1), eval.items());
        assert!((2..9).any(|seed| of(seed) != of(1)), "the seed draws it");
        assert_eq!(train.first(Some(5)).items().len(), 5);
        let (_dir, path) = file(&LINES[..1]);
        assert!(Instructions::read(&path).unwrap().split(1, 0.02).unwrap_err().to_string().contains("one instruction"));
    }
}
