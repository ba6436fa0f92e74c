//! Kill criteria: when a training is not worth its hours. They are judged after a window or a validation, from numbers that
//! all ranks have, so ranks judge alike. What they remember is a part of the counters that a checkpoint holds: a run that
//! was killed and goes on comes to the same verdict at the same step.
//!
//! A loss here is the mean NLL a token over [`WINDOW`] updates, one window after the other: that of a single step is mostly
//! noise.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::State;
use crate::compute::{ComputeError, Result, Stop};

/// Updates of a window.
pub const WINDOW: u64 = 10;

/// Nats by which the loss must have fallen where nobody says.
pub const SIGNAL_NATS: f64 = 0.08;

/// Part of the first loss below which a fall is a collapse where nobody says.
pub const COLLAPSE_RATIO: f64 = 0.5;

/// What a run is stopped or flagged for; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Criteria {
    /// Stops a run that learns nothing.
    pub no_signal: Option<NoSignal>,
    /// Stops a run after so many validations in a row that were each worse than the one before.
    pub worse_validations: Option<u64>,
    /// Flags a run whose loss falls too fast.
    pub collapse: Option<Collapse>,
}

/// From step `by_step` on, at the end of every window, the loss has fallen by `nats` in some window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoSignal {
    /// From this step on it is asked; at least two windows.
    pub by_step: u64,
    /// Nats a token below the first window.
    pub nats: f64,
}

/// Before step `until_step` the loss stays above `ratio` times the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collapse {
    /// Before this step it is looked at.
    pub until_step: u64,
    /// Part of the first window's loss.
    pub ratio: f64,
}

/// What is remembered of the training loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Updates in the window that is not full.
    pub updates: u64,
    /// Their summed NLL, nats.
    pub nll: f64,
    /// Their labelled tokens.
    pub tokens: i64,
    /// Windows that are full.
    pub windows: u64,
    /// Loss of the first of them.
    pub first: Option<f64>,
    /// Lowest loss of all.
    pub lowest: Option<f64>,
    /// The collapse, once there was one.
    pub collapsed: Option<Collapsed>,
}

/// A loss that fell suspiciously fast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collapsed {
    /// Steps done.
    pub step: u64,
    /// Loss of the window that ended there.
    pub loss: f64,
    /// Loss of the first window.
    pub first: f64,
}

impl Collapsed {
    /// In words, for logs and results.
    pub fn words(&self) -> String {
        format!(
            "suspiciously fast collapse: the training loss (mean of {WINDOW} updates) fell from {:.4} to {:.4} by step {}; \
             the model may see what it is to predict, so judge it by evaluations alone",
            self.first, self.loss, self.step
        )
    }
}

impl Watch {
    /// Takes the sums of an update; the loss of the window that it fills.
    pub fn update(&mut self, nll: f64, tokens: i64) -> Option<f64> {
        self.updates += 1;
        self.nll += nll;
        self.tokens += tokens;
        if self.updates < WINDOW {
            return None;
        }
        let loss = self.nll / self.tokens as f64;
        (self.updates, self.nll, self.tokens) = (0, 0.0, 0);
        self.windows += 1;
        self.first.get_or_insert(loss);
        self.lowest = Some(self.lowest.map_or(loss, |lowest| lowest.min(loss)));
        Some(loss)
    }
}

impl Criteria {
    /// Looks at a window that has just been filled, at step `step`. True if the loss has collapsed in it for the first time.
    pub fn look(&self, watch: &mut Watch, step: u64, window: Option<f64>) -> bool {
        let (Some(collapse), Some(loss), Some(first)) = (self.collapse, window, watch.first) else { return false };
        if watch.collapsed.is_some() || step >= collapse.until_step || loss >= collapse.ratio * first {
            return false;
        }
        watch.collapsed = Some(Collapsed { step, loss, first });
        true
    }

