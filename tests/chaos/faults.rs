//! The kinds of faults, and how each is injected. A fault counts only if its victim was alive and an attempt's record, or
//! the journal, shows what it did: [`Hit`] names both.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use seedbed::record::{Next, Why, attempt};

use super::chance::Chance;
use super::cluster::{kill, lives, soon};
use super::study::{Running, Study, dependents};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Rank,
    Step,
    Save,
    Zombie,
    Node,
    Controller,
    Preemption,
    FullDisk,
    Checkpoint,
    Batch,
    Seal,
    Requeue,
    RunAll,
    Result,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Rank,
        Self::Step,
        Self::Save,
        Self::Zombie,
        Self::Node,
        Self::Controller,
        Self::Preemption,
        Self::FullDisk,
        Self::Checkpoint,
        Self::Batch,
        Self::Seal,
        Self::Requeue,
        Self::RunAll,
        Self::Result,
    ];

    /// What is done, in a few words.
    pub fn what(self) -> &'static str {
        match self {
            Self::Rank => "kill -9 of a rank",
            Self::Step => "kill -9 of a whole step",
            Self::Save => "kill -9 of a step during a save",
            Self::Zombie => "kill -9 of slurmd, steps go on (zombie)",
            Self::Node => "death of a whole node",
            Self::Controller => "kill -9 of slurmctld, a rank dies without it",
            Self::Preemption => "preemption by a higher partition",
            Self::FullDisk => "a full disk during a save, then a kill",
            Self::Checkpoint => "the newest checkpoint is cut",
            Self::Batch => "kill -9 of the batch shell",
            Self::Seal => "kill -9 of the batch shell during a seal",
            Self::Requeue => "kill -9 of the batch shell during a requeue",
            Self::RunAll => "kill -9 of run_all in mid-submission",
            Self::Result => "a sealed result file is cut",
        }
    }

    /// Whether `run_all` must be typed again after it.
    pub fn asks_for_a_rerun(self) -> bool {
        matches!(self, Self::Batch | Self::Seal | Self::Requeue | Self::RunAll)
    }
}

/// Who put a fault right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    Attempt,
    Slurm,
    RunAll,
}

/// A fault that was injected.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    pub cell: String,
    /// The attempt that it struck.
    pub attempt: u32,
    /// What shows its effect; none if nothing does, and then it does not count.
    pub shown: Option<String>,
}

/// Longest wait for a record of an effect.
const EFFECT: Duration = Duration::from_secs(60);

/// What Slurm itself puts back may take: it gives up a node (`SlurmdTimeout`), waits for the steps on the others to end
/// (`KillWait`), and starts the job again.
const PUT_BACK: Duration = Duration::from_secs(150);

