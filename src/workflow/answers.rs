//! What Slurm says about the jobs of a study, asked at most once in 15 seconds by all programs of one user.
//!
//! The answer lies in `.seedbed/answers-<uid>.json`. Whoever finds it too old asks: one squeue for all jobs, and one
//! sacct for elements that squeue has forgotten and whose end nobody has written down. The others wait for that
//! answer. That there was none is kept as well, so that a controller that is down is not asked by everybody; what was
//! known before stays. It is a cache: without the file, or where it cannot be written, the same is asked more often.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::lock::Lock;
use super::slurm::accounting::{self, Accounting, Record};
use super::slurm::config::Limits;
use super::slurm::queue::{self, Entry};
use super::slurm::{Client, Element, Liveness, SlurmError};
use crate::record::files;

/// How long an answer is good.
pub const FRESH_FOR: Duration = Duration::from_secs(15);

/// Format version of the file.
const ANSWERS_VERSION: u32 = 1;

/// How long an asker is waited for: squeue and sacct each have 30 s.
const PATIENCE: Duration = Duration::from_secs(75);

/// How long sacct is left alone about elements that it did not know.
const LEAVE_SACCT_S: i64 = 60;

/// How long it is believed that a site keeps no accounts.
const NO_ACCOUNTS_S: i64 = 24 * 3600;

/// A job that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its id.
    pub id: u32,
    /// Its unique name: another job may have the id on another cluster.
    pub name: String,
    /// The cluster that the journal names.
    pub cluster: String,
    /// When it was submitted.
    pub time: DateTime<Utc>,
    /// The Slurm cluster that has it, where the site has several.
    pub home: Option<String>,
    /// Its elements that matter: sacct is asked about those that squeue has forgotten and whose end nobody has written
    /// down.
    pub open: Vec<Element>,
}

/// What Slurm said, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Format version.
    version: u32,
    /// When it was asked last.
    pub asked_at: DateTime<Utc>,
    /// By which host's clock.
    host: String,
    /// When squeue answered last.
    pub answered_at: Option<DateTime<Utc>>,
    /// Why there was no answer when it was asked last.
    pub problem: Option<String>,
    /// Jobs that it was asked about.
    jobs: BTreeSet<u32>,
    /// What squeue said when it answered last, by element.
    queue: Vec<Entry>,
    /// What sacct said of elements that squeue has forgotten, by element, the last run of each last.
    records: Vec<Record>,
    /// Why sacct gave no answer.
    pub accounting_problem: Option<String>,
    /// Since when it is known that the site keeps no accounts.
    no_accounts_since: Option<DateTime<Utc>>,
    /// Elements that sacct did not know, and when it said so.
    not_in_accounts: Option<(DateTime<Utc>, BTreeSet<Element>)>,
    /// Names of clusters that are the one which this host asks, by host.
    clusters: BTreeMap<String, Names>,
}

/// What a host's cluster is called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Names {
    /// Its names in journals.
    names: BTreeSet<String>,
    /// Whether Slurm itself was asked.
    asked: bool,
}

