//! What ranks send each other in a step: gradients to the owners of their shards, and updated shards to all.
//!
//! Every rank owns the same part of every group (ZeRO-1). A gradient is sent as soon as the backward pass has it
//! whole; the owner adds what arrives in tree order over ranks, so the sum is that of any number of ranks, and it
//! does not matter when anything arrives. Updated weights are sent group by group; the next forward pass waits
//! for a group when it needs it. All ranks call in the same order.

use std::collections::VecDeque;

use tch::Tensor;

use super::trace::Trace;
use crate::compute::Result;
use crate::compute::comm::{Comm, Times, Travelling, Wire};

/// Gradients whose parts lie beside them on a GPU: before more are sent, the oldest is added.
const ON_DEVICE: usize = 2;

/// The messages of one trainer.
#[derive(Debug)]
pub struct Exchange<'a> {
    comm: &'a Comm,
    wire: Wire,
    trace: Trace,
    /// Gradients on their way, by group.
    gradients: Vec<Option<Travelling<'a>>>,
    /// In which order they were sent.
    sent: VecDeque<usize>,
    /// Sums that are complete, by group.
    sums: Vec<Option<Tensor>>,
    /// Weights on their way, by group.
    weights: Vec<Option<Travelling<'a>>>,
}

impl<'a> Exchange<'a> {
    /// For `groups` groups: fp32 on the wire, untraced.
    pub fn new(comm: &'a Comm, groups: usize) -> Self {
        let none = || (0..groups).map(|_| None).collect();
        Self {
            comm,
            wire: Wire::Fp32,
            trace: Trace::default(),
            gradients: none(),
            sent: VecDeque::new(),
            sums: (0..groups).map(|_| None).collect(),
            weights: none(),
        }
    }

    /// Sends gradients as `wire`. They are added in fp32.
    #[must_use]
    pub fn with_wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// Notes in `trace` when gradients and weights travelled, and who waited for them.
    #[must_use]
    pub fn with_trace(mut self, trace: Trace) -> Self {
        self.trace = trace;
        self
    }

