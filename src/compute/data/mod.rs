//! Tokens: where text comes from, how it is stored, and in which order it is read.
//!
//! Text ([`text`], [`generated`], [`instructions`]) -> tokenizer ([`tokenizer`]) -> `tokens.bin` on disk ([`tokens`]) ->
//! rows ([`packing`]) of T + 1 tokens ([`samples`]) in a stateless order ([`order`]) -> grains of samples, as a model sees them
//! ([`grains`]), prepared ahead by a thread ([`prefetch`]). Format: `docs/formats/tokens.md`.

pub mod generated;
pub mod grains;
pub mod instructions;
pub mod order;
pub mod packing;
pub mod prefetch;
pub mod samples;
pub mod text;
pub mod tokenizer;
pub mod tokens;

pub use grains::{Course, LastBatch, TrainingGrains, ValidationGrains};
pub use order::Permutation;
pub use packing::{Long, Packing};
pub use prefetch::Feed;
pub use samples::{IGNORED, Objective, Reading, Sample, Samples};
pub use text::{Corpus, Document, Split};
pub use tokenizer::{Special, TextTokenizer};
pub use tokens::{Item, SourceDigest, SpecialIds, Tokens, TokensInfo};
