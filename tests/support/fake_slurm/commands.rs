//! The commands, as far as Seedbed uses them; an option that is not known is an error.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Answer;
use crate::directives;
use crate::jobs::schedule;
use crate::state::{Controller, Element, HUP, KILL, TERM, USR1, USR2, config, now_ms, send};

const SBATCH: &str = "job-name output error open-mode requeue no-requeue signal nodes ntasks-per-node cpus-per-task \
    gpus-per-node mem time array kill-on-invalid-dep partition account qos dependency parsable test-only comment \
    constraint exclude hold chdir export nice mail-type mail-user begin reservation clusters";

/// Long options in their `--name=value` form.
fn options(words: &[String], options: &mut BTreeMap<String, String>) -> Result<Vec<String>, Answer> {
    let mut rest = Vec::new();
    for word in words {
        let Some(option) = word.strip_prefix("--") else {
            rest.push(word.clone());
            continue;
        };
        let (name, value) = option.split_once('=').unwrap_or((option, "yes"));
        if !SBATCH.split_whitespace().any(|known| known == name) {
            return Err(Answer::error(format!("sbatch: unrecognized option '--{name}'\n")));
        }
        options.insert(name.to_owned(), value.to_owned());
    }
    Ok(rest)
}

/// Where a cluster's jobs are: each of a site's has its own folder.
pub fn root_of(main: &Path, cluster: Option<&str>) -> PathBuf {
    match cluster {
        Some(name) => main.with_file_name(format!("state.{name}")),
        None => main.to_owned(),
    }
}

/// The cluster of a folder; none for the host's own.
pub fn cluster_of(root: &Path) -> Option<String> {
    root.file_name()?.to_str()?.strip_prefix("state.").map(str::to_owned)
}

fn refused(message: &str) -> Answer {
    Answer::error(format!("sbatch: error: {message}\n"))
}

pub fn sbatch(root: &Path, bin: &Path, arguments: &[String]) -> Answer {
    submit(root, bin, arguments).unwrap_or_else(|answer| answer)
}

