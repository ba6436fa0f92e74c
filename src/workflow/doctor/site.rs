//! What Slurm says of the site, asked from this node.

use std::collections::BTreeMap;

use super::{Finding, Patient};
use crate::record::attempt;
use crate::workflow::slurm::config::Presence;
use crate::workflow::slurm::script::Launcher;
use crate::workflow::slurm::{Client, SlurmError, allowance, federation};

/// Commands that everything needs.
const NEEDED: [&str; 5] = ["sbatch", "squeue", "scontrol", "scancel", "srun"];

/// Looks at the site; whether jobs can be submitted.
pub fn examine(patient: &Patient, note: &mut dyn FnMut(Finding)) -> bool {
    let client = &patient.client;
    if client.find("sbatch").is_none() && !patient.named {
        note(Finding::skipped("slurm", "there is none here: `run_all` runs studies on this machine"));
        return false;
    }
    let commands = commands(client);
    let found = commands.outcome == super::Outcome::Ok;
    note(commands);
    if !found {
        return false;
    }
    let settings = match controller(client) {
        Ok((finding, settings)) => {
            note(finding);
            settings
        }
        Err(finding) => {
            note(finding);
            return false;
        }
    };
    let federation = federated(client);
    let mut ready = federation.outcome != super::Outcome::Failed;
    note(federation);
    patient.cluster.site.clusters.iter().map(|name| other_cluster(client, name)).for_each(&mut *note);
    let accounts = settings.get("AccountingStorageType").is_some_and(|v| !v.ends_with("/none") && v != "(null)");
    note(Finding::ok(
        "accounting",
        if accounts { "on: `sacct` knows what jobs held" } else { "off: hours are counted by the records of attempts" },
    ));
    let rows = if accounts { associations(client) } else { Err("the site keeps no accounts".to_owned()) };
    note(account(patient, &rows));
    note(qos(patient, &rows));
    let partitions = partitions(client);
    for name in patient.partitions() {
        let finding = partition(patient, name.as_deref(), &partitions);
        ready &= finding.outcome != super::Outcome::Failed;
        note(finding);
    }
    patient.partitions().into_iter().map(|name| super::nodes::trial(patient, name)).for_each(&mut *note);
    note(limits(patient, &settings));
    note(requeue(patient, &settings));
    note(signal(patient, &settings));
    note(launcher(patient));
    ready
}

fn commands(client: &Client) -> Finding {
    let lost: Vec<String> = NEEDED.iter().filter(|p| client.find(p).is_none()).map(|p| format!("`{p}`")).collect();
    if !lost.is_empty() {
        let said = format!("{} is not on PATH", lost.join(", "));
        return Finding::failed("slurm", said, "`module load slurm`, or ask the site where its Slurm lies");
    }
    let place = client.find("sbatch").and_then(|p| p.parent().map(|p| p.display().to_string())).unwrap_or_default();
    let version = ask(client, "sbatch", &["--version"]).unwrap_or_default();
    let version = version.lines().next().unwrap_or("of an unknown version").to_owned();
    let more: Vec<&str> = ["sacct", "sacctmgr"].into_iter().filter(|p| client.find(p).is_none()).collect();
    let more = if more.is_empty() { String::new() } else { format!(" (without {})", more.join(" and ")) };
    Finding::ok("slurm", format!("{version} in {place}{more}"))
}

