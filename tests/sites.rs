//! Sites: the shipped cluster files as whole job scripts, several Slurm clusters, federations, modules, and who is told.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seedbed::record::{Name, Resources};
use seedbed::workflow::plan::Chain;
use seedbed::workflow::slurm::script::{JobSpec, Slots, TEMPLATE, render};
use seedbed::workflow::study::{self, StudyError};
use serde_json::Value;

use crate::slurm_script::check_shell;
use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::repository;
use crate::support::work::Work;

/// A training stage on the site of a shipped cluster file.
fn script(name: &str) -> String {
    let cluster = study::load_cluster(&repository().join(format!("configs/clusters/{name}.toml"))).unwrap();
    let base = "/data/ada/results/monotone/full";
    let resources = Resources {
        nodes: 1,
        tasks_per_node: 1,
        cpus_per_task: 8,
        gpus_per_node: 0,
        mem_bytes: Some(80 << 30),
        time_s: 32 * 3600,
    };
    let job = JobSpec {
        name: "monotone.train_monotonic.20250102T030405-0a1b2c".to_owned(),
        stage: Name::new("train_monotonic").unwrap(),
        arm: None,
        number: 3,
        slots: if cluster.chain == Chain::Arrays { Slots::Indices(vec![0, 1, 2]) } else { Slots::Single },
        throttle: cluster.throttle,
        resources: cluster.resources.get("train").map_or(resources.clone(), |said| said.over(&resources)),
        resumable: true,
        grace_s: cluster.grace_s,
        threads_per_rank: 8,
        log_dir: PathBuf::from(format!("{base}/logs")),
        submission_dir: PathBuf::from(format!("{base}/.seedbed/submissions/20250102T030405-0a1b2c")),
        seedbed: PathBuf::from(format!("{base}/.seedbed/bin/5f2d/seedbed")),
        site: cluster.site,
        mails_its_end: true,
        waits_for: Vec::new(),
    };
    render(&job, TEMPLATE).unwrap()
}

#[test]
fn the_scripts_of_the_shipped_sites_are_pinned() {
    for name in ["generic", "gpu-pmix", "cpu-mpirun", "apptainer", "pyxis"] {
        let script = script(name);
        check_shell(&script);
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(format!("site_{name}"), script);
        });
    }
}

