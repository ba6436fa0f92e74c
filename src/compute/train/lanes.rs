//! Grains and lanes: in which order gradients are added, whatever the number of ranks.
//!
//! A *grain* is one forward and backward over `grain_samples` consecutive samples of the global order. The G
//! grains of a step go in contiguous runs to L *lanes*. In a lane gradients are added in order; lanes are
//! combined by the balanced tree over lane numbers. A rank holds L / n consecutive lanes, so its own lanes are
//! a whole subtree, and the ranks' sums are combined by what is left of the same tree: 1, 2 and 4 ranks add
//! the same pairs.

use tch::{Device, Kind, Tensor};

use crate::compute::{ComputeError, Result};

/// How a global batch is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Samples of a grain.
    pub grain_samples: u64,
    /// G.
    pub grains: u64,
    /// L: a power of two that divides G.
    pub lanes: u64,
}

impl Plan {
    /// Cuts `global_batch` samples. Without `lanes`, L is the largest power of two up to 8 that divides G.
    ///
    /// # Errors
    /// The numbers do not divide each other; the message names the keys.
    pub fn new(global_batch: u64, grain_samples: u64, lanes: Option<u64>) -> std::result::Result<Self, String> {
        if grain_samples == 0 || global_batch == 0 || global_batch % grain_samples != 0 {
            return Err(format!(
                "grain_samples = {grain_samples} does not divide global_batch = {global_batch}: choose a divisor"
            ));
        }
        let grains = global_batch / grain_samples;
        let largest = 1u64 << grains.trailing_zeros();
        let lanes = lanes.unwrap_or(largest.min(8));
        if !lanes.is_power_of_two() || lanes > largest {
            return Err(format!(
                "lanes = {lanes} is no power of two that divides the {grains} grains (global_batch / grain_samples): use at most {largest}"
            ));
        }
        Ok(Self { grain_samples, grains, lanes })
    }

    /// Refuses a number of ranks that does not divide L.
    ///
    /// # Errors
    /// It does not; the message names the allowed ones.
    pub fn check_ranks(&self, ranks: usize) -> std::result::Result<(), String> {
        let allowed: Vec<String> = self.allowed_ranks().map(|n| n.to_string()).collect();
        if allowed.contains(&ranks.to_string()) {
            return Ok(());
        }
        Err(format!(
            "{ranks} ranks cannot share {} lanes: ask for {} ranks (nodes x tasks_per_node), or change global_batch or grain_samples",
            self.lanes,
            allowed.join(", ")
        ))
    }

    /// What layouts are padded for: the lanes, or the ranks where those do not divide them.
    pub fn padding(&self, ranks: usize) -> usize {
        // Lanes fit a usize: there are at most as many as samples of a batch.
        if self.check_ranks(ranks).is_ok() { self.lanes as usize } else { ranks }
    }

    /// The plan for a number of ranks that does not divide L, when bits may differ: one lane a rank.
    ///
    /// # Errors
    /// The ranks do not share the grains either.
    pub fn inexact(&self, ranks: usize) -> std::result::Result<Self, String> {
        if self.grains % ranks as u64 != 0 {
            return Err(format!(
                "{ranks} ranks cannot share {} grains (global_batch / grain_samples): ask for a number that divides them",
                self.grains
            ));
        }
        Ok(Self { lanes: ranks as u64, ..*self })
    }

    /// Numbers of ranks that give the same bits.
    pub fn allowed_ranks(&self) -> impl Iterator<Item = u64> + use<> {
        let lanes = self.lanes;
        (0..=lanes.trailing_zeros()).map(|k| 1 << k)
    }

    /// The grains of a rank, lane by lane.
    pub fn lanes_of(&self, rank: usize, ranks: usize) -> Vec<std::ops::Range<u64>> {
        let (per_rank, per_lane) = (self.lanes / ranks as u64, self.grains / self.lanes);
        let first = rank as u64 * per_rank;
        (first..first + per_rank).map(|lane| lane * per_lane..(lane + 1) * per_lane).collect()
    }
}

/// Adds the lanes of each group by the balanced tree while they come, holding at most log2 of them.
#[derive(Debug)]
pub struct LaneTree {
    /// By group: (height of the subtree, its sum).
    stacks: Vec<Vec<(u32, Tensor)>>,
    /// By group: buffers that may be used again.
    spare: Vec<Vec<Tensor>>,
}

impl LaneTree {
    /// For `groups` groups.
    pub fn new(groups: usize) -> Self {
        let none = || (0..groups).map(|_| Vec::new()).collect();
        Self { stacks: none(), spare: (0..groups).map(|_| Vec::new()).collect() }
    }

