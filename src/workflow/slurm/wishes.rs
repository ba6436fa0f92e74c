//! What jobs ask of a site beside resources: where and when they may start, and who hears of their end. None of it
//! changes a result. A cluster file says it for all jobs, a stage for its own.

use serde::{Deserialize, Serialize};

/// What is asked for; what is absent is as the site presets it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Partitions, as sbatch takes them: `gpu`, or `gpu,gpu-long` where whichever starts it first is right.
    pub partition: Option<String>,
    /// Features that nodes must have.
    pub constraint: Option<String>,
    /// A reservation.
    pub reservation: Option<String>,
    /// Not to be started before, in a form that sbatch takes.
    pub begin: Option<String>,
    /// How far it steps back behind others.
    pub nice: Option<i64>,
    /// Who gets mail, by Slurm.
    pub mail: Option<String>,
    /// A program that is told, and its arguments.
    pub notify: Vec<String>,
}

impl Wishes {
    /// These wishes, and for the rest those of `below`.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        let either = |own: &Option<String>, other: &Option<String>| own.clone().or_else(|| other.clone());
        Self {
            partition: either(&self.partition, &below.partition),
            constraint: either(&self.constraint, &below.constraint),
            reservation: either(&self.reservation, &below.reservation),
            begin: either(&self.begin, &below.begin),
            nice: self.nice.or(below.nice),
            mail: either(&self.mail, &below.mail),
            notify: if self.notify.is_empty() { below.notify.clone() } else { self.notify.clone() },
        }
    }

    /// Who is told of a job's end; none if nobody is.
    pub fn tell(&self, end: bool) -> Option<Tell> {
        let nobody = self.mail.is_none() && self.notify.is_empty();
        (!nobody).then(|| Tell { mail: self.mail.clone(), notify: self.notify.clone(), end })
    }
}

/// Who is told when a job of a submission ends in a way that people want to know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tell {
    /// Who gets mail, by Slurm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<String>,
    /// A program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<String>,
    /// Whether the end of this job is that of the study: told whatever it is.
    #[serde(default)]
    pub end: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_s_word_stands_before_the_site_s() {
        let text = |t: &str| Some(t.to_owned());
        let site = Wishes {
            partition: text("cpu"),
            nice: Some(10),
            notify: vec!["tell".to_owned()],
            mail: text("ada"),
            ..Wishes::default()
        };
        let stage = Wishes { partition: text("gpu,long"), begin: text("now+1hour"), ..Wishes::default() };
        let both = stage.over(&site);
        assert_eq!(
            (both.partition.as_deref(), both.begin.as_deref(), both.nice),
            (Some("gpu,long"), Some("now+1hour"), Some(10))
        );
        assert_eq!(both.tell(true), Some(Tell { mail: text("ada"), notify: site.notify.clone(), end: true }));
        assert_eq!(Wishes::default().tell(true), None);
    }
}