/// The problems of a cluster file with these lines; none if it is sound.
fn cluster_problems(lines: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, format!("schema = 1\n[cluster]\nname = 'c'\n{lines}\n")).unwrap();
    match study::load_cluster(&path) {
        Ok(_) => Vec::new(),
        Err(StudyError::Problems(problems)) => problems.iter().map(|p| format!("{}; {}", p.message, p.help)).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn wishes_that_sbatch_would_misread_are_refused() {
    let sound = "partition = ['gpu', 'gpu-long']\nconstraint = '[a100|h100]&ib*2'\nreservation = 'a,b'\nbegin = 'now+1hour'\n\
                 nice = 100\nmail = 'ada.l+x@uni.example'\nnotify = ['tell', 'the chat']\nclusters = ['alps', 'b.2']\n\
                 container = ['apptainer', 'exec', 'x.sif']\noptions = ['--exclusive']";
    assert_eq!(cluster_problems(sound), Vec::<String>::new());
    for (lines, said) in [
        ("partition = 'a b'", "no name of a partition"),
        ("partition = ['a', 'a']", "names `a` twice"),
        ("partition = ['-x']", "no name of a partition"),
        ("constraint = 'a; rm'", "`constraint` in [cluster] cannot be"),
        ("reservation = ''", "`reservation` in [cluster] cannot be"),
        ("begin = '-1'", "`begin` in [cluster] cannot be"),
        ("begin = 'in a while'", "now+1hour"),
        ("nice = -1", "from 0 to 2147483645"),
        ("mail = 'a@x,b@y'", "write one address"),
        ("notify = []", "`notify` in [cluster] names no program"),
        ("notify = 'tell me'", "an array"),
        ("clusters = ['all']", "no name of a Slurm cluster"),
        ("clusters = ['a', 'a']", "names `a` twice"),
        ("container = ['']", "`container` in [cluster] names no program"),
        ("options = ['--clusters=a']", "say `clusters"),
        ("options = ['-M a']", "say `clusters"),
        ("options = ['--mail-user=x']", "say `mail"),
        ("constraint = 'a'\noptions = ['--constraint=b']", "keep one of the two"),
        ("constraint = \"a\\nb\"", "control character"),
    ] {
        let problems = cluster_problems(lines);
        assert!(problems.len() == 1 && problems[0].contains(said), "{lines}: {problems:#?}");
    }
}

/// Waits until every cell is sealed.
fn wait_until_done(work: &Work) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !states(work).iter().all(|state| state == "done") {
        assert!(Instant::now() < deadline, "{:?}\n{}", states(work), work.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn states(work: &Work) -> Vec<String> {
    let status: Value = serde_json::from_str(&work.seedbed(&["status", "--format", "json"])).unwrap();
    status["cells"].as_array().unwrap().iter().map(|c| c["state"].as_str().unwrap().to_owned()).collect()
}

const RESOURCES: &str = "resources = {mem = '64M', time = '0:05:00'}";

#[test]
fn a_chain_stays_on_the_cluster_that_took_its_first_job() {
    let slurm = FakeSlurm::new();
    let (needs, one) = (format!("needs = ['a']\n{RESOURCES}"), format!("per = []\nneeds = ['b']\n{RESOURCES}"));
    let wait = r#"while [ ! -e "$D/go" ]; do sleep 0.05; done; echo '{}' > metrics.json"#;
    let stages = [("a", RESOURCES, wait), ("b", &*needs, "true"), ("end", &*one, "true")];
    let work = Work::new(slurm.path(), "clusters = ['alps', 'dolomites']", "seeds = [1, 2]", &stages);
    assert_eq!(work.submit().len(), 3);
    let journal = work.lines("results/work/default/.seedbed/journal.jsonl");
    let ids: Vec<Value> = journal.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    let ids: Vec<(u64, &str)> = ids
        .iter()
        .filter(|e| e["event"] == "submitted")
        .map(|e| (e["version"].as_u64().unwrap(), e["id"].as_str().unwrap()))
        .collect();
    assert_eq!(ids, [(3, "1;alps"), (3, "3;alps"), (3, "5;alps")]);
    // Nothing is queued twice, and a look finds the jobs where they are.
    assert_eq!(work.submit(), Vec::<u32>::new());
    let said = work.seedbed(&["status", "--format", "json"]);
    assert!(said.contains("\"running\"") && said.contains("\"queued\""), "{said}");
    work.seedbed(&["cancel", "--stages", "b", "--yes"]);
    assert_eq!(work.submit().len(), 2, "behind jobs that live there");
    std::fs::write(work.file("go"), "").unwrap();
    wait_until_done(&work);

    let calls = slurm.calls();
    let of = |program: &str| -> Vec<&Vec<String>> {
        calls.iter().filter(|c| c[0] == program && !c.contains(&"--test-only".to_owned())).collect()
    };
    let there = |call: &&&Vec<String>| call[1] == "-M" && call[2] == "alps";
    let sbatch = of("sbatch");
    assert!(!there(&&sbatch[0]), "the first may go to either: {:?}", sbatch[0]);
    assert_eq!(sbatch[1..].iter().filter(there).count(), 4, "{sbatch:#?}");
    for program in ["squeue", "scancel"] {
        let asked = of(program).into_iter().filter(|call| call.iter().any(|word| word == "-j" || word == "3_0"));
        let asked: Vec<_> = asked.filter(|call| !asks_of_itself(call)).collect();
        assert!(!asked.is_empty() && asked.iter().all(|c| there(&c)), "{program}: {asked:#?}");
    }
}

/// A job asks the cluster on which it runs when it ends: about one job, behind the 1 that stands before every list.
fn asks_of_itself(call: &[String]) -> bool {
    call[0] == "squeue" && call.last().is_some_and(|ids| ids.starts_with("1,") && ids.matches(',').count() == 1)
}

#[test]
fn accounting_is_asked_where_the_jobs_are() {
    let slurm = FakeSlurm::new();
    let stages = [("a", RESOURCES, "sleep 1.2; echo '{}' > metrics.json")];
    let work = Work::new(slurm.path(), "clusters = ['alps']", "seeds = [1]", &stages);
    work.submit();
    wait_until_done(&work);
    work.seedbed(&["ledger"]);
    let asked: Vec<_> = slurm.calls().into_iter().filter(|call| call[0] == "sacct").collect();
    assert!(asked.iter().any(|call| call[1..3] == ["-M", "alps"]), "{asked:?}");
    // One cluster that is named: every question goes there, also before the first job.
    let asks = ["sbatch", "squeue", "scontrol"];
    let others = slurm.calls().into_iter().filter(|c| asks.contains(&c[0].as_str()) && c[1] != "-M");
    let others: Vec<_> = others.filter(|call| !asks_of_itself(call)).collect();
    assert_eq!(others, Vec::<Vec<String>>::new());
    assert!(slurm.calls().iter().any(|call| call[0] == "squeue" && call[1] == "-M"));
}

#[test]
fn a_federation_is_refused_by_name_before_anything_is_submitted() {
    let slurm = FakeSlurm::new();
    slurm.set("federation", "alpine");
    let work = Work::new(slurm.path(), "", "seeds = [1]", &[("a", RESOURCES, "true")]);
    let output = work.run_all(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("federation `alpine`") && said.contains("--local"), "{said}");
    assert_eq!((slurm.count("sbatch"), slurm.count("sbatch --test-only")), (0, 0));
    assert!(slurm.jobs().is_empty());
}

#[test]
fn people_are_told_of_the_first_failure_and_of_the_end() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 8);
    let lines = "mail = 'ada@uni.example'\nnotify = ['sh', '-c', 'echo \"$SEEDBED_EVENT $SEEDBED_KEY $SEEDBED_EXIT_CODE\" >> \"$D/told\"']";
    let behind = format!("needs = ['count']\nper = []\n{RESOURCES}");
    let count = r#"if [ -e "$D/well" ]; then echo '{}' > metrics.json; else exit 3; fi"#;
    let stages = [("count", RESOURCES, count), ("end", &*behind, "echo '{}' > metrics.json")];
    let work = Work::new(slurm.path(), lines, "seeds = [1, 2, 3]", &stages);
    let jobs = work.run();
    slurm.wait_idle();
    let told = work.lines("told");
    let failed: Vec<_> = told.iter().filter(|line| line.starts_with("failed work/default/count/seed-")).collect();
    assert!(failed.len() == 1 && failed[0].ends_with(" 3"), "one of three: {told:?}");
    assert!(told.contains(&"finished work/default/end 66".to_owned()) && told.len() == 2, "{told:?}");
    let mails = slurm.mails();
    let of = |stage: &str| mails.iter().filter(|m| m.contains(&format!("work.{stage}."))).count();
    assert_eq!((of("count"), of("end"), mails.len(), jobs.len()), (1, 1, 2, 2), "{mails:?}");
    assert!(mails.iter().all(|mail| mail.starts_with("ada@uni.example ") && mail.ends_with(" FAILED")), "{mails:?}");

    std::fs::write(work.file("well"), "").unwrap();
    work.run();
    slurm.wait_idle();
    assert_eq!(work.lines("told")[2..], ["finished work/default/end 0"]);
    assert!(slurm.mails()[2].ends_with(" COMPLETED") && slurm.mails().len() == 3, "{:?}", slurm.mails());
}

#[test]
fn a_stop_is_told_once_and_a_program_that_fails_changes_nothing() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 8);
    let own = format!("notify = ['sh', '-c', 'echo $SEEDBED_EVENT >> \"$D/told\"; exit 7']\n{RESOURCES}");
    let work = Work::new(slurm.path(), "notify = ['/nowhere/tell']", "seeds = [1, 2]", &[("judge", &own, "exit 78")]);
    work.run();
    slurm.wait_idle();
    assert_eq!(work.lines("told"), ["stopped"], "the stage's own word, once: {}", work.logs());
    assert!(work.logs().contains("`sh` of `notify` ended with exit status: 7"), "{}", work.logs());
    assert!(slurm.mails().is_empty());
    for seed in [1, 2] {
        assert_eq!(work.json(&format!("judge/seed-{seed}"), "seal.json")["outcome"], "stopped");
    }
}