    /// Why the sums are not those of every number of ranks; `None` if they are.
    pub fn bitwise_note(&self) -> Option<&'static str> {
        (self.comm.size() > 1 && self.wire == Wire::Bf16)
            .then_some("gradients are rounded to bf16 between ranks (wire = \"bf16\")")
    }

    /// Gives this rank's gradient of a group, fp32, which is then on its way to the owners.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn send_gradient(&mut self, group: usize, gradient: Tensor) -> Result<()> {
        if self.comm.orders_on_device() && self.sent.len() >= ON_DEVICE {
            if let Some(oldest) = self.sent.front().copied() {
                self.sums[oldest] = self.take_gradient(oldest)?;
            }
        }
        self.gradients[group] = Some(self.comm.reduce(gradient, self.wire)?);
        self.sent.push_back(group);
        Ok(())
    }

    /// Waits for the other ranks' gradients of one group. The own shard of the buffer holds the sum over ranks;
    /// what else is in it has no meaning. `None` if none was given.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn finish_gradient(&mut self, group: usize) -> Result<Option<Tensor>> {
        match self.sums[group].take() {
            Some(sum) => Ok(Some(sum)),
            None => self.take_gradient(group),
        }
    }

    fn take_gradient(&mut self, group: usize) -> Result<Option<Tensor>> {
        let Some(flight) = self.gradients[group].take() else { return Ok(None) };
        self.sent.retain(|&g| g != group);
        let (gradient, times) = {
            let _span = self.trace.span("wait for gradient", Some(group));
            flight.wait()?
        };
        self.travelled("gradient", group, times);
        Ok(Some(gradient))
    }

    /// As [`Self::finish_gradient`], of all groups for which one was given, in the order of groups.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn finish_gradients(&mut self) -> Result<Vec<Tensor>> {
        (0..self.gradients.len()).filter_map(|group| self.finish_gradient(group).transpose()).collect()
    }

    /// Sends the own shard of a group's weights to all, and takes theirs. Nobody may touch `flat` before
    /// [`Self::wait_weights`] has returned.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn send_weights(&mut self, group: usize, flat: &Tensor) -> Result<()> {
        self.wait_weights(group)?;
        self.weights[group] = Some(self.comm.gather(flat.shallow_clone())?);
        Ok(())
    }

    /// Returns when all shards of the group's weights are here.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn wait_weights(&mut self, group: usize) -> Result<()> {
        let Some(flight) = self.weights[group].take() else { return Ok(()) };
        let (_, times) = {
            let _span = self.trace.span("wait for weights", Some(group));
            flight.wait()?
        };
        self.travelled("weights", group, times);
        Ok(())
    }

    /// Returns when no weights are on their way: before they are saved, validated, or read in any other way.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn drain(&mut self) -> Result<()> {
        (0..self.weights.len()).try_for_each(|group| self.wait_weights(group))
    }

    fn travelled(&self, name: &'static str, group: usize, times: Option<Times>) {
        if let Some(times) = times {
            self.trace.travelled(name, group, times.began, times.ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::compute::model::{CHUNK, as_f32, as_f32_mut};
    use crate::compute::train::lanes;

    /// Numbers whose sum depends on the order.
    fn gradient(rank: usize, group: usize, len: usize, step: usize) -> Vec<f32> {
        let wild = |i: usize| ((rank * 97 + group * 13 + step * 7 + i * 31) as f32).sin();
        (0..len).map(|i| wild(i) * 10f32.powi(((rank + i) % 5) as i32)).collect()
    }

    /// Whether others compute meanwhile.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Overlap {
        On,
        Off,
    }

    /// Two steps of gradients out and weights back, as the trainer calls them; what rank 0 has in the end.
    fn run(ranks: usize, lens: &[usize], wire: Wire, overlap: Overlap, seed: u64) -> Vec<Vec<f32>> {
        let comms = Comm::in_process(ranks, Duration::from_secs(20), seed).unwrap();
        let results: Vec<Vec<Vec<f32>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = comms
                .iter()
                .map(|comm| {
                    scope.spawn(move || {
                        let rank = comm.rank();
                        let mut exchange = Exchange::new(comm, lens.len()).with_wire(wire);
                        let mut weights: Vec<Tensor> =
                            lens.iter().map(|&n| Tensor::from_slice(&vec![1f32; n])).collect();
                        for step in 0..2 {
                            for group in 0..lens.len() {
                                exchange.wait_weights(group).unwrap();
                                assert!(as_f32(&weights[group]).iter().all(|w| w.is_finite()));
                            }
                            let mut sums = Vec::new();
                            for group in (0..lens.len()).rev() {
                                let mine = gradient(rank, group, lens[group], step);
                                exchange.send_gradient(group, Tensor::from_slice(&mine)).unwrap();
                                if overlap == Overlap::Off {
                                    sums.push(exchange.finish_gradient(group).unwrap().unwrap());
                                }
                            }
                            sums.reverse();
                            assert_eq!(
                                comm.all_gather(&[rank as u8]).unwrap().concat(),
                                (0..ranks as u8).collect::<Vec<_>>()
                            );
                            sums.extend(exchange.finish_gradients().unwrap());
                            for (group, (sum, weights)) in sums.iter().zip(&mut weights).enumerate() {
                                let own = lens[group] / ranks;
                                let own = rank * own..(rank + 1) * own;
                                for (w, s) in as_f32_mut(weights)[own.clone()].iter_mut().zip(&as_f32(sum)[own]) {
                                    *w += s;
                                }
                                exchange.send_weights(group, weights).unwrap();
                                if overlap == Overlap::Off {
                                    exchange.drain().unwrap();
                                }
                            }
                        }
                        exchange.drain().unwrap();
                        weights.iter().map(|w| as_f32(w).to_vec()).collect()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for comm in comms {
            // Nobody is left to meet at the barrier: the threads have ended.
            drop(comm);
        }
        assert!(results.iter().all(|r| *r == results[0]), "all ranks have the same weights");
        results.into_iter().next().unwrap()
    }

    /// The same by plain loops.
    fn expected(ranks: usize, lens: &[usize]) -> Vec<Vec<f32>> {
        lens.iter()
            .enumerate()
            .map(|(group, &len)| {
                let mut weights = vec![1f32; len];
                for step in 0..2 {
                    let mut parts: Vec<Vec<f32>> = (0..ranks).map(|r| gradient(r, group, len, step)).collect();
                    lanes::add_ranks(&mut parts.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
                    weights.iter_mut().zip(&parts[0]).for_each(|(w, s)| *w += s);
                }
                weights
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn whenever_messages_arrive_the_sums_are_those_of_the_tree(
            log_ranks in 0u32..4,
            chunks in prop::collection::vec(0usize..5, 1..5),
            overlap in prop::bool::ANY,
            seed in any::<u64>(),
        ) {
            let ranks = 1 << log_ranks;
            let lens: Vec<usize> = chunks.iter().map(|n| n * CHUNK * 8).collect();
            let overlap = if overlap { Overlap::On } else { Overlap::Off };
            prop_assert!(run(ranks, &lens, Wire::Fp32, overlap, seed) == expected(ranks, &lens));
        }
    }

    #[test]
    fn groups_of_many_pieces_pass_each_other() {
        // The shards of the first are longer than what is on its way at a time.
        let lens = [2 * 8 * 131_072 + 2 * CHUNK, 2 * CHUNK, 2 * 3 * 131_072];
        assert!(run(2, &lens, Wire::Fp32, Overlap::On, 7) == expected(2, &lens));
    }

    #[test]
    fn halves_on_the_wire_change_bits_and_little_else() {
        let lens = [64 * CHUNK];
        let (exact, halved) = (expected(4, &lens), run(4, &lens, Wire::Bf16, Overlap::On, 3));
        assert!(exact != halved);
        assert!(halved == run(4, &lens, Wire::Bf16, Overlap::Off, 8), "the same at every run");
        let error = exact[0].iter().zip(&halved[0]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // Three roundings of at most 2^-9 of 1e4, in each of two steps.
        assert!(error > 0.0 && error <= 6.0 * 1e4 / 512.0, "{error}");
        let comms = Comm::in_process(2, Duration::from_secs(1), 0).unwrap();
        assert!(Exchange::new(&comms[0], 1).with_wire(Wire::Bf16).bitwise_note().is_some());
        assert!(Exchange::new(&comms[0], 1).bitwise_note().is_none());
        assert!(Exchange::new(&Comm::Solo, 1).with_wire(Wire::Bf16).bitwise_note().is_none());
    }

    #[test]
    fn two_lanes_swapped_give_other_bits() {
        let lens = [8 * CHUNK];
        let mut parts: Vec<Vec<f32>> = [0, 2, 1, 3].iter().map(|&r| gradient(r, 0, lens[0], 0)).collect();
        lanes::add_ranks(&mut parts.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        let mut right: Vec<Vec<f32>> = (0..4).map(|r| gradient(r, 0, lens[0], 0)).collect();
        lanes::add_ranks(&mut right.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        assert!(parts[0] != right[0], "the data of these tests shows order");
    }

    #[test]
    fn who_is_gone_is_told_within_the_deadline() {
        let deadline = Duration::from_millis(300);
        let mut comms = Comm::in_process(2, deadline, 1).unwrap();
        let gone = comms.pop();
        drop(gone);
        let mut exchange = Exchange::new(&comms[0], 1);
        let began = std::time::Instant::now();
        exchange.send_gradient(0, Tensor::from_slice(&vec![1f32; 2 * CHUNK])).unwrap();
        let error = exchange.finish_gradients().unwrap_err();
        assert_eq!(error.exit_code(), crate::record::exit::COLLECTIVE_TIMEOUT);
        assert!(error.to_string().contains("rank 0 of 2 waited"), "{error}");
        assert!(began.elapsed() >= deadline && began.elapsed() < 10 * deadline);
        // And everything after it, at once.
        exchange.send_weights(0, &Tensor::from_slice(&vec![1f32; 2 * CHUNK])).unwrap();
        assert!(exchange.drain().is_err());
        assert!(comms[0].barrier().is_err());
    }
}
