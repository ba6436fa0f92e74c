//! From the text of a study file to a [`Study`], or to everything that is wrong with it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::problem::{Problem, Sink, Span, StudyError, collect, suggestion};
use super::section::Section;
use super::stage::{self, Surroundings};
use super::tree::{self, Entry, Node, Syntax, Table, Tree};
use super::{Budget, DEFAULT_PROFILE, Retry, SCHEMA, Study, gate, graph, quantity, retry};
use crate::record::Name;
use crate::report::document::DocumentSpec;
use crate::report::figure::FigureSpec;
use crate::report::table::{PathStep, SpecProblem, TableSpec};
use crate::stages::{FieldType, Spec};

/// Keys of the file.
const ROOT_KEYS: &[&str] =
    &["schema", "study", "budget", "retry", "stage", "gate", "table", "figure", "document", "signoff", "profile"];

/// Keys of `[study]`.
const STUDY_KEYS: &[&str] = &["name", "seeds", "default_profile"];

/// Keys of `[profile.NAME]`.
const PROFILE_KEYS: &[&str] = &["seeds", "stage", "gate", "table", "figure", "document", "signoff", "budget", "retry"];

/// Largest file that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// Most seeds a study may name.
const MOST_SEEDS: usize = 100_000;

/// Reads and checks a study file, all profiles of it, and returns it under one.
///
/// Without `profile` it is `default_profile` of the file, or [`DEFAULT_PROFILE`] if the file has no profiles.
/// `known` are the stage kinds that exist. Relative paths in the file start from its directory.
///
/// # Errors
/// The file cannot be read, or it is not sound: then every problem of every profile.
pub fn load(path: &Path, profile: Option<&str>, known: &[&'static Spec]) -> Result<Study, StudyError> {
    let text = read_text(path)?;
    let absolute = std::path::absolute(path).map_err(|source| StudyError::Io { path: path.to_path_buf(), source })?;
    let dir = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
    let exists = |path: &Path| path.exists();
    let study = parse(path, &dir, text, profile, known, Some(&exists))?;
    match super::siblings::claimed_elsewhere(path, study.name.as_str()) {
        Some(other) => {
            let message = format!("study `{}` is also the name of `{}`", study.name, other.display());
            let at = name_place(&study.text);
            let mut sink = Sink::default();
            sink.push(&at, message, "rename one of them: their results would lie in one directory");
            Err(StudyError::Problems(collect(path, &study.text, vec![(None, sink)])))
        }
        None => Ok(study),
    }
}

/// The file's text.
///
/// # Errors
/// It cannot be read, is no plain file, too large, or not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String, StudyError> {
    let io = |source| StudyError::Io { path: path.to_path_buf(), source };
    let one = |message: &str, help: &str| {
        Err(StudyError::Problems(vec![Problem {
            file: path.to_path_buf(),
            line: 1,
            column: 1,
            message: message.to_owned(),
            help: help.to_owned(),
        }]))
    };
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() {
        return one("this is no plain file", "name the `.toml` file itself");
    }
    if meta.len() > LARGEST {
        return one("this file is larger than 4 MiB", "is it a study file?");
    }
    let bytes = std::fs::read(path).map_err(io)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
            let mut sink = Sink::default();
            sink.push(&(good..good), "a byte here is not UTF-8", "save the file as UTF-8");
            Err(StudyError::Problems(collect(path, &text, vec![(None, sink)])))
        }
    }
}

