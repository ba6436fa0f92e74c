//! What a running training says: a line in the log every few steps, and every step's numbers in
//! `progress.jsonl`, from which `run.h5` takes its series. Rank 0 speaks; the others hold nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::health::Recent;
use super::{Settings, State, Surroundings, Totals, Validation};
use crate::compute::Result;
use crate::compute::comm::Comm;
use crate::record::progress::{Line, Writer};

/// Writes log lines and series.
pub(super) struct Reporter {
    writer: Option<Writer>,
    total: u64,
    interval: u64,
    began: Instant,
    loss: Recent,
    norm: Recent,
    /// FLOPs of a token over those that all ranks could do in a second, if that is known.
    token_s: Option<f64>,
}

impl Reporter {
    /// Cuts the series back to the step that training goes on from.
    pub fn open(
        comm: &Comm,
        settings: &Settings,
        around: &Surroundings<'_>,
        state: &State,
        flops_per_token: f64,
    ) -> Result<Self> {
        let writer = if comm.is_first() { Some(Writer::resume(around.run_dir, state.step)?) } else { None };
        Ok(Self {
            writer,
            total: settings.schedule.steps,
            interval: settings.log_interval_steps.max(1),
            began: Instant::now(),
            loss: Recent::default(),
            norm: Recent::default(),
            token_s: settings.peak_flops.map(|peak| flops_per_token / (peak * comm.size() as f64)),
        })
    }

    /// After a step. Every step has its line in the series, so that they do not depend on the log's interval.
    pub fn step(&mut self, state: &State, totals: &Totals, lr: f64, took: Duration) -> Result<()> {
        let (norm, tokens, updated) = (totals.norm, totals.sum.tokens, totals.usable());
        let loss = totals.sum.nll / tokens as f64;
        let mut values = BTreeMap::from([("lr".to_owned(), lr)]);
        if updated {
            values.insert("loss".to_owned(), loss);
            values.insert("grad_norm".to_owned(), norm);
        } else {
            values.insert("skipped".to_owned(), 1.0);
        }
        self.write(state.step, values)?;
        if self.writer.is_none() {
            return Ok(());
        }
        let (step, total, seconds) = (state.step, self.total, took.as_secs_f64());
        if !updated {
            let why = if tokens == 0 { "no labels" } else { "not finite" };
            eprintln!("step {step}/{total}  skipped ({why}): {tokens} labels, loss {loss:.4}, norm {norm:.4}");
            return Ok(());
        }
        let z = |z: Option<f64>| z.map_or(String::new(), |z| format!(" {z:+.1}z"));
        let (loss_z, norm_z) = (z(self.loss.z_score(loss)), z(self.norm.z_score(norm)));
        if step % self.interval == 0 || step == 1 || step == total {
            let (ms, rate) = (seconds * 1e3, tokens as f64 / seconds);
            let mfu = self.token_s.map_or(String::new(), |s| format!("  MFU {:.0}%", rate * s * 100.0));
            eprintln!(
                "step {step}/{total}  loss {loss:.4}{loss_z}  norm {norm:.3}{norm_z}  lr {lr:.3e}  {ms:.0} ms  {rate:.0} tokens/s{mfu}"
            );
        }
        Ok(())
    }

    /// After a validation.
    pub fn validation(&mut self, validation: &Validation) -> Result<()> {
        let values = [("val_loss".to_owned(), validation.loss), ("val_perplexity".to_owned(), validation.perplexity)];
        self.write(validation.step, BTreeMap::from(values))?;
        if self.writer.is_some() {
            eprintln!(
                "step {}/{}  validation loss {:.4}  perplexity {:.3}",
                validation.step, self.total, validation.loss, validation.perplexity
            );
        }
        Ok(())
    }

    /// After a step whose loss fell suspiciously fast.
    pub fn flag(&self, state: &State) {
        if let (true, Some(collapsed)) = (self.writer.is_some(), &state.watch.collapsed) {
            eprintln!("step {}/{}  {}", state.step, self.total, collapsed.words());
        }
    }

    /// Makes the series durable: a checkpoint must not outlive the lines before it.
    pub fn sync(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.sync()?;
        }
        Ok(())
    }

    fn write(&mut self, step: u64, values: BTreeMap<String, f64>) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.write(&Line {
                step,
                total: Some(self.total),
                time_s: self.began.elapsed().as_secs_f64(),
                values,
            })?;
        }
        Ok(())
    }
}
