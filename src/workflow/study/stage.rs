//! One `[[stage]]`: its keys, resources, parameters, arms.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::gate;
use super::params::{self, Rules};
use super::problem::{Sink, Span, suggestion};
use super::quantity;
use super::section::Section;
use super::tree::{Table, Tree};
use super::{Arm, Axes, Command, Input, On, Run, Stage, staging, wishes};
use crate::record::decision::GATE_KIND;
use crate::record::{Name, Resources};
use crate::stages::{FieldType, Spec};
use crate::workflow::plan::Pack;

/// Keys of a stage.
const KEYS: &[&str] = &[
    "name",
    "number",
    "run",
    "command",
    "inputs",
    "outputs",
    "resumable",
    "needs",
    "per",
    "on",
    "activity",
    "resources",
    "max_running",
    "pack",
    "expected",
    "storage",
    "params",
    "arms",
];

/// Keys of `resources`.
pub(super) const RESOURCE_KEYS: &[&'static str] =
    &["nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem", "time"];

/// Keys of an arm.
const ARM_KEYS: &[&str] = &["name", "labels", "params"];

/// Names that other things in a study's results have.
const RESERVED: &[&str] = &["flags", "logs", "tables"];

/// What a run directory holds besides declared outputs.
const RUN_DIR: &[&str] =
    &["cell.toml", "log.txt", "progress.jsonl", "attempts", "run.h5", "seal.json", "invalid.json", "checkpoints"];

/// What a stage is read with.
pub(super) struct Surroundings<'s> {
    /// Kinds that exist.
    pub(super) known: &'s [&'static Spec],
    /// The study file's directory, absolute.
    pub(super) dir: &'s Path,
    /// Names of all stages of the file.
    pub(super) stages: &'s BTreeSet<&'s str>,
    /// The study's tables.
    pub(super) tables: &'s [Value],
    /// The study's figures.
    pub(super) figures: &'s [Value],
    /// The study's documents.
    pub(super) documents: &'s [Value],
    /// Whether a path is there; `None` if nobody asks.
    pub(super) exists: Option<&'s dyn Fn(&Path) -> bool>,
}

/// A stage with the places that checks across stages point at.
pub(super) struct Read {
    pub(super) stage: Stage,
    pub(super) at: Span,
    pub(super) number_at: Span,
    pub(super) needs: Vec<(Name, Span)>,
    pub(super) needs_at: Span,
    pub(super) arms_at: Span,
}

/// Reads one stage; `None` if it has no usable name.
pub(super) fn read(index: usize, table: &Table, at: Span, around: &Surroundings<'_>, sink: &mut Sink) -> Option<Read> {
    let what = match table.text("name") {
        Some(name) => format!("stage {name}"),
        None => format!("stage number {index}"),
    };
    let section = Section::new(table, at, what, &[KEYS, &wishes::KEYS[..], &staging::KEYS[..]].concat(), sink);
    let name = name(&section, sink);
    let number = section.integer("number", 0..=9999, sink).unwrap_or(index as i64) as u32;
    let axes = axes(&section, sink);
    let run = run(&section, around, sink);
    let resources = resources(&section, sink);
    let wishes = wishes::read(&section, sink);
    let (params, arms) = params_and_arms(&section, run.as_ref(), axes, around, sink);
    if let (Some(Run::Builtin(spec)), Some(resources)) = (&run, &resources) {
        let every: Vec<&Value> = if arms.is_empty() { vec![&params] } else { arms.iter().map(|a| &a.params).collect() };
        layout(&section, spec, resources, &every, sink);
    }
    let on = match section.one_of("on", &["compute", "login"], sink) {
        Some("login") => On::Login,
        _ => On::Compute,
    };
    let activity = section.name("activity", sink).map(|n| n.to_string());
    let max_running = section.integer("max_running", 1..=1_000_000, sink).map(|n| n as u32);
    let pack = pack(&section, sink).filter(|_| {
        let seeds = axes.seed && on == On::Compute;
        if !seeds {
            let message = format!("{} has `pack`, which puts cells of several seeds into one job", section.what);
            sink.push(&section.place("pack"), message, "remove it: the stage has no seeds, or runs in no job");
        }
        seeds
    });
    let expected_s = time(&section, "expected", sink);
    let storage_bytes = section.parsed("storage", quantity::bytes, sink);
    let needs = needs(&section, sink);
    let nodes = resources.as_ref().map_or(1, |r| r.nodes);
    let needed: Vec<&Name> = needs.iter().map(|(n, _)| n).collect();
    let staging = staging::of_stage(&section, run.as_ref(), &needed, nodes, sink);
    match &run {
        Some(Run::Builtin(spec)) => named_needs(&section, spec, &needs, around.stages, &params, &arms, sink),
        Some(Run::Command(_)) => variables(&section, &needs, sink),
        None => {}
    }
    Some(Read {
        stage: Stage {
            name: name?,
            number,
            run: run?,
            needs: needs.iter().map(|(n, _)| n.clone()).collect(),
            axes,
            on,
            activity,
            resources: resources?,
            wishes,
            staging,
            max_running,
            pack,
            expected_s,
            storage_bytes,
            params,
            arms,
        },
        number_at: section.place("number"),
        needs,
        needs_at: section.place("needs"),
        arms_at: section.place("arms"),
        at: section.at,
    })
}