/// [`load`] without the file system: `dir` is the absolute directory of the file, and `exists` tells whether a path
/// is there (`None`: do not ask).
///
/// # Errors
/// Every problem of every profile.
pub(super) fn parse(
    file: &Path,
    dir: &Path,
    text: String,
    profile: Option<&str>,
    known: &[&'static Spec],
    exists: Option<&dyn Fn(&Path) -> bool>,
) -> Result<Study, StudyError> {
    let mut outer = Sink::default();
    let (root, syntax) = tree::parse(&text, &mut outer);
    if syntax == Syntax::Broken {
        return Err(StudyError::Problems(collect(file, &text, vec![(None, outer)])));
    }
    let bad_values = outer.places();
    let profiles = profiles(&root, &mut outer);
    let chosen = choose(&root, &profiles, profile, &mut outer);

    // Every profile is read, so that a file is sound or not whichever one is asked for.
    let mut readings = Vec::new();
    let mut study = None;
    let overlays: Vec<Option<&(Name, &Table)>> =
        if profiles.is_empty() { vec![None] } else { profiles.iter().map(Some).collect() };
    for overlay in overlays {
        let mut sink = Sink::default();
        let mut merged = root.clone();
        let name = overlay.map(|(name, _)| name.clone());
        if let Some((name, over)) = overlay {
            lay_over(&mut merged, name, over, &mut sink);
        }
        let mine = overlay.is_none() || chosen.is_some() && chosen == name;
        let read = read_study(&merged, known, dir, exists.filter(|_| mine), &mut sink);
        sink.forget(&bad_values);
        if mine {
            study = read;
        }
        readings.push((name.map(|n| n.to_string()), sink));
    }
    let mut problems = collect(file, &text, readings);
    problems.extend(collect(file, &text, vec![(None, outer)]));
    problems.sort_by(|a, b| (a.line, a.column, &a.message).cmp(&(b.line, b.column, &b.message)));
    match (study, chosen) {
        (Some(read), Some(chosen)) if problems.is_empty() => Ok(Study {
            name: read.name,
            profile: chosen,
            profiles: profiles.into_iter().map(|(name, _)| name).collect(),
            seeds: read.seeds,
            stages: read.stages,
            tables: read.tables,
            figures: read.figures,
            documents: read.documents,
            signoff: read.signoff,
            budget: read.budget,
            retry: read.retry,
            file: file.to_path_buf(),
            text,
        }),
        _ => {
            if problems.is_empty() {
                // Whatever withheld the study has noted why; this line keeps the promise that the list is not empty.
                let mut sink = Sink::default();
                sink.push(&(0..0), "this is no study file", "start from `seedbed new NAME`");
                problems = collect(file, &text, vec![(None, sink)]);
            }
            Err(StudyError::Problems(problems))
        }
    }
}

/// Profiles by name, in file order.
fn profiles<'t>(root: &'t Table, sink: &mut Sink) -> Vec<(Name, &'t Table)> {
    let Some(entry) = root.get("profile") else { return Vec::new() };
    let Tree::Table(table) = &entry.node.value else {
        sink.push(&entry.key_span, "`profile` must be a table of profiles", "write `[profile.quick]`");
        return Vec::new();
    };
    let mut profiles = Vec::new();
    for Entry { key, key_span, node } in &table.entries {
        match (Name::new(key), &node.value) {
            (Ok(name), Tree::Table(over)) => profiles.push((name, over)),
            (Ok(_), other) => {
                sink.push(key_span, format!("profile `{key}` must be a table, not {}", other.noun()), "");
            }
            (Err(problem), _) => sink.push(key_span, format!("profile: {problem}"), ""),
        }
    }
    profiles
}

/// The profile to return.
fn choose(root: &Table, profiles: &[(Name, &Table)], asked: Option<&str>, sink: &mut Sink) -> Option<Name> {
    let names: Vec<&str> = profiles.iter().map(|(name, _)| name.as_str()).collect();
    let find = |word: &str| profiles.iter().map(|(name, _)| name).find(|name| name.as_str() == word).cloned();
    let study = root.get("study").and_then(|e| match &e.node.value {
        Tree::Table(table) => Some((table, e.key_span.clone())),
        _ => None,
    });
    let preset = study.as_ref().and_then(|(table, _)| table.get("default_profile"));
    if let Some(Entry { node: Node { span, value: Tree::Text(word) }, .. }) = preset {
        if find(word).is_none() {
            let message = format!("`default_profile` is `{word}`, and there is no such profile");
            sink.push(span, message, suggestion(word, &names));
        }
    }
    let at: Span = root.get("profile").map_or(0..0, |e| e.key_span.clone());
    match asked {
        Some(word) if profiles.is_empty() => {
            if word != DEFAULT_PROFILE {
                sink.push(
                    &(0..0),
                    format!("there is no profile `{word}`: this study has none"),
                    "leave `--profile` out",
                );
            }
            Name::new(DEFAULT_PROFILE).ok()
        }
        Some(word) => {
            let found = find(word);
            if found.is_none() {
                sink.push(&at, format!("there is no profile `{word}`"), suggestion(word, &names));
            }
            found
        }
        None if profiles.is_empty() => Name::new(DEFAULT_PROFILE).ok(),
        None => {
            if preset.is_none() {
                let help =
                    format!("say `--profile {}`, or set `default_profile` in [study]", names.join("` or `--profile "));
                sink.push(&at, "this study has profiles, and none was chosen", help);
            }
            preset.and_then(|e| match &e.node.value {
                Tree::Text(word) => find(word),
                _ => None,
            })
        }
    }
}

