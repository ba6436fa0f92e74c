//! Tokens: where text comes from, how it is stored, and in which order it is read.
//!
//! Text ([`text`], [`generated`]) -> tokenizer ([`tokenizer`]) -> `tokens.bin` on disk ([`tokens`]) ->
//! samples of T + 1 tokens in a stateless order ([`samples`]) -> grains of samples, as a model sees them
//! ([`grains`]), prepared ahead by a thread ([`prefetch`]). Format: `docs/formats/tokens.md`.

pub mod generated;
pub mod grains;
pub mod prefetch;
pub mod samples;
pub mod text;
pub mod tokenizer;
pub mod tokens;

pub use grains::{Course, LastBatch, TrainingGrains, ValidationGrains};
pub use prefetch::Feed;
pub use samples::{IGNORED, Packing, Permutation, Sample, Samples};
pub use text::{Corpus, Document, Split};
pub use tokenizer::{Special, TextTokenizer};
pub use tokens::{SourceDigest, SpecialIds, Tokens, TokensInfo};
