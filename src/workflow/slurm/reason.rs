//! Why Slurm lets a job wait, in plain words. Pure.
//!
//! squeue prints one word. Only those that a person can do something about, or will meet often, are here; the word itself
//! is always shown beside.

/// What a reason means, and what to do about it; nothing to do where waiting is all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// In plain words.
    pub text: &'static str,
    /// What to do.
    pub advice: Option<&'static str>,
}

const fn waits(text: &'static str) -> Meaning {
    Meaning { text, advice: None }
}

const fn ask(text: &'static str, advice: &'static str) -> Meaning {
    Meaning { text, advice: Some(advice) }
}

/// What to do about a job that Slurm holds by itself.
const RELEASE: &str = "`run_all` lets it go on (or scontrol release JOB); sinfo -R says which node failed";

/// The reasons, by the beginning of the word; squeue writes some of them with spaces.
const MEANINGS: &[(&str, Meaning)] = &[
    ("None", waits("Slurm has not looked at it yet")),
    ("Priority", waits("jobs with a higher priority come first")),
    ("Resources", waits("it is next, and waits for free nodes")),
    ("DependencyNeverSatisfied", ask("what it waits for can never happen", "`run_all` submits it anew")),
    ("Dependency", waits("it waits for another job")),
    (
        "JobArrayTaskLimit",
        ask("as many elements of its array run as `throttle` allows", "raise `throttle` in the cluster file"),
    ),
    ("BeginTime", waits("it was requeued or is to begin later: Slurm waits for that time")),
    ("JobHeldUser", ask("you, or somebody for you, held it", "scontrol release JOB")),
    ("JobHeldAdmin", ask("an administrator held it", "ask the site's administrators why")),
    ("launch_failed_requeued_held", ask("Slurm could not start it on a node, put it back and holds it", RELEASE)),
    (
        "launch_failure_limit_exceeded_requeued_held",
        ask("Slurm could not start it several times and holds it", RELEASE),
    ),
    ("JobHoldMaxRequeue", ask("Slurm could not start it several times and holds it", RELEASE)),
    (
        "ReqNodeNotAvail",
        ask(
            "nodes that it needs are down or reserved, often for maintenance",
            "scontrol show reservation; a shorter `time` may fit before it",
        ),
    ),
    ("Reservation", waits("its reservation has not begun")),
    ("NodeDown", waits("a node that it needs is down")),
    (
        "PartitionDown",
        ask("its partition takes jobs and starts none", "sinfo -s; another `partition` in the cluster file"),
    ),
    ("PartitionInactive", ask("its partition is inactive", "sinfo -s; another `partition` in the cluster file")),
    (
        "PartitionTimeLimit",
        ask("its time limit is beyond the partition's", "sinfo -o '%P %l'; lower `time` or take another partition"),
    ),
    (
        "PartitionNodeLimit",
        ask("it asks for more nodes than the partition gives", "lower `nodes`, or take another partition"),
    ),
    (
        "PartitionConfig",
        ask(
            "the partition cannot give what it asks for",
            "sinfo -o '%P %l %D %c %m %G'; lower the stage's `resources`",
        ),
    ),
    (
        "BadConstraints",
        ask("no node has what it asks for", "correct `options` of the cluster file, or the stage's `resources`"),
    ),
    ("Licenses", waits("it waits for a licence")),
    ("InvalidAccount", ask("its account is not valid", "correct `account` in the cluster file")),
    ("InvalidQOS", ask("its quality of service is not valid", "correct `qos` in the cluster file")),
    ("QOSMaxJobsPerUserLimit", waits("as many of your jobs run as the quality of service allows")),
    (
        "QOSMaxWallDurationPerJobLimit",
        ask("its time limit is beyond that of the quality of service", "lower `time`, or take another `qos`"),
    ),
    (
        "QOS",
        ask(
            "a limit of the quality of service",
            "sacctmgr show qos; it starts when others end, or never if it alone is above the limit",
        ),
    ),
    ("MaxMemPerLimit", ask("it asks for more memory than its cores may have", "lower `mem`, or raise `cpus_per_task`")),
    (
        "Assoc",
        ask(
            "a limit of your account",
            "sacctmgr show assoc user=$USER; it starts when others end, or never if it alone is above the limit",
        ),
    ),
    ("FrontEndDown", waits("a front-end node is down")),
    ("SchedDefer", waits("Slurm has put it off for a moment")),
    ("Prolog", waits("its nodes are being made ready")),
    ("NonZeroExitCode", waits("its script ended with an error")),
    ("TimeLimit", waits("its time limit was reached")),
];

/// What `reason` means; none for a word that is not known here.
pub fn meaning(reason: &str) -> Option<Meaning> {
    // squeue puts a limit's name into brackets, and the nodes behind a comma.
    let word = reason.trim_start_matches('(').replace(' ', "_");
    MEANINGS.iter().find(|(start, _)| word.starts_with(start)).map(|(_, meaning)| *meaning)
}

/// Whether Slurm holds a job because it could not start it: it waits for somebody to let it go.
pub fn is_held_by_slurm(reason: &str) -> bool {
    meaning(reason).is_some_and(|meaning| meaning.advice == Some(RELEASE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_slurm_have_words() {
        let text = |reason| meaning(reason).map(|m| m.text);
        assert_eq!(text("Dependency"), Some("it waits for another job"));
        assert_eq!(text("DependencyNeverSatisfied"), Some("what it waits for can never happen"));
        assert!(meaning("ReqNodeNotAvail, UnavailableNodes:n[1-4]").is_some_and(|m| m.advice.is_some()));
        assert_eq!(text("QOSMaxJobsPerUserLimit"), Some("as many of your jobs run as the quality of service allows"));
        assert_eq!(text("QOSGrpCpuLimit"), Some("a limit of the quality of service"));
        assert_eq!(text("AssocGrpGRESMinutes"), Some("a limit of your account"));
        assert_eq!(meaning("SomethingOfANewerSlurm"), None);
        // As squeue writes them.
        for held in ["launch failed requeued held", "launch failure limit exceeded requeued held", "JobHoldMaxRequeue"]
        {
            assert!(is_held_by_slurm(held), "{held}");
        }
        assert!(
            !["JobHeldUser", "JobHeldAdmin", "Priority", "job requeued in held state"]
                .map(is_held_by_slurm)
                .contains(&true)
        );
    }

    #[test]
    fn no_reason_is_hidden_behind_a_shorter_one() {
        for (i, (word, _)) in MEANINGS.iter().enumerate() {
            let first = MEANINGS.iter().position(|(start, _)| word.starts_with(start));
            assert_eq!(first, Some(i), "{word} never comes");
        }
    }
}