/// What is known of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Said<'a> {
    /// squeue knows it.
    Listed(&'a Entry),
    /// Slurm answers, and squeue has forgotten it: it has ended. What sacct knows of its last run.
    Forgotten(Option<&'a Record>),
    /// Nobody could be asked. What squeue said the last time it answered.
    Silent(Option<&'a Entry>),
}

impl Answers {
    fn empty() -> Self {
        Self {
            version: ANSWERS_VERSION,
            asked_at: DateTime::UNIX_EPOCH,
            host: files::host_name(),
            answered_at: None,
            problem: None,
            jobs: BTreeSet::new(),
            queue: Vec::new(),
            records: Vec::new(),
            accounting_problem: None,
            no_accounts_since: None,
            not_in_accounts: None,
            clusters: BTreeMap::new(),
        }
    }

    /// What was known before, where nobody can be asked now, and why not.
    pub fn unasked(own: &Path, why: &str) -> Self {
        let known = read(own).unwrap_or_else(Self::empty);
        Self { problem: Some(why.to_owned()), ..known }
    }

    /// What is known of an element of a job of that name, submitted to that cluster.
    pub fn of(&self, element: Element, name: &str, cluster: &str) -> Said<'_> {
        // Two clusters may have given one id.
        let from = self.queue.partition_point(|e| e.element < element);
        let same = self.queue[from..].iter().take_while(|e| e.element == element);
        let listed = same.into_iter().find(|entry| entry.name == name);
        match (&self.problem, listed) {
            (Some(_), last) => Said::Silent(last),
            (None, Some(entry)) => Said::Listed(entry),
            (None, None) if self.is_here(cluster) => {
                let behind = self.records.partition_point(|record| record.element <= element);
                Said::Forgotten(self.records[..behind].last().filter(|record| record.element == element))
            }
            (None, None) => Said::Silent(None),
        }
    }

    /// Whether the cluster that journals call `name` is the one that this host asks.
    pub fn is_here(&self, name: &str) -> bool {
        self.clusters.get(&files::host_name()).is_some_and(|known| known.names.contains(name))
    }

    /// Whether the site is known to keep no accounts.
    pub fn has_no_accounts(&self) -> bool {
        self.no_accounts_since.is_some()
    }

    /// Time by the clock of the file system, which dates what jobs write there; this host's where that is not known.
    pub fn file_time(&self, own: &Path) -> DateTime<Utc> {
        let now = Utc::now();
        let written = std::fs::metadata(path(own)).and_then(|m| m.modified()).ok().map(DateTime::<Utc>::from);
        match written {
            Some(written) if self.host == files::host_name() && self.asked_at != DateTime::UNIX_EPOCH => {
                now + (written - self.asked_at)
            }
            _ => now,
        }
    }

    fn is_fresh(&self) -> bool {
        let age = Utc::now() - self.asked_at;
        // A clock that goes wrong costs questions, and never stops them.
        age.abs() < TimeDelta::from_std(FRESH_FOR).unwrap_or_default()
    }

    fn covers(&self, asked: &[Asked]) -> bool {
        asked.iter().all(|job| self.jobs.contains(&job.id))
    }
}

/// Where the answers of this user lie.
pub fn path(own: &Path) -> PathBuf {
    own.join(format!("{}.json", base_name()))
}

fn base_name() -> String {
    // SAFETY: getuid cannot fail.
    format!("answers-{}", unsafe { libc::getuid() })
}

fn read(own: &Path) -> Option<Answers> {
    // Damaged or of another version: asked anew.
    files::read_json::<Answers>(&path(own)).ok().filter(|a| a.version == ANSWERS_VERSION)
}

/// Makes the next question go to Slurm: something was changed there.
pub fn forget(own: &Path) {
    // Without it others see the old answer for some seconds.
    let _ = std::fs::remove_file(path(own));
}

/// What Slurm says about `asked`: the answer that is there if it is fresh, else a new one. `cluster` is the cluster file
/// that the person named; `told` says whether an element's end is written down.
pub fn ask(
    client: &Client,
    own: &Path,
    asked: &[Asked],
    cluster: Option<&str>,
    told: &dyn Fn(Element) -> bool,
) -> Answers {
    let fresh = || read(own).filter(|known| known.is_fresh() && known.covers(asked));
    if let Some(known) = fresh() {
        return known;
    }
    // Held until the answer is written; where nothing can be written, everybody asks.
    let turn = Lock::take_turn(own, &format!("{}.asking", base_name()), PATIENCE);
    if turn.is_ok()
        && let Some(known) = fresh()
    {
        return known;
    }
    let answers = question(client, read(own).unwrap_or_else(Answers::empty), asked, cluster, told);
    if turn.is_ok() {
        let _ = files::write_json(&path(own), &answers);
    }
    answers
}

fn question(
    client: &Client,
    known: Answers,
    asked: &[Asked],
    cluster: Option<&str>,
    told: &dyn Fn(Element) -> bool,
) -> Answers {
    let host = files::host_name();
    let mut answers = Answers {
        host: host.clone(),
        problem: None,
        accounting_problem: None,
        jobs: asked.iter().map(|job| job.id).collect(),
        ..known
    };
    match queues(client, asked) {
        Ok(queue) => {
            answers.queue = queue;
            answers.answered_at = Some(Utc::now());
            learn_clusters(client, &mut answers, &host, asked, cluster);
            ask_accounting(client, &mut answers, asked, told);
        }
        // What was known stays.
        Err(error) => answers.problem = Some(error.to_string()),
    }
    answers.asked_at = Utc::now();
    answers
}

/// The jobs by the Slurm cluster that has them: one group for most sites.
fn by_home<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> BTreeMap<Option<&'a str>, Vec<&'a Asked>> {
    let mut groups: BTreeMap<Option<&str>, Vec<&Asked>> = BTreeMap::new();
    for job in asked {
        groups.entry(job.home.as_deref()).or_default().push(job);
    }
    groups
}

/// What every squeue says of our jobs, by element.
fn queues(client: &Client, asked: &[Asked]) -> Result<Vec<Entry>, SlurmError> {
    let mut entries = Vec::new();
    for (home, jobs) in by_home(asked) {
        let names: BTreeMap<u32, &str> = jobs.iter().map(|job| (job.id, job.name.as_str())).collect();
        let ids: Vec<u32> = names.keys().copied().collect();
        let ours = |e: &&Entry| names.get(&e.element.job).is_some_and(|name| *name == e.name);
        entries.extend(queue::query(&client.at(home), &ids)?.entries().filter(ours).cloned());
    }
    entries.sort_by_key(|entry| entry.element);
    Ok(entries)
}

/// What every sacct says of these jobs.
fn accounts(client: &Client, jobs: &[&Asked]) -> Result<Accounting, SlurmError> {
    let mut records = Vec::new();
    for (home, jobs) in by_home(jobs.iter().copied()) {
        let ids: BTreeSet<u32> = jobs.iter().map(|job| job.id).collect();
        let ids: Vec<u32> = ids.into_iter().collect();
        let since = jobs.iter().map(|job| job.time.timestamp()).min();
        match accounting::query(&client.at(home), &ids, since.unwrap_or_default())? {
            Accounting::Disabled => return Ok(Accounting::Disabled),
            Accounting::Records(more) => records.extend(more),
        }
    }
    Ok(Accounting::Records(records))
}

/// Learns which names of clusters in the journal are the cluster that was asked: the one that the person named, those
/// of jobs that are there under their own name, and last what Slurm calls itself.
fn learn_clusters(client: &Client, answers: &mut Answers, host: &str, asked: &[Asked], cluster: Option<&str>) {
    let listed: BTreeSet<u32> = answers.queue.iter().map(|e| e.element.job).collect();
    let known = answers.clusters.entry(host.to_owned()).or_default();
    known.names.extend(cluster.map(str::to_owned));
    known.names.extend(asked.iter().filter(|job| listed.contains(&job.id)).map(|job| job.cluster.clone()));
    let all_known = asked.iter().all(|job| known.names.contains(&job.cluster));
    if !all_known && !known.asked {
        if let Ok(limits) = Limits::of(client) {
            known.asked = true;
            known.names.extend(limits.cluster);
        }
    }
}

fn ask_accounting(client: &Client, answers: &mut Answers, asked: &[Asked], has_said: &dyn Fn(Element) -> bool) {
    let now = Utc::now();
    let listed: BTreeSet<Element> = answers.queue.iter().map(|e| e.element).collect();
    // What lives again has a new end to come.
    let alive: BTreeSet<Element> =
        answers.queue.iter().filter(|e| e.liveness() != Liveness::Ended).map(|e| e.element).collect();
    answers.records.retain(|record| !alive.contains(&record.element) && answers.jobs.contains(&record.element.job));
    let told: BTreeSet<Element> = answers.records.iter().map(|record| record.element).collect();
    let here: Vec<&Asked> = asked.iter().filter(|job| answers.is_here(&job.cluster)).collect();
    let unknown: BTreeSet<Element> = here
        .iter()
        .flat_map(|job| &job.open)
        .filter(|element| !listed.contains(*element) && !told.contains(*element) && !has_said(**element))
        .copied()
        .collect();
    let left_alone = answers.not_in_accounts.as_ref().is_some_and(|(time, elements)| {
        (now - *time).abs() < TimeDelta::seconds(LEAVE_SACCT_S) && unknown.is_subset(elements)
    });
    let no_accounts =
        answers.no_accounts_since.is_some_and(|since| (now - since).abs() < TimeDelta::seconds(NO_ACCOUNTS_S));
    if unknown.is_empty() || left_alone || no_accounts {
        return;
    }
    let ids: BTreeSet<u32> = unknown.iter().map(|element| element.job).collect();
    let jobs: Vec<&Asked> = here.into_iter().filter(|job| ids.contains(&job.id)).collect();
    answers.no_accounts_since = None;
    match accounts(client, &jobs) {
        Ok(Accounting::Disabled) => answers.no_accounts_since = Some(now),
        Ok(Accounting::Records(records)) => {
            answers.records.extend(records.into_iter().filter(|record| unknown.contains(&record.element)));
            answers.records.sort_by_key(|record| (record.element, record.submit_s, record.start_s));
            let told: BTreeSet<Element> = answers.records.iter().map(|record| record.element).collect();
            answers.not_in_accounts = Some((now, unknown.difference(&told).copied().collect()));
        }
        Err(error) => {
            answers.accounting_problem = Some(error.to_string());
            answers.not_in_accounts = Some((now, unknown));
        }
    }
}
