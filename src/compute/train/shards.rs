//! What one rank holds of the optimizer. Of AdamW (ZeRO-1): first and second moments of its part of every group. Of
//! Adafactor: the means of the second moments of everything, which are few. Where weights are bf16, the fp32 masters
//! of what it updates, unless the run does without.

use tch::{Device, Kind as Type, Tensor};

use super::adafactor::{Master, moments_of_group};
use super::adamw::{Shard, Step};
use super::{Optimizer, norm, on_device};
use crate::compute::checkpoint::Kind;
use crate::compute::model::{GroupLayout, Layout, as_f32, as_f32_mut};
use crate::compute::{ComputeError, Result};

/// A rank's part of every group.
#[derive(Debug)]
pub struct Shards {
    rank: usize,
    ranks: usize,
    /// fp32 parameters, where the weights that are computed with are bf16: of the own part, or of everything with
    /// [`Held::Means`].
    master: Option<Vec<Tensor>>,
    held: Held,
}

/// What an optimizer remembers, by group.
#[derive(Debug)]
enum Held {
    /// First and second moments of the own part.
    Moments { m: Vec<Tensor>, v: Vec<Tensor> },
    /// Means of second moments, the same on all ranks.
    Means(Vec<Tensor>),
}

/// Numbers of a checkpoint: a range of a group.
#[derive(Debug)]
pub struct Stored {
    /// Number of the group.
    pub group: usize,
    /// What they are.
    pub kind: Kind,
    /// First of them in the group.
    pub first: usize,
    /// They: fp32, where they are used, or a copy.
    pub values: Tensor,
}

