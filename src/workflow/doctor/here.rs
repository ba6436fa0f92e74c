//! What can be looked at on this node: programs, modules, directories, the site's own commands.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Finding, Patient};
use crate::record::{Digest, files};
use crate::stages;
use crate::workflow::attempt::modules;
use crate::workflow::programs;
use crate::workflow::slurm::client::run_limited;
use crate::workflow::slurm::script::{Launcher, Site};
use crate::workflow::study::Run;

/// How long a module system may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at this node.
pub fn examine(patient: &Patient, note: &mut dyn FnMut(Finding)) {
    let site = &patient.cluster.site;
    note(loaded(site));
    for (check, words) in [("launcher-program", launcher_program(site)), ("container", site.container.as_slice())] {
        if let Some(program) = words.first() {
            note(program_with_modules(check, program, site));
        }
    }
    for program in patient.study.iter().flat_map(|s| &s.stages).filter_map(|s| s.wishes.notify.first()) {
        note(plain_program("notify", program));
    }
    for (check, words) in [("notify", &site.wishes.notify), ("quota_command", &patient.cluster.quota_command)] {
        if let Some(program) = words.first() {
            note(plain_program(check, program));
        }
    }
    note(writable("results", &patient.root.join("results"), "choose another place with --root"));
    if let Some(scratch) = &patient.cluster.scratch {
        note(writable("scratch", scratch, "correct `scratch` in the cluster file"));
    }
    our_programs(patient, note);
}

fn launcher_program(site: &Site) -> &[String] {
    match &site.launcher {
        Launcher::Command(words) => words,
        Launcher::Srun { .. } | Launcher::None => &[],
    }
}

/// Words of bash that load the modules, as a job script does.
fn load(site: &Site) -> String {
    let mut text = String::new();
    if !site.modules.is_empty() {
        text.push_str("type module >/dev/null 2>&1 || source /etc/profile\n");
    }
    // Names of modules hold nothing that bash would take for anything else: the cluster file's reader sees to it.
    site.modules.iter().for_each(|module| text.push_str(&format!("module load {module} >&2 || exit 64\n")));
    text
}

fn loaded(site: &Site) -> Finding {
    if site.modules.is_empty() {
        return Finding::ok("modules", "none are asked for");
    }
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{}printf '%s' \"${{LOADEDMODULES-}}\"", load(site))]);
    let fix = "`module spider NAME` or `module avail NAME` finds the name; correct `modules` in the cluster file";
    match run_limited(command, PATIENCE) {
        Some(reply) if reply.status.success() => match modules::missing(&site.modules, Some(&reply.stdout)) {
            None => Finding::ok("modules", reply.stdout.replace(':', ", ")),
            Some(why) => Finding::failed("modules", why, fix),
        },
        Some(reply) => Finding::failed("modules", format!("they do not load here: {}", reply.message()), fix),
        None => Finding::failed("modules", "loading them takes more than a minute", fix),
    }
}

fn program_with_modules(check: &str, program: &str, site: &Site) -> Finding {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{}command -v -- \"$1\"", load(site)), "bash", program]);
    match run_limited(command, PATIENCE) {
        Some(reply) if reply.status.success() => Finding::ok(check, reply.stdout.trim().to_owned()),
        _ => Finding::failed(
            check,
            format!("`{program}` is not found with these modules"),
            format!("add its module to `modules`, or correct `{}`", check.trim_end_matches("-program")),
        ),
    }
}

fn plain_program(check: &str, program: &str) -> Finding {
    match crate::workflow::slurm::Client::new().find(program) {
        Some(path) => Finding::ok(check, path.display().to_string()),
        None => Finding::failed(
            check,
            format!("`{program}` of `{check}` is not on PATH, or cannot be run"),
            format!("correct `{check}`, or give its whole path"),
        ),
    }
}

/// Whether a directory, or the nearest above it that is there, can be written; with the room that it has.
pub fn writable(check: &str, dir: &Path, fix: &str) -> Finding {
    let Some(there) = dir.ancestors().find(|dir| dir.is_dir()) else {
        return Finding::failed(check, format!("there is nothing above {}", dir.display()), fix);
    };
    let trial = there.join(format!(".seedbed-doctor-{}-{}", files::host_name(), std::process::id()));
    let written = files::write_atomic(&trial, b"seedbed doctor\n");
    // Nothing is left; a failure to write is what is told.
    let _ = std::fs::remove_file(&trial);
    match written {
        Ok(()) => {
            let room = room(there).map(|b| format!(", {:.1} GB left", b as f64 / 1e9)).unwrap_or_default();
            Finding::ok(check, format!("{}{room}", dir.display()))
        }
        Err(error) => Finding::failed(check, error.to_string(), fix),
    }
}

/// Bytes that a user has left there.
fn room(dir: &Path) -> Option<u64> {
    let path = CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: an all-zero statvfs is valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    let rc = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) };
    (rc == 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Our own programs: digest, and whether each stage's starts and is of this version.
fn our_programs(patient: &Patient, note: &mut dyn FnMut(Finding)) {
    let dir = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)).unwrap_or_default();
    for name in ["seedbed", "run_all"] {
        note(match Digest::of_file(&dir.join(name)) {
            Ok(digest) => Finding::ok("program", format!("{name} {} in {}", digest.short(), dir.display())),
            Err(_) => Finding::failed(
                "program",
                format!("`{name}` is not in {}", dir.display()),
                "build both together with `cargo build --release`",
            ),
        });
    }
    let wanted = |kind: &str| {
        let used = |run: &Run| matches!(run, Run::Builtin(spec) if spec.kind == kind);
        patient.study.as_ref().is_some_and(|study| study.stages.iter().any(|stage| used(&stage.run)))
    };
    let mut absent: Vec<&str> = Vec::new();
    for spec in stages::all_specs() {
        let path = dir.join(spec.binary);
        if !path.is_file() {
            if wanted(spec.kind) {
                let said = format!("`{}`, which the study needs, is not in {}", spec.binary, dir.display());
                note(Finding::failed("program", said, "build it with `cargo build --release --features mpi`"));
            } else {
                absent.push(spec.binary);
            }
            continue;
        }
        note(match programs::fits(&path, spec) {
            Ok(features) => {
                let digest = Digest::of_file(&path).map(|d| d.short().to_owned()).unwrap_or_default();
                let features = if features.is_empty() { "no feature".to_owned() } else { features.join(", ") };
                Finding::ok("program", format!("{} {digest}, starts, with {features}", spec.binary))
            }
            Err(error) => Finding::failed("program", error.to_string(), "`scripts/setup`, then build again"),
        });
    }
    if !absent.is_empty() {
        let said = format!("not built: {}", absent.join(", "));
        note(Finding::skipped("program", format!("{said} (`cargo build --release --features mpi` builds them)")));
    }
}