/// `PATH` with a `module` that says that all is well, whatever it is asked.
fn with_careless_modules(path: &OsString, dir: &Path) -> OsString {
    let program = dir.join("module");
    std::fs::write(&program, "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::env::join_paths(std::iter::once(dir.to_path_buf()).chain(std::env::split_paths(path))).unwrap()
}

#[test]
fn a_module_that_is_not_loaded_ends_the_attempt_before_it_starts() {
    let slurm = FakeSlurm::new();
    let dir = tempfile::tempdir().unwrap();
    let path = with_careless_modules(&slurm.path(), dir.path());
    let run = |loaded: &str| {
        let lines = format!("modules = ['gcc/12', 'openmpi']\nexports = {{LOADEDMODULES = '{loaded}'}}");
        let work = Work::new(path.clone(), &lines, "seeds = [1]", &[("a", RESOURCES, "echo '{}' > metrics.json")]);
        work.run();
        work
    };
    let sick = run("gcc/11.3:openmpi/4.1");
    assert!(!sick.is_sealed("a/seed-1") && sick.story("a/seed-1").is_empty(), "no attempt was claimed");
    assert!(sick.logs().contains("module `gcc/12` of the cluster file is not loaded on this node"), "{}", sick.logs());
    assert!(slurm.jobs().values().any(|(state, _)| state == "FAILED"));
    assert!(run("gcc/12.2.0:openmpi/4.1").is_sealed("a/seed-1"));
}

/// The programs of a submission are those that it was made with, or no attempt starts.
#[test]
fn a_program_that_changed_in_the_queue_ends_the_attempt_before_it_starts() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let work = Work::new(slurm.path(), "", "seeds = [1]", &[("a", RESOURCES, "echo '{}' > metrics.json")]);
    let jobs = work.submit();
    let bin = work.file("results/work/default/.seedbed/bin");
    let programs = std::fs::read_dir(&bin).unwrap().next().unwrap().unwrap().path();
    std::fs::write(programs.join("seedbed-train"), "not what was submitted").unwrap();
    slurm.set("hold", 0);
    slurm.run("scontrol", &["release", "1_0"]);
    work.wait(&jobs, 60);
    assert!(work.logs().contains("are not those that were submitted"), "{}", work.logs());
    assert!(!work.is_sealed("a/seed-1") && work.story("a/seed-1").is_empty());
}