fn submit(root: &Path, bin: &Path, arguments: &[String]) -> Result<Answer, Answer> {
    let mut given = BTreeMap::new();
    let rest = options(arguments, &mut given)?;
    let [script_path] = rest.as_slice() else { return Err(refused("give one script")) };
    let script =
        std::fs::read_to_string(script_path).map_err(|_| refused(&format!("Unable to open file {script_path}")))?;
    if !script.starts_with("#!") {
        return Err(refused("This does not look like a batch script.  The first line must start with #!"));
    }
    // The script's lines, then the environment, then the command line.
    let mut option = BTreeMap::new();
    options(&directives::of_script(&script), &mut option)?;
    for (key, value) in std::env::vars() {
        let name = key.strip_prefix("SBATCH_").map(|n| n.to_lowercase().replace('_', "-"));
        match name.as_deref() {
            Some("timelimit") => drop(option.insert("time".to_owned(), value)),
            Some(name) if SBATCH.contains(name) => drop(option.insert(name.to_owned(), value)),
            _ => {}
        }
    }
    option.extend(given);
    let get = |key: &str| option.get(key).map_or("", String::as_str);

    // Of several clusters this one takes the first.
    let named =
        cluster_of(root).or_else(|| get("clusters").split(',').next().filter(|c| !c.is_empty()).map(str::to_owned));
    let root = &root_of(&root.with_file_name("state"), named.as_deref());
    let mut c = Controller::open(root);
    let partitions = c.config.get("partitions").cloned().unwrap_or_default();
    let known = |wanted: &str| partitions.split(',').any(|p| p.is_empty() || p == wanted);
    if !get("partition").is_empty() && !get("partition").split(',').all(known) {
        let message = format!("sbatch: error: invalid partition specified: {}\n", get("partition"));
        return Err(Answer::error(
            message + "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        ));
    }
    let (indices, throttle) = array(get("array"))
        .filter(|(indices, _)| indices.iter().all(|&i| u64::from(i) < c.setting("max_array_size", 1001)))
        .ok_or_else(|| refused("Batch job submission failed: Invalid job array specification"))?;
    let live = c.elements.iter().filter(|e| !e.is_ended()).count();
    if live + indices.len().max(1) > c.setting("max_submit", 10_000) as usize {
        return Err(refused(
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        ));
    }
    let dependency = dependency(&c, get("dependency"))?;
    let id = c.next_id();
    if option.contains_key("test-only") {
        return Ok(Answer { err: format!("sbatch: Job {id} to start at 2025-01-01T00:00:00\n"), ..Answer::default() });
    }
    let mut element = Element::default();
    element.set("job", id);
    element.set("name", if get("job-name").is_empty() { "sbatch" } else { get("job-name") });
    element.set("state", "PENDING");
    element.set("reason", if option.contains_key("hold") { "JobHeldUser" } else { "None" });
    element.set("dependency", dependency);
    element.set("kill_dep", get("kill-on-invalid-dep"));
    element.set("requeue", if option.contains_key("no-requeue") { "no" } else { "yes" });
    element.set("throttle", throttle);
    element.set("limit_s", seconds(get("time")).ok_or_else(|| refused("Invalid --time specification"))?);
    if let Some((_, grace)) = get("signal").split_once('@').filter(|(signal, _)| *signal == "B:USR2") {
        element.set("grace_s", grace);
    }
    for (key, name) in [
        ("nodes", "nodes"),
        ("tasks_per_node", "ntasks-per-node"),
        ("cpus_per_task", "cpus-per-task"),
        ("gpus", "gpus-per-node"),
    ] {
        element.set(key, get(name));
    }
    element.set("mem_mb", get("mem").trim_end_matches('M'));
    element.set("exclude", get("exclude"));
    element.set("mail_user", get("mail-user"));
    element.set("mail_type", get("mail-type"));
    element.set("submit_ms", now_ms());
    element.set("workdir", std::env::current_dir().unwrap_or_default().display());
    let preset = if indices.is_empty() { "slurm-%j.out" } else { "slurm-%A_%a.out" };
    element.set("output", if get("output").is_empty() { preset } else { get("output") });

    for (folder, bytes) in [("scripts", script.into_bytes()), ("environments", environment())] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
        std::fs::write(root.join(folder).join(id.to_string()), bytes).unwrap();
    }
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(root.join("scripts").join(id.to_string()), mode).unwrap();
    if indices.is_empty() {
        element.set("raw", id);
        c.elements.push(element);
    } else {
        // The last element carries the array's own id.
        let last = indices.len() - 1;
        for (i, index) in indices.iter().enumerate() {
            let mut element = element.clone();
            element.set("index", index);
            element.set("raw", if i == last { id } else { id + 1 + i as u32 });
            c.elements.push(element);
        }
    }
    schedule(&mut c, bin);
    let parsable = option.contains_key("parsable");
    let reply = named.map_or(id.to_string(), |name| format!("{id};{name}"));
    Ok(Answer::ok(if parsable { format!("{reply}\n") } else { format!("Submitted batch job {id}\n") }))
}

fn environment() -> Vec<u8> {
    std::env::vars().map(|(key, value)| format!("{key}={value}\0")).collect::<String>().into_bytes()
}

/// The dependency without parents that the controller has forgotten: an old Slurm takes those as met, a new
/// one refuses the job.
fn dependency(c: &Controller, text: &str) -> Result<String, Answer> {
    let problem = || refused("Batch job submission failed: Job dependency problem");
    let mut parts = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let mut words = part.split(':');
        let kind = words.next().filter(|k| ["aftercorr", "afterok", "afterany"].contains(k)).ok_or_else(problem)?;
        for parent in words {
            let known = c.matching(parent).iter().any(|&i| c.remembers(&c.elements[i]));
            if known {
                parts.push(format!("{kind}:{parent}"));
            } else if c.config.get("rules").is_some_and(|rules| rules == "new") {
                return Err(problem());
            }
        }
    }
    Ok(parts.join(","))
}