/// Lays a profile over the file's tree.
fn lay_over(root: &mut Table, name: &Name, over: &Table, sink: &mut Sink) {
    let what = format!("profile {name}");
    Section::new(over, 0..0, &what, PROFILE_KEYS, sink);
    for entry in &over.entries {
        match (entry.key.as_str(), &entry.node.value) {
            ("seeds", _) => {
                if let Some(Entry { node: Node { value: Tree::Table(study), .. }, .. }) =
                    root.entries.iter_mut().find(|e| e.key == "study")
                {
                    study.put(entry);
                }
            }
            ("budget" | "retry" | "signoff", _) => root.put(entry),
            (key @ ("stage" | "gate" | "table" | "figure" | "document"), Tree::Table(named)) => {
                by_name(root, key, named, &what, sink)
            }
            (key @ ("stage" | "gate" | "table" | "figure" | "document"), _) => {
                let message = format!("`{key}` in {what} must be a table by name");
                sink.push(&entry.key_span, message, format!("write `{key}.NAME.KEY = ...`"));
            }
            _ => {}
        }
    }
}

/// Lays tables over the elements of an array of tables that have their names: `name` of a stage or gate, `key` of a table, figure or document.
fn by_name(root: &mut Table, key: &str, named: &Table, what: &str, sink: &mut Sink) {
    let handle = if matches!(key, "table" | "figure" | "document") { "key" } else { "name" };
    let mut none = Vec::new();
    let elements = match root.entries.iter_mut().find(|e| e.key == key).map(|e| &mut e.node.value) {
        Some(Tree::Array(elements)) => elements,
        _ => &mut none,
    };
    let names: Vec<String> = elements
        .iter()
        .filter_map(|n| match &n.value {
            Tree::Table(table) => table.text(handle).map(str::to_owned),
            _ => None,
        })
        .collect();
    for entry in &named.entries {
        let Tree::Table(over) = &entry.node.value else {
            let message = format!("`{key}.{}` in {what} must be a table, not {}", entry.key, entry.node.value.noun());
            sink.push(&entry.key_span, message, "");
            continue;
        };
        if let Some(renamed) = over.get(handle) {
            let message = format!("{what} renames {key} {}", entry.key);
            sink.push(&renamed.key_span, message, format!("remove `{handle}`: a profile cannot rename"));
            continue;
        }
        let mut found = false;
        for element in elements.iter_mut() {
            if let Tree::Table(table) = &mut element.value
                && table.text(handle) == Some(entry.key.as_str())
            {
                table.overlay(over);
                found = true;
            }
        }
        if !found {
            let message = format!("unknown {key} `{}` in {what}", entry.key);
            sink.unknown(&entry.key_span, message, &entry.key, names.iter().map(String::as_str));
        }
    }
}

/// What one reading of the merged tree gives.
struct ReadStudy {
    name: Name,
    seeds: Vec<u32>,
    stages: Vec<super::Stage>,
    tables: Vec<Value>,
    figures: Vec<Value>,
    documents: Vec<Value>,
    signoff: Vec<Value>,
    budget: Option<Budget>,
    retry: Retry,
}

