//! The chaos run: the quick study on a real Slurm while faults are injected at random, compared with an undisturbed run.
//! `scripts/chaos` runs it whole; a short round is one of the tests on a real Slurm.

mod chance;
mod cluster;
mod drive;
mod faults;
mod study;

use std::path::Path;
use std::time::Instant;

use chance::Chance;
use cluster::Cluster;
use drive::{Round, round, tell};
use faults::{By, Fault, Kind};
use study::Study;

/// Faults of one round, and steps of its trainings: long enough to be hit.
const FAULTS: usize = 14;
const STEPS: u32 = 3000;

/// What was asked for, and what came of it.
struct Report {
    rounds: usize,
    faults: Vec<(Fault, Option<By>)>,
    reruns: usize,
    allowed: usize,
    unasked: usize,
    held: usize,
    different: Vec<String>,
    lost: Vec<String>,
}

impl Report {
    fn count(&self, kind: Kind) -> usize {
        self.faults.iter().filter(|(fault, _)| fault.kind == kind && fault.shown.is_some()).count()
    }

    fn add(&mut self, number: usize, done: Round, reference: &Round) {
        for (cell, content) in &done.contents {
            if !done.lost.contains(cell) && content != &reference.contents[cell] {
                self.different.push(format!("round {number}: content of {cell}"));
            }
        }
        if done.lost.is_empty() {
            let names = done.tables.keys().chain(reference.tables.keys());
            let mut names: Vec<&String> = names.filter(|n| done.tables.get(*n) != reference.tables.get(*n)).collect();
            names.dedup();
            self.different.extend(names.into_iter().map(|name| format!("round {number}: table {name}")));
        }
        self.lost.extend(done.lost.iter().map(|cell| format!("round {number}: {cell}")));
        self.faults.extend(done.faults.into_iter().zip(done.healed));

        self.reruns += done.reruns;
        self.allowed += done.allowed;
        self.unasked += done.unasked;
        self.held += done.held;
    }

    /// One line a kind, then what is wrong, then the figure.
    fn text(&self) -> String {
        let head = ["fault", "injected", "hit", "healed by: attempt", "Slurm", "run_all", "nobody"];
        let mut text = format!(
            "{:<44} {:>8} {:>4} {:>19} {:>6} {:>8} {:>7}\n",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6]
        );
        for kind in Kind::ALL {
            let injected = self.faults.iter().filter(|(fault, _)| fault.kind == kind).count();
            let healed = |by: Option<By>| {
                self.faults.iter().filter(|(f, b)| f.kind == kind && f.shown.is_some() && *b == by).count()
            };
            text.push_str(&format!(
                "{:<44} {injected:>8} {:>4} {:>19} {:>6} {:>8} {:>7}\n",
                kind.what(),
                self.count(kind),
                healed(Some(By::Attempt)),
                healed(Some(By::Slurm)),
                healed(Some(By::RunAll)),
                healed(None),
            ));
        }
        for line in self.different.iter().map(|what| format!("different: {what}\n")) {
            text.push_str(&line);
        }
        for line in self.lost.iter().map(|what| format!("lost: {what}\n")) {
            text.push_str(&line);
        }
        text.push_str(&format!(
            "reruns {}, at most {} asked for by faults, {} by Slurm that held a job, {} by nobody\n",
            self.reruns, self.allowed, self.held, self.unasked
        ));
        let hits: usize = Kind::ALL.map(|kind| self.count(kind)).iter().sum();
        text.push_str(&format!(
            "chaos {} rounds {hits} faults {} different {} lost\n",
            self.rounds,
            self.different.len(),
            self.lost.len()
        ));
        text
    }

    fn is_good(&self) -> bool {
        self.different.is_empty()
            && self.lost.is_empty()
            && self.reruns <= self.allowed + self.held
            && self.unasked == 0
    }
}