/// `0-3,5%2` as indices and throttle; nothing for what is no array.
fn array(text: &str) -> Option<(Vec<u32>, u32)> {
    if text.is_empty() {
        return Some((Vec::new(), 0));
    }
    let (list, throttle) = text.split_once('%').unwrap_or((text, "0"));
    let mut indices = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        indices.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some((indices, throttle.parse().ok()?))
}

/// `[D-]HH:MM:SS` or minutes, in seconds. A real Slurm rounds up to minutes; this one keeps tests short.
fn seconds(text: &str) -> Option<u64> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let parts: Vec<u64> = clock.split(':').map(|p| p.parse().ok()).collect::<Option<_>>().unwrap_or_default();
    let clock = match parts.as_slice() {
        [h, m, s] => h * 3600 + m * 60 + s,
        [m, s] => m * 60 + s,
        [m] => m * 60,
        _ if text.is_empty() => 7200,
        _ => return None,
    };
    Some(days.parse::<u64>().ok()? * 86_400 + clock)
}

/// The value after a short or long option.
fn value<'a>(arguments: &'a [String], names: &[&str]) -> Option<&'a str> {
    arguments.iter().enumerate().find_map(|(i, word)| {
        let joined = names.iter().find_map(|n| word.strip_prefix(&format!("{n}=")));
        joined.or_else(|| names.contains(&word.as_str()).then(|| arguments.get(i + 1).map(String::as_str))?)
    })
}

pub fn squeue(root: &Path, arguments: &[String]) -> Answer {
    let c = Controller::open(root);
    let ids: Option<Vec<&str>> = value(arguments, &["-j", "--jobs"]).map(|ids| ids.split(',').collect());
    let name = value(arguments, &["-n", "--name"]);
    let all = value(arguments, &["-t", "--states"]) == Some("all");
    let format = value(arguments, &["-o", "--format"]).unwrap_or("%i %j %T");
    let known: Vec<&Element> = c.elements.iter().filter(|e| c.remembers(e)).collect();
    if let Some([id]) = ids.as_deref() {
        if !known.iter().any(|e| e.job().to_string() == *id || e.id() == *id) {
            return Answer::error("slurm_load_jobs error: Invalid job id specified\n");
        }
    }
    let mut out = String::new();
    for e in known {
        let asked = ids.as_ref().is_none_or(|ids| ids.iter().any(|id| *id == e.id() || *id == e.job().to_string()));
        if asked && name.is_none_or(|n| n.split(',').any(|n| n == e.text("name"))) && (all || !e.is_ended()) {
            out.push_str(&line(e, format));
            out.push('\n');
        }
    }
    Answer::ok(out)
}

fn line(e: &Element, format: &str) -> String {
    let or = |text: String, preset: &str| if text.is_empty() { preset.to_owned() } else { text };
    let time = |ms: u64| if ms == 0 { "N/A".to_owned() } else { (ms / 1000).to_string() };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            Some('F') => e.job().to_string(),
            Some('K') => or(e.text("index").to_owned(), "N/A"),
            Some('i') => e.id(),
            Some('A') => e.text("raw").to_owned(),
            // A job that was cancelled while it ran has not ended before its processes have.
            Some('T') if e.state() == "RUNNING" && e.text("ending") == "yes" => "COMPLETING".to_owned(),
            Some('T') => or(e.text("shown").to_owned(), e.state()),
            Some('r') => e.text("reason").to_owned(),
            Some('j') => e.text("name").to_owned(),
            Some('x') => e.text("exclude").to_owned(),
            Some('S') => time(e.number("start_ms")),
            Some('e') if e.is_ended() => time(e.number("end_ms")),
            Some('e') if e.state() == "RUNNING" => time(e.number("start_ms") + e.number("limit_s") * 1000),
            Some('e') => "N/A".to_owned(),
            Some('E') => {
                or(if e.state() == "PENDING" { e.text("dependency").to_owned() } else { String::new() }, "(null)")
            }
            other => format!("%{}", other.unwrap_or('%')),
        });
    }
    out
}