fn read_study(
    root: &Table,
    known: &[&'static Spec],
    dir: &Path,
    exists: Option<&dyn Fn(&Path) -> bool>,
    sink: &mut Sink,
) -> Option<ReadStudy> {
    let top = Section::new(root, 0..0, "the study file", ROOT_KEYS, sink);
    schema(&top, sink);
    let empty = Table::default();
    if top.entry("study").is_none() {
        top.missing("study", "say `[study]` and `name = \"...\"` below it", sink);
    }
    let (table, at) = top.table("study", sink).unwrap_or((&empty, 0..0));
    let own = Section::new(table, at, "[study]", STUDY_KEYS, sink);
    if top.entry("study").is_some() && own.entry("name").is_none() {
        own.missing("name", "say `name = \"...\"`", sink);
    }
    let name = own.name("name", sink);
    own.text("default_profile", sink);
    let seeds = seeds(&own, sink);
    let budget = budget(&top, sink);
    let retry = retry::read(&top, sink);

    let sections = top.tables("stage", sink);
    if sections.is_empty() && top.entry("stage").is_none() {
        top.missing("stage", "add a `[[stage]]`", sink);
    }
    let with_results: BTreeSet<&str> = sections.iter().filter_map(|(t, _)| t.text("name")).collect();
    let tables = result_tables(&top, &with_results, sink);
    let figures = result_figures(&top, &with_results, &tables, sink);
    let documents = result_documents(&top, &with_results, sink);
    let signoff = gate::signoff(&top, &with_results, sink);
    let gates = top.tables("gate", sink);
    let mut all = with_results.clone();
    all.extend(gates.iter().filter_map(|(t, _)| t.text("name")));
    let around =
        Surroundings { known, dir, stages: &all, tables: &tables, figures: &figures, documents: &documents, exists };
    let mut reads: Vec<stage::Read> = sections
        .iter()
        .enumerate()
        .filter_map(|(index, (table, at))| stage::read(index, table, at.clone(), &around, sink))
        .collect();
    // Behind every stage, whatever numbers those say.
    let first = reads.iter().map(|r| r.stage.number + 1).max().unwrap_or(0).max(sections.len() as u32);
    let numbered = (first..).zip(gates);
    reads.extend(numbered.filter_map(|(number, (table, at))| gate::read(number, table, at, sink)));
    graph::check(&reads, &all, seeds.as_ref().is_none_or(|s| !s.is_empty()), sink);
    for read in &reads {
        tables_need(read, &tables, sink);
        figures_need(read, &figures, &with_results, sink);
        documents_need(read, &documents, &with_results, sink);
    }
    let stages = reads.into_iter().map(|r| r.stage).collect();
    Some(ReadStudy { name: name?, seeds: seeds?, stages, tables, figures, documents, signoff, budget, retry })
}

/// The `schema` of a study or cluster file.
pub(super) fn schema(top: &Section<'_>, sink: &mut Sink) {
    if top.entry("schema").is_none() {
        top.missing("schema", format!("say `schema = {SCHEMA}` in the first line"), sink);
    }
    if let Some(found) = top.integer("schema", 1..=i64::MAX, sink)
        && found > SCHEMA
    {
        let message = format!("this file has schema {found}, and this program reads up to {SCHEMA}");
        sink.push(&top.place("schema"), message, "use the newer Seedbed that it was written for");
    }
}

/// The seeds, or nothing if they were not right.
fn seeds(own: &Section<'_>, sink: &mut Sink) -> Option<Vec<u32>> {
    if own.entry("seeds").is_none() {
        return Some(Vec::new());
    }
    let items = own.array("seeds", sink)?;
    if items.len() > MOST_SEEDS {
        sink.push(&own.place("seeds"), format!("there are more than {MOST_SEEDS} seeds"), "remove some");
        return None;
    }
    let mut seeds = Vec::with_capacity(items.len());
    let mut seen = BTreeSet::new();
    for item in items {
        let seed = match item.value {
            Tree::Integer(value) => u32::try_from(value).map_err(|_| value.to_string()),
            ref other => Err(other.noun().to_owned()),
        };
        match seed {
            Ok(seed) if !seen.insert(seed) => {
                sink.push(&item.span, format!("seed {seed} is given twice"), "remove one");
            }
            Ok(seed) => seeds.push(seed),
            Err(found) => {
                sink.push(&item.span, format!("a seed is an integer from 0 to 4294967295, not {found}"), "");
            }
        }
    }
    (seeds.len() == items.len()).then_some(seeds)
}

fn budget(top: &Section<'_>, sink: &mut Sink) -> Option<Budget> {
    let (table, at) = top.table("budget", sink)?;
    let own = Section::new(table, at, "[budget]", &["gpu_hours", "cpu_hours", "storage", "cost"], sink);
    Some(Budget {
        gpu_hours: own.amount("gpu_hours", sink),
        cpu_hours: own.amount("cpu_hours", sink),
        storage_bytes: own.parsed("storage", quantity::bytes, sink),
        cost: own.amount("cost", sink),
    })
}

/// `[[table]]` sections, checked by their owner, the report wing.
fn result_tables(top: &Section<'_>, stages: &BTreeSet<&str>, sink: &mut Sink) -> Vec<Value> {
    let stages: Vec<&str> = stages.iter().copied().collect();
    let mut keys = BTreeSet::new();
    let mut tables = Vec::new();
    for (table, at) in top.tables("table", sink) {
        let section = table.to_json();
        let name = table.text("key").unwrap_or("without a key");
        for problem in TableSpec::parse(&section, &stages).err().unwrap_or_default() {
            section_problem(problem, &format!("table {name}"), table, &at, sink);
        }
        if table.get("key").is_some() && !keys.insert(name) {
            sink.push(
                &place(table, &at, &[PathStep::Key("key".to_owned())]),
                format!("two tables have the key `{name}`"),
                "rename one",
            );
        }
        tables.push(section);
    }
    tables
}

/// What its owner says of a section, at its place.
fn section_problem(problem: SpecProblem, what: &str, table: &Table, at: &Span, sink: &mut Sink) {
    let known: Vec<&str> = problem.known.iter().map(String::as_str).collect();
    let help = problem.word.map(|word| suggestion(&word, &known)).unwrap_or_default();
    sink.push(&place(table, at, &problem.path), format!("{what}: {}", problem.message), help);
}

/// `[[figure]]` sections, checked by their owner, the report wing.
fn result_figures(top: &Section<'_>, stages: &BTreeSet<&str>, tables: &[Value], sink: &mut Sink) -> Vec<Value> {
    let stages: Vec<&str> = stages.iter().copied().collect();
    let mut keys = BTreeSet::new();
    let mut figures = Vec::new();
    for (figure, at) in top.tables("figure", sink) {
        let section = figure.to_json();
        let name = figure.text("key").unwrap_or("without a key");
        for problem in FigureSpec::parse(&section, &stages, tables).err().unwrap_or_default() {
            section_problem(problem, &format!("figure {name}"), figure, &at, sink);
        }
        if figure.get("key").is_some() && !keys.insert(name) {
            let at = place(figure, &at, &[PathStep::Key("key".to_owned())]);
            sink.push(&at, format!("two figures have the key `{name}`"), "rename one");
        }
        figures.push(section);
    }
    figures
}

/// As [`tables_need`], for the lines of figures.
fn figures_need(read: &stage::Read, figures: &[Value], known: &BTreeSet<&str>, sink: &mut Sink) {
    let super::Run::Builtin(spec) = &read.stage.run else { return };
    if read.needs.is_empty() || !spec.fields.iter().any(|f| f.ty == FieldType::Figures) {
        return;
    }
    for figure in figures {
        let key = figure.get("key").and_then(Value::as_str).unwrap_or("without a key");
        let lines = figure.get("lines").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let stages = lines.iter().filter_map(|l| l.get("stage")?.as_str()).filter(|s| known.contains(s));
        let stages: BTreeSet<&str> = stages.collect();
        for unneeded in stages.into_iter().filter(|s| !read.needs.iter().any(|(n, _)| n.as_str() == *s)) {
            let message = format!("stage {} makes figure {key}, which shows stage `{unneeded}`", read.stage.name);
            sink.push(&read.needs_at, message, format!("add \"{unneeded}\" to its `needs`"));
        }
    }
}

/// A stage that makes the study's tables must need every stage that they read; else the table could only be
/// refused when everything has run.
fn tables_need<'a>(read: &stage::Read, tables: &'a [Value], sink: &mut Sink) {
    let super::Run::Builtin(spec) = &read.stage.run else { return };
    // A stage that needs nothing reads no results.
    if read.needs.is_empty() || !spec.fields.iter().any(|f| f.ty == FieldType::Tables) {
        return;
    }
    // What reads several studies is made by `seedbed aggregate`, not by a stage.
    let several = |table: &&'a Value| table.get("studies").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    for table in tables.iter().filter(|table| !several(table)) {
        let key = table.get("key").and_then(Value::as_str).unwrap_or("without a key");
        let columns = table.get("columns").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let names = |stage: &'a Value| stage.as_array().map_or(std::slice::from_ref(stage), Vec::as_slice);
        let stages: BTreeSet<&str> =
            columns.iter().filter_map(|c| c.get("stage")).flat_map(names).filter_map(Value::as_str).collect();
        for unneeded in stages.into_iter().filter(|s| !read.needs.iter().any(|(n, _)| n.as_str() == *s)) {
            let message = format!("stage {} makes table {key}, which reads stage `{unneeded}`", read.stage.name);
            sink.push(&read.needs_at, message, format!("add \"{unneeded}\" to its `needs`"));
        }
    }
}

