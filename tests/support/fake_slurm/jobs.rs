//! When a job starts, and what it goes through until it ends. The rules are those that a Slurm 22.05 showed.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::commands;
use crate::state::{self, CONT, Controller, Element, KILL, TERM, USR2, now_ms, send};

/// What a dependency is at the moment.
#[derive(PartialEq, Clone, Copy)]
enum Met {
    Yes,
    NotYet,
    Never,
}

/// Whether a job waits until somebody lets it go.
fn is_held(reason: &str) -> bool {
    reason == "JobHeldUser" || reason.ends_with("requeued held")
}

/// Starts what may start and cancels what can never start, until nothing changes.
pub fn schedule(c: &mut Controller, bin: &Path) {
    loop {
        let mut changed = false;
        for i in 0..c.elements.len() {
            if c.elements[i].state() != "PENDING" || is_held(c.elements[i].text("reason")) {
                continue;
            }
            // Once never, always never: even if the parent is requeued and succeeds.
            let dead = c.elements[i].text("reason") == "DependencyNeverSatisfied";
            let reason = match if dead { Met::Never } else { met(c, &c.elements[i]) } {
                Met::Never if c.elements[i].text("kill_dep") == "yes" && c.setting("ignore_kill_dep", 0) == 0 => {
                    c.elements[i].end("CANCELLED", "DependencyNeverSatisfied");
                    let ended = c.elements[i].clone();
                    c.account(&ended, "CANCELLED");
                    changed = true;
                    continue;
                }
                Met::Never => "DependencyNeverSatisfied",
                Met::NotYet => "Dependency",
                Met::Yes if c.elements[i].number("eligible_ms") > now_ms() => "BeginTime",
                Met::Yes => match room(c, &c.elements[i]) {
                    Some(reason) => reason,
                    None => {
                        c.elements[i].set("state", "RUNNING");
                        c.elements[i].set("start_ms", now_ms());
                        let root = c.root.clone();
                        start(&mut c.elements[i], &root, bin);
                        "None"
                    }
                },
            };
            c.elements[i].set("reason", reason);
        }
        if !changed {
            return c.save();
        }
    }
}

/// Why there is no room for it, if so.
fn room(c: &Controller, element: &Element) -> Option<&'static str> {
    let running = |e: &&Element| e.state() == "RUNNING";
    let throttle = element.number("throttle") as usize;
    let siblings = c.elements.iter().filter(running).filter(|e| e.job() == element.job()).count();
    if c.setting("hold", 0) == 1 {
        Some("PartitionDown")
    } else if throttle > 0 && siblings >= throttle {
        Some("JobArrayTaskLimit")
    } else if c.elements.iter().filter(running).count() >= c.setting("max_running", 2) as usize {
        Some("Resources")
    } else {
        None
    }
}

fn start(element: &mut Element, root: &Path, bin: &Path) {
    let mut runner = Command::new(bin.join("slurmstepd"));
    if let Some(name) = commands::cluster_of(root) {
        runner.env("FAKE_CLUSTER", name);
    }
    let runner = runner
        .arg(element.id())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    element.set("runner", runner.id());
}

/// All parts of a dependency must be met: `aftercorr:5:6,afterany:7_2`.
fn met(c: &Controller, child: &Element) -> Met {
    let mut all = Met::Yes;
    for part in child.text("dependency").split(',').filter(|part| !part.is_empty()) {
        let mut words = part.split(':');
        let kind = words.next().unwrap_or_default();
        for parent in words {
            match one(c, kind, parent, child) {
                Met::Never => return Met::Never,
                Met::NotYet => all = Met::NotYet,
                Met::Yes => {}
            }
        }
    }
    all
}

fn one(c: &Controller, kind: &str, parent: &str, child: &Element) -> Met {
    let mut parents = c.matching(parent);
    // The same index if the parent has it; else the whole parent.
    let twin = parents.iter().copied().find(|&i| child.index().is_some() && c.elements[i].index() == child.index());
    if let ("aftercorr", Some(twin)) = (kind, twin) {
        parents = vec![twin];
    }
    let states: Vec<&str> = parents.iter().map(|&i| c.elements[i].state()).collect();
    if states.iter().any(|s| matches!(*s, "PENDING" | "RUNNING")) {
        return Met::NotYet;
    }
    if kind == "afterany" || states.iter().all(|s| *s == "COMPLETED") { Met::Yes } else { Met::Never }
}