/// What says which faults the next round has, by what was hit so far.
type Next<'a> = &'a mut dyn FnMut(&Report, &mut Chance) -> Vec<Kind>;

/// An undisturbed run, then the rounds.
fn chaos(dir: &Path, rounds: usize, steps: u32, seed: u64, next: Next<'_>) -> Report {
    let began = Instant::now();
    let cluster = Cluster::start(dir);
    let mut chance = Chance::new(seed);
    tell(began, "the sandbox is up; first an undisturbed run");
    let reference = round(&Study::new(&cluster, &dir.join("undisturbed"), steps), Vec::new(), &mut chance, began);
    assert!(reference.lost.is_empty() && reference.reruns == 0, "the undisturbed run did not end: {reference:#?}");
    assert!(reference.contents.values().all(|content| !content.is_empty()) && !reference.tables.is_empty());
    cluster.clear_disk();
    let (faults, different, lost) = Default::default();
    let mut report = Report { rounds: 0, faults, reruns: 0, allowed: 0, unasked: 0, held: 0, different, lost };
    for number in 1..=rounds {
        let kinds = next(&report, &mut chance);
        let words: Vec<&str> = kinds.iter().map(|kind| kind.what()).collect();
        tell(began, &format!("round {number}: {}", words.join("; ")));
        let place = dir.join(format!("round-{number}"));
        let done = round(&Study::new(&cluster, &place, steps), kinds, &mut chance, began);
        let (reruns, allowed, lost) = (done.reruns, done.allowed, done.lost.len());
        let differed = report.different.len();
        report.add(number, done, &reference);
        let different = report.different.len() - differed;
        tell(began, &format!("round {number} ended: {reruns} reruns of {allowed}, {different} different, {lost} lost"));
        report.rounds = number;
        eprint!("{}", report.text());
        cluster.clear_disk();
        if different + lost == 0 {
            // Each holds a copy of the programs.
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    report
}

/// The kinds that were hit least, in a random order.
fn least_hit(report: &Report, chance: &mut Chance) -> Vec<Kind> {
    let mut kinds = Kind::ALL.to_vec();
    chance.shuffle(&mut kinds);
    kinds.sort_by_key(|kind| report.count(*kind));
    kinds.truncate(FAULTS);
    chance.shuffle(&mut kinds);
    // Those that strike whole nodes need trainings that are not about to end.
    kinds.sort_by_key(|kind| !matches!(kind, Kind::Zombie | Kind::Node));
    kinds
}

/// Two faults that heal by themselves, and one that asks for `run_all`.
pub fn short_round() {
    let dir = tempfile::Builder::new().prefix("seedbed-chaos").tempdir().unwrap();
    let kinds = [Kind::Step, Kind::Checkpoint, Kind::Batch];
    let report = chaos(dir.path(), 1, 900, 1, &mut |_, _| kinds.to_vec());
    let text = report.text();
    eprint!("{text}");
    assert!(report.is_good(), "{text}");
    assert!(kinds.iter().all(|kind| report.count(*kind) >= 1), "{text}");
}

/// The whole run, with the numbers of `scripts/chaos`.
#[test]
#[ignore = "takes half an hour: scripts/chaos runs it"]
fn chaos_run() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let dir = std::env::var_os("SEEDBED_CHAOS_DIR").expect("scripts/chaos sets SEEDBED_CHAOS_DIR");
    let rounds = number("SEEDBED_CHAOS_ROUNDS").expect("scripts/chaos sets SEEDBED_CHAOS_ROUNDS") as usize;
    let seed = number("SEEDBED_CHAOS_SEED").expect("scripts/chaos sets SEEDBED_CHAOS_SEED");
    let report = chaos(Path::new(&dir), rounds, STEPS, seed, &mut least_hit);
    std::fs::write(Path::new(&dir).join("report.txt"), report.text()).unwrap();
    eprint!("{}", report.text());
    assert!(report.is_good(), "see the lines above");
}