/// `[[document]]` sections, checked by their owner, the report wing.
fn result_documents(top: &Section<'_>, stages: &BTreeSet<&str>, sink: &mut Sink) -> Vec<Value> {
    let stages: Vec<&str> = stages.iter().copied().collect();
    let mut keys = BTreeSet::new();
    let mut documents = Vec::new();
    for (document, at) in top.tables("document", sink) {
        let section = document.to_json();
        let name = document.text("key").unwrap_or("without a key");
        for problem in DocumentSpec::parse(&section, &stages).err().unwrap_or_default() {
            let known: Vec<&str> = problem.known.iter().map(String::as_str).collect();
            let help = problem.word.map(|word| suggestion(&word, &known)).unwrap_or_default();
            sink.push(&place(document, &at, &problem.path), format!("document {name}: {}", problem.message), help);
        }
        if document.get("key").is_some() && !keys.insert(name) {
            let at = place(document, &at, &[PathStep::Key("key".to_owned())]);
            sink.push(&at, format!("two documents have the key `{name}`"), "rename one");
        }
        documents.push(section);
    }
    documents
}

/// As [`tables_need`], for documents.
fn documents_need(read: &stage::Read, documents: &[Value], stages: &BTreeSet<&str>, sink: &mut Sink) {
    let super::Run::Builtin(spec) = &read.stage.run else { return };
    if read.needs.is_empty() || !spec.fields.iter().any(|f| f.ty == FieldType::Documents) {
        return;
    }
    let stages: Vec<&str> = stages.iter().copied().collect();
    for document in documents.iter().filter_map(|section| DocumentSpec::parse(section, &stages).ok()) {
        for unneeded in document.stages().into_iter().filter(|s| !read.needs.iter().any(|(n, _)| n.as_str() == *s)) {
            let key = document.key();
            let message = format!("stage {} makes document {key}, which reads stage `{unneeded}`", read.stage.name);
            sink.push(&read.needs_at, message, format!("add \"{unneeded}\" to its `needs`"));
        }
    }
}