/// Runs one element to its end, and starts what waited for it: the fake's slurmstepd.
pub fn run(root: &Path, bin: &Path, id: &str) {
    let mut c = Controller::open(root);
    let Some(element) = c.get(id).cloned() else { return };
    let mut command = Command::new(root.join("scripts").join(element.job().to_string()));
    command.env_clear().envs(environment(root, bin, &element)).current_dir(element.text("workdir"));
    command.stdin(Stdio::null()).process_group(0);
    let log = fs::OpenOptions::new().create(true).append(true).open(log_path(&element));
    // As Slurm does: a log that cannot be opened is no reason not to run.
    let (out, err) = match log.and_then(|log| Ok((log.try_clone()?, log))) {
        Ok((out, err)) => (Stdio::from(out), Stdio::from(err)),
        Err(_) => (Stdio::null(), Stdio::null()),
    };
    let child = command.stdout(out).stderr(err).spawn();
    let Ok(mut child) = child else {
        return finish(c, bin, id, "FAILED", "NonZeroExitCode", 126, 0);
    };
    let pid = child.id() as i32;
    c.get(id).unwrap().set("pid", pid);
    c.save();
    drop(c);

    let start_ms = now_ms();
    let limit_ms = element.number("limit_s") * 1000;
    let warn_ms = limit_ms.saturating_sub(element.number("grace_s") * 1000).max(100);
    let kill_wait_ms = state::config(root).get("kill_wait_ms").and_then(|v| v.parse().ok()).unwrap_or(3000);
    let asked = root.join(format!("ask.{id}"));
    let silent = state::config(root).get("warnings").is_some_and(|v| v == "off");
    let (mut warned, mut why, mut kill_at) = (silent || element.number("grace_s") == 0, String::new(), u64::MAX);
    let status = loop {
        if let Ok(Some(status)) = child.try_wait() {
            break status;
        }
        let elapsed = now_ms() - start_ms;
        if !warned && elapsed >= warn_ms {
            warned = true;
            send(pid, USR2);
        }
        if why.is_empty() {
            why = fs::read_to_string(&asked).unwrap_or_default();
            if why.is_empty() && limit_ms > 0 && elapsed >= limit_ms {
                "timeout".clone_into(&mut why);
            }
            if why == "zombie" {
                // slurmd is gone: its steps live on, and the job is put back as if its node had failed.
                let _ = fs::remove_file(&asked);
                return finish(Controller::open(root), bin, id, "NODE_FAIL", "NodeDown", 0, 0);
            }
            if !why.is_empty() {
                if why != "node_fail" {
                    send(-pid, CONT);
                    send(-pid, TERM);
                }
                kill_at = if why == "node_fail" { elapsed } else { elapsed + kill_wait_ms };
            }
        }
        if elapsed >= kill_at {
            send(-pid, KILL);
        }
        std::thread::sleep(Duration::from_millis(15));
    };
    // What the script left behind goes with it.
    send(-pid, KILL);
    let c = Controller::open(root);
    if why.is_empty() {
        why = fs::read_to_string(&asked).unwrap_or_default();
    }
    let _ = fs::remove_file(&asked);
    let (code, signal) = (status.code().unwrap_or(0), status.signal().unwrap_or(0));
    let (state, reason) = match why.as_str() {
        "cancel" => ("CANCELLED", "None"),
        "timeout" => ("TIMEOUT", "TimeLimit"),
        "requeue" => ("REQUEUED", "None"),
        "preempt" => ("PREEMPTED", "None"),
        "node_fail" => ("NODE_FAIL", "NodeDown"),
        _ if status.success() => ("COMPLETED", "None"),
        _ => ("FAILED", "NonZeroExitCode"),
    };
    finish(c, bin, id, state, reason, code, signal);
}

