//! What one rank holds of the optimizer (ZeRO-1): first and second moments of its part of every group, and the
//! fp32 master of that part where weights are bf16.

use tch::{Device, Kind, Tensor};

use super::adamw::{AdamW, Shard, Step};
use super::{norm, on_device};
use crate::compute::Result;
use crate::compute::model::{GroupLayout, Layout, as_f32, as_f32_mut};

/// A rank's part of every group.
#[derive(Debug)]
pub struct Shards {
    rank: usize,
    ranks: usize,
    /// fp32 parameters, where the weights that are computed with are bf16.
    master: Option<Vec<Tensor>>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
}

impl Shards {
    /// Zero moments, and masters of `flats` where those are bf16.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(layout: &Layout, flats: &[Tensor], rank: usize, ranks: usize) -> Result<Self> {
        let zeros = || -> Result<Vec<Tensor>> {
            let zero = |(g, f): (&GroupLayout, &Tensor)| {
                Ok(Tensor::f_zeros([(g.len / ranks) as i64], (Kind::Float, f.device()))?)
            };
            layout.groups.iter().zip(flats).map(zero).collect()
        };
        let mut shards = Self { rank, ranks, master: None, m: zeros()?, v: zeros()? };
        if flats.iter().any(|f| f.kind() == Kind::BFloat16) {
            let master = flats.iter().map(|f| Ok(shards.own(f)?.f_to_kind(Kind::Float)?));
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

    /// Updates the own part of group `g`: moments, parameters, and with bf16 the weights made of them.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn update(
        &mut self,
        adamw: &AdamW,
        g: usize,
        group: &GroupLayout,
        flat: &Tensor,
        gradient: &Tensor,
        step: Step,
    ) -> Result<()> {
        let mut weights = self.own(flat)?;
        let gradient = self.own(gradient)?;
        let first = self.rank * weights.numel();
        let target = match &mut self.master {
            Some(master) => &mut master[g],
            None => &mut weights,
        };
        let (m, v) = (&mut self.m[g], &mut self.v[g]);
        if target.device() == Device::Cpu {
            let shard = Shard {
                first,
                weights: as_f32_mut(target),
                gradients: as_f32(&gradient),
                m: as_f32_mut(m),
                v: as_f32_mut(v),
            };
            adamw.update(group, shard, step);
        } else {
            for (range, pass) in adamw.passes(group, first..first + target.numel(), step) {
                let part = |t: &Tensor| t.f_narrow(0, range.start as i64, range.len() as i64);
                on_device::update(&part(target)?, &part(&gradient)?, &part(m)?, &part(v)?, pass)?;
            }
        }
        if let Some(master) = &self.master {
            // Rounded to nearest, ties to even.
            weights.f_copy_(&master[g])?;
        }
        Ok(())
    }

    /// The own part of every group in fp32: parameters, first and second moments. Views of the memory.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn parts(&self, flats: &[Tensor]) -> Result<[Vec<Tensor>; 3]> {
        let clones = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let parameters = match &self.master {
            Some(master) => clones(master),
            None => flats.iter().map(|f| self.own(f)).collect::<Result<_>>()?,
        };
        Ok([parameters, clones(&self.m), clones(&self.v)])
    }

    /// True if masters are kept apart.
    pub fn has_masters(&self) -> bool {
        self.master.is_some()
    }
}
