//! `tokenizer.json`: loading one from a model directory, or training a small one on a corpus.
//!
//! Training is deterministic: the same texts give the same bytes. What it writes is a byte-level BPE in the
//! Hugging Face layout, so any text can be encoded and nothing is ever "unknown"; or, for text of few words, a vocabulary
//! of whole words and signs, in which every other word is one unknown token.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, Tokenizer};

use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError, files};

use super::SpecialIds;

/// The end-of-text token of a tokenizer trained here; its id is 0, as in GPT-NeoX.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The padding token of a tokenizer trained here; its id is 1, as in GPT-NeoX.
pub const PADDING: &str = "<|padding|>";
/// What a tokenizer of words makes of a word that it does not know; its id is 2.
pub const UNKNOWN: &str = "<unk>";

/// Whether special tokens are added and recognised. There is no default: each caller says which it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Plain text: nothing is added, and text that spells a special token stays text.
    None,
    /// As the tokenizer's own file says.
    Default,
}

/// A tokenizer and the ids that mean something.
pub struct TextTokenizer {
    path: PathBuf,
    plain: Tokenizer,
    special: SpecialIds,
    digest: Digest,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` in `dir`; special ids come from the model's configuration beside it if that has
    /// them, else from the tokens' usual names.
    ///
    /// # Errors
    /// The file is not there, is no tokenizer, or has no end-of-text token.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(ComputeError::missing(
                    &path,
                    "is not there: copy the model's tokenizer.json to that place",
                ));
            }
            other => other.map_err(RecordError::io("read", &path))?,
        };
        let plain = Tokenizer::from_bytes(&bytes)
            .map_err(|e| ComputeError::input(&path, format!("is no tokenizer ({e}): fetch it again")))?;
        let read = |name: &str| -> Result<Value> {
            let path = dir.join(name);
            Ok(if path.is_file() { files::read_json(&path)? } else { Value::Null })
        };
        // The Hugging Face layout, or our own model directory.
        let config = match read("config.json")? {
            Value::Null => read("model.json")?.get("config").cloned().unwrap_or(Value::Null),
            config => config,
        };
        Self::new(path, plain, &bytes, &config)
    }

    fn new(path: PathBuf, mut plain: Tokenizer, bytes: &[u8], config: &Value) -> Result<Self> {
        // `eos_token_id` is a number or a list of numbers.
        let from_config = |key: &str| {
            let value = config.get(key)?;
            value.as_u64().or_else(|| value.get(0)?.as_u64()).and_then(|id| u32::try_from(id).ok())
        };
        let named = |names: &[&str]| names.iter().find_map(|n| plain.token_to_id(n));
        let eos = from_config("eos_token_id")
            .or_else(|| named(&[END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>"]))
            .ok_or_else(|| {
                ComputeError::input(&path, "has no end-of-text token: set `eos_token_id` in the config.json beside it")
            })?;
        let special = SpecialIds {
            eos,
            bos: from_config("bos_token_id").or_else(|| named(&["<s>", "<|begin_of_text|>", "<bos>"])),
            pad: from_config("pad_token_id").or_else(|| named(&[PADDING, "<pad>", "[PAD]"])),
        };
        // Rows are cut and filled here and nowhere else.
        plain.with_padding(None);
        plain
            .with_truncation(None)
            .map_err(|e| ComputeError::input(&path, format!("cannot be used without truncation ({e})")))?;
        Ok(Self { path, plain, special, digest: Digest::of_bytes(bytes) })
    }

    /// Trains a byte-level BPE of `vocab_size` ids on `texts` and writes it to `dir/tokenizer.json`.
    ///
    /// # Errors
    /// `vocab_size` does not hold the 256 bytes and 2 special tokens, or the disk is full.
    pub fn train<'a>(dir: &Path, vocab_size: usize, texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !(258..=1 << 20).contains(&vocab_size) {
            return Err(ComputeError::Config(format!(
                "a vocabulary of {vocab_size} cannot be trained: set `vocab_size` to at least 258 (256 bytes and 2 special tokens)"
            )));
        }
        let failed = |e: tokenizers::Error| ComputeError::Failed(format!("cannot train a tokenizer: {e}"));
        let specials = [END_OF_TEXT, PADDING].map(|t| AddedToken::from(t, true));
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(specials.to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
        tokenizer
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::new(false, true, true)));
        let owned: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let mut trainer = TrainerWrapper::BpeTrainer(trainer);
        tokenizer.train(&mut trainer, owned.into_iter()).map_err(failed)?;
        let text = tokenizer.to_string(true).map_err(failed)?;
        files::write_atomic(&path, text.as_bytes())?;
        Self::new(path, tokenizer, text.as_bytes(), &Value::Null)
    }

    /// A vocabulary of the words and signs of `texts`, the most frequent first, at most `vocab_size` ids; written to
    /// `dir/tokenizer.json`. Spaces and ends of lines only separate.
    ///
    /// # Errors
    /// The disk is full.
    pub fn train_words<'a>(dir: &Path, vocab_size: usize, texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let failed = |e: String| ComputeError::Failed(format!("cannot make a tokenizer of words: {e}"));
        let specials = [END_OF_TEXT, PADDING, UNKNOWN].map(|t| AddedToken::from(t, true));
        let trainer = WordLevelTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(0)
            .show_progress(false)
            .special_tokens(specials.to_vec())
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let words = WordLevel::builder().unk_token(UNKNOWN.to_owned()).build().map_err(|e| failed(e.to_string()))?;
        let mut tokenizer = Tokenizer::new(ModelWrapper::WordLevel(words));
        tokenizer.with_pre_tokenizer(Some(Whitespace {}));
        let owned: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let mut trainer = TrainerWrapper::WordLevelTrainer(trainer);
        tokenizer.train(&mut trainer, owned.into_iter()).map_err(|e| failed(e.to_string()))?;
        let text = tokenizer.to_string(true).map_err(|e| failed(e.to_string()))?;
        files::write_atomic(&path, text.as_bytes())?;
        Self::new(path, tokenizer, text.as_bytes(), &Value::Null)
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// The tokenizer's own rules refuse it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let encoding = match special {
            Special::Default => self.plain.encode_fast(text, true),
            Special::None if !self.spells_special(text) => self.plain.encode_fast(text, false),
            Special::None => {
                let mut literal = self.plain.clone();
                literal.set_encode_special_tokens(true);
                literal.encode_fast(text, false)
            }
        };
        let encoding = encoding.map_err(|e| ComputeError::input(&self.path, format!("cannot encode a text ({e})")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// True if `text` holds the spelling of an added token: only then encoding must look twice.
    fn spells_special(&self, text: &str) -> bool {
        self.plain.get_added_tokens_decoder().values().any(|t| t.special && text.contains(&t.content))
    }

    /// Text of `ids`, special tokens included. It may be hostile: escape it before showing it.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.plain.decode(ids, false).map_err(|e| ComputeError::input(&self.path, format!("cannot decode ids ({e})")))
    }

    /// Ids with a meaning of their own.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Every id that the tokenizer's file marks as special, and those of [`Self::special`]; sorted.
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids = self.special.all();
        ids.extend(self.plain.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(&id, _)| id));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.plain.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Refuses a model with fewer embeddings than the tokenizer has ids.
    ///
    /// # Errors
    /// An id would have no embedding.
    pub fn check_model(&self, model_vocab: i64) -> Result<()> {
        if self.vocab_size() as i64 > model_vocab {
            return Err(ComputeError::input(
                &self.path,
                format!(
                    "has {} ids, but the model has {model_vocab} embeddings: use the tokenizer that belongs to the model, or set `vocab_size` to at least {}",
                    self.vocab_size(),
                    self.vocab_size()
                ),
            ));
        }
        Ok(())
    }

    /// SHA-256 of `tokenizer.json`.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where it was read from or written to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = [
        "the river runs under the old bridge and the river runs on",
        "an old bridge over the river, and 42 boats below",
        "boats run under bridges; bridges run over boats",
    ];

    #[test]
    fn training_is_deterministic_and_what_it_writes_loads() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = TextTokenizer::train(a.path(), 300, TEXTS).unwrap();
        let second = TextTokenizer::train(b.path(), 300, TEXTS).unwrap();
        assert_eq!(first.digest(), second.digest());
        let loaded = TextTokenizer::load(a.path()).unwrap();
        assert_eq!(loaded.digest(), first.digest());
        assert_eq!(loaded.special(), SpecialIds { eos: 0, bos: None, pad: Some(1) });
        assert!(loaded.vocab_size() > 258 && loaded.vocab_size() <= 300);
        let text = "the river — né 42 \u{1F6A2}\n";
        let ids = loaded.encode(text, Special::None).unwrap();
        assert_eq!(ids, first.encode(text, Special::None).unwrap());
        assert_eq!(loaded.decode(&ids).unwrap(), text);
    }

    #[test]
    fn a_tokenizer_of_words_knows_words_and_signs() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let texts = ["the pet of ada is ben .", "what is the pet ?\nAnswer: ben", "### Input:"];
        let first = TextTokenizer::train_words(a.path(), 300, texts).unwrap();
        assert_eq!(first.digest(), TextTokenizer::train_words(b.path(), 300, texts).unwrap().digest());
        let loaded = TextTokenizer::load(a.path()).unwrap();
        assert_eq!(loaded.special(), SpecialIds { eos: 0, bos: None, pad: Some(1) });
        // Three special tokens, and: the pet of ada is ben . what ? Answer : ### Input
        assert_eq!(loaded.vocab_size(), 16);
        let ids = loaded.encode("the pet of ada", Special::None).unwrap();
        let apart =
            [loaded.encode("the pet", Special::None).unwrap(), loaded.encode(" of ada", Special::None).unwrap()];
        assert_eq!((ids.len(), &ids), (4, &apart.concat()));
        assert_eq!(loaded.encode("zebra", Special::None).unwrap(), [2]);
        assert_eq!(loaded.encode("### Input:\nada .", Special::None).unwrap().len(), 5);
        // The most frequent words stay.
        let few = TextTokenizer::train_words(b.path(), 5, texts).unwrap();
        assert_eq!(few.vocab_size(), 5);
    }

    #[test]
    fn text_cannot_forge_a_special_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = TextTokenizer::train(dir.path(), 300, TEXTS).unwrap();
        let text = "a<|endoftext|>b";
        assert!(tokenizer.encode(text, Special::Default).unwrap().contains(&0));
        let ids = tokenizer.encode(text, Special::None).unwrap();
        assert!(!ids.contains(&0));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = TextTokenizer::train(dir.path(), 300, TEXTS).unwrap();
        let error = tokenizer.check_model(200).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("200 embeddings"), "{error}");
        assert!(TextTokenizer::train(dir.path(), 100, TEXTS).is_err());
        let empty = tempfile::tempdir().unwrap();
        let error = TextTokenizer::load(empty.path()).err().unwrap();
        assert_eq!(error.exit_code(), crate::record::exit::MISSING_INPUT);
        std::fs::write(empty.path().join("tokenizer.json"), "{}").unwrap();
        assert!(TextTokenizer::load(empty.path()).err().unwrap().to_string().contains("is no tokenizer"));
    }
}