fn finish(mut c: Controller, bin: &Path, id: &str, state: &str, reason: &str, code: i32, signal: i32) {
    let root = c.root.clone();
    let delay_ms = c.setting("requeue_delay_ms", 200);
    let Some(element) = c.get(id) else { return };
    element.set("exit", format!("{code}:{signal}"));
    element.set("pid", 0);
    let again = state == "REQUEUED" || (matches!(state, "PREEMPTED" | "NODE_FAIL") && element.text("requeue") == "yes");
    let ran = element.clone();
    if again {
        element.set("state", "PENDING");
        element.set("reason", "BeginTime");
        element.set("restarts", element.number("restarts") + 1);
        element.set("eligible_ms", now_ms() + delay_ms);
    } else {
        element.end(state, reason);
    }
    mail(&c, id);
    c.account(&ran, if again && state == "NODE_FAIL" { "NODE_FAIL" } else { state });
    schedule(&mut c, bin);
    drop(c);
    if again {
        std::thread::sleep(Duration::from_millis(delay_ms + 1));
        schedule(&mut Controller::open(&root), bin);
    }
}

/// One mail for a job that ended, and one for a whole array unless it asks for one each.
fn mail(c: &Controller, id: &str) {
    let Some(e) = c.elements.iter().find(|e| e.id() == id).filter(|e| e.is_ended()) else { return };
    let types = e.text("mail_type");
    let siblings = c.elements.iter().filter(|other| other.job() == e.job());
    let open =
        e.index().is_some() && !types.contains("ARRAY_TASKS") && siblings.into_iter().any(|other| !other.is_ended());
    let failed = !matches!(e.state(), "COMPLETED" | "CANCELLED");
    if !open && (types.contains("END") || failed && types.contains("FAIL")) {
        state::append(&c.root.join("mails"), &format!("{} {} {}", e.text("mail_user"), e.text("name"), e.state()));
    }
}

fn environment(root: &Path, bin: &Path, element: &Element) -> Vec<(String, String)> {
    let bytes = fs::read(root.join("environments").join(element.job().to_string())).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut variables: Vec<(String, String)> = text
        .split('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let path = variables.iter().find(|(k, _)| k == "PATH").map(|(_, v)| v.clone()).unwrap_or_default();
    let mut set = |key: &str, value: String| variables.push((key.to_owned(), value));
    set("PATH", format!("{}:{path}", bin.display()));
    let (nodes, tasks) = (element.number("nodes").max(1), element.number("tasks_per_node").max(1));
    set("SLURM_JOB_ID", element.text("raw").to_owned());
    set("SLURM_JOB_NAME", element.text("name").to_owned());
    set("SLURM_JOB_NUM_NODES", nodes.to_string());
    set("SLURM_NNODES", nodes.to_string());
    set("SLURM_JOB_NODELIST", if nodes == 1 { "f1".to_owned() } else { format!("f[1-{nodes}]") });
    set("SLURM_NTASKS_PER_NODE", tasks.to_string());
    set("SLURM_NTASKS", (nodes * tasks).to_string());
    set("SLURM_CPUS_PER_TASK", element.number("cpus_per_task").max(1).to_string());
    set("SLURM_SUBMIT_DIR", element.text("workdir").to_owned());
    set("SLURM_CLUSTER_NAME", commands::cluster_of(root).unwrap_or_else(|| "fake".to_owned()));
    if let Some(name) = commands::cluster_of(root) {
        set("FAKE_CLUSTER", name);
    }
    if element.number("mem_mb") > 0 {
        set("SLURM_MEM_PER_NODE", element.text("mem_mb").to_owned());
    }
    if let Some(index) = element.index() {
        set("SLURM_ARRAY_JOB_ID", element.job().to_string());
        set("SLURM_ARRAY_TASK_ID", index.to_string());
    }
    // Unset, not 0, in the first run.
    if element.number("restarts") > 0 {
        set("SLURM_RESTART_COUNT", element.text("restarts").to_owned());
    }
    variables
}

/// The log's path with `%A %a %j %x %%` replaced; one with a backslash is taken as it is.
fn log_path(element: &Element) -> PathBuf {
    let pattern = element.text("output");
    if pattern.contains('\\') {
        return PathBuf::from(pattern.replace('\\', ""));
    }
    let mut path = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('A')) => path.push_str(&element.job().to_string()),
            ('%', Some('a')) => path.push_str(&element.index().unwrap_or(u32::MAX - 1).to_string()),
            ('%', Some('j')) => path.push_str(element.text("raw")),
            ('%', Some('x')) => path.push_str(element.text("name")),
            ('%', Some('%')) => path.push('%'),
            (c, Some(other)) => path.extend([c, other]),
            (c, None) => path.push(c),
        }
    }
    Path::new(element.text("workdir")).join(path)
}
