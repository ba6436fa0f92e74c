//! Packing: several cells of a stage in one allocation, side by side or in turn.

use serde::{Deserialize, Serialize};

use crate::record::Resources;

/// How many cells share an allocation, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// So many cells.
    pub cells: u32,
    /// One after the other; else all at the same time, each on its part of the allocation.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_turn: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Pack {
    /// What a job of such cells asks for. In turn: what one cell needs, for the time of all. Side by side: cells of one
    /// node share a node, and cells of several nodes stand beside each other on nodes of their own.
    pub fn resources(self, cell: &Resources) -> Resources {
        let n = self.cells.max(1);
        let mut all = cell.clone();
        if self.in_turn {
            all.time_s = cell.time_s.saturating_mul(u64::from(n));
        } else if cell.nodes > 1 {
            all.nodes = cell.nodes.saturating_mul(n);
        } else {
            all.tasks_per_node = cell.tasks_per_node.saturating_mul(n);
            all.gpus_per_node = cell.gpus_per_node.saturating_mul(n);
            all.mem_bytes = cell.mem_bytes.map(|bytes| bytes.saturating_mul(u64::from(n)));
        }
        all
    }

    /// What srun is told for the step of one cell: its own part of the allocation and no more.
    pub fn step(self, cell: &Resources) -> Vec<String> {
        if self.in_turn {
            return Vec::new();
        }
        let mut words = vec![
            "--exact".to_owned(),
            format!("--nodes={}", cell.nodes),
            format!("--ntasks={}", cell.nodes * cell.tasks_per_node),
            format!("--ntasks-per-node={}", cell.tasks_per_node),
        ];
        if cell.gpus_per_node > 0 {
            words.push(format!("--gpus-per-node={}", cell.gpus_per_node));
        }
        if let Some(bytes) = cell.mem_bytes {
            words.push(format!("--mem={}M", bytes.div_ceil(1 << 20)));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pack_asks_for() {
        let cell = Resources {
            nodes: 1,
            tasks_per_node: 2,
            cpus_per_task: 3,
            gpus_per_node: 1,
            mem_bytes: Some(4 << 30),
            time_s: 600,
        };
        let pack = Pack { cells: 4, in_turn: false };
        let all = pack.resources(&cell);
        assert_eq!((all.nodes, all.tasks_per_node, all.cpus_per_task, all.gpus_per_node), (1, 8, 3, 4));
        assert_eq!((all.mem_bytes, all.time_s), (Some(16 << 30), 600));
        let step = "--exact --nodes=1 --ntasks=2 --ntasks-per-node=2 --gpus-per-node=1 --mem=4096M";
        assert_eq!(pack.step(&cell).join(" "), step);

        let wide = Resources { nodes: 2, ..cell.clone() };
        let all = pack.resources(&wide);
        assert_eq!((all.nodes, all.tasks_per_node, all.gpus_per_node, all.mem_bytes), (8, 2, 1, Some(4 << 30)));

        let turns = Pack { cells: 4, in_turn: true };
        assert_eq!(turns.resources(&cell), Resources { time_s: 2400, ..cell.clone() });
        assert!(turns.step(&cell).is_empty());
    }
}