/// The name of a stage or gate.
pub(super) fn name(section: &Section<'_>, sink: &mut Sink) -> Option<Name> {
    let name = section.name("name", sink);
    if section.entry("name").is_none() {
        section.missing("name", "say `name = \"...\"`", sink);
    }
    if let Some(name) = name.as_ref().filter(|n| RESERVED.contains(&n.as_str())) {
        sink.push(
            &section.place("name"),
            format!("a stage cannot be named `{name}`"),
            "results keep other things there",
        );
    }
    name
}

/// `pack = 4`, or `pack = {cells = 4, in_turn = true}`.
pub(super) fn pack(section: &Section<'_>, sink: &mut Sink) -> Option<Pack> {
    const BOUNDS: RangeInclusive<i64> = 2..=1000;
    let pack = |cells: i64, in_turn: bool| Pack { cells: cells as u32, in_turn };
    match &section.entry("pack")?.node.value {
        Tree::Table(table) => {
            let what = format!("`pack` of {}", section.what);
            let own = Section::new(table, section.place("pack"), what, &["cells", "in_turn"], sink);
            if own.entry("cells").is_none() {
                own.missing("cells", "say how many, as in `pack = {cells = 4, in_turn = true}`", sink);
            }
            let in_turn = own.bool("in_turn", sink).unwrap_or(false);
            own.integer("cells", BOUNDS, sink).map(|cells| pack(cells, in_turn))
        }
        _ => section.integer("pack", BOUNDS, sink).map(|cells| pack(cells, false)),
    }
}

fn axes(section: &Section<'_>, sink: &mut Sink) -> Axes {
    let mut axes = Axes { arm: false, seed: section.entry("per").is_none() };
    for (word, span) in section.texts("per", sink) {
        let axis = match word {
            "arm" => &mut axes.arm,
            "seed" => &mut axes.seed,
            _ => {
                let message = format!("`per` in {} cannot hold `{word}`", section.what);
                sink.unknown(&span, message, word, ["arm", "seed"]);
                continue;
            }
        };
        if std::mem::replace(axis, true) {
            sink.push(&span, format!("`per` in {} names `{word}` twice", section.what), "remove one");
        }
    }
    axes
}