pub fn sacct(root: &Path, arguments: &[String]) -> Answer {
    let c = Controller::open(root);
    if c.config.get("accounting").is_none_or(|v| v != "on") {
        return Answer::error("Slurm accounting storage is disabled\n");
    }
    let ids: Vec<&str> = value(arguments, &["-j", "--jobs"]).unwrap_or_default().split(',').collect();
    let fields = value(arguments, &["-o", "--format"]).unwrap_or("JobID,State,ExitCode");
    let mut out = String::new();
    let running = c.elements.iter().filter(|e| !e.is_ended()).cloned();
    for e in c.accounts().into_iter().chain(running).filter(|e| ids.contains(&e.job().to_string().as_str())) {
        let time = |ms: u64| if ms == 0 { "Unknown".to_owned() } else { (ms / 1000).to_string() };
        let (start, end) = (e.number("start_ms"), e.number("end_ms"));
        let row: Vec<String> = fields
            .split(',')
            .map(|field| match field {
                "JobID" => e.id(),
                "JobIDRaw" => e.text("raw").to_owned(),
                "State" => e.state().to_owned(),
                "ExitCode" => {
                    if e.text("exit").is_empty() {
                        "0:0".to_owned()
                    } else {
                        e.text("exit").to_owned()
                    }
                }
                "ElapsedRaw" if start == 0 => "0".to_owned(),
                "ElapsedRaw" => (if end == 0 { now_ms() } else { end }.saturating_sub(start) / 1000).to_string(),
                "Submit" => time(e.number("submit_ms")),
                "Start" => time(start),
                "End" => time(end),
                "AllocTRES" => {
                    let one = |key: &str| e.number(key).max(1);
                    let cpus = one("nodes") * one("tasks_per_node") * one("cpus_per_task");
                    format!("cpu={cpus},gres/gpu={},node={}", one("nodes") * e.number("gpus"), one("nodes"))
                }
                "NodeList" => "f1".to_owned(),
                _ => String::new(),
            })
            .collect();
        out.push_str(&row.join("|"));
        out.push('\n');
    }
    Answer::ok(out)
}

/// Associations and qualities of service: one account without limits, one quality with `max_user`.
pub fn sacctmgr(root: &Path, arguments: &[String]) -> Answer {
    let most = Controller::open(root).config.get("max_user").cloned().unwrap_or_default();
    if arguments.iter().any(|word| word == "assoc") {
        return Answer::ok("lab|||normal|normal\n");
    }
    Answer::ok(format!("normal|{most}\n"))
}

