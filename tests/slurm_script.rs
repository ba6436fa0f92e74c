//! Job scripts: whole files pinned, sound for bash and shellcheck, and hostile values stay data.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use seedbed::record::{Name, Resources};
use seedbed::workflow::plan::EdgeKind;
use seedbed::workflow::slurm::script::{JobSpec, Launcher, NamedEdge, ScriptError, Site, Slots, TEMPLATE, render};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn resources() -> Resources {
    Resources { nodes: 1, tasks_per_node: 1, cpus_per_task: 1, gpus_per_node: 0, mem_bytes: None, time_s: 1800 }
}

/// A job of no particular kind, to be changed by each test.
fn job() -> JobSpec {
    JobSpec {
        name: "monotone.setup.0a1b2c3d".to_owned(),
        stage: name("setup"),
        arm: None,
        number: 0,
        slots: Slots::Indices(vec![0, 1]),
        throttle: None,
        resources: resources(),
        resumable: false,
        grace_s: 300,
        threads_per_rank: 1,
        log_dir: PathBuf::from("/scratch/ada/results/monotone/quick/logs"),
        submission_dir: PathBuf::from(
            "/scratch/ada/results/monotone/quick/.seedbed/submissions/20250102T030405-0a1b2c3d",
        ),
        seedbed: PathBuf::from("/scratch/ada/results/monotone/quick/.seedbed/bin/5f2d/seedbed"),
        site: Site::default(),
        mails_its_end: false,
        waits_for: Vec::new(),
    }
}

/// A training stage on a GPU site, with everything that a cluster file can ask for.
fn training() -> JobSpec {
    JobSpec {
        name: "monotone.train_monotonic.mlp_in.0a1b2c3d".to_owned(),
        stage: name("train_monotonic"),
        arm: Some(name("mlp_in")),
        number: 3,
        slots: Slots::Indices(vec![0, 1, 2, 5]),
        throttle: Some(2),
        resources: Resources {
            nodes: 2,
            tasks_per_node: 4,
            cpus_per_task: 8,
            gpus_per_node: 4,
            mem_bytes: Some(80 << 30),
            time_s: 32 * 3600,
        },
        resumable: true,
        site: Site {
            partition: Some("aa100".to_owned()),
            account: Some("ucb-general".to_owned()),
            qos: Some("normal".to_owned()),
            options: vec!["--constraint=a100&nvlink".to_owned(), "--exclude=n[13-14]".to_owned()],
            modules: vec!["gcc/13.2".to_owned(), "openmpi/5.0".to_owned()],
            lines: vec!["ulimit -c 0".to_owned()],
            exports: BTreeMap::from([
                ("NCCL_SOCKET_IFNAME".to_owned(), "ib0".to_owned()),
                ("TMPDIR".to_owned(), "/scratch/local/ada lovelace".to_owned()),
            ]),
            launcher: Launcher::Srun { mpi: "pmix".to_owned(), args: vec!["--cpu-bind=cores".to_owned()] },
            ..Site::default()
        },
        waits_for: vec![NamedEdge {
            kind: EdgeKind::AfterCorr,
            parent: "monotone.apply_monotonicity.0a1b2c3d".to_owned(),
        }],
        ..job()
    }
}

/// Values that would run a command, end a quotation or a line, or start a comment, if any were not quoted.
const HOSTILE: [&str; 8] = [
    "a b",
    "it's",
    "\"quoted\"",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "100% $HOME %j",
    "*?[a-z]{x,y}~!&|<>()",
];

/// Fails unless bash and shellcheck find nothing to say about `script`.
pub fn check_shell(script: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stage.sbatch");
    std::fs::write(&path, script).unwrap();
    for words in [&["bash", "-n"][..], &["shellcheck", "--shell=bash", "--norc"]] {
        let output = Command::new(words[0]).args(&words[1..]).arg(&path).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.is_empty(), "{}: {said}\n{script}", words[0]);
    }
}

fn check(name: &str, job: &JobSpec) {
    let script = render(job, TEMPLATE).unwrap();
    check_shell(&script);
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(format!("sbatch_{name}"), script);
    });
}

#[test]
fn scripts_are_pinned() {
    check("array", &job());
    check("training", &training());
    check("single", &JobSpec { slots: Slots::Single, stage: name("aggregate"), number: 7, ..job() });
    check(
        "site_without_requeue",
        &JobSpec {
            resumable: true,
            site: Site { requeue: false, kill_on_invalid_dep: false, launcher: Launcher::None, ..Site::default() },
            ..job()
        },
    );
    check(
        "mpirun",
        &JobSpec {
            site: Site {
                launcher: Launcher::Command(["mpirun", "--map-by", "ppr:1:node"].map(str::to_owned).to_vec()),
                ..Site::default()
            },
            ..job()
        },
    );
}

