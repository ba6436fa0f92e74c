//! Why a cell is not running, or not done: from its seal, from where it stands, and down to the cells that it waits for.
//! Each reason has a name that stays, words, and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::answers::Said;
use super::bill;
use super::history::CellFate;
use super::lock::Lock;
use super::logs;
use super::plan::{CellState, Halt, SealView};
use super::slurm::queue::Entry;
use super::slurm::reason;
use super::standing::{Cause, Standing, Word};
use super::status::{CellLook, Look};
use crate::record::seal::INVALID_FILE;
use crate::record::{Change, exit, files, flag};

/// How many of the cells that hold a cell up are explained in full.
const ROOTS: usize = 3;

/// Lines of a log that are shown.
const LOG_LINES: usize = 5;

/// Where a cell stands, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The cell.
    pub cell: String,
    /// Where it stands.
    pub state: Word,
    /// Whether its stage goes on from a checkpoint when it is cut short; else it begins anew.
    pub resumable: bool,
    /// Why, the nearest first.
    pub reasons: Vec<Reason>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reason {
    /// Its name, for programs.
    pub cause: &'static str,
    /// The cell that it is about: the one that was asked for, or one that it waits for.
    pub cell: String,
    /// In words.
    pub text: String,
    /// What to do; empty where waiting is all there is.
    pub advice: Vec<String>,
    /// The end of the log that tells more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// Explains the cell `index` of the plan. `study` is how the study is said on a command line.
pub fn explain(look: &Look, index: usize, study: &str) -> Explanation {
    let context = Context { look, study };
    let mut reasons = context.own(index);
    if !look.prepared.plan.cells[index].state.is_done() {
        reasons.extend(context.behind(index));
    }
    if reasons.is_empty() {
        reasons.push(context.never_submitted(index));
    }
    let state = look.cells[index].standing.word;
    Explanation { cell: context.name(index), state, resumable: context.resumable(index), reasons }
}

struct Context<'a> {
    look: &'a Look,
    study: &'a str,
}