fn run(section: &Section<'_>, around: &Surroundings<'_>, sink: &mut Sink) -> Option<Run> {
    if section.entry("command").is_some() {
        if section.entry("run").is_some() {
            let message = format!("{} has both `run` and `command`", section.what);
            sink.push(&section.place("command"), message, "keep one");
        }
        return command(section, around, sink).map(Run::Command);
    }
    for key in ["inputs", "outputs", "resumable"] {
        if section.entry(key).is_some() {
            let message = format!("{} has `{key}`, which only a stage with `command` takes", section.what);
            sink.push(&section.place(key), message, "remove it");
        }
    }
    if section.entry("run").is_none() {
        section.missing("run", "say `run = \"KIND\"`, or `command = [...]` for a program of yours", sink);
        return None;
    }
    let (kind, span) = section.text("run", sink)?;
    if gate::no_stage(kind, &span, &section.what, sink) {
        return None;
    }
    let spec = around.known.iter().find(|s| s.kind == kind);
    if spec.is_none() {
        let message = format!("unknown kind `{kind}` in {}", section.what);
        let kinds = around.known.iter().map(|s| s.kind).filter(|kind| *kind != GATE_KIND);
        sink.unknown(&span, message, kind, kinds);
    }
    spec.map(|s| Run::Builtin(s))
}

fn command(section: &Section<'_>, around: &Surroundings<'_>, sink: &mut Sink) -> Option<Command> {
    let words = section.texts("command", sink);
    let mut inputs: Vec<Input> = Vec::new();
    for (text, span) in section.texts("inputs", sink) {
        let path = match params::absolute(around.dir, text) {
            Ok(path) => PathBuf::from(path),
            Err(problem) => {
                sink.push(&span, format!("an input of {} {problem}", section.what), "");
                continue;
            }
        };
        if around.exists.is_some_and(|exists| !exists(&path)) {
            let message = format!("input `{text}` of {} is not there: `{}`", section.what, path.display());
            sink.push(&span, message, "create it, or correct the path");
        }
        if inputs.iter().any(|i| i.name == text) {
            sink.push(&span, format!("{} names input `{text}` twice", section.what), "remove one");
            continue;
        }
        inputs.push(Input { name: text.to_owned(), path });
    }
    let mut outputs: Vec<String> = Vec::new();
    for (text, span) in section.texts("outputs", sink) {
        if let Some(problem) = bad_output(text) {
            sink.push(&span, format!("output `{text}` of {} {problem}", section.what), "");
        } else if outputs.iter().any(|o| o == text) {
            sink.push(&span, format!("{} names output `{text}` twice", section.what), "remove one");
        } else {
            outputs.push(text.to_owned());
        }
    }
    if words.first().is_none_or(|(program, _)| program.is_empty()) {
        let message = format!("`command` in {} names no program", section.what);
        sink.push(&section.place("command"), message, "write the program and each argument as its own text");
        return None;
    }
    let argv = words
        .iter()
        .map(|(word, _)| match inputs.iter().find(|i| i.name == *word) {
            Some(input) => input.path.to_string_lossy().into_owned(),
            None => (*word).to_owned(),
        })
        .collect();
    // A script that nobody declared would change without making its results stale.
    for (word, span) in &words {
        let beside = around.dir.join(word);
        let undeclared = !word.is_empty() && !inputs.iter().any(|i| i.name == *word);
        if undeclared && Path::new(word).file_name().is_some() && around.exists.is_some_and(|exists| exists(&beside)) {
            let message = format!("`{word}` in the command of {} is a file, and no declared input", section.what);
            sink.push(span, message, format!("say `inputs = [\"{word}\"]`"));
        }
    }
    Some(Command {
        written: words.iter().map(|(word, _)| (*word).to_owned()).collect(),
        argv,
        inputs,
        outputs,
        resumable: section.bool("resumable", sink).unwrap_or(false),
    })
}

/// Why a declared output cannot be one.
fn bad_output(text: &str) -> Option<&'static str> {
    let mut parts = text.split('/');
    let first = parts.clone().next().unwrap_or_default();
    if text.starts_with('/') {
        Some("is an absolute path: write it relative to the run directory")
    } else if parts.any(|p| p.is_empty() || p == "." || p == "..") {
        Some("must be a plain path inside the run directory: no `..`, no `.`, no empty part")
    } else if first.starts_with('.') || RUN_DIR.contains(&first) {
        Some("is a name that Seedbed keeps for itself: choose another")
    } else {
        None
    }
}