/// Whether the controller answers, and its settings.
fn controller(client: &Client) -> Result<(Finding, BTreeMap<String, String>), Finding> {
    let ask_site = "see whether the site is being maintained; `scontrol ping` answers when it is over";
    match Presence::of(client) {
        Ok(Presence::Ready) => {}
        Ok(Presence::NotAnswering(why)) => {
            return Err(Finding::failed("controller", format!("it does not answer: {why}"), ask_site));
        }
        Ok(Presence::NotConfigured(why)) => {
            let said = format!("this machine belongs to no cluster: {why}");
            return Err(Finding::failed("controller", said, "log in to the cluster's login node, or run with --local"));
        }
        Ok(Presence::NotInstalled) => {
            return Err(Finding::failed("controller", "there is no Slurm here", "run with --local"));
        }
        Err(error) => return Err(Finding::failed("controller", error.to_string(), ask_site)),
    }
    let text = ask(client, "scontrol", &["show", "config"])
        .map_err(|error| Finding::failed("controller", error.to_string(), ask_site))?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let settings: BTreeMap<String, String> =
        pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
    let name = settings.get("ClusterName").map_or("?", String::as_str);
    Ok((Finding::ok("controller", format!("cluster `{name}` answers")), settings))
}

fn federated(client: &Client) -> Finding {
    match federation::of(client) {
        Ok(None) => Finding::ok("federation", "none"),
        Ok(Some(name)) => Finding::failed(
            "federation",
            format!("this cluster belongs to `{name}`: one id may run on any of its clusters"),
            "submit from a cluster outside of it, or run with --local",
        ),
        Err(error) => Finding::skipped("federation", error.to_string()),
    }
}

fn other_cluster(client: &Client, name: &str) -> Finding {
    let check = format!("cluster({name})");
    match Presence::of(&client.at(Some(name))) {
        Ok(Presence::Ready) => Finding::ok(&check, "answers"),
        _ => Finding::failed(
            &check,
            "does not answer `scontrol -M`",
            "`sacctmgr show cluster` lists the names; correct `clusters` in the cluster file",
        ),
    }
}

/// Accounts and qualities of service of this user.
fn associations(client: &Client) -> Result<Vec<(String, String)>, String> {
    let user = format!("user={}", attempt::user_name());
    let words = ["-n", "-P", "show", "assoc", &user, "format=Account,Partition,MaxSubmitJobs,QOS,DefaultQOS"];
    let text = ask(client, "sacctmgr", &words).map_err(|e| e.to_string())?;
    let rows = text.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    Ok(rows.filter(|row| row.len() == 5).map(|row| (row[0].to_owned(), row[3].to_owned())).collect())
}

type Rows = Result<Vec<(String, String)>, String>;

fn account(patient: &Patient, rows: &Rows) -> Finding {
    let said = patient.cluster.site.account.as_deref();
    match (said, rows) {
        (said, Err(why)) => Finding::skipped(
            "account",
            format!("{}: {why}", said.map_or("the site's own".into(), |a| format!("`{a}`"))),
        ),
        (None, Ok(rows)) if rows.is_empty() => Finding::failed(
            "account",
            "you have none here",
            "ask the site for a project, or for the account that jobs must name; then say `account = \"...\"`",
        ),
        (None, Ok(_)) => Finding::ok("account", "the site's own"),
        (Some(account), Ok(rows)) if rows.iter().any(|row| row.0 == account) => {
            Finding::ok("account", format!("`{account}`"))
        }
        (Some(account), Ok(rows)) => Finding::failed(
            "account",
            format!("`{account}` is none of yours (there are: {})", listed(rows.iter().map(|row| row.0.as_str()))),
            "correct `account` in the cluster file",
        ),
    }
}

fn qos(patient: &Patient, rows: &Rows) -> Finding {
    let Some(qos) = patient.cluster.site.qos.as_deref() else { return Finding::ok("qos", "the site's own") };
    let rows = match rows {
        Ok(rows) => rows,
        Err(why) => return Finding::skipped("qos", format!("`{qos}`: {why}")),
    };
    let account = patient.cluster.site.account.as_deref();
    let ours = rows.iter().filter(|row| account.is_none_or(|account| account == row.0));
    let names: Vec<&str> = ours.flat_map(|row| row.1.split(',')).map(str::trim).filter(|q| !q.is_empty()).collect();
    if names.contains(&qos) {
        return Finding::ok("qos", format!("`{qos}`"));
    }
    let said = format!("`{qos}` is none of yours (there are: {})", listed(names));
    Finding::failed("qos", said, "correct `qos` in the cluster file")
}

fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Partitions by name, with what is said of each.
fn partitions(client: &Client) -> Result<BTreeMap<String, BTreeMap<String, String>>, SlurmError> {
    let text = ask(client, "scontrol", &["-o", "show", "partition"])?;
    let mut partitions = BTreeMap::new();
    for line in text.lines() {
        let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        let settings: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        if let Some(name) = settings.get("PartitionName") {
            partitions.insert(name.clone(), settings.clone());
        }
    }
    Ok(partitions)
}

type Partitions = Result<BTreeMap<String, BTreeMap<String, String>>, SlurmError>;

fn partition(patient: &Patient, name: Option<&str>, known: &Partitions) -> Finding {
    let check = name.map_or("partition".to_owned(), |name| format!("partition({name})"));
    let known = match known {
        Ok(known) => known,
        Err(error) => return Finding::skipped(&check, error.to_string()),
    };
    let is = |p: &BTreeMap<String, String>, key: &str, value: &str| p.get(key).is_some_and(|v| v == value);
    let found = match name {
        Some(name) => known.get(name),
        None => known.values().find(|p| is(p, "Default", "YES")),
    };
    let Some(found) = found else {
        let said = match name {
            Some(name) => format!("`{name}` is no partition here"),
            None => "the site presets none".to_owned(),
        };
        let said = format!("{said} (there are: {})", listed(known.keys().map(String::as_str)));
        return Finding::failed(&check, said, "correct `partition`; `sinfo -s` lists them");
    };
    let get = |key: &str| found.get(key).map_or("?", String::as_str);
    let allows = |key: &str, wanted: Option<&str>| {
        let list = get(key);
        wanted
            .is_none_or(|wanted| ["?", "ALL", "(null)", "N/A"].contains(&list) || list.split(',').any(|a| a == wanted))
    };
    for (key, wanted) in [("AllowAccounts", &patient.cluster.site.account), ("AllowQos", &patient.cluster.site.qos)] {
        if !allows(key, wanted.as_deref()) {
            let said = format!("{} does not take `{}`", get("PartitionName"), wanted.as_deref().unwrap_or_default());
            return Finding::failed(&check, format!("{said} ({key}={})", get(key)), "take another of the two");
        }
    }
    let said = format!(
        "`{}`, {}, time limit {}, {} nodes",
        get("PartitionName"),
        get("State"),
        get("MaxTime"),
        get("TotalNodes")
    );
    if is(found, "State", "UP") {
        Finding::ok(&check, said)
    } else {
        Finding::warning(&check, said, "jobs wait there until it is up again; `sinfo -R` tells why")
    }
}

fn limits(patient: &Patient, settings: &BTreeMap<String, String>) -> Finding {
    let site = &patient.cluster.site;
    let number = |key: &str| settings.get(key).map_or("?", String::as_str);
    let mut said = format!("array index below {}, {} jobs in all", number("MaxArraySize"), number("MaxJobCount"));
    let (account, partition, qos) = (site.account.as_deref(), site.partition.as_deref(), site.qos.as_deref());
    match allowance::of(&patient.client, &attempt::user_name(), account, partition, qos) {
        Ok(Some(own)) => {
            said.push_str(&format!(", {} of yours at a time ({}), {} taken", own.most, own.by, own.queued))
        }
        Ok(None) => {}
        Err(error) => said.push_str(&format!("; how many of yours is not known: {error}")),
    }
    let site_most = settings.get("MaxArraySize").and_then(|v| v.parse::<u32>().ok());
    match (patient.cluster.max_array_size, site_most) {
        (Some(own), Some(most)) if own > most => Finding::failed(
            "limits",
            format!("`max_array_size = {own}` is more than the site's {most}"),
            "remove it: Slurm is asked",
        ),
        _ => Finding::ok("limits", said),
    }
}