    /// Memory for a lane's gradient of `len` elements; its values mean nothing.
    ///
    /// # Errors
    /// Out of memory.
    pub fn buffer(&mut self, group: usize, len: usize, device: Device) -> Result<Tensor> {
        match self.spare[group].pop() {
            Some(buffer) => Ok(buffer),
            None => Ok(Tensor::f_zeros([len as i64], (Kind::Float, device))?),
        }
    }

    /// Takes the next lane's sum of a group.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn push(&mut self, group: usize, lane: Tensor) -> Result<()> {
        let stack = &mut self.stacks[group];
        stack.push((0, lane));
        while let [.., (a, _), (b, _)] = stack[..] {
            if a != b {
                break;
            }
            let (Some((_, upper)), Some((height, mut lower))) = (stack.pop(), stack.pop()) else { break };
            // Element by element there is one way to add; libtorch's is vectorised in every build.
            let _ = lower.f_add_(&upper)?;
            self.spare[group].push(upper);
            stack.push((height + 1, lower));
        }
        Ok(())
    }

    /// The sum of all lanes of a group, of which a power of two were pushed.
    ///
    /// # Errors
    /// Another number was pushed.
    pub fn take(&mut self, group: usize) -> Result<Tensor> {
        let stack = &mut self.stacks[group];
        match (stack.pop(), stack.is_empty()) {
            (Some((_, sum)), true) => Ok(sum),
            _ => Err(ComputeError::Failed("the lanes are no whole tree: report this".to_owned())),
        }
    }

    /// Gives a buffer back.
    pub fn reuse(&mut self, group: usize, buffer: Tensor) {
        self.spare[group].push(buffer);
    }
}

/// Adds the ranks' parts of one shard by the balanced tree over ranks; the sum is in `parts[0]`.
pub fn add_ranks(parts: &mut [&mut [f32]]) {
    let mut step = 1;
    while step < parts.len() {
        for i in (0..parts.len()).step_by(2 * step) {
            let (left, right) = parts.split_at_mut(i + step);
            if let (Some(a), Some(b)) = (left.get_mut(i), right.first()) {
                for (a, &b) in a.iter_mut().zip(b.iter()) {
                    *a += b;
                }
            }
        }
        step *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::as_f32;

    /// Numbers whose sum depends on the order.
    fn lane(k: u64) -> Tensor {
        let values: Vec<f32> =
            (0..37u64).map(|i| ((k * 97 + i * 31) as f32).sin() * 10f32.powi((k % 5) as i32)).collect();
        Tensor::from_slice(&values)
    }

    #[test]
    fn any_number_of_ranks_adds_the_same_pairs() {
        let of_ranks = |ranks: u64| -> Vec<f32> {
            let mut parts: Vec<Vec<f32>> = (0..ranks)
                .map(|r| {
                    let mut tree = LaneTree::new(1);
                    for k in r * (8 / ranks)..(r + 1) * (8 / ranks) {
                        let mut buffer = tree.buffer(0, 37, Device::Cpu).unwrap();
                        buffer.copy_(&lane(k));
                        tree.push(0, buffer).unwrap();
                    }
                    as_f32(&tree.take(0).unwrap()).to_vec()
                })
                .collect();
            let mut slices: Vec<&mut [f32]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
            add_ranks(&mut slices);
            parts.swap_remove(0)
        };
        let one = of_ranks(1);
        for ranks in [2, 4, 8] {
            assert_eq!(of_ranks(ranks), one, "{ranks}");
        }
        // The data shows order: a running sum gives other bits.
        let mut running = lane(0);
        (1..8).for_each(|k| drop(running.f_add_(&lane(k)).unwrap()));
        assert_ne!(as_f32(&running), one);
        assert!(LaneTree::new(1).take(0).is_err());
    }

    #[test]
    fn plans_divide_or_say_what_would() {
        let plan = Plan::new(24, 3, None).unwrap();
        assert_eq!((plan.grains, plan.lanes), (8, 8));
        assert_eq!(plan.lanes_of(1, 4), [2..3, 3..4]);
        assert_eq!(Plan::new(24, 6, None).unwrap().lanes, 4);
        assert_eq!(Plan::new(24, 2, Some(2)).unwrap().lanes_of(1, 2), [6..12]);
        assert_eq!(Plan::new(64, 1, None).unwrap().lanes, 8);
        assert!(Plan::new(24, 5, None).unwrap_err().contains("grain_samples"));
        assert!(Plan::new(24, 3, Some(3)).unwrap_err().contains("at most 8"));
        assert!(Plan::new(24, 3, Some(16)).unwrap_err().contains("at most 8"));
        plan.check_ranks(4).unwrap();
        assert!(plan.check_ranks(3).unwrap_err().contains("1, 2, 4, 8"));
        assert!(Plan::new(6, 2, None).unwrap().check_ranks(2).is_err());
    }
}