/// The needed stages with their places.
pub(super) fn needs(section: &Section<'_>, sink: &mut Sink) -> Vec<(Name, Span)> {
    let mut needs: Vec<(Name, Span)> = Vec::new();
    for (text, span) in section.texts("needs", sink) {
        if text.contains([':', '/']) {
            let message = format!("{} needs `{text}` of another study, which this version cannot do", section.what);
            sink.push(&span, message, "name a stage of this study");
            continue;
        }
        match Name::new(text) {
            Ok(name) if needs.iter().any(|(n, _)| *n == name) => {
                sink.push(&span, format!("{} needs `{name}` twice", section.what), "remove one");
            }
            Ok(name) => needs.push((name, span)),
            Err(problem) => sink.push(&span, format!("`needs` in {}: {problem}", section.what), ""),
        }
    }
    needs
}

/// Notes parameters that name a stage which is not needed.
fn named_needs(
    section: &Section<'_>,
    spec: &Spec,
    needs: &[(Name, Span)],
    stages: &BTreeSet<&str>,
    params: &Value,
    arms: &[Arm],
    sink: &mut Sink,
) {
    if needs.iter().any(|(need, _)| !stages.contains(need.as_str())) {
        // A need that is misspelt is said elsewhere; once is enough.
        return;
    }
    let fields = spec.fields.iter().filter(|f| f.ty == FieldType::NeedMap);
    for field in fields {
        let at = match section.entry("params").map(|e| &e.node.value) {
            Some(Tree::Table(table)) => table.get(field.name).map_or(section.place("params"), |e| e.key_span.clone()),
            _ => section.place("params"),
        };
        let every: Vec<&Value> = if arms.is_empty() { vec![params] } else { arms.iter().map(|a| &a.params).collect() };
        let words = every.iter().filter_map(|p| p.get(field.name)?.as_object()).flat_map(|m| m.values());
        let unneeded: BTreeSet<&str> =
            words.filter_map(Value::as_str).filter(|w| !needs.iter().any(|(n, _)| n.as_str() == *w)).collect();
        for word in unneeded {
            let message = format!("`{}` in {} names stage `{word}`, which it does not need", field.name, section.what);
            if stages.contains(word) {
                sink.push(&at, message, format!("add `{word}` to its `needs`"));
            } else {
                sink.unknown(&at, message, word, needs.iter().map(|(n, _)| n.as_str()));
            }
        }
    }
}

/// Notes needs whose variables in a program's environment would be one.
fn variables(section: &Section<'_>, needs: &[(Name, Span)], sink: &mut Sink) {
    let mut seen: BTreeMap<String, &Name> = BTreeMap::new();
    for (name, span) in needs {
        if let Some(first) = seen.insert(name.as_str().replace(['-', '.'], "_"), name) {
            let message = format!("{} would find `{first}` and `{name}` in one variable", section.what);
            sink.push(span, message, "rename one of these stages");
        }
    }
}

fn resources(section: &Section<'_>, sink: &mut Sink) -> Option<Resources> {
    if section.entry("resources").is_none() {
        section.missing("resources", "say at least `resources = {time = \"1:00:00\"}`", sink);
        return None;
    }
    let (table, at) = section.table("resources", sink)?;
    let own = Section::new(table, at, format!("resources of {}", section.what), RESOURCE_KEYS, sink);
    if own.entry("time").is_none() {
        own.missing("time", "say for example `time = \"1:00:00\"`", sink);
    }
    let before = sink.found.len();
    let said = said_resources(&own, sink);
    if sink.found.len() > before {
        return None;
    }
    let none =
        Resources { nodes: 1, tasks_per_node: 1, cpus_per_task: 1, gpus_per_node: 0, mem_bytes: None, time_s: 0 };
    said.time_s.is_some().then(|| said.over(&none))
}

