//! The quick study on the sandbox, as one round of the chaos run has it: its own results root, and what its records, its
//! processes and its jobs say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use seedbed::record::{AttemptEnd, AttemptStart, Cell, Seal, attempt, progress};
use serde_json::Value;

use super::cluster::{Cluster, NODES, lives, name_of, processes, words_of};
use crate::support::repository;

const SEEDS: [u32; 2] = [42, 1337];

/// Stages over seeds.
const SEEDED: [&str; 6] = ["apply_monotonicity", "train_baseline", "train_monotonic", "evaluate", "uat", "hotflip"];

/// How the trainings run: nodes, and ranks on each. Every call of `run_all` takes one of them; the bits are the same.
const SHAPES: [(u32, u32); 3] = [(2, 1), (2, 2), (1, 2)];

/// A results root.
pub struct Study<'a> {
    pub cluster: &'a Cluster,
    /// Holds the study, its cluster file and the results.
    dir: PathBuf,
    base: PathBuf,
    /// Steps of a training.
    pub steps: u32,
}

/// An attempt that runs, and the processes of its stage.
#[derive(Debug, Clone)]
pub struct Running {
    pub cell: String,
    pub attempt: u32,
    /// The batch shell: it has become the attempt.
    pub pid: u32,
    pub host: String,
    pub ranks: Vec<u32>,
}

impl Running {
    pub fn is_training(&self) -> bool {
        self.cell.starts_with("train_")
    }

    /// Whether its stage can be run again by itself.
    pub fn is_resumable(&self) -> bool {
        self.is_training() || self.cell == "setup"
    }
}

/// A job or array element in the queue.
#[derive(Debug, Clone)]
pub struct Queued {
    pub cell: String,
    pub state: String,
    pub nodes: BTreeSet<&'static str>,
}

/// Local names of all cells.
pub fn cells() -> Vec<String> {
    let mut all = vec!["setup".to_owned()];
    all.extend(SEEDED.iter().flat_map(|stage| SEEDS.map(|seed| format!("{stage}/seed-{seed}"))));
    all.push("aggregate".to_owned());
    all
}

/// Cells that need this one, but for the one that gathers them all.
pub fn dependents(cell: &str) -> Vec<String> {
    let Some((stage, seed)) = cell.split_once('/') else {
        return if cell == "setup" { cells().into_iter().filter(|c| c.contains('/')).collect() } else { Vec::new() };
    };
    let attacks = ["evaluate", "uat", "hotflip"];
    let stages: Vec<&str> = match stage {
        "apply_monotonicity" => ["train_monotonic"].into_iter().chain(attacks).collect(),
        "train_baseline" | "train_monotonic" => attacks.to_vec(),
        _ => Vec::new(),
    };
    stages.into_iter().map(|stage| format!("{stage}/{seed}")).collect()
}

impl<'a> Study<'a> {
    /// Writes the study into `dir`: the quick one with trainings of `steps` steps, whose 120 are over before anything can
    /// hit them, and with as many turns as there may be faults.
    pub fn new(cluster: &'a Cluster, dir: &Path, steps: u32) -> Self {
        let quick = fs::read_to_string(repository().join("configs/monotone.toml")).unwrap();
        let longer = quick.replace("max_steps     = 120", &format!("max_steps     = {steps}"));
        let longer = longer.replace("val_interval_steps = 40", "val_interval_steps = 500");
        let longer = longer.replace("checkpoint_interval_steps = 40", "checkpoint_interval_steps = 60");
        for line in [&format!("= {steps}"), "val_interval_steps = 500", "checkpoint_interval_steps = 60"] {
            assert_eq!(longer.matches(line).count(), 2, "the quick study is not as it was: {line}");
        }
        let patient =
            "\n[retry]\nkilled = 100\nnode_failure = 100\nwithout_progress = 100\n\n[[stage]]\nname      = \"setup\"";
        let text = longer.replacen("\n[[stage]]\nname      = \"setup\"", patient, 1);
        assert!(text.contains("[retry]"), "the quick study is not as it was");
        fs::create_dir_all(dir.join("configs")).unwrap();
        fs::write(dir.join("configs/monotone.toml"), text).unwrap();
        Self { cluster, dir: dir.to_owned(), base: dir.join("results/monotone/quick"), steps }
    }

