//! The invariants of `docs/architecture.md` that a reader of the source can check: which room may name which,
//! which rooms are pure, where files are written, where tensors and HDF5 are.
//!
//! [`source`] finds every path that a file names; the rules here are tables. The checker is itself checked on planted
//! violations.

mod source;

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::repository;
use source::{Named, paths};

/// Who may name whom: a wing, and the beginnings of the paths that it may name.
const ARROWS: [(&str, &[&str]); 7] = [
    ("record", &["record"]),
    ("compute", &["compute", "record"]),
    ("report", &["report", "record"]),
    ("stages", &["stages", "compute", "report", "record"]),
    // What stages say of themselves, and the specifications of tables, figures and documents: data, always compiled.
    (
        "workflow",
        &[
            "workflow",
            "record",
            "report::table",
            "report::figure",
            "report::document",
            "stages::*::SPEC",
            "stages::spec",
        ],
    ),
    // The aggregation and the gate need no tensors: `seedbed aggregate` makes it anew, `seedbed signoff` asks conditions.
    ("cli", &["cli", "workflow", "report", "record", "stages::aggregate", "stages::gate"]),
    ("bin", &["cli", "stages"]),
];

/// Of `stages` itself the workflow names these only.
const STAGE_SPECS: [&str; 6] = ["all_specs", "Field", "FieldType", "Preset", "Role", "Spec"];

/// Rooms without file, environment, process or clock.
const PURE: [&str; 10] = [
    "workflow::plan",
    "workflow::slurm::script",
    "report::stats",
    "report::section",
    "report::table",
    "report::render",
    "report::document",
    "report::figure",
    "report::page",
    "report::paper",
];

/// What a pure room never names.
const IMPURE: [&str; 12] = [
    "std::fs",
    "std::env",
    "std::process",
    "std::io::stdin",
    "std::net",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "chrono::Utc::now",
    "chrono::Local::now",
    "crate::record::files",
    "libc",
];

/// What is named in these rooms only: a path's beginning, and the rooms.
const KEPT_IN: [(&str, &[&str]); 8] = [
    ("tch", &["compute", "stages"]),
    ("mpi", &["compute", "stages"]),
    ("safetensors", &["compute", "stages"]),
    ("tokenizers", &["compute", "stages"]),
    ("hdf5", &["record"]),
    ("hdf5_sys", &["record"]),
    ("std::fs::write", &[]),
    ("std::fs::File::create", &["record::files"]),
];

/// True if `path` is `start` or lies below it. A `*` in `start` stands for one segment.
fn below(path: &str, start: &str) -> bool {
    let (mut path, mut start) = (path.split("::"), start.split("::"));
    start.all(|s| path.next().is_some_and(|p| s == "*" || p == s))
}

/// What is wrong with a file of module `module` (`workflow::plan`) that names `named`.
fn violations(module: &str, named: &[Named]) -> Vec<String> {
    let wing = module.split("::").next().unwrap();
    let mut found = Vec::new();
    let mut tell = |named: &Named, rule: &str| found.push(format!("line {}: `{}` {rule}", named.line, named.path));
    for named in named {
        if let Some(inside) = named.path.strip_prefix("crate").filter(|_| !module.is_empty()) {
            let inside = inside.trim_start_matches("::");
            let (_, allowed) = ARROWS.iter().find(|(w, _)| *w == wing).expect("every wing has its arrows");
            let spec = wing == "workflow"
                && inside.strip_prefix("stages").is_some_and(|rest| {
                    let rest = rest.trim_start_matches("::");
                    rest.is_empty() || STAGE_SPECS.iter().any(|s| below(rest, s))
                });
            if inside.is_empty() || inside == "*" {
                tell(named, "hides what is named: name the room");
            } else if !spec && !allowed.iter().any(|a| below(inside, a)) {
                tell(named, &format!("is not for `{wing}`, which names only {}", allowed.join(", ")));
            }
        }
        if named.test {
            continue;
        }
        if PURE.iter().any(|room| below(module, room)) && IMPURE.iter().any(|i| below(&named.path, i)) {
            tell(named, "is not for a pure room");
        }
        for (kept, rooms) in KEPT_IN {
            if below(&named.path, kept) && !rooms.iter().any(|room| below(module, room)) {
                tell(named, &format!("is named only in {}", if rooms.is_empty() { "tests" } else { rooms[0] }));
            }
        }
    }
    found
}

/// Every file of `src/` with its module: `workflow::plan::state`; the root's is empty, that of a program `bin::<name>`.
fn files() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let src = repository().join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.retain(|p| p.extension().is_some_and(|e| e == "rs"));
    paths.sort();
    let module = |path: &Path| {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        let mut parts: Vec<String> = inside.iter().map(|p| p.to_str().unwrap().to_owned()).collect();
        if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
            parts.pop();
        }
        parts.join("::")
    };
    paths.iter().map(|p| (p.clone(), module(p))).collect()
}

fn check(module: &str, text: &str) -> Vec<String> {
    violations(module, &paths(module, text))
}