/// Where a path below a table leads: the key of its last step that is there.
fn place(table: &Table, at: &Span, path: &[PathStep]) -> Span {
    let mut at = at.clone();
    let mut keys = Some(table);
    let mut items: &[Node] = &[];
    for step in path {
        let node = match step {
            PathStep::Key(key) => match keys.and_then(|t| t.get(key)) {
                Some(entry) => {
                    at = entry.key_span.clone();
                    &entry.node
                }
                None => break,
            },
            PathStep::Index(index) => match items.get(*index) {
                Some(node) => {
                    at = node.span.clone();
                    node
                }
                None => break,
            },
        };
        (keys, items) = match &node.value {
            Tree::Table(table) => (Some(table), &[][..]),
            Tree::Array(items) => (None, items.as_slice()),
            _ => (None, &[][..]),
        };
    }
    at
}

/// Where the study's name stands.
fn name_place(text: &str) -> Span {
    let (root, _) = tree::parse(text, &mut Sink::default());
    match root.get("study").map(|e| &e.node.value) {
        Some(Tree::Table(study)) => study.get("name").map_or(0..0, |e| e.node.span.clone()),
        _ => 0..0,
    }
}

/// The name that a file claims for its study, if it has one.
pub(super) fn claimed_name(path: &Path) -> Option<String> {
    let text = read_text(path).ok()?;
    let (root, _) = tree::parse(&text, &mut Sink::default());
    match &root.get("study")?.node.value {
        Tree::Table(study) => study.text("name").map(str::to_owned),
        _ => None,
    }
}
