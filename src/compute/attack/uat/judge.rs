//! What a trigger does to texts that it was not searched on, in both scopes.

use super::{Field, longest, push};
use crate::compute::Result;
use crate::compute::attack::{Pair, Rows, Scope, Sum, Text, finite, share};

/// Loss of one text without and with a trigger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Row number of the text.
    pub id: u64,
    /// With: every target after the trigger's first id. Without: every target of the text.
    pub all: Pair,
    /// The targets of the text alone, in both.
    pub untouched: Pair,
}

impl Judged {
    /// The losses in a scope.
    pub fn pair(&self, scope: Scope) -> Pair {
        match scope {
            Scope::All => self.all,
            Scope::UntouchedTargets => self.untouched,
        }
    }
}

/// What a trigger does to texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Text by text.
    pub texts: Vec<Judged>,
    /// Sums over all texts divided by their tokens, every target.
    pub all: Pair,
    /// The same, targets of the texts alone.
    pub untouched: Pair,
}

impl Judgement {
    /// The losses in a scope.
    pub fn pair(&self, scope: Scope) -> Pair {
        match scope {
            Scope::All => self.all,
            Scope::UntouchedTargets => self.untouched,
        }
    }
}

/// Judges a trigger on the field's texts.
///
/// # Errors
/// The model refuses, or a loss is not finite.
pub fn judge(field: &mut Field<'_>, trigger: &[i64]) -> Result<Judgement> {
    let clean = both(field, &[])?;
    let with = both(field, trigger)?;
    let texts = field.texts;
    let total = |losses: &[[Sum; 2]], scope: usize| {
        let mut sum = Sum::default();
        losses.iter().for_each(|l| sum.join(l[scope]));
        sum.mean()
    };
    let pair = |scope| Pair { clean: total(&clean, scope), attacked: total(&with, scope) };
    let judged = |k: usize| {
        let pair = |scope: usize| Pair { clean: clean[k][scope].mean(), attacked: with[k][scope].mean() };
        Judged { id: texts[k].id, all: pair(0), untouched: pair(1) }
    };
    Ok(Judgement { texts: (0..texts.len()).map(judged).collect(), all: pair(0), untouched: pair(1) })
}

/// For each text the sums over all targets and over its own targets.
fn both(field: &mut Field<'_>, trigger: &[i64]) -> Result<Vec<[Sum; 2]>> {
    let (texts, len) = (field.texts, longest(field.texts) + trigger.len());
    let victim = &mut *field.victim;
    let found = share::values(field.comm, texts.len(), field.grain.in_flight(), 2, &mut |items, to| {
        let mut rows = Rows::of(len);
        items.for_each(|i| push(&mut rows, trigger, &texts[i], Scope::All));
        let nll = victim.nll(&rows)?;
        finite(&nll)?;
        for (to, nll) in to.chunks_exact_mut(2).zip(rows.split(&nll)) {
            to[0] = nll.iter().sum();
            to[1] = nll[trigger.len()..].iter().sum();
        }
        Ok(())
    })?;
    let sum = |nll: f64, tokens: usize| Sum { nll, tokens: tokens as i64 };
    let each = |(text, found): (&Text, &[f64])| {
        let own = text.ids.len() - 1;
        [sum(found[0], own + trigger.len()), sum(found[1], own)]
    };
    Ok(texts.iter().zip(found.chunks_exact(2)).map(each).collect())
}