/// Resources as far as a table says them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaidResources {
    nodes: Option<u32>,
    tasks_per_node: Option<u32>,
    cpus_per_task: Option<u32>,
    gpus_per_node: Option<u32>,
    mem_bytes: Option<u64>,
    time_s: Option<u64>,
}

impl SaidResources {
    /// What is said, and for the rest what is below.
    pub fn over(&self, below: &Resources) -> Resources {
        Resources {
            nodes: self.nodes.unwrap_or(below.nodes),
            tasks_per_node: self.tasks_per_node.unwrap_or(below.tasks_per_node),
            cpus_per_task: self.cpus_per_task.unwrap_or(below.cpus_per_task),
            gpus_per_node: self.gpus_per_node.unwrap_or(below.gpus_per_node),
            mem_bytes: self.mem_bytes.or(below.mem_bytes),
            time_s: self.time_s.unwrap_or(below.time_s),
        }
    }
}

/// Reads a table of resources.
pub(super) fn said_resources(own: &Section<'_>, sink: &mut Sink) -> SaidResources {
    let mut count = |key: &str, least: i64, most: i64| own.integer(key, least..=most, sink).map(|n| n as u32);
    let nodes = count("nodes", 1, 10_000);
    let tasks_per_node = count("tasks_per_node", 1, 1024);
    let cpus_per_task = count("cpus_per_task", 1, 4096);
    let gpus_per_node = count("gpus_per_node", 0, 64);
    let mem_bytes = own.parsed("mem", quantity::bytes, sink);
    let time_s = time(own, "time", sink);
    SaidResources { nodes, tasks_per_node, cpus_per_task, gpus_per_node, mem_bytes, time_s }
}

/// A time in seconds: text, or whole minutes.
fn time(own: &Section<'_>, key: &str, sink: &mut Sink) -> Option<u64> {
    match own.entry(key).map(|e| &e.node.value) {
        Some(Tree::Integer(minutes)) => quantity::time_s(&minutes.to_string())
            .map_err(|problem| sink.push(&own.place(key), format!("`{key}` in {}: {problem}", own.what), ""))
            .ok(),
        _ => own.parsed(key, quantity::time_s, sink),
    }
}

/// Notes resources that no layout of the kind's ranks fits.
pub(super) fn layout(section: &Section<'_>, spec: &Spec, resources: &Resources, params: &[&Value], sink: &mut Sink) {
    if let Some((problem, help)) = misfit(spec, resources, params) {
        sink.push(&section.place("resources"), format!("resources of {} {problem}", section.what), help);
    }
}

/// Why no layout of the kind's ranks fits these resources, and what to do.
pub(super) fn misfit(spec: &Spec, resources: &Resources, params: &[&Value]) -> Option<(String, String)> {
    let ranks = resources.ranks();
    if ranks > 1 && !spec.parallel {
        let problem = format!("start {ranks} ranks, and kind `{}` runs on one", spec.kind);
        return Some((problem, "set nodes = 1 and tasks_per_node = 1".to_owned()));
    }
    let gpus = resources.gpus_per_node;
    if gpus > 0 && gpus != resources.tasks_per_node {
        let problem = format!("give {gpus} GPUs to {} ranks a node", resources.tasks_per_node);
        return Some((problem, "a rank has one GPU: set tasks_per_node = gpus_per_node".to_owned()));
    }
    for params in params {
        let Some(lanes) = lanes(params) else { continue };
        if params.get("exact").and_then(Value::as_bool) == Some(false) || lanes % u64::from(ranks) == 0 {
            continue;
        }
        let allowed: Vec<String> = (0..=lanes.ilog2()).map(|i| (1u64 << i).to_string()).collect();
        let problem = format!("start {ranks} ranks, which do not divide its {lanes} lanes");
        return Some((problem, format!("start {} ranks", allowed.join(", "))));
    }
    None
}

