//! Jobs as Slurm names them, and the states it reports.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A job as `sbatch --parsable` answers: an id, and the cluster's name where there are several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId {
    /// The id; of an array, that of the whole.
    pub id: u32,
    /// The cluster, if sbatch named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl JobId {
    /// From the text that `sbatch --parsable` printed: the last line that is `<id>` or `<id>;<cluster>`.
    /// Sites print banners before and after it.
    pub fn from_reply(text: &str) -> Option<Self> {
        text.lines().rev().find_map(|line| {
            let (id, cluster) = match line.trim().split_once(';') {
                Some((id, cluster)) => (id, Some(cluster.to_owned())),
                None => (line.trim(), None),
            };
            let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
            let id = id.parse().ok().filter(|&id| digits && id > 0)?;
            Some(Self { id, cluster })
        })
    }
}

impl FromStr for JobId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_reply(text).ok_or_else(|| format!("{text:?} is no job: write it as 123 or 123;cluster"))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) => write!(f, "{};{cluster}", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// A job, or one element of an array: `A` or `A_i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Element {
    /// The job.
    pub job: u32,
    /// The array index.
    pub index: Option<u32>,
}

impl Element {
    /// The job that a process runs in, from its environment. Inside an array `SLURM_JOB_ID` is an id that
    /// neither requeue nor a dependency may use, so the array's comes first.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
        match (number("SLURM_ARRAY_JOB_ID"), number("SLURM_ARRAY_TASK_ID")) {
            (Some(job), Some(index)) => Some(Self { job, index: Some(index) }),
            _ => number("SLURM_JOB_ID").map(|job| Self { job, index: None }),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}_{index}", self.job),
            None => write!(f, "{}", self.job),
        }
    }
}

impl FromStr for Element {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no job: write it as 123 or 123_4");
        let number = |part: &str| part.parse::<u32>().map_err(|_| wrong());
        match text.split_once('_') {
            Some((job, index)) => Ok(Self { job: number(job)?, index: Some(number(index)?) }),
            None => Ok(Self { job: number(text)?, index: None }),
        }
    }
}

/// Whether something of a job still runs or will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It runs, or waits to run.
    Alive,
    /// It has ended and will not run again by itself.
    Ended,
    /// Nobody can tell; what was known before still holds.
    Unknown,
}

macro_rules! states {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $liveness:ident;)*) => {
        /// A job's state as squeue and sacct print it. A word of a newer Slurm is [`JobState::Other`].
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(into = "String", from = "String")]
        pub enum JobState {
            $($(#[$doc])* $variant,)*
            /// A word that this program does not know.
            Other(String),
        }

        impl JobState {
            /// Every state that has a name here.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// From the word; sacct's `CANCELLED by 1234` and a cut word's `+` are understood.
            pub fn from_word(word: &str) -> Self {
                let first = word.split_whitespace().next().unwrap_or_default().trim_end_matches('+');
                match first {
                    $($word => Self::$variant,)*
                    _ => Self::Other(word.to_owned()),
                }
            }

            /// The word.
            pub fn word(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }

            /// Whether a job in this state may still do something.
            pub fn liveness(&self) -> Liveness {
                match self {
                    $(Self::$variant => Liveness::$liveness,)*
                    Self::Other(_) => Liveness::Unknown,
                }
            }
        }
    };
}

states! {
    /// A node failed while it started.
    BootFail = "BOOT_FAIL", Ended;
    /// Cancelled by a person, or by Slurm because its dependency can never be met.
    Cancelled = "CANCELLED", Ended;
    /// Ended with exit code 0.
    Completed = "COMPLETED", Ended;
    /// Its nodes are being made ready.
    Configuring = "CONFIGURING", Alive;
    /// Its processes are being cleared away; it may yet be requeued.
    Completing = "COMPLETING", Alive;
    /// Ended because its deadline passed.
    Deadline = "DEADLINE", Ended;
    /// Ended with another exit code.
    Failed = "FAILED", Ended;
    /// A node failed; unless it is requeued this is its end.
    NodeFail = "NODE_FAIL", Ended;
    /// Killed for its memory.
    OutOfMemory = "OUT_OF_MEMORY", Ended;
    /// Waits.
    Pending = "PENDING", Alive;
    /// Ended for the sake of another job.
    Preempted = "PREEMPTED", Ended;
    /// Runs.
    Running = "RUNNING", Alive;
    /// Waits because a reservation was deleted.
    ResvDelHold = "RESV_DEL_HOLD", Alive;
    /// On its way back into the queue because of a federation.
    RequeueFed = "REQUEUE_FED", Alive;
    /// Requeued, and held.
    RequeueHold = "REQUEUE_HOLD", Alive;
    /// On its way back into the queue.
    Requeued = "REQUEUED", Alive;
    /// Its size is being changed.
    Resizing = "RESIZING", Alive;
    /// Another cluster of the federation took it.
    Revoked = "REVOKED", Ended;
    /// Being signalled.
    Signaling = "SIGNALING", Alive;
    /// Requeued in a special state, and held.
    SpecialExit = "SPECIAL_EXIT", Alive;
    /// Files are being staged out.
    StageOut = "STAGE_OUT", Alive;
    /// Stopped, its processors kept.
    Stopped = "STOPPED", Alive;
    /// Suspended, its processors given away.
    Suspended = "SUSPENDED", Alive;
    /// Ended by its time limit.
    Timeout = "TIMEOUT", Ended;
    /// A node is being powered up for it.
    PowerUpNode = "POWER_UP_NODE", Alive;
}

impl JobState {
    /// Whether it is in the queue again, or held there, after it ran.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Requeued | Self::RequeueFed | Self::RequeueHold | Self::ResvDelHold | Self::SpecialExit)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl From<JobState> for String {
    fn from(state: JobState) -> Self {
        state.word().to_owned()
    }
}

impl From<String> for JobState {
    fn from(word: String) -> Self {
        Self::from_word(&word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_with_banners() {
        let id = |text: &str| JobId::from_reply(text).map(|id| id.to_string());
        assert_eq!(id("123\n").as_deref(), Some("123"));
        assert_eq!(id("123;alps\n").as_deref(), Some("123;alps"));
        assert_eq!(id("Welcome!\nproject 7 of 9\n124\n\nThank you\n").as_deref(), Some("124"));
        assert_eq!(id("2024\n125\n").as_deref(), Some("125"));
        for none in ["", "Submitted batch job 12", "0", "+5", "-1", "12 34", "99999999999"] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn states_round_trip_and_new_words_are_unknown() {
        for state in JobState::ALL {
            assert_eq!(&JobState::from_word(state.word()), state);
        }
        assert_eq!(JobState::from_word("CANCELLED by 1234"), JobState::Cancelled);
        assert_eq!(JobState::from_word("CANCELLED+"), JobState::Cancelled);
        let new = JobState::from_word("EXPEDITING");
        assert_eq!((new.liveness(), new.word()), (Liveness::Unknown, "EXPEDITING"));
    }

    #[test]
    fn the_job_of_a_process() {
        let element = |pairs: &[(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Element::from_environment(find).map(|e| e.to_string())
        };
        let array = [("SLURM_JOB_ID", "45"), ("SLURM_ARRAY_JOB_ID", "43"), ("SLURM_ARRAY_TASK_ID", "0")];
        assert_eq!(element(&array).as_deref(), Some("43_0"));
        assert_eq!(element(&array[..1]).as_deref(), Some("45"));
        assert_eq!(element(&[]), None);
        assert_eq!("43_7".parse(), Ok(Element { job: 43, index: Some(7) }));
        assert!("43_".parse::<Element>().is_err());
    }
}