pub fn scontrol(root: &Path, bin: &Path, arguments: &[String]) -> Answer {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut c = Controller::open(root);
    match words.as_slice() {
        ["ping"] => Answer::ok("Slurmctld(primary) at fake is UP\n"),
        ["show", "config"] => {
            let storage = if c.config.get("accounting").is_some_and(|v| v == "on") { "slurmdbd" } else { "none" };
            let enforce = if c.config.contains_key("max_user") { "associations,limits,qos" } else { "none" };
            Answer::ok(format!(
                "AccountingStorageEnforce = {enforce}\nAccountingStorageType   = accounting_storage/{storage}\nClusterName             = fake\n\
                 JobRequeue              = 1\nKillWait                = 30 sec\n\
                 MaxArraySize            = {}\nMaxJobCount             = 10000\nMinJobAge               = {} sec\n\
                 SLURM_VERSION           = 22.05.8\n\nSlurmctld(primary) at fake is UP\n",
                c.setting("max_array_size", 1001),
                c.setting("min_job_age_ms", 300_000) / 1000
            ))
        }
        ["show", "federation"] => match c.config.get("federation") {
            Some(name) => Answer::ok(format!(
                "Federation: {name}\nSelf:       fake:10.0.0.1:6817 ID:1 FedState:ACTIVE Features:\n"
            )),
            None => Answer::default(),
        },
        ["-o", "show", "partition"] => {
            let names = c.config.get("partitions").cloned().unwrap_or_else(|| "debug".to_owned());
            let line = |(i, name): (usize, &str)| {
                let down = c.config.get("partition_down").is_some_and(|down| down == name);
                format!(
                    "PartitionName={name} AllowAccounts=ALL AllowQos=ALL Default={} MaxTime={} State={} TotalNodes=1\n",
                    if i == 0 { "YES" } else { "NO" },
                    c.config.get("max_time").map_or("UNLIMITED", String::as_str),
                    if down { "DOWN" } else { "UP" }
                )
            };
            Answer::ok(names.split(',').enumerate().map(line).collect::<String>())
        }
        ["requeue", id] => requeue(&mut c, bin, id),
        // Not in a real Slurm: what happens to a job from outside.
        ["fake", kind @ ("preempt" | "node_fail" | "zombie"), id] => {
            std::fs::write(root.join(format!("ask.{id}")), kind).unwrap();
            Answer::default()
        }
        // Nor this: a job that waits could not be started on a node.
        ["fake", "launch_failed", id] => {
            for i in c.matching(id) {
                c.elements[i].set("reason", "launch failed requeued held");
            }
            c.save();
            Answer::default()
        }
        // Nor this: squeue calls its state by another word.
        ["fake", "shown", id, word] => {
            for i in c.matching(id) {
                c.elements[i].set("shown", word);
            }
            c.save();
            Answer::default()
        }
        ["release", id] => {
            for i in c.matching(id) {
                c.elements[i].set("reason", "None");
            }
            schedule(&mut c, bin);
            Answer::default()
        }
        ["update", changes @ ..] => {
            let get = |key: &str| {
                changes
                    .iter()
                    .filter_map(|w| w.split_once('='))
                    .find(|(k, _)| k.eq_ignore_ascii_case(key))
                    .map(|(_, v)| v)
            };
            for i in c.matching(get("jobid").unwrap_or_default()) {
                let id = c.elements[i].id();
                // A job that was put back is pending from that moment on, although its script still ends.
                let requeued =
                    std::fs::read_to_string(root.join(format!("ask.{id}"))).is_ok_and(|ask| ask == "requeue");
                let e = &mut c.elements[i];
                for (name, key) in [("MailUser", "mail_user"), ("MailType", "mail_type")] {
                    if let Some(value) = get(name) {
                        e.set(key, value);
                    }
                }
                // Whom to mail may be changed at any time.
                if get("MailType").is_some() {
                    continue;
                }
                if e.state() != "PENDING" && !requeued {
                    return Answer::error(format!("Job is no longer pending execution for job {id}\n"));
                }
                if let Some(dependency) = get("dependency") {
                    e.set("dependency", dependency);
                    e.set("reason", "Dependency");
                }
                for (name, key) in [("MinMemoryNode", "mem_mb"), ("ExcNodeList", "exclude")] {
                    if let Some(value) = get(name) {
                        e.set(key, value);
                    }
                }
                if let Some(limit) = get("TimeLimit").and_then(seconds) {
                    e.set("limit_s", limit);
                }
            }
            schedule(&mut c, bin);
            Answer::default()
        }
        _ => Answer::error(format!("scontrol: error: the fake Slurm does not know {words:?}\n")),
    }
}

fn requeue(c: &mut Controller, bin: &Path, id: &str) -> Answer {
    let root = c.root.clone();
    let hits = c.matching(id);
    if hits.is_empty() {
        return Answer::error("Invalid job id specified\n");
    }
    for i in hits {
        let e = &mut c.elements[i];
        if e.text("requeue") != "yes" {
            return Answer::error(format!("Requested operation is presently disabled for job {id}\n"));
        }
        match e.state() {
            "RUNNING" => std::fs::write(root.join(format!("ask.{}", e.id())), "requeue").unwrap(),
            "PENDING" => return Answer::error(format!("Job is pending execution for job {id}\n")),
            _ => {
                e.set("state", "PENDING");
                e.set("reason", "None");
                e.set("end_ms", 0);
                e.set("restarts", e.number("restarts") + 1);
            }
        }
    }
    schedule(c, bin);
    Answer::default()
}