fn requeue(patient: &Patient, settings: &BTreeMap<String, String>) -> Finding {
    let allowed = settings.get("JobRequeue").is_none_or(|v| v != "0");
    match (patient.cluster.site.requeue, allowed) {
        (true, true) => Finding::ok("requeue", "jobs requeue themselves"),
        (true, false) => Finding::warning(
            "requeue",
            "JobRequeue = 0: only jobs that ask for it are requeued, as ours do",
            "where the site forbids that as well, say `requeue = false`",
        ),
        (false, _) => Finding::ok("requeue", "no: cells that can go on are chains of links"),
    }
}

fn signal(patient: &Patient, settings: &BTreeMap<String, String>) -> Finding {
    let wait = settings.get("KillWait").map_or("?", String::as_str);
    let grace_s = patient.cluster.grace_s;
    let said = format!("SIGUSR2 {grace_s} s before a time limit; {wait} between SIGTERM and SIGKILL");
    match wait.split(' ').next().and_then(|n| n.parse::<u32>().ok()) {
        Some(seconds) if seconds < 10 => Finding::warning(
            "signal",
            said,
            "too short to save at SIGTERM: preempted cells go back to their last checkpoint; save more often",
        ),
        _ => Finding::ok("signal", said),
    }
}

fn launcher(patient: &Patient) -> Finding {
    match &patient.cluster.site.launcher {
        Launcher::None => Finding::ok("launcher", "none: stages are started as they are"),
        // Whether it is there with the modules loaded is looked at below.
        Launcher::Command(words) => Finding::ok("launcher", format!("`{}`", words.join(" "))),
        Launcher::Srun { mpi, .. } => {
            let reply = patient.client.ask_site(&["srun".to_owned(), "--mpi=list".to_owned()]);
            let text = reply.map(|r| format!("{}\n{}", r.stdout, r.stderr)).unwrap_or_default();
            let plugins = plugins(&text);
            if plugins.is_empty() {
                Finding::skipped("launcher", format!("srun --mpi={mpi}: `srun --mpi=list` lists nothing"))
            } else if plugins.iter().any(|p| p == mpi) {
                Finding::ok("launcher", format!("srun --mpi={mpi}"))
            } else {
                let said = format!("srun knows no `{mpi}` (there are: {})", listed(plugins.iter().map(String::as_str)));
                Finding::failed("launcher", said, "set `mpi` to one of them, or `launcher = [\"mpirun\"]`")
            }
        }
    }
}

/// Plugins that `srun --mpi=list` names: one a line, and versions of one behind a colon.
fn plugins(text: &str) -> Vec<String> {
    let name = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches("srun: ").trim();
        match line.split_once("available:") {
            Some((_, versions)) => {
                found.extend(versions.split(',').map(str::trim).filter(|w| name(w)).map(str::to_owned))
            }
            None if name(line) => found.push(line.to_owned()),
            None => {}
        }
    }
    found
}

/// What a command printed.
fn ask(client: &Client, program: &str, arguments: &[&str]) -> Result<String, SlurmError> {
    let words: Vec<String> = std::iter::once(program).chain(arguments.iter().copied()).map(str::to_owned).collect();
    let reply = client.ask_site(&words)?;
    if reply.status.success() {
        return Ok(reply.stdout);
    }
    Err(SlurmError::Failed { program: program.to_owned(), code: reply.status.code(), message: reply.message() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpi_plugins_of_old_and_new_slurms() {
        let old = "srun: MPI types are...\nsrun: cray_shasta\nsrun: none\nsrun: pmi2\nsrun: pmix\nsrun: pmix_v4\n";
        assert_eq!(plugins(old), ["cray_shasta", "none", "pmi2", "pmix", "pmix_v4"]);
        let new = "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4,pmix_v5\n";
        assert_eq!(plugins(new), ["none", "pmi2", "pmix", "pmix_v4", "pmix_v5"]);
        assert!(plugins("").is_empty());
    }
}