    /// Calls `run_all`; its words go to a file. The trainings take the shape of that number.
    pub fn run_all(&self, shape: usize) -> (Child, PathBuf) {
        let (nodes, tasks) = SHAPES[shape % SHAPES.len()];
        let file = self.dir.join("configs/chaos.toml");
        let disk = self.cluster.disk();
        let text = format!(
            "schema = 1\n[cluster]\nname = \"sandbox\"\npartition = \"debug\"\nmpi = \"pmix\"\ngrace_s = 60\nfs_settle_s = 2\n\
             scratch = \"{}\"\nresources.train = {{nodes = {nodes}, tasks_per_node = {tasks}}}\n\
             [cluster.exports]\nOMPI_MCA_mpi_yield_when_idle = \"1\"\n",
            disk.display()
        );
        fs::write(&file, text).unwrap();
        let said = self.dir.join("run_all.txt");
        let out = fs::File::create(&said).unwrap();
        let child = self
            .cluster
            .slurm
            .on("head", 180)
            .arg(env!("CARGO_BIN_EXE_run_all"))
            .arg(self.dir.join("configs/monotone.toml"))
            .args(["--profile", "quick", "--yes", "--cluster"])
            .arg(&file)
            .env_remove("EXPERIMENT_SEED")
            .env_remove("SEEDBED_ROOT")
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        (child, said)
    }

    /// The process of a call of [`Self::run_all`], not that of its time limit.
    pub fn run_all_process(&self) -> Option<u32> {
        let study = self.dir.join("configs/monotone.toml").display().to_string();
        processes().into_iter().find(|&pid| name_of(pid) == "run_all" && words_of(pid).contains(&study))
    }