pub fn scancel(root: &Path, bin: &Path, arguments: &[String]) -> Answer {
    let mut c = Controller::open(root);
    let signal = value(arguments, &["-s", "--signal"]).map(|s| match s.trim_start_matches("SIG") {
        "USR1" => USR1,
        "USR2" => USR2,
        "HUP" => HUP,
        "KILL" => KILL,
        _ => TERM,
    });
    let mut answer = Answer::default();
    for id in arguments.iter().filter(|a| a.starts_with(|c: char| c.is_ascii_digit())) {
        let hits = c.matching(id);
        if !hits.iter().any(|&i| c.remembers(&c.elements[i])) {
            answer.err.push_str(&format!("scancel: error: Kill job error on job id {id}: Invalid job id specified\n"));
            answer.code = 1;
        }
        for i in hits {
            match (c.elements[i].state(), signal) {
                // To the batch shell, as with --batch.
                ("RUNNING", Some(signal)) => send(c.elements[i].number("pid") as i32, signal),
                ("RUNNING", None) => {
                    c.elements[i].set("ending", "yes");
                    std::fs::write(root.join(format!("ask.{}", c.elements[i].id())), "cancel").unwrap()
                }
                ("PENDING", None) => {
                    c.elements[i].end("CANCELLED", "None");
                    let ended = c.elements[i].clone();
                    c.account(&ended, "CANCELLED");
                }
                _ => {}
            }
        }
    }
    schedule(&mut c, bin);
    answer
}

/// One task: the program itself; more: under mpirun, kept from asking the fake for its ranks.
pub fn srun(root: &Path, arguments: &[String]) -> ! {
    if arguments == ["--mpi=list"] {
        eprintln!("MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4");
        std::process::exit(0)
    }
    let program = arguments.iter().position(|word| !word.starts_with('-')).unwrap_or(arguments.len());
    let words = &arguments[program..];
    let said = arguments[..program].iter().find_map(|word| word.strip_prefix("--ntasks=")).map(str::to_owned);
    let tasks = said.or_else(|| std::env::var("SLURM_NTASKS").ok()).unwrap_or_else(|| "1".to_owned());
    let mut command = if tasks == "1" {
        let mut command = Command::new(words.first().map_or("", String::as_str));
        command.args(&words[1.min(words.len())..]).env("SLURM_PROCID", "0");
        command
    } else {
        let mut command = Command::new("mpirun");
        command.args(["--mca", "plm", "^slurm", "--mca", "ras", "^slurm", "--oversubscribe", "-n", &tasks]).args(words);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("OMPI_MCA_mpi_yield_when_idle", "1");
        command
    };
    let error = if config(root).get("enforce_memory").is_some_and(|v| v == "on") {
        within_memory(&mut command)
    } else {
        command.exec()
    };
    eprintln!("srun: error: {error}");
    std::process::exit(1)
}

/// Runs one task and kills it once it has held more than the job's memory, as the kernel does for Slurm; says what it held at
/// most.
fn within_memory(command: &mut Command) -> std::io::Error {
    let limit_mb = std::env::var("SLURM_MEM_PER_NODE").ok().and_then(|text| text.parse::<u64>().ok());
    let limit_kb = limit_mb.map_or(u64::MAX, |mb| mb * 1024);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return error,
    };
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kb = 0;
    let (killed, code) = loop {
        // The kernel's own mark: what lasted shorter than a look is in it, too.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_kb = peak_kb.max(mark.unwrap_or(0));
        if peak_kb > limit_kb {
            let _ = child.kill();
            let _ = child.wait();
            break (true, 1);
        }
        match child.try_wait() {
            Ok(Some(status)) => break (false, status.code().unwrap_or(1)),
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(2)),
            Err(error) => return error,
        }
    };
    println!("fake: peak {peak_kb} kB");
    if killed {
        eprintln!(
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed."
        );
        eprintln!("srun: error: f1: task 0: Out Of Memory");
    }
    std::process::exit(code)
}
