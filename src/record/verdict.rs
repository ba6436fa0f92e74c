//! Why an attempt ended and what follows from it: the part of `<n>.end.json` that says whether, how and by whom the cell
//! is started again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Sealed.
    Done,
    /// It checkpointed and asked to be run again.
    Checkpointed,
    /// A process was killed for its memory.
    OutOfMemory,
    /// Its time limit came before its checkpoint.
    TimeOut,
    /// A node failed.
    NodeFailure,
    /// Slurm took its resources for another job.
    Preempted,
    /// A person cancelled it.
    Cancelled,
    /// A signal ended it, or another rank was gone, and nothing says why.
    Killed,
    /// It ended with an exit code of its own.
    Failed,
}

impl Why {
    /// The word, as it stands in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Checkpointed => "checkpointed",
            Self::OutOfMemory => "out-of-memory",
            Self::TimeOut => "time-out",
            Self::NodeFailure => "node-failure",
            Self::Preempted => "preempted",
            Self::Cancelled => "cancelled",
            Self::Killed => "killed",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// Nothing: the cell is sealed, or given up until a person runs it again.
    Nothing,
    /// The same job runs it again, in place.
    Requeue,
    /// The next link of its chain of jobs goes on.
    NextLink,
    /// The next `run_all` submits it.
    RunAll,
}

/// What the next attempts run with where that is other than planned. It grows from attempt to attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjust {
    /// Memory on each node, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    /// Time limit, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_s: Option<u64>,
    /// How long before its limit the stage is told, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_s: Option<u32>,
    /// Nodes that it keeps away from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whether activations are computed again in the backward: less memory, same bits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activation_checkpointing: bool,
}

impl Adjust {
    /// True if nothing is other than planned.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What of it a job is submitted with: all but what a stage's parameters say.
    #[must_use]
    pub fn of_the_job(&self) -> Self {
        Self { activation_checkpointing: false, ..self.clone() }
    }
}

impl fmt::Display for Adjust {
    /// `memory 3072M, time 5400 s`: what is other than planned, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.activation_checkpointing {
            parts.push("activation checkpointing".to_owned());
        }
        if let Some(bytes) = self.mem_bytes {
            parts.push(format!("memory {}M", bytes.div_ceil(1 << 20)));
        }
        if let Some(time_s) = self.time_s {
            parts.push(format!("time {time_s} s"));
        }
        if let Some(grace_s) = self.grace_s {
            parts.push(format!("grace {grace_s} s"));
        }
        if !self.exclude.is_empty() {
            parts.push(format!("not on {}", self.exclude.join(",")));
        }
        f.write_str(&parts.join(", "))
    }
}

/// What was decided when an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Why it ended.
    pub why: Why,
    /// What follows.
    pub next: Next,
    /// What the next attempt runs with.
    #[serde(default, skip_serializing_if = "Adjust::is_nothing")]
    pub adjust: Adjust,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_file() {
        for why in [
            Why::Done,
            Why::Checkpointed,
            Why::OutOfMemory,
            Why::TimeOut,
            Why::NodeFailure,
            Why::Preempted,
            Why::Cancelled,
            Why::Killed,
            Why::Failed,
        ] {
            assert_eq!(serde_json::to_value(why).unwrap(), why.word());
        }
    }

    #[test]
    fn what_concerns_the_job() {
        let stage = Adjust { activation_checkpointing: true, ..Adjust::default() };
        assert!(!stage.is_nothing() && stage.of_the_job().is_nothing());
        let both = Adjust { mem_bytes: Some(3 << 30), exclude: vec!["n1".into(), "n2".into()], ..stage };
        assert!(!both.of_the_job().is_nothing() && both.of_the_job() != both);
        assert_eq!(both.to_string(), "activation checkpointing, memory 3072M, not on n1,n2");
    }
}