    /// What a command of `seedbed` says of the study.
    pub fn seedbed(&self, words: &[&str]) -> String {
        let output = self
            .cluster
            .slurm
            .on("head", 120)
            .arg(env!("CARGO_BIN_EXE_seedbed"))
            .arg(words[0])
            .arg(self.dir.join("configs/monotone.toml"))
            .args(["--profile", "quick", "--cluster"])
            .arg(self.dir.join("configs/chaos.toml"))
            .args(&words[1..])
            .env_remove("EXPERIMENT_SEED")
            .env_remove("SEEDBED_ROOT")
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub fn run_dir(&self, cell: &str) -> PathBuf {
        self.base.join(cell)
    }

    pub fn seal(&self, cell: &str) -> Option<Seal> {
        Seal::read(&self.run_dir(cell)).ok().flatten()
    }

    /// Cells without a seal, or whose files are not those that it vouches for.
    pub fn open(&self) -> Vec<String> {
        let is_whole = |cell: &str| self.seal(cell).is_some_and(|seal| seal.check(&self.run_dir(cell)).is_none());
        cells().into_iter().filter(|cell| !is_whole(cell)).collect()
    }

    pub fn last(&self, cell: &str) -> u32 {
        attempt::last(&self.run_dir(cell)).unwrap_or(0)
    }

    pub fn start(&self, cell: &str, n: u32) -> Option<AttemptStart> {
        attempt::read_start(&self.run_dir(cell), n).ok()
    }

    pub fn end(&self, cell: &str, n: u32) -> Option<AttemptEnd> {
        attempt::read_end(&self.run_dir(cell), n).ok().flatten()
    }

    /// What the stage has printed.
    pub fn log(&self, cell: &str) -> String {
        let bytes = fs::read(self.run_dir(cell).join("log.txt")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whole checkpoints, oldest first, and those that are being written.
    pub fn checkpoints(&self, cell: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let Ok(known) = Cell::read(&self.run_dir(cell).join("cell.toml")) else { return Default::default() };
        let entries = fs::read_dir(known.checkpoint_dir()).into_iter().flatten();
        let mut dirs: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")))
            .collect();
        dirs.sort();
        dirs.into_iter().partition(|dir| dir.join("manifest.json").exists())
    }

    /// Attempts that run now.
    pub fn running(&self) -> Vec<Running> {
        cells().into_iter().filter_map(|cell| self.running_attempt(cell)).collect()
    }

    fn running_attempt(&self, cell: String) -> Option<Running> {
        let n = self.last(&cell);
        let start = self.start(&cell, n)?;
        if !lives(start.pid) || self.end(&cell, n).is_some() {
            return None;
        }
        let mark = format!("SEEDBED_RUN_DIR={}", attempt::out_dir(&self.run_dir(&cell), n).display());
        let ours = |pid: &u32| {
            name_of(*pid).starts_with("seedbed-") && {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|b| *b == 0).any(|line| line == mark.as_bytes())
            }
        };
        let ranks = processes().into_iter().filter(ours).collect();
        Some(Running { cell, attempt: n, pid: start.pid, host: start.host, ranks })
    }

    /// Trainings that have done a step in this attempt, all ranks of which live.
    pub fn trainings(&self) -> Vec<Running> {
        let trains = |r: &Running| {
            let stepped = fs::metadata(self.run_dir(&r.cell).join(progress::PROGRESS_FILE)).and_then(|m| m.modified());
            let began = fs::metadata(attempt::start_path(&self.run_dir(&r.cell), r.attempt)).and_then(|m| m.modified());
            let has_stepped = matches!((stepped, began), (Ok(stepped), Ok(began)) if stepped > began);
            r.is_training() && has_stepped && !r.ranks.is_empty() && r.ranks.iter().all(|&pid| lives(pid))
        };
        self.running().into_iter().filter(trains).collect()
    }

    /// The last step that was logged.
    pub fn step(&self, cell: &str) -> u64 {
        progress::read(&self.run_dir(cell)).ok().and_then(|lines| Some(lines.last()?.step)).unwrap_or(0)
    }

    /// Whether nothing that cannot be run again by itself will start soon: a node that is dead, and not known to be, would
    /// take it along. `spared` is a training that has just been struck, and so is not about to end.
    pub fn is_calm(&self, spared: &str) -> bool {
        let goes_on = |cell: &String| {
            self.seal(cell).is_none() && (cell == spared || self.step(cell) < u64::from(self.steps) * 6 / 10)
        };
        SEEDS.iter().all(|seed| {
            let of = |stage: &str| format!("{stage}/seed-{seed}");
            let is_over = ["evaluate", "uat", "hotflip"].iter().all(|stage| self.seal(&of(stage)).is_some());
            let trains = ["train_baseline", "train_monotonic"].iter().any(|stage| goes_on(&of(stage)));
            self.seal(&of("apply_monotonicity")).is_some() && (is_over || trains)
        })
    }

    /// Nodes that an attempt's processes live on.
    pub fn nodes_of(&self, running: &Running) -> BTreeSet<&'static str> {
        running.ranks.iter().chain([&running.pid]).filter_map(|&pid| self.cluster.node_of(pid)).collect()
    }

    /// The queue; none if Slurm does not answer.
    pub fn queue(&self) -> Option<Vec<Queued>> {
        let words = ["squeue", "--noheader", "--array", "--states=PD,R,CG,S,CF", "--format=%j|%K|%T|%N|%r"];
        let output = self.cluster.slurm.on("head", 60).args(words).output().unwrap();
        if !output.status.success() {
            return None;
        }
        let slots: Value = fs::read_to_string(self.base.join(".seedbed/slots.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let parse = |line: &str| {
            let fields: Vec<&str> = line.split('|').collect();
            let [name, slot, state, nodes, reason] = fields.as_slice() else { return None };
            let stage = name.strip_prefix("monotone.")?.split('.').next()?;
            let seed = slot.parse::<usize>().ok().and_then(|slot| slots["seeds"][slot].as_u64());
            Some(Queued {
                cell: seed.map_or(stage.to_owned(), |seed| format!("{stage}/seed-{seed}")),
                state: format!("{state} {reason}"),
                nodes: NODES.into_iter().filter(|node| holds(nodes, node)).collect(),
            })
        };
        Some(text.lines().filter_map(parse).collect())
    }

    /// Lines of the journal, as JSON.
    pub fn journal(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.base.join(".seedbed/journal.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many jobs the journal has an intent of.
    pub fn intents(&self) -> usize {
        self.journal().iter().filter(|entry| entry["event"] == "intent").count()
    }

    /// Every file of the tables, by name.
    pub fn tables(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.run_dir("aggregate").join("tables")).into_iter().flatten();
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap_or_default())
        };
        entries.map(|entry| read(entry.unwrap().path())).collect()
    }
}

/// Whether a list such as `n[1-2,4]` names a node.
fn holds(list: &str, node: &str) -> bool {
    let Some(ranges) = list.strip_prefix("n[").and_then(|rest| rest.strip_suffix(']')) else { return list == node };
    let number: u32 = node[1..].parse().unwrap();
    ranges.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&number))
    })
}

#[test]
fn lists_of_nodes() {
    for (list, nodes) in [("n1", "n1"), ("n[1-2]", "n1 n2"), ("n[1,3-4]", "n1 n3 n4"), ("", "")] {
        let held: Vec<&str> = NODES.into_iter().filter(|node| holds(list, node)).collect();
        assert_eq!(held.join(" "), nodes, "{list}");
    }
}
