//! The same on the nodes: one short job for each partition, made as a stage's job is made (the same template, modules and
//! launcher) but with `probe.json` in its submission in place of `plan.json`. What it finds it writes beside that file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::here::writable;
use super::{Finding, Outcome, Patient};
use crate::record::{Digest, Name, RecordError, Resources, exit, files};
use crate::workflow::attempt::modules;
use crate::workflow::error::{Result, WorkflowError};
use crate::workflow::programs;
use crate::workflow::slurm::client::run_limited;
use crate::workflow::slurm::script::{self, JobSpec, Site, Slots};
use crate::workflow::slurm::submit::{self, Submitted};
use crate::workflow::slurm::{Client, Element, JobId, Liveness, control, queue};

/// What makes a submission a probe.
const PROBE: &str = "probe.json";

/// Time limit of its jobs.
const TIME_S: u64 = 300;

/// What a job on a node is to look at.
#[derive(Debug, Serialize, Deserialize)]
struct Probe {
    /// Directory of the programs, by digest.
    programs: PathBuf,
    /// Modules that must be loaded.
    modules: Vec<String>,
    /// Checkpoints go there.
    scratch: Option<PathBuf>,
}

/// A job that was submitted.
struct Sent {
    name: String,
    job: JobId,
    check: String,
    began: Instant,
    found: bool,
}

/// Submits one job for each partition, waits for their answers, and takes them away.
///
/// # Errors
/// The results' directory cannot be written.
pub fn examine(patient: &Patient, patience: Duration, note: &mut dyn FnMut(Finding)) -> Result<()> {
    let stamp = Utc::now().format("%Y%m%dT%H%M%S").to_string();
    let noise = Digest::of_bytes(format!("{}:{}:{stamp}", files::host_name(), std::process::id()).as_bytes());
    let tag = format!("{stamp}-{}", &noise.as_str()[..6]);
    let dir = patient.root.join("results/.doctor").join(&tag);
    let done = run(patient, patience, &tag, &dir, note);
    // What was written for this call only; a directory that stays is no harm.
    let _ = std::fs::remove_dir_all(&dir);
    let _ = std::fs::remove_dir(patient.root.join("results/.doctor"));
    let _ = std::fs::remove_dir(patient.root.join("results"));
    done
}

fn run(patient: &Patient, patience: Duration, tag: &str, dir: &Path, note: &mut dyn FnMut(Finding)) -> Result<()> {
    let programs = programs::install_found(dir)?;
    let site = &patient.cluster.site;
    let probe =
        Probe { programs: programs.clone(), modules: site.modules.clone(), scratch: patient.cluster.scratch.clone() };
    files::write_json(&dir.join(PROBE), &probe)?;
    let mut sent: Vec<Sent> = Vec::new();
    for partition in patient.partitions() {
        let check = format!("nodes({})", partition.as_deref().unwrap_or("default"));
        let name = format!("seedbed-doctor.{}.{tag}", sent.len());
        let text = job_script(patient, &name, partition, dir, &programs)?;
        let path = dir.join(format!("{name}.sbatch"));
        files::write_atomic(&path, text.as_bytes())?;
        match submit::submit(&patient.client, &path, &[]) {
            Ok(Submitted::Accepted(job)) => {
                sent.push(Sent { name, job, check, began: Instant::now(), found: false });
            }
            Ok(Submitted::Refused(why) | Submitted::Uncertain(why)) => {
                note(Finding::failed(
                    &check,
                    format!("sbatch: {why}"),
                    "correct the cluster file; the checks above may tell",
                ));
            }
            Err(error) => note(Finding::failed(&check, error.to_string(), "`scontrol ping`, then repeat")),
        }
    }
    let began = Instant::now();
    while sent.iter().any(|s| !s.found) && began.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(500).min(patience));
        for s in sent.iter_mut().filter(|s| !s.found) {
            if let Some(findings) = answer(dir, &s.name) {
                let seen =
                    Finding::ok(&s.check, format!("job {} answered after {} s", s.job, s.began.elapsed().as_secs()));
                note(seen);
                findings.into_iter().for_each(|f| note(Finding { check: format!("{} {}", s.check, f.check), ..f }));
                s.found = true;
            }
        }
        ended_without_answer(patient, dir, &mut sent, note);
    }
    for s in sent.iter().filter(|s| !s.found) {
        let client = patient.client.at(s.job.cluster.as_deref());
        let element = Element { job: s.job.id, index: None };
        let reason = queue::query(&client, &[s.job.id]).ok();
        let reason = reason
            .as_ref()
            .and_then(|q| q.get(element))
            .map_or("?".to_owned(), |e| format!("{} ({})", e.state.word().to_lowercase(), e.reason));
        note(Finding::failed(
            &s.check,
            format!("job {} gave no answer in {} s, and is {reason}; it was cancelled", s.job, patience.as_secs()),
            "repeat when a node is free, or with a longer --wait SECONDS",
        ));
    }
    for s in &sent {
        // A job that has answered ends by itself; one that has not must not stay.
        if !s.found {
            let client = patient.client.at(s.job.cluster.as_deref());
            let _ = control::cancel(&client, &[Element { job: s.job.id, index: None }]);
        }
    }
    let answered: Vec<&Sent> = sent.iter().filter(|s| s.found).collect();
    wait_for_ends(patient, &answered);
    Ok(())
}