#[test]
fn hostile_values_reach_the_program_and_sbatch_as_they_are() {
    for text in HOSTILE {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(text);
        std::fs::create_dir(&root).unwrap();
        // Prints what it is given and what it finds in its environment.
        let program = root.join("seedbed");
        std::fs::write(&program, "#!/bin/bash\nprintf '%s\\0' \"$@\" \"$VALUE\"\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let submission = root.join("submissions");
        let mut job = JobSpec {
            log_dir: root.join("logs"),
            submission_dir: submission.clone(),
            seedbed: program,
            slots: Slots::Indices(vec![3]),
            ..job()
        };
        job.site.account = Some(text.to_owned());
        job.site.exports.insert("VALUE".to_owned(), text.to_owned());
        job.site.launcher = Launcher::Command(vec!["launch".to_owned(), text.to_owned()]);
        let script = render(&job, TEMPLATE).unwrap();
        check_shell(&script);

        let options = crate::support::fake_slurm::directives::of_script(&script);
        assert!(options.contains(&format!("--account={text}")), "{options:?}");
        let pattern = root.join("logs").to_str().unwrap().replace('%', "%%");
        assert!(options.contains(&format!("--output={pattern}/job_0_setup_%A_%a.out")), "{options:?}");

        let path = dir.path().join("stage.sbatch");
        std::fs::write(&path, &script).unwrap();
        let output = Command::new("bash")
            .arg(&path)
            .current_dir(dir.path())
            .env("SLURM_ARRAY_TASK_ID", "3")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let expected =
            ["attempt", "--submission", submission.to_str().unwrap(), "--job", &job.name, "--slot", "3", "--"]
                .into_iter()
                .chain(["launch", text, text]);
        assert_eq!(said.split_terminator('\0').collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{script}");
        assert!(!dir.path().join("pwned").exists(), "a value was run: {script}");
    }
}

#[test]
fn what_cannot_be_quoted_is_refused() {
    let with = |change: &dyn Fn(&mut JobSpec)| {
        let mut job = training();
        change(&mut job);
        render(&job, TEMPLATE)
    };
    type Change<'a> = &'a dyn Fn(&mut JobSpec);
    let refused: [(&str, Change<'_>); 14] = [
        ("newline", &|j| j.submission_dir = PathBuf::from("/a\nb")),
        ("control", &|j| j.seedbed = PathBuf::from("/a\u{1b}b")),
        ("not absolute", &|j| j.seedbed = PathBuf::from("seedbed")),
        ("backslash", &|j| j.log_dir = PathBuf::from(r"/a\b")),
        ("not UTF-8", &|j| {
            use std::os::unix::ffi::OsStrExt;
            j.log_dir = Path::new(std::ffi::OsStr::from_bytes(b"/a\xff")).to_path_buf();
        }),
        ("job name", &|j| j.name = "a,b".to_owned()),
        ("job name", &|j| j.name = "$(touch x)".to_owned()),
        ("newline", &|j| j.site.account = Some("a\n#SBATCH --uid=0".to_owned())),
        ("no option", &|j| j.site.options.push("hello".to_owned())),
        ("for sbatch", &|j| j.site.lines.push("#SBATCH --nice".to_owned())),
        ("newline", &|j| j.site.lines.push("true\n#SBATCH --nice".to_owned())),
        ("variable's name", &|j| drop(j.site.exports.insert("A B".to_owned(), String::new()))),
        ("module's name", &|j| j.site.modules.push("--force".to_owned())),
        ("sorted", &|j| j.slots = Slots::Indices(vec![1, 0])),
    ];
    for (word, change) in refused {
        let error = with(change).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_wrong_template_is_named_with_its_line() {
    for (template, line, word) in [
        ("#!/bin/bash\n\n{{ jobname }}\n", 3, "undefined"),
        ("#!/bin/bash\n{% if array %}\n", 2, "unexpected end"),
        ("#!/bin/bash\n{{ array | nothing }}", 2, "unknown filter"),
    ] {
        let error = render(&job(), template).unwrap_err();
        assert!(matches!(error, ScriptError::Template { line: l, .. } if l == line), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    for template in ["echo hello\n", "#!/bin/bash\ntrue\n"] {
        assert!(matches!(render(&job(), template), Err(ScriptError::NoScript(_))), "{template}");
    }
}
