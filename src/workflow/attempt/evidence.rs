//! Why a stage was ended from outside, as far as anything says so: lines of srun and slurmstepd among what it printed,
//! and the kernel's count of out-of-memory kills in this process' control groups.
//!
//! srun ends with 1 when a rank was killed for its memory, so an exit code alone says nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The kernel killed a process for its memory.
    pub out_of_memory: bool,
    /// Slurm ended it at the time limit.
    pub time_limit: bool,
    /// Slurm ended it for the sake of another job.
    pub preempted: bool,
    /// Nodes that failed.
    pub failed_nodes: BTreeSet<String>,
    /// Slurm ended it because of a node, named or not.
    pub node_failure: bool,
    /// Not all ranks could be started. srun of Slurm 22.05 may end with 0 all the same.
    pub launch_failed: bool,
}

impl Evidence {
    /// Takes over what another one found.
    pub fn add(&mut self, other: &Self) {
        self.out_of_memory |= other.out_of_memory;
        self.time_limit |= other.time_limit;
        self.preempted |= other.preempted;
        self.node_failure |= other.node_failure;
        self.launch_failed |= other.launch_failed;
        self.failed_nodes.extend(other.failed_nodes.iter().cloned());
    }

    fn line(&mut self, line: &str) {
        let Some(said) = ["srun: error: ", "slurmstepd: error: ", "srun: "].iter().find_map(|p| line.strip_prefix(p))
        else {
            return;
        };
        // `n1: task 0: Out Of Memory`; `Detected 1 oom_kill event in StepId=3.0. ...`, `oom-kill` before 21.08.
        self.out_of_memory |=
            said.ends_with(": Out Of Memory") || said.contains("oom_kill event") || said.contains("oom-kill event");
        self.time_limit |= said.contains("DUE TO TIME LIMIT");
        self.preempted |= said.contains("DUE TO PREEMPTION");
        self.node_failure |= said.contains("DUE TO NODE FAILURE");
        // `task 3 launch failed: Unspecified error`; `launch/slurm: launch_p_step_launch: StepId=3.0 aborted ...`.
        self.launch_failed |= (said.starts_with("task") && said.contains(" launch failed: "))
            || said.ends_with("aborted before step completely launched.");
        // `Node failure on n2`; `task launch for StepId=3.0 failed on node n2: ...`.
        let node = said.strip_prefix("Node failure on ").or_else(|| {
            said.starts_with("task launch for ").then(|| said.split_once(" failed on node ").map(|(_, rest)| rest))?
        });
        if let Some(node) = node.and_then(|rest| rest.split([':', ' ', ',']).next()).filter(|n| is_node_name(n)) {
            self.failed_nodes.insert(node.to_owned());
            self.node_failure = true;
        }
    }
}

/// Whether a text may stand for a node in scontrol's and sbatch's arguments.
pub fn is_node_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(plain) && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// Reads what a stage prints, piece by piece.
#[derive(Debug, Default)]
pub struct Scanner {
    found: Evidence,
    line: Vec<u8>,
}

impl Scanner {
    /// The longest line that is looked at; messages of Slurm are shorter.
    const LONGEST: usize = 1024;

    /// The next piece.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < Self::LONGEST {
                self.line.push(byte);
            }
        }
    }

    /// What was found in all of it.
    pub fn finish(mut self) -> Evidence {
        self.end_line();
        self.found
    }

    fn end_line(&mut self) {
        self.found.line(String::from_utf8_lossy(&self.line).trim_end());
        self.line.clear();
    }
}

/// Out-of-memory kills so far in the control groups of this process and above, up to its job's: a difference of two
/// calls is evidence. 0 where there are none to read.
pub fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups(&text).iter().map(|dir| kills_in(dir)).max().unwrap_or(0)
}

/// Directories of the control groups that count memory, by `/proc/self/cgroup`.
fn groups(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            list if list.split(',').any(|c| c == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        let mut dir = root.join(path.trim_start_matches('/'));
        // Slurm: .../job_12/step_batch/...; elsewhere the group itself.
        loop {
            found.push(dir.clone());
            let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("job_") || !path.contains("/job_") || !dir.pop() {
                break;
            }
        }
    }
    found
}

/// `oom_kill N` of memory.events (version 2, with all below) or memory.oom_control (version 1).
fn kills_in(dir: &Path) -> u64 {
    let count = |file: &str| {
        let text = std::fs::read_to_string(dir.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    count("memory.events").or_else(|| count("memory.oom_control")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Evidence {
        // In pieces that end anywhere.
        let mut scanner = Scanner::default();
        text.as_bytes().chunks(7).for_each(|piece| scanner.feed(piece));
        scanner.finish()
    }

    #[test]
    fn messages_of_slurm_are_understood() {
        let nothing = Evidence::default();
        for text in [
            "slurmstepd: error: Detected 1 oom_kill event in StepId=3.0. Some of the step tasks have been OOM Killed.\n",
            "step 1\nsrun: error: n1: task 0: Out Of Memory",
            "slurmstepd: error: Detected 2 oom-kill event(s) in StepId=3.0 cgroup.\n",
        ] {
            assert_eq!(found(text), Evidence { out_of_memory: true, ..nothing.clone() }, "{text}");
        }
        let text = "slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-21T08:15:00 DUE TO TIME LIMIT ***\n";
        assert_eq!(found(text), Evidence { time_limit: true, ..nothing.clone() });
        assert!(found(&text.replace("TIME LIMIT", "PREEMPTION")).preempted);
        for text in [
            "srun: error: task 3 launch failed: Unspecified error\n",
            "srun: launch/slurm: launch_p_step_launch: StepId=22.0 aborted before step completely launched.\n",
        ] {
            assert_eq!(found(text), Evidence { launch_failed: true, ..nothing.clone() }, "{text}");
        }
        let failed = found(&text.replace("TIME LIMIT", "NODE FAILURE"));
        assert!(failed.node_failure && failed.failed_nodes.is_empty());
        let text = "srun: error: Node failure on n2\nsrun: error: task launch for StepId=3.0 failed on node gpu-7.x: Communication connection failure\n";
        let nodes: Vec<String> = found(text).failed_nodes.into_iter().collect();
        assert_eq!(nodes, ["gpu-7.x", "n2"]);
        // What a program says, or cannot be a node.
        for text in [
            "Out Of Memory\n",
            "I saw: srun: error: n1: task 0: Out Of Memory\n",
            "srun: error: n1: task 0: Killed\n",
            "srun: error: Node failure on $(touch x)\n",
            "srun: error: Node failure on -n2\n",
            "\u{0}\u{1}",
        ] {
            assert_eq!(found(text), nothing, "{text}");
        }
    }

    #[test]
    fn groups_up_to_the_job() {
        let text = "5:cpu,cpuacct:/x\n4:memory:/slurm_n1/uid_0/job_12/step_batch\n0::/\n";
        let base = Path::new("/sys/fs/cgroup/memory/slurm_n1/uid_0/job_12");
        assert_eq!(groups(text), [base.join("step_batch"), base.to_owned(), PathBuf::from("/sys/fs/cgroup/")]);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kills_in(dir.path()), 0);
        std::fs::write(dir.path().join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(kills_in(dir.path()), 2);
        std::fs::write(dir.path().join("memory.events"), "low 0\noom 1\noom_kill 3\noom_group_kill 0\n").unwrap();
        assert_eq!(kills_in(dir.path()), 3);
    }
}