/// Whether sbatch would take a small job of this cluster file. Nothing is submitted.
pub fn trial(patient: &Patient, partition: Option<String>) -> Finding {
    let check = partition.as_ref().map_or("job".to_owned(), |name| format!("job({name})"));
    let path = patient.root.join(format!(".seedbed-doctor-{}-{}.sbatch", files::host_name(), std::process::id()));
    let said = job_script(patient, "seedbed-doctor.trial", partition, &patient.root, &patient.root)
        .and_then(|text| Ok(files::write_atomic(&path, text.as_bytes())?))
        .and_then(|()| submit::test_only(&patient.client, &path).map_err(|e| WorkflowError::Slurm(e.to_string())));
    // Left behind it would only be written over by the next.
    let _ = std::fs::remove_file(&path);
    match said {
        Ok(Ok(())) => Finding::ok(&check, "sbatch would take one"),
        Ok(Err(why)) => Finding::failed(&check, format!("sbatch: {why}"), "correct what it names in the cluster file"),
        Err(error) => Finding::skipped(&check, error.to_string()),
    }
}

fn answer(dir: &Path, name: &str) -> Option<Vec<Finding>> {
    // Listing the directory anew makes a network file system look again.
    let _ = std::fs::read_dir(dir).map(Iterator::count);
    files::read_json(&dir.join(format!("{name}.answer.json"))).ok()
}

/// Tells of jobs that Slurm has ended and that said nothing, with what stands in their logs.
fn ended_without_answer(patient: &Patient, dir: &Path, sent: &mut [Sent], note: &mut dyn FnMut(Finding)) {
    for s in sent.iter_mut().filter(|s| !s.found && s.began.elapsed() > Duration::from_secs(3)) {
        let client = patient.client.at(s.job.cluster.as_deref());
        let Ok(queue) = queue::query(&client, &[s.job.id]) else { continue };
        let entry = queue.get(Element { job: s.job.id, index: None });
        if entry.is_some_and(|e| e.liveness() != Liveness::Ended) {
            continue;
        }
        // A file of another node may be late.
        std::thread::sleep(Duration::from_secs(1));
        if answer(dir, &s.name).is_some() {
            continue;
        }
        s.found = true;
        let log = dir.join(format!("job_0_doctor_{}.out", s.job.id));
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(3).collect();
        let said = match tail.as_slice() {
            [] => format!("job {} ended and left neither an answer nor a log in {}", s.job, dir.display()),
            lines => format!("job {} ended: {}", s.job, lines.iter().rev().copied().collect::<Vec<_>>().join(" | ")),
        };
        let fix = "is this directory seen by the nodes (--root)? do the modules of the cluster file load there?";
        note(Finding::failed(&s.check, said, fix));
    }
}