    /// After a step that filled a window. One window is not enough to tell.
    ///
    /// # Errors
    /// [`ComputeError::Stopped`]: there is no learning signal.
    pub fn check_log(&self, state: &State) -> Result<()> {
        let (Some(rule), Some(first), Some(lowest)) = (self.no_signal, state.watch.first, state.watch.lowest) else {
            return Ok(());
        };
        if state.step < rule.by_step || state.watch.windows < 2 || first - lowest >= rule.nats {
            return Ok(());
        }
        Err(ComputeError::Stopped(Box::new(Stop {
            criterion: "no-learning-signal",
            step: state.step,
            why: format!(
                "no learning signal by step {}: the training loss (mean of {WINDOW} updates) was {first:.4} at first and {lowest:.4} at best, \
                 {:.4} nats lower where {} are asked for: change `lr` or `global_batch`, or look at the data",
                state.step,
                first - lowest,
                rule.nats
            ),
            values: json!({"first_loss": first, "lowest_loss": lowest, "nats": rule.nats, "windows": state.watch.windows}),
        })))
    }

    /// After a validation of a run whose highest rate is `lr`.
    ///
    /// # Errors
    /// [`ComputeError::Stopped`]: it was worse too often in a row.
    pub fn check_validations(&self, state: &State, lr: f64) -> Result<()> {
        let Some(most) = self.worse_validations else { return Ok(()) };
        let worse = state.validations.windows(2).rev().take_while(|pair| pair[1].loss > pair[0].loss).count();
        if (worse as u64) < most {
            return Ok(());
        }
        let row = &state.validations[state.validations.len() - 1 - worse..];
        let (before, last) = (&row[0], &row[worse]);
        Err(ComputeError::Stopped(Box::new(Stop {
            criterion: "validation-worse",
            step: state.step,
            why: format!(
                "the validation loss was worse {worse} time{} in a row, from {:.4} at step {} to {:.4} at step {}: lower `lr` to half of it, {:e}",
                if worse == 1 { "" } else { "s" },
                before.loss,
                before.step,
                last.loss,
                last.step,
                lr / 2.0
            ),
            values: json!({
                "steps": row.iter().map(|v| v.step).collect::<Vec<_>>(),
                "validation_losses": row.iter().map(|v| v.loss).collect::<Vec<_>>(),
                "lr": lr,
                "advised_lr": lr / 2.0,
            }),
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::train::Validation;

    /// Steps of one token each with these losses; the state after each, and what was said at it.
    fn run(criteria: &Criteria, losses: impl IntoIterator<Item = f64>) -> (State, Vec<(u64, String)>) {
        let (mut state, mut said) = (State::default(), Vec::new());
        for loss in losses {
            state.step += 1;
            // As it is kept by a checkpoint.
            state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            let window = state.watch.update(loss, 1);
            if criteria.look(&mut state.watch, state.step, window) {
                said.push((state.step, "collapse".to_owned()));
            }
            match window.map_or(Ok(()), |_| criteria.check_log(&state)) {
                Ok(()) => {}
                Err(ComputeError::Stopped(stop)) => {
                    said.push((stop.step, stop.criterion.to_owned()));
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        (state, said)
    }

    fn of(values: &[(u64, f64)]) -> Vec<f64> {
        values.iter().flat_map(|&(n, loss)| vec![loss; n as usize]).collect()
    }

    #[test]
    fn no_signal_is_said_at_its_step_and_never_once_there_was_one() {
        let rule = |by_step| Criteria { no_signal: Some(NoSignal { by_step, nats: 0.08 }), ..Criteria::default() };
        let stopped = |by_step, losses: &[(u64, f64)]| run(&rule(by_step), of(losses)).1;
        assert_eq!(stopped(30, &[(100, 3.0)]), [(30, "no-learning-signal".to_owned())]);
        // It is asked where a window ends, from its step on.
        assert_eq!(stopped(33, &[(10, 3.0), (90, 2.93)]), [(40, "no-learning-signal".to_owned())]);
        assert_eq!(stopped(33, &[(10, 3.0), (90, 2.91)]), []);
        assert_eq!(stopped(35, &[(30, 3.0), (70, 2.0)]), []);
        assert_eq!(stopped(35, &[(31, 3.0), (9, 2.93), (60, 2.0)]), [(40, "no-learning-signal".to_owned())]);
        assert_eq!(stopped(150, &[(10, 1.6), (140, 1.521), (60, 0.1)]), [(150, "no-learning-signal".to_owned())]);
        assert_eq!(stopped(150, &[(10, 1.6), (139, 1.521), (1, 0.0), (60, 9.0)]), []);
        // It rose again: the signal was there.
        assert_eq!(stopped(40, &[(10, 3.0), (10, 2.5), (80, 3.5)]), []);
        assert_eq!(run(&Criteria::default(), of(&[(100, 3.0)])).1, []);
        // Noise of single steps is no signal.
        let noisy = (0..60).map(|i| if i % 2 == 0 { 2.0 } else { 4.0 });
        assert_eq!(run(&rule(50), noisy).1, [(50, "no-learning-signal".to_owned())]);
    }

    #[test]
    fn a_collapse_is_flagged_once_and_only_while_it_is_fast() {
        let collapse = Some(Collapse { until_step: 50, ratio: 0.5 });
        let criteria = Criteria { collapse, ..Criteria::default() };
        let (state, said) = run(&criteria, of(&[(20, 4.0), (80, 0.125)]));
        assert_eq!(said, [(30, "collapse".to_owned())]);
        assert_eq!(state.watch.collapsed, Some(Collapsed { step: 30, loss: 0.125, first: 4.0 }));
        assert!(state.watch.collapsed.unwrap().words().contains("from 4.0000 to 0.1250 by step 30"));
        assert_eq!(run(&criteria, of(&[(50, 4.0), (50, 0.1)])).1, [], "late");
        assert_eq!(run(&criteria, of(&[(40, 4.0), (50, 0.1)])).1, [], "at the step, and not before it");
        assert_eq!(run(&criteria, of(&[(30, 4.0), (50, 0.1)])).1, [(40, "collapse".to_owned())]);
        assert_eq!(run(&criteria, of(&[(10, 4.0), (50, 2.1)])).1, [], "not that far");
        assert_eq!(run(&Criteria::default(), of(&[(20, 4.0), (80, 0.125)])).1, []);
    }

    #[test]
    fn validations_are_worse_in_a_row_or_not() {
        let worse = |losses: &[f64], k| {
            let mut state = State { step: 10 * losses.len() as u64, ..State::default() };
            state.validations = (1u64..)
                .zip(losses)
                .map(|(i, &loss)| Validation { step: 10 * i, train_loss: None, loss, perplexity: loss.exp() })
                .collect();
            match (Criteria { worse_validations: Some(k), ..Criteria::default() }).check_validations(&state, 3e-5) {
                Ok(()) => None,
                Err(ComputeError::Stopped(stop)) => Some(stop),
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(worse(&[], 1), None);
        assert_eq!(worse(&[1.0], 1), None);
        assert_eq!(worse(&[1.0, 1.1, 1.2], 3), None);
        assert_eq!(worse(&[1.0, 1.1, 1.05, 1.2, 1.3], 3), None, "not in a row");
        assert_eq!(worse(&[1.0, 1.1, 1.2, 1.2], 2), None, "equal is not worse");
        let stop = worse(&[2.0, 1.0, 1.1, 1.2, 1.5], 3).unwrap();
        assert_eq!((stop.criterion, stop.step), ("validation-worse", 50));
        assert!(stop.why.contains("3 times in a row, from 1.0000 at step 20 to 1.5000 at step 50"), "{}", stop.why);
        assert_eq!(stop.values["validation_losses"], json!([1.0, 1.1, 1.2, 1.5]));
        assert!(stop.why.ends_with("lower `lr` to half of it, 1.5e-5"), "{}", stop.why);
        assert_eq!(stop.values["advised_lr"], json!(1.5e-5));
    }
}
