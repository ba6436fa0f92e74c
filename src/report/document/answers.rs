//! What a stage summary says in words: answers to the study's questions, and checks. Every word follows from a number.

use serde_json::{Value, json};

use super::spec::{Check, Question};
use super::stages::Page;
use super::words::{NEAR_HALF, SMALL_REGRESSION, degree, moves, plain, points, prose, signed, times};
use crate::report::render::markdown_text;

/// Decimals of a ratio that no comparison of the document has.
const RATIO_DIGITS: u8 = 4;

/// Whether a question's two criteria are met, and the numbers that say so.
struct Judged {
    /// Accuracy of `of` over that of `to`.
    recovery_ratio: f64,
    gain: f64,
    /// `of` below `to`, a difference.
    missing: f64,
    kept: bool,
    gained: bool,
}

impl Page<'_> {
    pub(super) fn answers(&self, out: &mut String) {
        if self.spec.questions.is_empty() {
            return;
        }
        out.push_str("\n## Direct Answer to the Main Questions\n");
        for (i, question) in self.spec.questions.iter().enumerate() {
            let before = if i == 0 { "" } else { "\n" };
            out.push_str(&format!("{before}### {}) {}\n", i + 1, markdown_text(&question.ask)));
            let lines = match &question.from {
                None => self.lost(question),
                Some(from) => self.recovered(question, from),
            };
            lines.iter().for_each(|line| out.push_str(&format!("- {line}\n")));
        }
    }

    fn called(&self, key: &str) -> String {
        self.row(key).map(|row| markdown_text(row.called())).unwrap_or_default()
    }

    /// Decimals with which the document prints the ratio of two stages.
    fn ratio_digits(&self, of: &str, to: &str) -> u8 {
        let comparison = self.spec.compare.iter().find(|c| c.of == of && c.to == to);
        comparison.map_or(RATIO_DIGITS, |c| c.retention_digits)
    }

    /// How much `of` lost against `to`.
    fn lost(&self, question: &Question) -> Vec<String> {
        let found = self.compared(&question.of, &question.to);
        let (of, to) = (self.macro_of(&question.of), self.macro_of(&question.to));
        let Some(change) = found.delta else { return vec!["No answer: a number is missing.".to_owned()] };
        let mut lines = vec![format!(
            "{}{}: macro {} from `{}` to `{}` (`{}` points).",
            degree(change, found.retention),
            under(&question.when),
            moves(change),
            plain(to, 4),
            plain(of, 4),
            points(found.delta, question.points_digits)
        )];
        let kept = times(found.retention, self.ratio_digits(&question.of, &question.to));
        match found.retention {
            Some(r) if change < 0.0 && NEAR_HALF.contains(&r) => {
                let what = self.called(&question.to);
                lines.push(format!("This is a near-halving of {what} capability (`{kept}` retention)."));
            }
            Some(_) => lines.push(format!("`{kept}` of {} is left.", self.called(&question.to))),
            None => {}
        }
        let chance = self.measured.get(question.of.as_str()).and_then(|m| m.chance);
        if let (Some(of), Some(chance)) = (of, chance) {
            lines.push(format!(
                "Chance is `{}`: {} is `{}` points from it.",
                plain(Some(chance), 4),
                self.label(&question.of),
                points(Some(of - chance), 2)
            ));
        }
        lines
    }

    fn judged(&self, question: &Question, from: &str) -> Option<Judged> {
        let (gain, rest) = (self.compared(&question.of, from), self.compared(&question.of, &question.to));
        let (gain, missing, recovery_ratio) = (gain.delta?, rest.delta?, rest.retention?);
        Some(Judged {
            recovery_ratio,
            gain,
            missing,
            kept: recovery_ratio >= question.min_retention,
            gained: gain >= question.min_gain,
        })
    }

    /// How much of what `from` lost against `to` the stage `of` got back.
    fn recovered(&self, question: &Question, from: &str) -> Vec<String> {
        let Some(judged) = self.judged(question, from) else {
            return vec!["No answer: a number is missing.".to_owned()];
        };
        let (of, to) = (self.label(&question.of), self.label(&question.to));
        let (called, from) = (self.called(&question.to), self.label(from));
        // What `from` is below `to`.
        let lost = judged.gain - judged.missing;
        let verdict = match (judged.kept, judged.gained) {
            _ if lost <= 0.0 => "There was nothing to recover",
            (true, true) => "Yes",
            (false, false) => "No",
            _ => "Partially, but not fully",
        };
        let verb = if judged.gain > 0.0 { "improves over" } else { "does not improve over" };
        let digits = question.points_digits;
        let moved = points(Some(judged.gain), digits);
        let moved =
            if judged.gain > 0.0 { format!("by `{moved}` macro points") } else { format!("(`{moved}` macro points)") };
        let mut lines = vec![format!("{verdict}{}: {of} {verb} {from} {moved}.", under(&question.when))];
        lines.push(if judged.kept {
            let verb = if lost > 0.0 { "recovers to" } else { "stands at" };
            format!("It {verb} `{}` of {called}.", times(Some(judged.recovery_ratio), RATIO_DIGITS))
        } else {
            let side = if judged.missing < 0.0 { "below" } else { "above" };
            let rest = points(Some(judged.missing), digits);
            format!("It does **not** recover close to {called}: {of} is still `{rest}` points {side} {to}.")
        });
        let met = |met: bool| if met { "met" } else { "not met" };
        let both = judged.kept && judged.gained;
        lines.push(format!(
            "Criteria: recovery ratio of at least `{}`: `{}`, {}; gain of at least `{}` points: `{}`, {}; both: **{}**.",
            times(Some(question.min_retention), 2),
            times(Some(judged.recovery_ratio), RATIO_DIGITS),
            met(judged.kept),
            points(Some(question.min_gain), digits),
            points(Some(judged.gain), digits),
            met(judged.gained),
            met(both)
        ));
        let conclusion = if both { &question.if_met } else { &question.if_not_met };
        if lost > 0.0 && !conclusion.is_empty() {
            lines.push(prose(conclusion));
        }
        lines
    }

    pub(super) fn check(&self, check: &Check, out: &mut String) {
        let found = self.compared(&check.of, &check.to);
        out.push_str(&format!("\n## Additional Check: {}\n", markdown_text(&check.title)));
        if !check.text.is_empty() {
            out.push_str(&format!("{}\n", prose(&check.text)));
        }
        let digits = self.spec.macro_digits;
        for key in [&check.to, &check.of] {
            out.push_str(&format!("- {} macro: `{}`\n", self.label(key), plain(self.macro_of(key), digits)));
        }
        out.push_str(&format!(
            "- Delta: `{}` (retention `{}`{})\n",
            signed(found.delta, digits),
            times(found.retention, RATIO_DIGITS),
            self.counted(found.n)
        ));
        let (regressed, words) = match (found.delta, found.retention) {
            (Some(d), _) if d >= 0.0 => (false, "no regression"),
            (Some(_), Some(r)) if r >= SMALL_REGRESSION => (true, "a small regression"),
            (Some(_), _) => (true, "a notable regression"),
            (None, _) => return,
        };
        let text = |own: &str, preset: String| if own.is_empty() { preset } else { markdown_text(own) };
        let subject = text(&check.subject, self.label(&check.of));
        let against = text(&check.under, format!("against {}", self.label(&check.to)));
        let improved = check.improved.as_ref().and_then(|pair| self.compared(&pair.of, &pair.to).delta);
        let said = match improved {
            None => format!("{subject} shows {words} {against}."),
            Some(gain) => {
                let (improved, and) = match (gain > 0.0, regressed) {
                    (true, true) => ("improved", "but introduced"),
                    (true, false) => ("improved", "and shows"),
                    (false, true) => ("did not improve", "and introduced"),
                    (false, false) => ("did not improve", "and shows"),
                };
                format!("{subject} {improved} that condition, {and} {words} {against}.")
            }
        };
        out.push_str(&format!("\nInterpretation:\n- {said}\n"));
    }

    /// The success criteria at full precision.
    pub(super) fn criteria(&self) -> Value {
        let questions = self.spec.questions.iter().filter_map(|q| Some((q, q.from.as_ref()?)));
        let criterion = |(question, from): (&Question, &String)| {
            let judged = self.judged(question, from);
            json!({
                "of": question.of,
                "from": from,
                "to": question.to,
                "recovery_ratio": judged.as_ref().map(|j| j.recovery_ratio),
                "min_recovery_ratio": question.min_retention,
                "gain": judged.as_ref().map(|j| j.gain),
                "min_gain": question.min_gain,
                "met": judged.as_ref().map(|j| j.kept && j.gained),
            })
        };
        questions.map(criterion).collect()
    }
}

/// ` without adaptation`, or nothing.
fn under(when: &str) -> String {
    if when.is_empty() { String::new() } else { format!(" {}", markdown_text(when)) }
}
