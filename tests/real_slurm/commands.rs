//! The Slurm commands as Seedbed calls them, and its job scripts, on the real Slurm: what the parsers expect is what it
//! prints, and hostile paths arrive as they are.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use seedbed::record::{Name, Resources};
use seedbed::workflow::plan::EdgeKind;
use seedbed::workflow::slurm::accounting::{self, Accounting};
use seedbed::workflow::slurm::config::{Limits, Presence};
use seedbed::workflow::slurm::script::{JobSpec, Launcher, NamedEdge, Site, Slots, TEMPLATE, render};
use seedbed::workflow::slurm::submit::{Edge, Found, Submitted, find_by_name, submit, test_only};
use seedbed::workflow::slurm::{Element, JobState, Liveness, control, queue};

use crate::support::sandbox::sandbox;

/// Stands for `seedbed`: prints its arguments; slot 1 of stage `a` fails.
const PROGRAM: &str = r#"#!/bin/bash
printf 'arg<%s>\n' "$@" "value=$VALUE" "steps=$SLURM_EXPORT_ENV"
while [[ $1 != --job ]]; do shift; done
name=$2
while [[ $1 != --slot ]]; do shift; done
slot=$2
shift 3
"$@" hostname
[[ $name != *.a.* || $slot != 1 ]]
"#;

fn job(root: &Path, stage: &str, slots: Slots, tag: &str) -> JobSpec {
    JobSpec {
        name: format!("commands.{stage}.{tag}"),
        stage: Name::new(stage).unwrap(),
        arm: None,
        number: 1,
        slots,
        throttle: None,
        resources: Resources {
            nodes: 2,
            tasks_per_node: 1,
            cpus_per_task: 1,
            gpus_per_node: 0,
            mem_bytes: Some(64 << 20),
            time_s: 600,
        },
        resumable: true,
        grace_s: 60,
        threads_per_rank: 1,
        log_dir: root.join("logs"),
        submission_dir: root.join("submissions"),
        seedbed: root.join("seedbed"),
        site: Site {
            exports: BTreeMap::from([("VALUE".to_owned(), "$(touch pwned) 'x'".to_owned())]),
            launcher: Launcher::Srun { mpi: "none".to_owned(), args: Vec::new() },
            ..Site::default()
        },
        mails_its_end: false,
        waits_for: Vec::<NamedEdge>::new(),
    }
}

#[test]
fn scripts_and_commands_mean_on_a_real_slurm_what_they_say() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let client = slurm.client(dir.path());
    assert_eq!(Presence::of(&client).unwrap(), Presence::Ready);
    let limits = Limits::of(&client).unwrap();
    assert!(limits.version.is_some() && limits.max_array_size.is_some(), "{limits:?}");

    let root = dir.path().join("it's 100%j $(touch pwned) \"#\" {x}");
    std::fs::create_dir_all(root.join("logs")).unwrap();
    std::fs::write(root.join("seedbed"), PROGRAM).unwrap();
    std::fs::set_permissions(root.join("seedbed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let tag = format!("{:08x}", std::process::id());
    let send = |job: &JobSpec, edges: &[Edge]| {
        let path = root.join(format!("{}.sbatch", job.stage));
        std::fs::write(&path, render(job, TEMPLATE).unwrap()).unwrap();
        assert_eq!(test_only(&client, &path).unwrap(), Ok(()), "{}", job.name);
        match submit(&client, &path, edges).unwrap() {
            Submitted::Accepted(id) => id.id,
            other => panic!("{}: {other:?}", job.name),
        }
    };
    let slots = || Slots::Indices(vec![0, 1]);
    let edge = |kind, job| Edge { kind, parent: Element { job, index: None } };
    let a = send(&job(&root, "a", slots(), &tag), &[]);
    let b = send(&job(&root, "b", slots(), &tag), &[edge(EdgeKind::AfterCorr, a)]);
    let end = send(&job(&root, "end", Slots::Single, &tag), &[edge(EdgeKind::AfterAny, b)]);
    assert!(matches!(find_by_name(&client, &format!("commands.b.{tag}")).unwrap(), Found::Job(id) if id.id == b));
    assert_eq!(find_by_name(&client, "commands.b").unwrap(), Found::Nothing);

    let deadline = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        let found = queue::query(&client, &[a, b, end]).unwrap();
        if found.entries().count() == 5 && found.entries().all(|e| e.liveness() == Liveness::Ended) {
            break found;
        }
        assert!(Instant::now() < deadline, "still not ended: {found:#?}");
        std::thread::sleep(Duration::from_millis(300));
    };
    let state = |job, index| ended.get(Element { job, index }).unwrap().state.clone();
    assert_eq!((state(a, Some(0)), state(a, Some(1))), (JobState::Completed, JobState::Failed));
    assert_eq!((state(b, Some(0)), state(b, Some(1))), (JobState::Completed, JobState::Cancelled));
    assert_eq!(state(end, None), JobState::Completed);

    let log = root.join("logs").join(format!("job_1_a_{a}_0.out"));
    let log = std::fs::read_to_string(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    let submission = format!("arg<{}>\n", root.join("submissions").display());
    assert!(log.contains(&submission) && log.contains("arg<value=$(touch pwned) 'x'>\narg<steps=ALL>\n"), "{log}");
    assert!(log.contains("n1\n") && log.contains("n2\n"), "srun ran on two nodes: {log}");
    assert!(root.join("logs").join(format!("job_1_end_{end}.out")).is_file());
    assert!(!root.join("pwned").exists() && !dir.path().join("pwned").exists());

    // What is refused, what is forgotten, what is not kept.
    let mut wrong = job(&root, "c", slots(), &tag);
    wrong.site.partition = Some("nowhere".to_owned());
    let path = root.join("c.sbatch");
    std::fs::write(&path, render(&wrong, TEMPLATE).unwrap()).unwrap();
    assert!(test_only(&client, &path).unwrap().unwrap_err().contains("nowhere"));
    let refused = submit(&client, &path, &[]).unwrap();
    assert!(matches!(&refused, Submitted::Refused(why) if why.contains("nowhere")), "{refused:?}");
    assert_eq!(queue::query(&client, &[4_000_000]).unwrap().entries().count(), 0);
    if limits.accounting == Some(false) {
        assert_eq!(accounting::query(&client, &[a], 1_000_000_000).unwrap(), Accounting::Disabled);
    }
    control::cancel(&client, &[Element { job: 4_000_000, index: None }]).unwrap();
}
