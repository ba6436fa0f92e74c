//! How a run's state outlives its process: it goes on from the newest checkpoint, begins to save, settles what became
//! of a save, and knows where the best parameters lie. Ranks decide alike: what follows from a save is decided where
//! all have waited for it.

use std::path::PathBuf;

use serde_json::{Value, json};
use tch::{Device, Kind as Type, Tensor};

use super::report::Reporter;
use super::shards::Stored;
use super::{Best, Keep, Strict, Trainer, Validation};
use crate::compute::checkpoint::{self, Checkpoint, Kind, Piece, Trouble, saver};
use crate::compute::model::{as_f32, as_f32_mut};
use crate::compute::{ComputeError, Result, numerics};

impl Trainer<'_> {
    /// Goes on from the newest usable checkpoint. Rank 0 looks and decides.
    pub(super) fn resume(&mut self) -> Result<()> {
        let mut chosen = String::new();
        if self.comm.is_first() {
            let found = checkpoint::find(self.around.checkpoint_dir, &self.settings.fingerprint)?;
            found.refused.iter().for_each(|line| eprintln!("checkpoint {line}"));
            chosen = found.checkpoint.map_or(String::new(), |c| {
                c.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
            });
        }
        let chosen = String::from_utf8_lossy(&self.comm.broadcast(chosen.as_bytes())?).into_owned();
        if chosen.is_empty() {
            return Ok(());
        }
        let checkpoint = Checkpoint::open(&self.around.checkpoint_dir.join(&chosen))?;
        checkpoint.check_layout(&self.trainee.layout)?;
        for mut wanted in self.shards.restored() {
            read(&checkpoint, wanted.kind, wanted.group, wanted.first, &mut wanted.values)?;
        }
        read_weights(&mut self.trainee.flats, &checkpoint)?;
        self.trainee.passes.refresh();
        self.state = serde_json::from_value(checkpoint.manifest.state.clone())
            .map_err(|e| ComputeError::input(&checkpoint.dir, format!("has counters of another program ({e})")))?;
        self.continue_numerics(&checkpoint.manifest.numerics)?;
        if self.comm.is_first() {
            eprintln!("going on from step {} of {}", self.state.step, self.settings.schedule.steps);
        }
        Ok(())
    }

    /// Bits are promised only under one numerics record.
    fn continue_numerics(&mut self, old: &Value) -> Result<()> {
        let mut changed = numerics::differences(old, &self.numerics);
        if let Some(note) = old.get("bitwise_note").and_then(Value::as_str) {
            self.numerics["bitwise"] = json!(false);
            self.numerics["bitwise_note"] = json!(note);
        }
        if changed.is_empty() {
            return Ok(());
        }
        if self.settings.strict == Strict::Refuse {
            return Err(ComputeError::Config(format!(
                "the checkpoint was made where bits may differ ({}): run on the same kind of machine, or set strict = false",
                changed.join(", ")
            )));
        }
        changed.insert(0, format!("since step {}", self.state.step));
        self.numerics["bitwise"] = json!(false);
        self.numerics["bitwise_note"] = json!(changed.join("; "));
        if self.comm.is_first() {
            eprintln!("bits may differ {}", changed.join("; "));
        }
        Ok(())
    }

    pub(super) fn is_best(&self, validation: &Validation) -> bool {
        self.settings.keep == Keep::Best
            && self.state.best.as_ref().is_none_or(|best| validation.perplexity < best.perplexity)
    }

    /// Makes this step the best and saves it.
    pub(super) fn save_best(&mut self, validation: &Validation, report: &mut Reporter) -> Result<()> {
        let name = checkpoint::name(self.state.step, self.settings.attempt);
        self.settle()?;
        let best = Best { step: validation.step, perplexity: validation.perplexity, checkpoint: name };
        self.best_before = Some(self.state.best.replace(best));
        self.save(report)
    }

    /// Begins to save a checkpoint, once the one before is written.
    pub(super) fn save(&mut self, report: &mut Reporter) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        self.settle()?;
        self.check_constraint()?;
        report.sync()?;
        let name = checkpoint::name(self.state.step, self.settings.attempt);
        let best = self.state.best.as_ref().map(|b| b.checkpoint.clone()).filter(|b| *b != name);
        let mut stored = self.shards.stored(&self.trainee.flats)?;
        for numbers in &mut stored {
            // Those of a GPU are copied to the host; others are where they are.
            numbers.values = numbers.values.f_to(Device::Cpu)?;
        }
        let pieces = stored.iter().map(piece).collect();
        self.saver.begin(saver::Snapshot {
            step: self.state.step,
            state: serde_json::to_value(&self.state)
                .map_err(|e| ComputeError::Failed(format!("the counters cannot be stored ({e}): report this")))?,
            numerics: self.numerics.clone(),
            needs: best.into_iter().collect(),
            pieces,
        })?;
        self.saved = Some(self.state.step);
        Ok(())
    }

    /// Whether the next one is better depends on whether this one could be saved.
    pub(super) fn settle_best(&mut self) -> Result<()> {
        if self.best_before.is_some() { self.settle() } else { Ok(()) }
    }

    /// Waits for the save in flight, on all ranks; if it failed for want of room the log says so, the run goes on,
    /// and the old best stays the best.
    pub(super) fn settle(&mut self) -> Result<()> {
        let Some(outcome) = self.saver.wait()? else { return Ok(()) };
        let old = self.best_before.take();
        let saver::Outcome::NotSaved { step, trouble } = outcome else { return Ok(()) };
        if self.saved == Some(step) {
            self.saved = None;
        }
        if let Some(old) = old {
            self.state.best = old;
        }
        if let Trouble::Failed(reason) = trouble {
            return Err(ComputeError::Failed(format!("the checkpoint of step {step} could not be written: {reason}")));
        }
        if self.comm.is_first() {
            eprintln!("step {step}: no checkpoint, {trouble}; the last one stays and the run goes on");
        }
        Ok(())
    }

    /// Whether the last validation is better than all before it: its parameters are in memory, whatever the disk
    /// holds.
    pub(super) fn last_is_best(&mut self) -> bool {
        let Some((last, before)) = self.state.validations.split_last() else { return false };
        if before.iter().any(|v| v.perplexity <= last.perplexity) {
            return false;
        }
        let checkpoint = checkpoint::name(last.step, self.settings.attempt);
        self.state.best = Some(Best { step: last.step, perplexity: last.perplexity, checkpoint });
        true
    }

    pub(super) fn best_on_disk(&self) -> Result<PathBuf> {
        let best = self.state.best.as_ref().ok_or_else(|| {
            ComputeError::Failed(
                "no checkpoint could be written, so there is no best model: free space and run again".into(),
            )
        })?;
        let checkpoint = Checkpoint::open(&self.around.checkpoint_dir.join(&best.checkpoint))?;
        checkpoint.check_layout(&self.trainee.layout)?;
        if self.comm.is_first() {
            checkpoint.verify()?;
        }
        Ok(checkpoint.dir)
    }
}

/// Numbers of the host's memory, as they go into a checkpoint.
fn piece(Stored { group, kind, first, values }: &Stored) -> Piece<'_> {
    Piece { group: *group, kind: *kind, first: *first, values: as_f32(values) }
}

/// Reads the whole parameters of a checkpoint into flat tensors of its layout, rounded where those are bf16.
///
/// # Errors
/// A shard cannot be read.
pub fn read_weights(flats: &mut [Tensor], checkpoint: &Checkpoint) -> Result<()> {
    flats.iter_mut().enumerate().try_for_each(|(g, flat)| read(checkpoint, Kind::Weights, g, 0, flat))
}

/// Reads as many numbers as `target` has, from the group's element `first`; through memory of the host if it is not
/// fp32 there.
fn read(checkpoint: &Checkpoint, kind: Kind, group: usize, first: usize, target: &mut Tensor) -> Result<()> {
    if target.kind() == Type::Float && target.device() == Device::Cpu {
        return checkpoint.read(kind, group, first, as_f32_mut(target));
    }
    let mut here = Tensor::f_zeros([target.numel() as i64], (Type::Float, Device::Cpu))?;
    checkpoint.read(kind, group, first, as_f32_mut(&mut here))?;
    Ok(target.f_copy_(&here)?)
}
