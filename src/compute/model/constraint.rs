//! Constrained weights: which matrices a variant constrains, how the effective weight W comes from the
//! stored parameter V, and how V begins from a trained W0.
//!
//! `softplus`: W = ln(1 + e^V), so W > 0. It begins at a = |W0| + 1e-4, V0 = a + ln(1 - e^-a), which is
//! ln(e^a - 1) without overflow. Signs of W0 are discarded, which destroys the function; training recovers
//! what it can. Two controls tell the constraint from the damage: `sign_frozen` keeps W0's signs,
//! `abs_init_free` begins at |W0| + 1e-4 and is then free.

/// Added to |W0|, so that no weight begins at zero, where softplus has no preimage.
pub const INIT_EPS: f64 = 1e-4;

/// How an effective weight comes from the stored parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constraint {
    /// W = V.
    Dense,
    /// W = softplus(V).
    Softplus,
    /// W = sign(W0) softplus(V).
    SignedSoftplus,
    /// W = V, begun at |W0| + eps: a control without a constraint.
    FreeFromAbs,
}

impl Constraint {
    /// Its word in `model.json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Softplus => "softplus",
            Self::SignedSoftplus => "signed_softplus",
            Self::FreeFromAbs => "free_from_abs",
        }
    }

    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Dense, Self::Softplus, Self::SignedSoftplus, Self::FreeFromAbs].into_iter().find(|c| c.word() == word)
    }

    /// Whether W is a function of V other than V itself: such parameters have their own learning rate and decay.
    pub fn is_reparametrised(self) -> bool {
        matches!(self, Self::Softplus | Self::SignedSoftplus)
    }
}

/// Which matrices are constrained, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Both matrices of every feed-forward layer, softplus.
    MlpBoth,
    /// `dense_h_to_4h` only.
    MlpIn,
    /// `dense_h_to_4h` and the attention's output matrix.
    MlpInAttnOut,
    /// Both matrices with the signs of W0.
    SignFrozen,
    /// Both matrices begun at |W0|, then free.
    AbsInitFree,
}

impl Variant {
    /// Words in a study, in the order of the enum.
    pub const WORDS: &'static [&'static str] =
        &["mlp_both", "mlp_in", "mlp_in_attn_out", "sign_frozen", "abs_init_free"];

    const ALL: [Self; 5] = [Self::MlpBoth, Self::MlpIn, Self::MlpInAttnOut, Self::SignFrozen, Self::AbsInitFree];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.word() == word)
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::MlpBoth => "mlp_both",
            Self::MlpIn => "mlp_in",
            Self::MlpInAttnOut => "mlp_in_attn_out",
            Self::SignFrozen => "sign_frozen",
            Self::AbsInitFree => "abs_init_free",
        }
    }

    /// The formula, for people and for `constraint_info`.
    pub fn formula(self) -> &'static str {
        match self {
            Self::MlpBoth | Self::MlpIn | Self::MlpInAttnOut => "W = softplus(V) = ln(1 + exp(V))",
            Self::SignFrozen => "W = sign(W0) * softplus(V)",
            Self::AbsInitFree => "W = V, V0 = |W0| + 1e-4 (no constraint)",
        }
    }

    /// The constraint of the parameter called `name` (as in the Hugging Face layout).
    pub fn constraint(self, name: &str) -> Constraint {
        let up = name.ends_with(".mlp.dense_h_to_4h.weight");
        let down = name.ends_with(".mlp.dense_4h_to_h.weight");
        let attn_out = name.ends_with(".attention.dense.weight");
        match self {
            Self::MlpBoth if up || down => Constraint::Softplus,
            Self::MlpIn if up => Constraint::Softplus,
            Self::MlpInAttnOut if up || attn_out => Constraint::Softplus,
            Self::SignFrozen if up || down => Constraint::SignedSoftplus,
            Self::AbsInitFree if up || down => Constraint::FreeFromAbs,
            _ => Constraint::Dense,
        }
    }
}

/// V0 with softplus(V0) = |w0| + [`INIT_EPS`]: `a + ln(1 - e^-a)`.
pub fn softplus_init(w0: f32) -> f32 {
    let a = f64::from(w0).abs() + INIT_EPS;
    // 1 - e^-a = -expm1(-a), exact for small a.
    (a + (-(-a).exp_m1()).ln()) as f32
}

/// |w0| + [`INIT_EPS`].
pub fn abs_init(w0: f32) -> f32 {
    (f64::from(w0).abs() + INIT_EPS) as f32
}

/// sign(w0): -1, 0 or 1.
pub fn sign(w0: f32) -> i8 {
    if w0 > 0.0 {
        1
    } else if w0 < 0.0 {
        -1
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_of_the_init_is_the_magnitude() {
        for w0 in [0.0f32, 1e-7, -3e-4, 0.02, -0.5, 3.0, -40.0, 200.0] {
            let v0 = f64::from(softplus_init(w0));
            let w = v0.max(0.0) + (-v0.abs()).exp().ln_1p();
            let a = f64::from(w0).abs() + INIT_EPS;
            // V0 is rounded to f32: a relative step of 6e-8 in V is |V| times that in ln W.
            assert!((w - a).abs() <= 1e-6 * a, "{w0}: {w} for {a}");
        }
    }

    #[test]
    fn words_are_those_of_the_study() {
        for word in Variant::WORDS {
            assert_eq!(Variant::parse(word).unwrap().word(), *word);
        }
        assert!(Variant::parse("mlp").is_none());
    }
}