impl Shards {
    /// Nothing remembered yet, and masters of `flats` where those are bf16.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(optimizer: &Optimizer, layout: &Layout, flats: &[Tensor], rank: usize, ranks: usize) -> Result<Self> {
        let zeros = |len: &dyn Fn(&GroupLayout) -> usize| -> Result<Vec<Tensor>> {
            let zero =
                |(g, f): (&GroupLayout, &Tensor)| Ok(Tensor::f_zeros([len(g) as i64], (Type::Float, f.device()))?);
            layout.groups.iter().zip(flats).map(zero).collect()
        };
        let is_bf16 = flats.iter().any(|f| f.kind() == Type::BFloat16);
        let (held, has_master) = match optimizer {
            Optimizer::AdamW(_) => {
                let own = |g: &GroupLayout| g.len / ranks;
                (Held::Moments { m: zeros(&own)?, v: zeros(&own)? }, true)
            }
            Optimizer::Adafactor(adafactor) => {
                (Held::Means(zeros(&moments_of_group)?), adafactor.master == Master::Fp32)
            }
        };
        let mut shards = Self { rank, ranks, master: None, held };
        if is_bf16 && has_master {
            let whole = matches!(shards.held, Held::Means(_));
            let master = flats.iter().map(|f| {
                let part = if whole { f.shallow_clone() } else { shards.own(f)? };
                Ok(part.f_to_kind(Type::Float)?)
            });
            shards.master = Some(master.collect::<Result<_>>()?);
        }
        Ok(shards)
    }

    /// The own part of a flat tensor, as a view.
    fn own(&self, flat: &Tensor) -> Result<Tensor> {
        let len = (flat.numel() / self.ranks) as i64;
        Ok(flat.f_narrow(0, self.rank as i64 * len, len)?)
    }

    /// Sums of squares of the own part of a group's gradient, by chunks.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn chunk_sums(&self, gradient: &Tensor) -> Result<Vec<f64>> {
        let own = self.own(gradient)?;
        if own.device() == Device::Cpu { Ok(norm::chunk_sums(as_f32(&own))) } else { on_device::chunk_sums(&own) }
    }

    /// Updates group `g`, or the own part of it: what is remembered, parameters, and with bf16 the weights made of
    /// them. `gradient` is right where [`Optimizer::reach`] says.
    ///
    /// # Errors
    /// libtorch refuses; these are not the shards of that optimizer.
    pub fn update(
        &mut self,
        optimizer: &Optimizer,
        g: usize,
        group: &GroupLayout,
        flat: &Tensor,
        gradient: &Tensor,
        step: Step,
    ) -> Result<()> {
        let whole = matches!(self.held, Held::Means(_));
        let mut weights = if whole { flat.shallow_clone() } else { self.own(flat)? };
        let gradient = if whole { gradient.shallow_clone() } else { self.own(gradient)? };
        let first = self.rank * weights.numel();
        let mut target = match &self.master {
            Some(master) => master[g].shallow_clone(),
            None if weights.kind() == Type::BFloat16 => weights.f_to_kind(Type::Float)?,
            None => weights.shallow_clone(),
        };
        let on_host = target.device() == Device::Cpu;
        match (&mut self.held, optimizer) {
            (Held::Moments { m, v }, Optimizer::AdamW(adamw)) if on_host => {
                let shard = Shard {
                    first,
                    weights: as_f32_mut(&mut target),
                    gradients: as_f32(&gradient),
                    m: as_f32_mut(&mut m[g]),
                    v: as_f32_mut(&mut v[g]),
                };
                adamw.update(group, shard, step);
            }
            (Held::Moments { m, v }, Optimizer::AdamW(adamw)) => {
                for (range, pass) in adamw.passes(group, first..first + target.numel(), step) {
                    let part = |t: &Tensor| t.f_narrow(0, range.start as i64, range.len() as i64);
                    on_device::update(&part(&target)?, &part(&gradient)?, &part(&m[g])?, &part(&v[g])?, pass)?;
                }
            }
            (Held::Means(means), Optimizer::Adafactor(adafactor)) if on_host => {
                let means = as_f32_mut(&mut means[g]);
                adafactor.update(group, as_f32_mut(&mut target), as_f32(&gradient), means, step);
            }
            (Held::Means(means), Optimizer::Adafactor(adafactor)) => {
                on_device::adafactor(adafactor, group, &target, &gradient, &means[g], step)?;
            }
            _ => return Err(ComputeError::Failed("the shards are another optimizer's: report this".to_owned())),
        }
        if weights.kind() == Type::BFloat16 {
            // Rounded to nearest, ties to even.
            weights.f_copy_(&target)?;
        }
        Ok(())
    }

    /// What this rank puts into a checkpoint, group after group, in fp32.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn stored(&self, flats: &[Tensor]) -> Result<Vec<Stored>> {
        let mut stored = Vec::new();
        for (group, flat) in flats.iter().enumerate() {
            let parameters = match (&self.master, &self.held) {
                (Some(master), Held::Moments { .. }) => master[group].shallow_clone(),
                (Some(master), Held::Means(_)) => self.own(&master[group])?,
                // The same memory, where it is fp32 already.
                (None, _) => self.own(flat)?.f_to_kind(Type::Float)?,
            };
            let first = self.rank * parameters.numel();
            stored.push(Stored { group, kind: Kind::Weights, first, values: parameters });
            match &self.held {
                Held::Moments { m, v } => {
                    for (kind, moments) in [(Kind::FirstMoment, m), (Kind::SecondMoment, v)] {
                        stored.push(Stored { group, kind, first, values: moments[group].shallow_clone() });
                    }
                }
                Held::Means(means) if self.rank == 0 => {
                    let values = means[group].shallow_clone();
                    stored.push(Stored { group, kind: Kind::SecondMomentMeans, first: 0, values });
                }
                Held::Means(_) => {}
            }
        }
        Ok(stored)
    }

    /// Where this rank puts what it reads from a checkpoint, besides the weights that it computes with.
    pub fn restored(&self) -> Vec<Stored> {
        let mut wanted = Vec::new();
        let mut want = |kind: Kind, tensors: &[Tensor], whole: bool| {
            for (group, tensor) in tensors.iter().enumerate() {
                let first = if whole { 0 } else { self.rank * tensor.numel() };
                wanted.push(Stored { group, kind, first, values: tensor.shallow_clone() });
            }
        };
        match &self.held {
            Held::Moments { m, v } => {
                want(Kind::FirstMoment, m, false);
                want(Kind::SecondMoment, v, false);
            }
            Held::Means(means) => want(Kind::SecondMomentMeans, means, true),
        }
        if let Some(master) = &self.master {
            want(Kind::Weights, master, matches!(self.held, Held::Means(_)));
        }
        wanted
    }

    /// Bytes of [`Self::stored`], about.
    pub fn stored_bytes(&self, layout: &Layout) -> usize {
        let own = layout.elements() / self.ranks;
        match &self.held {
            Held::Moments { .. } => 12 * own,
            Held::Means(means) => 4 * (own + means.iter().map(Tensor::numel).sum::<usize>()),
        }
    }

    /// Where the fp32 parameters lie that a whole model is made of.
    pub fn masters(&self) -> Masters<'_> {
        match (&self.master, &self.held) {
            (None, _) => Masters::Absent,
            (Some(master), Held::Moments { .. }) => Masters::Own(master),
            (Some(master), Held::Means(_)) => Masters::Whole(master),
        }
    }
}

/// fp32 parameters beside bf16 weights, by group.
#[derive(Debug, Clone, Copy)]
pub enum Masters<'a> {
    /// There are none: the weights are the parameters.
    Absent,
    /// Of the own part.
    Own(&'a [Tensor]),
    /// Of everything.
    Whole(&'a [Tensor]),
}
