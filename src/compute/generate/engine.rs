//! Who computes the next token: our kernels for fp32 on the CPU, libtorch for everything else.

use crate::compute::model::libtorch::CachedDecoder;
use crate::compute::model::native::NativeDecoder;

/// A decoder that generates.
#[derive(Debug)]
pub enum Engine<'a> {
    /// Our kernels: fp32 on the CPU.
    Native(Box<NativeDecoder>),
    /// libtorch: bf16, GPUs, adapters.
    Libtorch(CachedDecoder<'a>),
}

impl Engine<'_> {
    /// Longest row, tokens.
    pub fn context(&self) -> usize {
        match self {
            Self::Native(decoder) => decoder.context(),
            Self::Libtorch(decoder) => usize::try_from(decoder.net().config().max_position_embeddings).unwrap_or(0),
        }
    }

    /// Whether its bits depend on the rows that go together.
    pub fn takes_groups(&self) -> bool {
        matches!(self, Self::Libtorch(_))
    }
}
