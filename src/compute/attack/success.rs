//! When an attack has succeeded: three metrics, side by side.
//!
//! 15 % of NLL is a longer way for a weak model than for a good one; 15 % of perplexity is ln 1.15 = 0.140 nats
//! for both. A study names the metric that its conclusion rests on; the others are always reported too.

use super::Pair;

/// What is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// (attacked - clean) / clean of mean NLL: what the historic runs did.
    NllRel,
    /// The same of perplexity: exp(attacked - clean) - 1.
    PplRel,
    /// attacked - clean, nats.
    DeltaNats,
}

impl Metric {
    /// All, in the order in which they are reported.
    pub const ALL: [Self; 3] = [Self::NllRel, Self::PplRel, Self::DeltaNats];

    /// Its word in studies and results.
    pub fn word(self) -> &'static str {
        match self {
            Self::NllRel => "nll_rel",
            Self::PplRel => "ppl_rel",
            Self::DeltaNats => "delta_nats",
        }
    }

    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.word() == word)
    }
}

/// What counts as success.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// For the two relative metrics, as a part of one.
    pub relative: f64,
    /// For [`Metric::DeltaNats`], nats.
    pub nats: f64,
}

impl Thresholds {
    /// Whether `pair` is a success. A clean loss of 0 is beaten by any rise.
    pub fn success(&self, metric: Metric, pair: Pair) -> bool {
        let rise = pair.attacked - pair.clean;
        match metric {
            Metric::NllRel => rise > self.relative * pair.clean,
            Metric::PplRel => rise.exp_m1() > self.relative,
            Metric::DeltaNats => rise > self.nats,
        }
    }

    /// Part of `pairs` that are successes, 0 to 1; `None` without pairs.
    pub fn rate(&self, metric: Metric, pairs: &[Pair]) -> Option<f64> {
        let hits = pairs.iter().filter(|p| self.success(metric, **p)).count();
        (!pairs.is_empty()).then(|| hits as f64 / pairs.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_a_table_worked_out_by_hand() {
        // clean, attacked: relative rise of NLL, of perplexity, nats
        let pairs = [
            (1.0, 1.10), // 0.10   exp(0.10) - 1 = 0.105   0.10
            (1.0, 1.16), // 0.16   exp(0.16) - 1 = 0.174   0.16
            (2.0, 2.20), // 0.10   exp(0.20) - 1 = 0.221   0.20
            (4.0, 4.50), // 0.125  exp(0.50) - 1 = 0.649   0.50
            (2.0, 1.50), // falls
        ]
        .map(|(clean, attacked)| Pair { clean, attacked });
        let thresholds = Thresholds { relative: 0.15, nats: 0.286 };
        assert_eq!(thresholds.rate(Metric::NllRel, &pairs), Some(1.0 / 5.0));
        assert_eq!(thresholds.rate(Metric::PplRel, &pairs), Some(3.0 / 5.0));
        assert_eq!(thresholds.rate(Metric::DeltaNats, &pairs), Some(1.0 / 5.0));
        assert_eq!(thresholds.rate(Metric::NllRel, &[]), None);
    }

    #[test]
    fn the_bar_itself_is_no_success() {
        let thresholds = Thresholds { relative: 0.5, nats: 0.5 };
        let pair = Pair { clean: 1.0, attacked: 1.5 };
        assert!(!thresholds.success(Metric::NllRel, pair));
        assert!(!thresholds.success(Metric::DeltaNats, pair));
        assert!(thresholds.success(Metric::PplRel, pair), "exp(0.5) - 1 = 0.65");
    }
}