/// Lanes of a data-parallel kind: `lanes`, or the largest power of two up to 8 that divides the grains of a batch.
fn lanes(params: &Value) -> Option<u64> {
    let get = |key: &str| params.get(key).and_then(Value::as_u64);
    if let Some(lanes) = get("lanes").filter(|l| l.is_power_of_two()) {
        return Some(lanes);
    }
    let (batch, grain) = (get("global_batch")?, get("grain_samples")?);
    if grain == 0 || batch == 0 || batch % grain != 0 {
        return None;
    }
    [8, 4, 2, 1].into_iter().find(|lanes| (batch / grain) % lanes == 0)
}

fn params_and_arms(
    section: &Section<'_>,
    run: Option<&Run>,
    axes: Axes,
    around: &Surroundings<'_>,
    sink: &mut Sink,
) -> (Value, Vec<Arm>) {
    let empty = Table::default();
    let (base, at) = section.table("params", sink).unwrap_or((&empty, section.place("params")));
    let resolve = |table: &Table, at: &Span, what: &str, sink: &mut Sink| match run {
        Some(Run::Builtin(spec)) => {
            let rules = Rules {
                spec,
                dir: around.dir,
                tables: around.tables,
                figures: around.figures,
                documents: around.documents,
                exists: around.exists,
            };
            params::resolve(&rules, table, at, what, sink)
        }
        Some(Run::Command(_)) => {
            if let Some(entry) = table.entries.iter().find(|e| e.key == "command" || e.key == "outputs") {
                sink.push(&entry.key_span, format!("{what} cannot have a parameter `{}`", entry.key), "rename it");
            }
            table.to_json()
        }
        None => Value::Object(Map::new()),
    };
    let tables = section.tables("arms", sink);
    if axes.arm && tables.is_empty() {
        let message = format!("{} has the axis `arm` and no arms", section.what);
        sink.push(&section.place("per"), message, "say `arms = [{name = \"...\"}, ...]`");
    }
    if !axes.arm && !tables.is_empty() {
        let message = format!("{} has arms and not the axis `arm`", section.what);
        sink.push(&section.place("arms"), message, "say `per = [\"arm\", \"seed\"]`");
    }
    if tables.is_empty() {
        return (resolve(base, &at, &section.what, sink), Vec::new());
    }
    let mut arms: Vec<Arm> = Vec::new();
    for (table, span) in tables {
        let what = format!("arm {} of {}", table.text("name").unwrap_or("without a name"), section.what);
        let own = Section::new(table, span, what, ARM_KEYS, sink);
        if own.entry("name").is_none() {
            own.missing("name", "say `name = \"...\"`", sink);
        }
        let mut merged = base.clone();
        let mut place = at.clone();
        if let Some((over, span)) = own.table("params", sink) {
            merged.overlay(over);
            place = span;
        }
        let params = resolve(&merged, &place, &own.what, sink);
        let labels = own.text_map("labels", sink);
        let Some(name) = own.name("name", sink) else { continue };
        if name.as_str().starts_with("seed-") {
            sink.push(&own.place("name"), format!("arm `{name}` starts with `seed-`"), "choose another name");
        }
        if arms.iter().any(|a| a.name == name) {
            sink.push(&own.place("name"), format!("{} has two arms `{name}`", section.what), "rename one");
            continue;
        }
        arms.push(Arm { name, labels, params });
    }
    // The stage's own parameters: what the arms start from. A field that every arm says may be missing here.
    let params = match run {
        Some(Run::Builtin(_)) => resolve(base, &at, &section.what, &mut Sink::default()),
        _ => base.to_json(),
    };
    (params, arms)
}

/// The nearest stage for a need that is none.
pub(super) fn nearest(word: &str, stages: &[Read]) -> String {
    suggestion(word, &stages.iter().map(|s| s.stage.name.as_str()).collect::<Vec<_>>())
}