/// The directory is theirs until they have ended.
fn wait_for_ends(patient: &Patient, sent: &[&Sent]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let alive = sent.iter().any(|s| {
            let client = patient.client.at(s.job.cluster.as_deref());
            queue::query(&client, &[s.job.id]).is_ok_and(|q| q.entries().any(|e| e.liveness() == Liveness::Alive))
        });
        if !alive {
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn job_script(patient: &Patient, name: &str, partition: Option<String>, dir: &Path, programs: &Path) -> Result<String> {
    let own = patient.root.join("slurm").join(script::TEMPLATE_NAME);
    let template = match std::fs::read_to_string(&own) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => script::TEMPLATE.to_owned(),
        Err(e) => return Err(RecordError::io("read", own)(e).into()),
    };
    let mut site: Site = patient.cluster.site.clone();
    site.partition = partition;
    site.wishes.begin = None;
    let spec = JobSpec {
        name: name.to_owned(),
        stage: Name::new("doctor").map_err(|e| WorkflowError::Usage(e.to_string()))?,
        arm: None,
        number: 0,
        slots: Slots::Single,
        throttle: None,
        resources: Resources {
            nodes: 1,
            tasks_per_node: 1,
            cpus_per_task: 1,
            gpus_per_node: 0,
            mem_bytes: None,
            time_s: TIME_S,
        },
        resumable: false,
        grace_s: 60,
        threads_per_rank: 1,
        log_dir: dir.to_path_buf(),
        submission_dir: dir.to_path_buf(),
        seedbed: programs.join("seedbed"),
        site,
        mails_its_end: false,
        waits_for: Vec::new(),
    };
    script::render(&spec, &template).map_err(|e| WorkflowError::Usage(e.to_string()))
}

/// Whether a submission is a probe.
pub fn is_probe(submission: &Path) -> bool {
    submission.join(PROBE).is_file()
}

/// Inside the job: looks at the node, and writes what was found. The exit code is 0 if all is well.
///
/// # Errors
/// The probe cannot be read, or the answer not be written.
pub fn probe(submission: &Path, job: &str, launcher: &[String]) -> Result<u8> {
    let probe: Probe = files::read_json(&submission.join(PROBE))?;
    let mut findings = vec![Finding::ok("node", files::host_name())];
    findings.push(match programs::changed(&probe.programs)? {
        None => Finding::ok("programs", "those of the login node, by digest"),
        Some(why) => Finding::failed("programs", why, "are the results on a file system that all nodes share?"),
    });
    let there = std::env::var("LOADEDMODULES").ok();
    findings.push(match (modules::missing(&probe.modules, there.as_deref()), probe.modules.is_empty()) {
        (Some(why), _) => Finding::failed("modules", why, "correct `modules` in the cluster file"),
        (None, true) => Finding::ok("modules", "none are asked for"),
        (None, false) => Finding::ok("modules", there.unwrap_or_default().replace(':', ", ")),
    });
    findings.push(temporary());
    if let Some(scratch) = &probe.scratch {
        findings.push(writable("scratch", scratch, "is `scratch` of the cluster file seen by the nodes?"));
    }
    findings.push(launched(launcher, &probe.programs.join("seedbed")));
    findings.push(signalled());
    findings.push(devices());
    files::write_json(&submission.join(format!("{job}.answer.json")), &findings)?;
    let sick = findings.iter().any(|f| f.outcome == Outcome::Failed);
    Ok(if sick { exit::INCOMPLETE } else { exit::DONE })
}

/// The node's own disk.
fn temporary() -> Finding {
    let fix = "ask the site for the node's own disk, and say `exports = {TMPDIR = \"...\"}` in the cluster file";
    match std::env::var_os("TMPDIR").filter(|v| !v.is_empty()) {
        Some(dir) => writable("tmpdir", Path::new(&dir), fix),
        None => {
            let finding = writable("tmpdir", Path::new("/tmp"), fix);
            Finding { said: format!("TMPDIR is not set; {}", finding.said), ..finding }
        }
    }
}

/// Whether the launcher starts a program here.
fn launched(launcher: &[String], seedbed: &Path) -> Finding {
    let Some((program, words)) = launcher.split_first() else {
        return Finding::ok("launcher", "none: stages are started as they are");
    };
    let mut command = Command::new(program);
    command.args(words).arg(seedbed).arg("--version");
    let said = words.iter().fold(program.clone(), |said, word| format!("{said} {word}"));
    let fix = "`srun --mpi=list` names the plugins; correct `launcher`, `mpi`, `srun_args` or `container`";
    match run_limited(command, Duration::from_secs(60)) {
        Some(reply) if reply.status.success() && reply.stdout.contains("seedbed ") => {
            Finding::ok("launcher", format!("`{said}` starts programs"))
        }
        Some(reply) => Finding::failed("launcher", format!("`{said}` failed: {}", reply.message()), fix),
        None => Finding::failed("launcher", format!("`{said}` started nothing in a minute"), fix),
    }
}

/// Whether a signal for the batch shell reaches the program that it became.
fn signalled() -> Finding {
    let Some(element) = Element::from_environment(|name| std::env::var(name).ok()) else {
        return Finding::skipped("signal", "this is no job");
    };
    let flag = Arc::new(AtomicBool::new(false));
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGUSR2, Arc::clone(&flag)) {
        return Finding::skipped("signal", error.to_string());
    }
    let client = Client::new();
    if let Err(error) = control::warn(&client, element) {
        return Finding::warning("signal", error.to_string(), "`scancel --batch --signal=USR2` is not for jobs here");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if flag.load(Ordering::SeqCst) {
            return Finding::ok("signal", "SIGUSR2 reaches the attempt");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let fix = "keep the last line of the template an `exec`: the attempt must be the process that Slurm signals";
    Finding::failed("signal", "SIGUSR2 did not reach the attempt in 10 s", fix)
}

/// GPUs that the driver names.
fn devices() -> Finding {
    let mut command = Command::new("nvidia-smi");
    command.arg("-L");
    match Client::new().find("nvidia-smi").and_then(|_| run_limited(command, Duration::from_secs(30))) {
        None => Finding::skipped("gpu", "no driver of NVIDIA's on this node"),
        Some(reply) => {
            let count = reply.stdout.lines().filter(|line| line.starts_with("GPU ")).count();
            // The probe asks for none, and sites hide what a job did not ask for.
            Finding::ok("gpu", format!("{count} seen by a job that asked for none"))
        }
    }
}