#[test]
fn the_arrows_hold() {
    let files = files();
    assert!(files.len() > 80, "only {} files were found", files.len());
    let mut problems = Vec::new();
    for (path, module) in &files {
        let text = fs::read_to_string(path).unwrap();
        let shown = path.strip_prefix(repository()).unwrap().display();
        problems.extend(check(module, &text).into_iter().map(|v| format!("{shown}: {v}")));
    }
    assert!(problems.is_empty(), "see docs/architecture.md:\n{}", problems.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<PathBuf> =
        files().into_iter().map(|f| f.0).filter(|p| !fs::read_to_string(p).unwrap().starts_with("//!")).collect();
    assert!(silent.is_empty(), "these files have no module comment at their head: {silent:?}");
}

#[test]
fn every_room_is_on_the_map() {
    let map = fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let rooms = files().into_iter().filter_map(|(_, module)| {
        let mut parts = module.split("::").map(str::to_owned);
        let (wing, room) = (parts.next()?, parts.next()?);
        (wing != "bin").then(|| format!("`{wing}::{room}`"))
    });
    let lost: std::collections::BTreeSet<String> = rooms.filter(|room| !map.contains(room)).collect();
    assert!(lost.is_empty(), "docs/architecture.md has no line for {lost:?}");
}

#[test]
fn planted_violations_are_found() {
    // Module, text, and a word of the message that must come; `None` where nothing is wrong.
    let cases: [(&str, &str, Option<&str>); 34] = [
        ("workflow::run", "use crate::compute::train::run;", Some("compute")),
        ("workflow::run", "fn f() { let x = crate::compute::Model::new(); }", Some("compute")),
        ("workflow::run", "use crate::{record::Cell, compute as c};", Some("compute")),
        ("workflow::run", "use super::super::compute::Model;", Some("compute")),
        ("workflow::attempt::launch", "fn f() -> super::super::super::compute::Model { todo!() }", Some("compute")),
        ("workflow::run", "mod tests { use super::super::super::compute::Model; }", Some("compute")),
        ("workflow::run", "mod inner { fn f() { super::super::super::compute::f() } }", Some("compute")),
        ("workflow", "use super::compute::Model;", Some("compute")),
        ("workflow::run", "use crate as c; fn f() { c::compute::f() }", Some("hides")),
        ("workflow::run", "use crate::*;", Some("hides")),
        ("workflow::run", "use super::super::*;", Some("hides")),
        ("workflow::run", "macro_rules! m { () => { $crate::compute::f() } }", Some("compute")),
        ("workflow::run", "use crate::stages; fn f() { stages::context::main() }", Some("context")),
        ("workflow::run", "use crate::stages::{self, Context};", Some("Context")),
        ("workflow::run", "use crate::report::query::Query;", Some("query")),
        ("compute::train", "use crate::workflow::plan::Plan;", Some("workflow")),
        ("stages::train", "fn f() { crate::workflow::run::prepare() }", Some("workflow")),
        ("report::table", "use crate::compute::Model;", Some("compute")),
        ("record::cell", "pub(in crate::record) fn f(x: crate::stages::Spec) {}", Some("stages")),
        ("bin::seedbed", "fn main() { seedbed::compute::run() }", Some("compute")),
        ("workflow::plan::state", "use std::fs;", Some("pure")),
        ("workflow::plan", "use std::{collections::BTreeMap, time::{Duration, Instant}};", Some("Instant")),
        ("report::stats::mean", "fn f() { std::env::var(\"X\"); }", Some("pure")),
        ("report::table", "use chrono::Utc; fn f() { Utc::now(); }", Some("Utc::now")),
        ("workflow::slurm::script", "use crate::record::files as f;", Some("pure")),
        ("workflow::journal", "fn f() { std::fs::write(\"a\", \"b\") }", Some("tests")),
        ("workflow::journal", "use std::fs::File; fn f() { File::create(\"a\") }", Some("record")),
        ("report::query", "use hdf5::File;", Some("record")),
        ("record::run", "use tch::Tensor;", Some("compute")),
        // And what is right.
        ("workflow::run", "use crate::stages::{self, Spec}; fn f() { stages::all_specs(); stages::train::SPEC }", None),
        (
            "workflow::run",
            "// crate::compute\n/* crate::compute /* x */ */ fn f() { \"crate::compute\"; r#\"crate::compute\"# }",
            None,
        ),
        ("workflow::plan", "use std::time::Duration; fn f<'a>(x: &'a str) -> char { 'a' }", None),
        ("workflow::plan", "#[cfg(test)] mod tests { use std::fs; }", None),
        ("report::table::tests", "use std::time::Instant;", None),
    ];
    for (module, text, expected) in cases {
        let found = check(module, text);
        match expected {
            Some(word) => assert!(found.iter().any(|v| v.contains(word)), "{module}: {text}: {found:?}"),
            None => assert!(found.is_empty(), "{module}: {text}: {found:?}"),
        }
    }
}