impl Study<'_> {
    /// Injects a fault, if there is a victim now, and waits for its effect.
    pub fn inject(&self, kind: Kind, chance: &mut Chance) -> Option<Fault> {
        match kind {
            Kind::Rank => self.strike(kind, self.training(chance)?, |victim| victim.ranks[..1].to_vec()),
            Kind::Step => self.strike(kind, self.training(chance)?, |victim| victim.ranks.clone()),
            Kind::Save => self.save(),
            Kind::Zombie => self.zombie(chance),
            Kind::Node => self.node(chance),
            Kind::Controller => self.controller(chance),
            Kind::Preemption => self.preemption(chance),
            Kind::FullDisk => self.full_disk(chance),
            Kind::Checkpoint => self.checkpoint(chance),
            Kind::Batch => self.batch(chance),
            Kind::Seal => self.sealing(chance),
            Kind::Requeue => self.requeue(chance),
            Kind::Result => self.result(chance),
            // By whoever calls it.
            Kind::RunAll => None,
        }
    }

    fn training(&self, chance: &mut Chance) -> Option<Running> {
        chance.one_of(&self.trainings()).cloned()
    }

    /// Kills processes of an attempt's step, and waits for the attempt's record.
    fn strike(&self, kind: Kind, victim: Running, which: impl Fn(&Running) -> Vec<u32>) -> Option<Fault> {
        let struck = which(&victim).into_iter().filter(|&pid| kill(pid)).count();
        if struck == 0 {
            return None;
        }
        Some(self.fault(kind, &victim, self.ended_badly(&victim)))
    }

    fn fault(&self, kind: Kind, victim: &Running, shown: Option<String>) -> Fault {
        Fault { kind, cell: victim.cell.clone(), attempt: victim.attempt, shown }
    }

    /// The attempt's own record that it did not end well.
    fn ended_badly(&self, victim: &Running) -> Option<String> {
        let end = soon(EFFECT, || self.end(&victim.cell, victim.attempt))?;
        let why = end.verdict.as_ref()?.why;
        (why != Why::Done).then(|| format!("attempt {} ended: {}", victim.attempt, end.cause))
    }

    /// That, or that the next attempt began although this one could say nothing.
    fn ended_badly_or_silently(&self, victim: &Running) -> Option<String> {
        let n = victim.attempt;
        let found = soon(PUT_BACK, || {
            let end = self.end(&victim.cell, n);
            (end.is_some() || self.last(&victim.cell) > n).then_some(end)
        })?;
        match found {
            None => Some(format!("attempt {n} said nothing, attempt {} goes on", n + 1)),
            Some(_) => self.ended_badly(victim),
        }
    }

    fn save(&self) -> Option<Fault> {
        let victims = self.trainings();
        let (victim, saved) = soon(Duration::from_secs(15), || {
            victims.iter().find_map(|victim| {
                let (_, writing) = self.checkpoints(&victim.cell);
                let mark = format!("-attempt-{}", victim.attempt);
                let dir = writing.into_iter().find(|dir| dir.to_string_lossy().ends_with(&mark))?;
                Some((victim.clone(), dir))
            })
        })?;
        if victim.ranks.iter().filter(|&&pid| kill(pid)).count() == 0 {
            return None;
        }
        // A save that came to its end all the same was not struck.
        let torn = soon(Duration::from_secs(5), || (!victim.ranks.iter().any(|&pid| lives(pid))).then_some(()))
            .is_some_and(|()| saved.is_dir() && !saved.join("manifest.json").exists());
        let shown = self.ended_badly(&victim).filter(|_| torn);
        Some(self.fault(Kind::Save, &victim, shown))
    }

    /// Whether all that runs on these nodes can be run again by itself: faults of nodes strike their neighbours, too.
    fn only_resumable(&self, nodes: &BTreeSet<&'static str>) -> bool {
        let Some(queue) = self.queue() else { return false };
        let mut there = queue.iter().filter(|job| !job.nodes.is_disjoint(nodes));
        there.all(|job| job.cell.starts_with("train_") || job.cell == "setup")
            && self.running().iter().filter(|r| !self.nodes_of(r).is_disjoint(nodes)).all(Running::is_resumable)
    }

    fn zombie(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        let nodes = self.nodes_of(&victim);
        // The others must be able to take it over.
        let goes_on = self.step(&victim.cell) < u64::from(self.steps) / 2;
        if nodes.is_empty()
            || nodes.len() > 2
            || !goes_on
            || !self.is_calm(&victim.cell)
            || !self.only_resumable(&nodes)
        {
            return None;
        }
        let killed = nodes.iter().filter_map(|node| self.cluster.slurmd(node)).filter(|&pid| kill(pid)).count();
        let n = victim.attempt;
        let both = soon(Duration::from_secs(90), || {
            // It came to its end before Slurm gave up the node.
            if self.seal(&victim.cell).is_some() {
                return Some(None);
            }
            let next = self.start(&victim.cell, n + 1)?;
            // Asked one after the other within a millisecond, the old one twice: both lived in this second.
            let old = || victim.ranks.iter().chain([&victim.pid]).any(|&pid| lives(pid));
            let alive = old() && lives(next.pid) && old();
            Some(alive.then(|| format!("attempts {n} ({}) and {} ({}) ran at one time", victim.host, n + 1, next.host)))
        });
        // The old one goes on until it finds out, or the node is there again.
        let old = || victim.ranks.iter().chain([&victim.pid]).any(|&pid| lives(pid));
        let _ = soon(Duration::from_secs(12), || (!old()).then_some(()));
        self.cluster.repair();
        let shown = both.flatten().filter(|_| killed == nodes.len());
        Some(self.fault(Kind::Zombie, &victim, shown))
    }

    fn node(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        let nodes: Vec<&'static str> = self.nodes_of(&victim).into_iter().collect();
        let node = *chance.one_of(&nodes)?;
        if !self.is_calm(&victim.cell) || !self.only_resumable(&BTreeSet::from([node])) {
            return None;
        }
        let processes = self.cluster.processes_of(node);
        let struck = processes.into_iter().filter(|&pid| kill(pid)).count();
        let shown = self.ended_badly_or_silently(&victim).filter(|_| struck > 0);
        chance.sleep(0, 4000);
        self.cluster.boot(node);
        self.cluster.repair();
        Some(self.fault(Kind::Node, &victim, shown))
    }

    fn controller(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        let killed = kill(self.cluster.slurmctld()?);
        kill(*chance.one_of(&victim.ranks)?);
        // srun and the attempt's requeue wait for it.
        chance.sleep(2000, 10_000);
        self.cluster.repair();
        let shown = self.ended_badly(&victim).filter(|_| killed);
        Some(self.fault(Kind::Controller, &victim, shown))
    }

    fn preemption(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        let nodes: Vec<&'static str> = self.nodes_of(&victim).into_iter().collect();
        let node = *chance.one_of(&nodes)?;
        if !self.only_resumable(&BTreeSet::from([node])) {
            return None;
        }
        let list = format!("--nodelist={node}");
        let words = ["sbatch", "--parsable", "--partition=urgent", &list, "--cpus-per-task=8", "--output=/dev/null"];
        let urgent = self.cluster.slurm.head(&[&words[..], &["--wrap=sleep 2"]].concat());
        let shown = self.ended_badly_or_silently(&victim);
        // Whatever became of it, it must not take the node again.
        let _ = self.cluster.slurm.on("head", 60).args(["scancel", &urgent]).output();
        Some(self.fault(Kind::Preemption, &victim, shown))
    }

    fn full_disk(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        let before = self.log(&victim.cell).len();
        let said = soon(Duration::from_secs(20), || {
            // What a save gives up makes room for the next.
            self.cluster.fill_disk();
            let log = self.log(&victim.cell);
            let line = log.get(before..)?.lines().find(|l| l.contains("no checkpoint, the disk"))?.to_owned();
            Some(line)
        });
        let was_alive = victim.ranks.iter().filter(|&&pid| kill(pid)).count() > 0;
        let ended = self.ended_badly(&victim);
        self.cluster.free_disk();
        let shown = said.zip(ended).filter(|_| was_alive).map(|(said, ended)| format!("{said}; {ended}"));
        Some(self.fault(Kind::FullDisk, &victim, shown))
    }

    fn checkpoint(&self, chance: &mut Chance) -> Option<Fault> {
        let with_two = |r: &Running| self.checkpoints(&r.cell).0.len() >= 2;
        let victims: Vec<Running> = self.trainings().into_iter().filter(with_two).collect();
        let victim = chance.one_of(&victims)?.clone();
        if victim.ranks.iter().filter(|&&pid| kill(pid)).count() == 0 {
            return None;
        }
        self.ended_badly(&victim)?;
        let newest = self.checkpoints(&victim.cell).0.pop()?;
        let files: Vec<PathBuf> = fs::read_dir(&newest).unwrap().map(|entry| entry.unwrap().path()).collect();
        let cut = chance.one_of(&files)?;
        cut_in_half(cut);
        let name = newest.file_name()?.to_string_lossy().into_owned();
        let refused = |line: &&str| line.contains(&name) && line.contains("the one before is used");
        let shown = soon(EFFECT, || self.log(&victim.cell).lines().find(refused).map(str::to_owned));
        Some(self.fault(Kind::Checkpoint, &victim, shown))
    }

    fn batch(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = chance.one_of(&self.running())?.clone();
        self.kill_batch(Kind::Batch, &victim)
    }

    /// Kills the attempt itself. What shows it is that the attempt never said its end.
    fn kill_batch(&self, kind: Kind, victim: &Running) -> Option<Fault> {
        if !kill(victim.pid) {
            return None;
        }
        let _ = soon(Duration::from_secs(5), || (!lives(victim.pid)).then_some(()));
        let silent = self.end(&victim.cell, victim.attempt).is_none();
        let sealed = self.seal(&victim.cell).is_some_and(|seal| seal.attempt == victim.attempt);
        let words = if sealed { "had sealed and " } else { "" };
        let shown = silent.then(|| format!("attempt {} {words}never said its end", victim.attempt));
        Some(self.fault(kind, victim, shown))
    }

    fn sealing(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = (0..15).find_map(|_| {
            let running = self.running();
            let ends = |r: &&Running| attempt::out_dir(&self.run_dir(&r.cell), r.attempt).join("run.h5").exists();
            soon(Duration::from_secs(1), || running.iter().find(ends).cloned())
        })?;
        // The stage has written its results: now they are verified, moved and sealed.
        let _ = soon(Duration::from_secs(5), || {
            let writes = victim.ranks.iter().any(|&pid| lives(pid));
            let gone = !attempt::out_dir(&self.run_dir(&victim.cell), victim.attempt).exists();
            (!writes || gone).then_some(())
        });
        chance.sleep(0, 30);
        self.kill_batch(Kind::Seal, &victim)
    }

    fn requeue(&self, chance: &mut Chance) -> Option<Fault> {
        let victim = self.training(chance)?;
        kill(*chance.one_of(&victim.ranks)?);
        let end = soon(EFFECT, || self.end(&victim.cell, victim.attempt))?;
        if end.verdict.as_ref()?.next != Next::Requeue {
            return None;
        }
        chance.sleep(0, 60);
        let alive = kill(victim.pid);
        let shown = alive.then(|| format!("attempt {} ended: {}, and was killed", victim.attempt, end.cause));
        Some(self.fault(Kind::Requeue, &victim, shown))
    }

    /// Cuts a sealed `run.h5` that nothing in the queue is about to read.
    fn result(&self, chance: &mut Chance) -> Option<Fault> {
        let queue = self.queue()?;
        let queued: BTreeSet<&str> = queue.iter().map(|job| job.cell.as_str()).collect();
        let is_free = |cell: &String| {
            !dependents(cell).iter().any(|d| queued.contains(d.as_str()))
                && !queue.iter().any(|job| job.cell == "aggregate" && job.state.starts_with("RUNNING"))
                && cell.contains('/')
        };
        let sealed: Vec<String> =
            super::study::cells().into_iter().filter(|c| is_free(c) && self.seal(c).is_some()).collect();
        let cell = chance.one_of(&sealed)?.clone();
        cut_in_half(&self.run_dir(&cell).join("run.h5"));
        let attempt = self.last(&cell);
        // What shows it comes with the next `run_all`.
        Some(Fault { kind: Kind::Result, cell, attempt, shown: None })
    }
}

fn cut_in_half(path: &PathBuf) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let size = file.metadata().unwrap().len();
    file.set_len(size / 2).unwrap();
}
