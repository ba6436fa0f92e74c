//! What ranks send each other in a step: gradients to the owners of their shards, and updated shards to all.
//!
//! Every rank owns the same part of every group (ZeRO-1). A gradient is sent as soon as the backward pass has it
//! whole; the owner adds what arrives in tree order over ranks, so the sum is that of any number of ranks.
//! Updated weights are sent group by group; the next forward pass waits for a group when it needs it. All
//! ranks call in the same order.

use tch::Tensor;

use super::lanes;
use crate::compute::Result;
use crate::compute::comm::Comm;
use crate::compute::model::{as_f32, as_f32_mut};

/// The messages of one trainer.
#[derive(Debug)]
pub struct Exchange<'a> {
    comm: &'a Comm,
    /// Gradients that were given, by group.
    gradients: Vec<Option<Tensor>>,
    /// Weights on their way, by group.
    weights: Vec<Option<Tensor>>,
}

impl<'a> Exchange<'a> {
    /// For `groups` groups.
    pub fn new(comm: &'a Comm, groups: usize) -> Self {
        let none = || (0..groups).map(|_| None).collect();
        Self { comm, gradients: none(), weights: none() }
    }

    /// Gives this rank's gradient of a group, fp32, which is then on its way to the owners.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn send_gradient(&mut self, group: usize, gradient: Tensor) -> Result<()> {
        self.gradients[group] = Some(gradient);
        Ok(())
    }

    /// Waits for the other ranks' gradients. The buffers come back by group; the own shard of each holds the sum
    /// over ranks.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn finish_gradients(&mut self) -> Result<Vec<Tensor>> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let mut gradients: Vec<Tensor> = self.gradients.iter_mut().filter_map(Option::take).collect();
        for gradient in &mut gradients {
            let len = gradient.numel() / ranks;
            let mut inbox = vec![vec![0f32; len]; ranks - 1];
            let peers = (0..ranks).filter(|&p| p != rank);
            let sends: Vec<_> = peers.clone().map(|p| (p, &as_f32(gradient)[p * len..(p + 1) * len])).collect();
            let mut receives: Vec<_> = peers.zip(inbox.iter_mut().map(Vec::as_mut_slice)).collect();
            self.comm.exchange_f32(&sends, &mut receives)?;
            let own = &mut as_f32_mut(gradient)[rank * len..(rank + 1) * len];
            let mut parts: Vec<&mut [f32]> = inbox.iter_mut().map(Vec::as_mut_slice).collect();
            parts.insert(rank, own);
            lanes::add_ranks(&mut parts);
            if rank != 0 {
                // The tree leaves its sum in rank 0's part.
                let (first, rest) = parts.split_at_mut(rank);
                rest[0].copy_from_slice(first[0]);
            }
        }
        Ok(gradients)
    }

    /// Sends the own shard of a group's weights to all, and takes theirs. `flat` may be read again after
    /// [`Self::wait_weights`].
    ///
    /// # Errors
    /// A rank is gone.
    pub fn send_weights(&mut self, group: usize, flat: &Tensor) -> Result<()> {
        self.weights[group] = Some(flat.shallow_clone());
        Ok(())
    }

    /// Returns when all shards of the group's weights are here.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn wait_weights(&mut self, group: usize) -> Result<()> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let Some(mut flat) = self.weights[group].take() else { return Ok(()) };
        let len = flat.numel() / ranks;
        let mut receives = Vec::new();
        let mut own: &[f32] = &[];
        for (peer, part) in as_f32_mut(&mut flat).chunks_mut(len).enumerate() {
            if peer == rank {
                own = part;
            } else {
                receives.push((peer, part));
            }
        }
        let sends: Vec<_> = (0..ranks).filter(|&p| p != rank).map(|p| (p, own)).collect();
        self.comm.exchange_f32(&sends, &mut receives)
    }

    /// Returns when nothing is on its way.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn drain(&mut self) -> Result<()> {
        (0..self.weights.len()).try_for_each(|group| self.wait_weights(group))
    }
}
