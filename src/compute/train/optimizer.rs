//! Which optimizer updates a run's parameters, and what it needs of a gradient.

use super::adafactor::Adafactor;
use super::adamw::AdamW;

/// An optimizer and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Element by element: ranks share its moments.
    AdamW(AdamW),
    /// Matrix by matrix: every rank computes the whole update.
    Adafactor(Adafactor),
}

/// The part of a group's gradient that a rank updates from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its own; updated weights then travel to all.
    Own,
    /// All of it; gradients travel to all, and weights stay where they are.
    Whole,
}

impl Optimizer {
    /// What a rank needs of a gradient.
    pub fn reach(&self) -> Reach {
        match self {
            Self::AdamW(_) => Reach::Own,
            Self::Adafactor(_) => Reach::Whole,
        }
    }
}
