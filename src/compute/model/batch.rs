//! One grain as a model sees it: rows of tokens with what may attend to what, and what is scored.
//!
//! Nothing here knows where rows come from; `compute::data` fills it. Vectors over positions are row-major
//! `[B, T]`.

use crate::compute::data::IGNORED;

/// Which keys a query sees, besides its segment, its window and padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mask {
    /// Itself and those before it.
    #[default]
    Causal,
    /// All.
    Full,
    /// All of the prompt, and itself and those before it.
    Prefix,
}

impl Mask {
    /// Words in a study.
    pub const WORDS: &'static [&'static str] = &["causal", "prefix", "full"];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "causal" => Some(Self::Causal),
            "prefix" => Some(Self::Prefix),
            "full" => Some(Self::Full),
            _ => None,
        }
    }

    /// Its word in a study.
    pub fn word(self) -> &'static str {
        match self {
            Self::Causal => "causal",
            Self::Prefix => "prefix",
            Self::Full => "full",
        }
    }
}

/// B rows of T tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// B.
    pub rows: usize,
    /// T.
    pub seq_len: usize,
    /// Token ids.
    pub ids: Vec<i32>,
    /// The token that follows, where it is scored; [`IGNORED`] elsewhere.
    pub targets: Vec<i32>,
    /// Rotary positions; absent: 0 to T - 1 in every row.
    pub positions: Option<Vec<i32>>,
    /// Attention stays inside equal ids; absent: one segment a row.
    pub segments: Option<Vec<i32>>,
    /// Tokens of each row's prompt, `[B]`: for [`Mask::Prefix`].
    pub prompt_lens: Option<Vec<i32>>,
    /// Tokens of each row, `[B]`: keys from there on are padding. Absent: T.
    pub key_lens: Option<Vec<i32>>,
    /// Factor on each position's NLL and gradient; absent: 1.
    pub loss_weights: Option<Vec<f32>>,
    /// Who sees whom.
    pub mask: Mask,
}

impl Batch {
    /// A causal batch of full rows.
    pub fn causal(rows: usize, seq_len: usize, ids: Vec<i32>, targets: Vec<i32>) -> Self {
        Self { rows, seq_len, ids, targets, ..Self::default() }
    }

    /// Positions with a label.
    pub fn labels(&self) -> i64 {
        // A batch has far fewer than 2^63 positions.
        self.targets.iter().filter(|&&t| i64::from(t) != IGNORED).count() as i64
    }
}
