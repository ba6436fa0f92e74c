//! When this allocation ends. The attempt finds it out once and hands it to the stage (`SEEDBED_END_TIME`), so that a
//! checkpoint begins early enough whatever Slurm's warning does: that one was fixed when the job was submitted.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::record::JobRef;
use crate::workflow::slurm::{Client, Element, queue};

/// The end of the allocation, and how long before it a checkpoint is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The end.
    pub end: DateTime<Utc>,
    /// So long before it the stage is told; at most half of the time limit.
    pub grace: Duration,
}

impl Limit {
    /// The limit of the job that this process runs in: what Slurm's environment says (23.02 and newer), else what
    /// squeue says if `ask`, else the time limit from now on, which is late by what has passed since the job began.
    pub fn of(
        job: &JobRef,
        time_s: u64,
        grace_s: u32,
        ask: Option<&Client>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let said = variable("SLURM_JOB_END_TIME").and_then(|text| text.parse().ok());
        let asked = || {
            let element: Element = job.id.parse().ok()?;
            queue::query(ask?, &[element.job]).ok()?.get(element)?.end_s
        };
        let end = said.or_else(asked).and_then(|s: i64| DateTime::from_timestamp(s, 0));
        let limit = TimeDelta::seconds(i64::try_from(time_s).unwrap_or(i64::MAX / 1000));
        Self {
            end: end.unwrap_or_else(|| Utc::now() + limit),
            grace: Duration::from_secs(u64::from(grace_s).min(time_s / 2)),
        }
    }

    /// From now until the stage is to be told; nothing left: at once.
    pub fn warn_in(&self) -> Duration {
        self.left().saturating_sub(self.grace)
    }

    /// Whether the end has come, as far as clocks agree.
    pub fn is_over(&self) -> bool {
        self.left() <= Duration::from_secs(5)
    }

    fn left(&self) -> Duration {
        (self.end - Utc::now()).to_std().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_first_and_the_limit_last() {
        let job = JobRef { id: "12_3".into(), restart: 0 };
        let of = |said: Option<i64>| {
            let get = |name: &str| (name == "SLURM_JOB_END_TIME").then(|| said.map(|s| s.to_string())).flatten();
            Limit::of(&job, 100, 300, None, get)
        };
        let said = of(Some(4_000_000_000));
        assert_eq!((said.end.timestamp(), said.grace), (4_000_000_000, Duration::from_secs(50)));
        assert!(!said.is_over());
        let left = of(None).left();
        assert!(left > Duration::from_secs(98) && left <= Duration::from_secs(100), "{left:?}");
        assert!(of(Some(1_000_000_000)).is_over());
        assert_eq!(of(Some(1_000_000_000)).warn_in(), Duration::ZERO);
    }
}