impl Context<'_> {
    fn name(&self, index: usize) -> String {
        self.look.prepared.plan.cells[index].def.key.local_name()
    }

    fn cell(&self, index: usize) -> &CellLook {
        &self.look.cells[index]
    }

    fn resumable(&self, index: usize) -> bool {
        bill::resumable(&self.look.prepared.study.stages[self.look.prepared.plan.cells[index].def.stage])
    }

    fn run_dir(&self, index: usize) -> std::path::PathBuf {
        self.look.prepared.place.run_dir(&self.look.prepared.plan.cells[index].def.key)
    }

    fn reason(&self, index: usize, cause: &'static str, text: impl Into<String>, advice: &[String]) -> Reason {
        let advice = advice.iter().filter(|a| !a.is_empty()).cloned().collect();
        Reason { cause, cell: self.name(index), text: text.into(), advice, log: Vec::new() }
    }

    fn run_all(&self, why: &str) -> String {
        format!("`run_all {}` {why}", self.study)
    }

    /// `seedbed logs` for this cell.
    fn logs(&self, index: usize) -> String {
        let key = &self.look.prepared.plan.cells[index].def.key;
        let arm = key.arm.as_ref().map(|arm| format!(" --arm {arm}")).unwrap_or_default();
        let seed = key.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
        format!("`seedbed logs {} {}{arm}{seed}` shows the log", self.study, key.stage)
    }

    /// What is to be said of the cell itself. Every state of the plan has its words here.
    fn own(&self, index: usize) -> Vec<Reason> {
        let state = &self.look.prepared.plan.cells[index].state;
        let mut reasons = match state {
            CellState::Done { code } => return self.done(index, code.as_deref()),
            CellState::Stopped(halt) => return vec![self.stopped(index, halt)],
            CellState::Waiting(halt) => return vec![self.waiting(index, halt)],
            CellState::Stale(changes) => self.stale(index, changes),
            CellState::MissingOutputs(why) => {
                let advice = self.run_all("makes it again");
                vec![self.reason(index, "outputs-missing", format!("it was sealed, but {why}"), &[advice])]
            }
            CellState::Damaged(why) => vec![self.reason(index, "seal-damaged", why.clone(), &[])],
            CellState::Missing | CellState::Queued(_) | CellState::QueuedStale(_) => self.withdrawn(index),
        };
        reasons.extend(self.standing(index));
        reasons
    }

    fn done(&self, index: usize, code: Option<&str>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(SealView::Sealed { seal, .. }) = self.look.prepared.seals.get(&self.name(index)) {
            let jobs = if seal.jobs.is_empty() { String::new() } else { format!(", job {}", seal.jobs.join(", ")) };
            let time = seal.sealed_at.format("%F %T UTC");
            let text = format!("it is sealed since {time}, by attempt {} on {}{jobs}", seal.attempt, seal.host);
            reasons.push(self.reason(index, "done", text, &[]));
        }
        if let Some(code) = code {
            let text = format!("it was made by other code ({code}) with the same parameters and inputs");
            reasons.push(self.reason(index, "other-code", text, &[]));
        }
        reasons.extend(self.flag(index));
        reasons.extend(self.warnings(index));
        reasons
    }

    fn kind(&self, index: usize) -> &'static str {
        self.look.prepared.study.stages[self.look.prepared.plan.cells[index].def.stage].kind()
    }

    /// What its results warn of, each warning once: by its seal, and by `warnings` of every `final_results.json`.
    fn warnings(&self, index: usize) -> Vec<Reason> {
        let dir = self.run_dir(index);
        let Some(SealView::Sealed { seal, .. }) = self.look.prepared.seals.get(&self.name(index)) else {
            return Vec::new();
        };
        let files = seal.outputs.iter().map(|output| Path::new(&output.path));
        let results = files.filter(|file| file.file_name().is_some_and(|name| name == "final_results.json"));
        let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for warning in &seal.warnings {
            said.entry(logs::plain(warning)).or_default().push("run.h5".to_owned());
        }
        for file in results {
            let found: Value = files::read_json(&dir.join(file)).unwrap_or_default();
            let of = file.display().to_string();
            for warning in found["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                said.entry(warning.to_owned()).or_default().push(of.clone());
            }
        }
        let reason = |(warning, of): (&String, &Vec<String>)| {
            let (cause, page, part) = if warning.contains("weak attack") {
                ("weak-attack", "troubleshooting", "Weak attacks")
            } else if warning.contains("suspiciously fast collapse") {
                ("suspicious-collapse", "training", "Kill criteria")
            } else if of.iter().all(|file| file == "run.h5") {
                ("warning", "formats/seal", "`warnings`")
            } else {
                ("off-pattern", "troubleshooting", "Results off the pattern")
            };
            let advice = format!("docs/{page}.md, \"{part}\", has what to look at, in order");
            self.reason(index, cause, format!("its results warn ({}): {warning}", of.join(", ")), &[advice])
        };
        said.iter().map(reason).collect()
    }

    /// The stage's flag, where it is not what the seals say.
    fn flag(&self, index: usize) -> Option<Reason> {
        let (plan, place) = (&self.look.prepared.plan, &self.look.prepared.place);
        let stage = &self.look.prepared.study.stages[plan.cells[index].def.stage];
        let path = flag::path(&place.base, stage.number, &stage.name);
        if path.exists() {
            return None;
        }
        let of_stage = || plan.cells.iter().filter(|c| c.def.key.stage == stage.name);
        let open: Vec<String> = of_stage().filter(|c| !c.state.is_done()).map(|c| c.def.key.local_name()).collect();
        let flag = path.strip_prefix(&place.base).unwrap_or(&path).display().to_string();
        Some(if open.is_empty() {
            let text = format!("every cell of the stage is sealed, but its flag {flag} is not there");
            self.reason(index, "flag-missing", text, &[self.run_all("makes it again")])
        } else {
            let text = format!("the stage's flag {flag} is not there: {} not done", list(&open));
            self.reason(index, "flag-missing", text, &[])
        })
    }

    fn stopped(&self, index: usize, halt: &Halt) -> Reason {
        let own = halt.by == self.name(index);
        let again = if halt.gate {
            "a gate is asked again when its conditions or inputs change; its record `decision.json` has every value"
                .to_owned()
        } else {
            format!("`run_all {} --retry-stopped` tries again what was stopped", self.study)
        };
        match (own, halt.gate) {
            (true, true) => {
                self.reason(index, "gate-stopped", format!("its conditions do not hold: {}", halt.why), &[again])
            }
            (true, false) => {
                self.reason(index, "stopped", format!("a kill criterion said stop: {}", halt.why), &[again])
            }
            (false, _) => {
                let text = format!("{}, which it needs, said stop: {}", halt.source(), halt.why);
                self.reason(index, "stopped-upstream", text, &[again])
            }
        }
    }

    fn waiting(&self, index: usize, halt: &Halt) -> Reason {
        let gate = halt.by.replacen("/seed-", " --seed ", 1);
        let confirm = format!("`seedbed confirm {} {gate}` writes the answer down", self.study);
        let again = self.run_all("goes on then");
        if halt.by == self.name(index) {
            self.reason(index, "waits-for-person", format!("it waits: {}", halt.why), &[confirm, again])
        } else {
            let text = format!("{}, which it needs, waits: {}", halt.source(), halt.why);
            self.reason(index, "gate-waits", text, &[confirm, again])
        }
    }

    fn stale(&self, index: usize, changes: &[Change]) -> Vec<Reason> {
        let cause = |change: &Change| match change.key.split(['.', '/']).next() {
            Some("params") => "parameter-changed",
            Some("inputs") => "input-changed",
            Some("kind_version" | "version" | "kind") => "code-changed",
            _ => "parent-changed",
        };
        let mut reasons: Vec<Reason> = changes
            .iter()
            .map(|change| self.reason(index, cause(change), format!("it is stale: {change}"), &[]))
            .collect();
        if let Some(first) = reasons.first_mut() {
            first
                .advice
                .push(self.run_all("makes it again; results of earlier parameters come back when you go back to them"));
        }
        reasons
    }

    /// A seal that somebody withdrew.
    fn withdrawn(&self, index: usize) -> Vec<Reason> {
        let path = self.run_dir(index).join(INVALID_FILE);
        if !path.exists() {
            return Vec::new();
        }
        let said: Value = files::read_json(&path).unwrap_or_default();
        let word = |key: &str| said[key].as_str().map(logs::plain);
        let by = word("who").map(|who| format!(" by {who}")).unwrap_or_default();
        let why = word("why").map(|why| format!(": {why}")).unwrap_or_default();
        let advice = self.run_all("makes it again");
        vec![self.reason(index, "seal-withdrawn", format!("its seal was withdrawn{by}{why}"), &[advice])]
    }

    /// Where its newest job or attempt stands.
    fn standing(&self, index: usize) -> Option<Reason> {
        let cell = self.cell(index);
        let Standing { word, detail, .. } = &cell.standing;
        let reason = |cause, advice: &[String]| Some(self.reason(index, cause, detail.clone(), advice));
        match word {
            Word::Running => {
                let far = cell.progress.as_ref().map(|p| match p.line.total {
                    Some(total) => format!(", step {} of {total}", p.line.step),
                    None => format!(", step {}", p.line.step),
                });
                let far = far.unwrap_or_default();
                let rigid = "; its stage keeps no checkpoint: cut short, it begins anew, and only by the next run_all";
                let rigid = if self.resumable(index) { "" } else { rigid };
                Some(self.reason(index, "running", format!("it runs: {detail}{far}{rigid}"), &[]))
            }
            Word::Queued => Some(self.queued(index, self.entry(index))),
            Word::Blocked => {
                let clear = format!("`seedbed cancel {} --dead` takes such jobs away", self.study);
                reason("dead-dependency", &[clear, self.run_all("submits the cell anew")])
            }
            Word::ProbablyRunning => {
                reason("probably-running", &["ask again when Slurm answers (`scontrol ping`)".to_owned()])
            }
            Word::Unknown => Some(self.unknown(index)),
            Word::Interrupted => {
                reason("checkpointed", &[self.run_all("goes on from the checkpoint"), self.logs(index)])
            }
            Word::Failed | Word::Cancelled => Some(self.ended(index)),
            Word::Missing => match cell.standing.cause {
                Some(Cause::Refused) => {
                    let correct = "correct the cluster file or the stage's resources".to_owned();
                    reason("refused", &[correct, self.run_all("submits it then")])
                }
                Some(Cause::SealGone) if !self.run_dir(index).join(INVALID_FILE).exists() => {
                    reason("seal-gone", &[self.run_all("makes it again")])
                }
                _ => None,
            },
            // The seal has said it; and how the last try to replace it ended.
            Word::Stale | Word::MissingOutputs | Word::Damaged => cell.standing.cause.map(|_| self.ended(index)),
            Word::Done | Word::Stopped | Word::Waiting => None,
        }
    }

    fn entry(&self, index: usize) -> Option<&Entry> {
        match self.look.said(self.cell(index).jobs.last()?)? {
            Said::Listed(entry) => Some(entry),
            _ => None,
        }
    }

    fn queued(&self, index: usize, entry: Option<&Entry>) -> Reason {
        let word = entry.map(|e| e.reason.as_str()).unwrap_or_default();
        let meaning = reason::meaning(word);
        let mut text = format!("{}: ", self.cell(index).standing.detail);
        text.push_str(
            meaning.map_or("a reason that this program does not know: `man squeue`, JOB REASON CODES", |m| m.text),
        );
        if let Some(start) = entry.and_then(|e| e.start_s).and_then(|s| chrono::DateTime::from_timestamp(s, 0)) {
            text.push_str(&format!("; Slurm expects to start it at {}", start.format("%F %T UTC")));
        }
        let job = entry.map(|e| e.element.to_string()).unwrap_or_default();
        let advice = meaning.and_then(|m| m.advice).map(|advice| advice.replace("JOB", &job));
        let cause = if word == "Dependency" { "dependency" } else { "slurm-reason" };
        self.reason(index, cause, text, &advice.into_iter().collect::<Vec<_>>())
    }

    fn unknown(&self, index: usize) -> Reason {
        let cell = self.cell(index);
        let detail = &cell.standing.detail;
        if cell.standing.cause == Some(Cause::LostReply) {
            let advice = self.run_all("looks it up by its name, and never submits it twice");
            return self.reason(index, "lost-reply", detail, &[advice]);
        }
        let there = cell.jobs.last().filter(|job| {
            let answers = self.look.answers.as_ref();
            job.fate == CellFate::Submitted && answers.is_some_and(|a| a.problem.is_none() && !a.is_here(&job.cluster))
        });
        match there {
            Some(job) => {
                let text =
                    format!("{detail}: it was submitted to `{}`, which is not known to be this cluster", job.cluster);
                let advice = format!("look from there, or say --cluster {} if this is it", job.cluster);
                self.reason(index, "other-cluster", text, &[advice])
            }
            None => {
                let advice =
                    "ask again when Slurm answers (`scontrol ping`); nothing is concluded until then".to_owned();
                self.reason(index, "unknown", detail, &[advice])
            }
        }
    }

    /// A job or attempt that ended without a seal.
    fn ended(&self, index: usize) -> Reason {
        let cell = self.cell(index);
        let cut_short = !matches!(cell.standing.cause, Some(Cause::Exit | Cause::Refused));
        let again = self.run_all(if cut_short && !self.resumable(index) {
            "runs it again, from the beginning: its stage keeps no checkpoint"
        } else {
            "runs it again"
        });
        let logs = self.logs(index);
        let corpus = "what setup needs of the corpus is in docs/troubleshooting.md, \"The corpus\"";
        let of_kind = (self.kind(index) == "setup").then_some(corpus);
        let own = |advice: &[&str]| -> Vec<String> {
            let more = advice.iter().chain(&of_kind).map(|a| (*a).to_owned());
            more.chain([logs.clone(), again.clone()]).collect()
        };
        let code = cell.attempt.as_ref().and_then(|a| a.end.as_ref()).map(|e| e.exit_code);
        let (cause, advice) = match cell.standing.cause.unwrap_or(Cause::Unexplained) {
            Cause::OutOfMemory => (
                "out-of-memory",
                own(&[
                    "give the stage more `mem`, or more ranks; docs/troubleshooting.md, \"Out of memory\", has more",
                ]),
            ),
            Cause::TimeLimit => (
                "time-limit",
                own(&["give the stage more `time`, or the cluster file a longer `grace_s` for its checkpoint"]),
            ),
            Cause::NodeFailure => (
                "node-failure",
                own(&[
                    "if the same node fails again, keep away from it: `options = [\"--exclude=NODE\"]` in the cluster file",
                ]),
            ),
            Cause::Preempted => ("preempted", own(&[])),
            Cause::Killed if code == Some(137) => (
                "killed",
                own(&[
                    "137 is often the out-of-memory killer: give the stage more `mem`; docs/troubleshooting.md, \"Out of memory\"",
                ]),
            ),
            Cause::Killed => ("killed", own(&[])),
            Cause::NoProgress => {
                ("no-progress", own(&["give the stage more `time`, so that it comes further than its last checkpoint"]))
            }
            Cause::Cancelled => ("cancelled", vec![again.clone()]),
            Cause::DeadDependency => {
                ("cancelled-by-slurm", vec![self.run_all("submits it anew, behind what it waits for")])
            }
            Cause::Exit => self.own_exit(code, &own),
            _ => ("unexplained", own(&["the job's own log may say more: `seedbed logs` with --job"])),
        };
        let log = if matches!(cause, "cancelled" | "cancelled-by-slurm") { Vec::new() } else { self.log_end(index) };
        Reason { log, ..self.reason(index, cause, cell.standing.detail.clone(), &advice) }
    }

    fn own_exit(&self, code: Option<i32>, own: &dyn Fn(&[&str]) -> Vec<String>) -> (&'static str, Vec<String>) {
        let Some(code) = code else {
            // Its attempt never began: the gate, or what stands before it in the script.
            return (
                "before-attempt",
                own(&["its gate or the site's modules refused: the end of the job's log says which"]),
            );
        };
        match u8::try_from(code).unwrap_or(1) {
            exit::USAGE => ("wrong-usage", own(&["correct the study, the cluster file or the program's arguments"])),
            exit::STALE_INPUT => ("stale-input", own(&[])),
            exit::MISSING_INPUT => ("missing-input", own(&[])),
            exit::BAD_OUTPUT => {
                ("bad-outputs", own(&["the stage ended with 0 without what it promises: see the end of its log"]))
            }
            exit::COLLECTIVE_TIMEOUT => {
                ("collective-timeout", own(&["a rank was lost: the first rank to complain in the log is the one"]))
            }
            exit::CANNOT_WRITE => ("cannot-write", own(&["free some space or raise the quota"])),
            exit::SUPERSEDED => ("superseded", own(&[])),
            126 | 127 => ("no-program", own(&["the program of the stage was not found or cannot be run on that node"])),
            _ => ("failed", own(&["mend what the log names"])),
        }
    }

    /// The end of what the stage printed, or of the job's log where the stage never began.
    fn log_end(&self, index: usize) -> Vec<String> {
        let cell = self.cell(index);
        let key = &self.look.prepared.plan.cells[index].def.key;
        let number = self.look.prepared.study.stages[self.look.prepared.plan.cells[index].def.stage].number;
        let place = &self.look.prepared.place;
        let element = cell.jobs.last().and_then(|job| job.element()).map(|e| e.to_string());
        let began = cell.attempt.as_ref().is_some_and(|a| a.start.job.as_ref().map(|j| &j.id) == element.as_ref());
        let jobs = || logs::job_logs(place, number, key, &cell.jobs).pop();
        let path = if began { Some(logs::stage_log(&self.run_dir(index))) } else { jobs() };
        path.map(|path: std::path::PathBuf| logs::tail(Path::new(&path), LOG_LINES)).unwrap_or_default()
    }

    /// The cells that it waits for, and what holds the first of those up that do not wait themselves.
    fn behind(&self, index: usize) -> Vec<Reason> {
        let open = self.open_needs(index);
        if open.is_empty() || matches!(self.cell(index).standing.word, Word::Running | Word::Stopped | Word::Waiting) {
            return Vec::new();
        }
        let (mut roots, mut seen) = (Vec::new(), BTreeSet::new());
        self.roots(index, &mut roots, &mut seen);
        let stand = |i: &usize| format!("{} is {}", self.name(*i), self.cell(*i).standing.word.as_str());
        let named: Vec<String> = open.iter().take(ROOTS).map(stand).collect();
        let more = if open.len() > ROOTS { format!(", and {} more", open.len() - ROOTS) } else { String::new() };
        let mut reasons = vec![self.reason(index, "parent-not-done", format!("it needs {}{more}", needs(&named)), &[])];
        for root in roots.iter().take(ROOTS) {
            let own = self.own(*root);
            let own = if own.is_empty() { vec![self.never_submitted(*root)] } else { own };
            reasons.extend(own);
        }
        if roots.len() > ROOTS {
            let names: Vec<String> = roots[ROOTS..].iter().map(|i| self.name(*i)).collect();
            reasons.push(self.reason(index, "parent-not-done", format!("{} not done either", list(&names)), &[]));
        }
        reasons
    }

    fn open_needs(&self, index: usize) -> Vec<usize> {
        let cells = &self.look.prepared.plan.cells;
        cells[index].def.needs.iter().copied().filter(|i| !cells[*i].state.is_done()).collect()
    }

    /// Cells upstream that are not done for a reason of their own.
    fn roots(&self, index: usize, roots: &mut Vec<usize>, seen: &mut BTreeSet<usize>) {
        for need in self.open_needs(index) {
            if !seen.insert(need) {
                continue;
            }
            let standing = &self.cell(need).standing;
            let waits = match standing.word {
                Word::Queued => self.entry(need).is_some_and(|e| e.reason == "Dependency"),
                // Before it began: by Slurm for a dead dependency, or with what stands before it.
                Word::Cancelled => self.cell(need).attempt.is_none(),
                Word::Missing => standing.cause.is_none(),
                Word::Stale | Word::MissingOutputs | Word::Damaged | Word::Blocked => true,
                Word::Failed => standing.cause == Some(Cause::Exit) && self.cell(need).attempt.is_none(),
                _ => false,
            };
            if waits && !self.open_needs(need).is_empty() {
                self.roots(need, roots, seen);
            } else {
                roots.push(need);
            }
        }
    }

    /// Nothing of it was ever started, and nothing holds it up.
    fn never_submitted(&self, index: usize) -> Reason {
        if let Some((owner, _)) = Lock::holder(&self.look.prepared.place.own()) {
            let text = format!("it was not started yet, and a run_all is at work: {owner}");
            return self.reason(index, "run-all-at-work", text, &[]);
        }
        self.reason(index, "never-submitted", "nothing of it was ever started", &[self.run_all("does it")])
    }
}

fn list(names: &[String]) -> String {
    match names {
        [one] => format!("{one} is"),
        [first, .., last] if names.len() > ROOTS => format!("{first} to {last} ({} cells) are", names.len()),
        _ => format!("{} are", names.join(", ")),
    }
}

fn needs(named: &[String]) -> String {
    named.iter().map(|n| n.replacen(" is ", ", which is ", 1)).collect::<Vec<_>>().join("; and ")
}
