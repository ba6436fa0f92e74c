//! One `[[gate]]`: its conditions and what it is asked; and the conditions of `[signoff]`. A gate becomes a stage of kind
//! `gate`, so that it is planned, submitted, run and sealed as every stage is.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::problem::{Sink, Span, suggestion};
use super::section::Section;
use super::stage::{self, Read};
use super::tree::{Node, Table, Tree};
use super::{Axes, On, Run, Stage, Staging, wishes};
use crate::record::decision::GATE_KIND;
use crate::record::{Name, Resources};
use crate::stages::gate::SPEC;

/// Keys of a gate.
const KEYS: &[&str] =
    &["name", "number", "needs", "per", "activity", "resources", "conditions", "least_seeds", "missing", "confirm"];

/// Keys of a condition.
const CONDITION_KEYS: &[&str] = &["of", "value", "least", "most", "above", "below", "equals"];

/// Bounds that are numbers.
const NUMBERS: [&str; 4] = ["least", "most", "above", "below"];

/// Limit of a gate that does not say its resources: filters have 20 seconds, and the rest is reading.
const TIME_S: u64 = 600;

/// Reads one gate; `None` if it has no usable name. `number` is its number if it does not say.
pub(super) fn read(number: u32, table: &Table, at: Span, sink: &mut Sink) -> Option<Read> {
    let what = match table.text("name") {
        Some(name) => format!("gate {name}"),
        None => "a gate without a name".to_owned(),
    };
    let section = Section::new(table, at, what, &[KEYS, &wishes::KEYS[..]].concat(), sink);
    let name = stage::name(&section, sink);
    let number = section.integer("number", 0..=9999, sink).map_or(number, |n| n as u32);
    let seeded = per(&section, sink);
    let needs = stage::needs(&section, sink);
    if needs.is_empty() && section.entry("needs").is_none() {
        section.missing("needs", "name the stages whose results it judges", sink);
    }
    let params = params(&section, seeded, &needs, sink);
    let none =
        Resources { nodes: 1, tasks_per_node: 1, cpus_per_task: 1, gpus_per_node: 0, mem_bytes: None, time_s: TIME_S };
    let resources = match section.table("resources", sink) {
        Some((table, at)) => {
            let own = Section::new(table, at, format!("resources of {}", section.what), stage::RESOURCE_KEYS, sink);
            stage::said_resources(&own, sink).over(&none)
        }
        None => none,
    };
    stage::layout(&section, &SPEC, &resources, &[], sink);
    let activity = section.name("activity", sink).map(|n| n.to_string());
    Some(Read {
        stage: Stage {
            name: name?,
            number,
            run: Run::Builtin(&SPEC),
            needs: needs.iter().map(|(n, _)| n.clone()).collect(),
            axes: Axes { arm: false, seed: seeded },
            on: On::Compute,
            activity,
            resources,
            wishes: wishes::read(&section, sink),
            staging: Staging::default(),
            storage_bytes: None,
            expected_s: None,
            max_running: None,
            pack: None,
            params,
            arms: Vec::new(),
        },
        number_at: section.place("number"),
        needs,
        needs_at: section.place("needs"),
        arms_at: section.at.clone(),
        at: section.at,
    })
}

/// Whether there is a verdict for each seed; else there is one over all.
fn per(section: &Section<'_>, sink: &mut Sink) -> bool {
    let mut seeded = false;
    for (word, span) in section.texts("per", sink) {
        match word {
            "seed" if seeded => sink.push(&span, format!("`per` in {} names `seed` twice", section.what), "remove one"),
            "seed" => seeded = true,
            _ => sink.unknown(&span, format!("`per` in {} cannot hold `{word}`", section.what), word, ["seed"]),
        }
    }
    seeded
}

/// What the gate is asked, as parameters of its kind.
fn params(section: &Section<'_>, seeded: bool, needs: &[(Name, Span)], sink: &mut Sink) -> Value {
    let mut params = Map::new();
    let stages: BTreeSet<&str> = needs.iter().map(|(n, _)| n.as_str()).collect();
    let conditions = conditions(section, &stages, sink);
    let confirm = section.text("confirm", sink);
    if let Some((text, span)) = &confirm
        && text.trim().is_empty()
    {
        sink.push(span, format!("`confirm` in {} is empty", section.what), "say what a person has to confirm");
    }
    if section.entry("conditions").is_none() && confirm.is_none() {
        section.missing("conditions", "say `conditions.NAME = {value = \"FILTER\", most = 0.3}`", sink);
    }
    params.insert("conditions".to_owned(), Value::Array(conditions));
    params.insert("missing".to_owned(), Value::from("undecided"));
    if let Some((text, _)) = confirm {
        params.insert("confirm".to_owned(), Value::from(text));
    }
    if let Some(least) = section.integer("least_seeds", 1..=100_000, sink) {
        params.insert("least_seeds".to_owned(), Value::from(least));
    }
    if let Some(word) = section.one_of("missing", &["undecided", "without", "stop"], sink) {
        params.insert("missing".to_owned(), Value::from(word));
        if word == "without" && section.entry("least_seeds").is_none() {
            section.missing("least_seeds", "a verdict without some seeds needs the least number of seeds", sink);
        }
    }
    for key in ["least_seeds", "missing"].iter().filter(|key| seeded && section.entry(key).is_some()) {
        let message = format!("`{key}` in {} means nothing: it judges each seed alone", section.what);
        sink.push(&section.place(key), message, "remove it, or `per`");
    }
    Value::Object(params)
}

/// The conditions of a section, in file order, as the record takes them. `stages` are those that it may read.
pub(super) fn conditions(section: &Section<'_>, stages: &BTreeSet<&str>, sink: &mut Sink) -> Vec<Value> {
    let Some((table, at)) = section.table("conditions", sink) else { return Vec::new() };
    if table.entries.is_empty() {
        sink.push(&at, format!("`conditions` of {} are none", section.what), "add one, or remove the key");
    }
    let mut found = Vec::new();
    for entry in &table.entries {
        if let Err(problem) = Name::new(&entry.key) {
            sink.push(&entry.key_span, format!("in `conditions` of {}: {problem}", section.what), "");
            continue;
        }
        let Tree::Table(inner) = &entry.node.value else {
            let message =
                format!("condition {} of {} must be a table, not {}", entry.key, section.what, entry.node.value.noun());
            sink.push(&entry.key_span, message, "write `{value = \"FILTER\", most = 0.3}`");
            continue;
        };
        let what = format!("condition {} of {}", entry.key, section.what);
        let own = Section::new(inner, entry.key_span.clone(), what, CONDITION_KEYS, sink);
        let mut condition = condition(&own, stages, sink);
        condition.insert("name".to_owned(), Value::from(entry.key.as_str()));
        let condition = Value::Object(condition);
        // The kind compiles the filter; the place is that of the filter's text.
        for problem in (SPEC.check)(&serde_json::json!({"conditions": [condition]})) {
            let text = problem.split_once(": ").map_or(problem.as_str(), |(_, text)| text).to_owned();
            let place = own.entry("value").map_or(own.at.clone(), |e| e.node.span.clone());
            sink.push(&place, format!("`value` in {}: {text}", own.what), "docs/query.md has the language");
        }
        found.push(condition);
    }
    found
}

fn condition(own: &Section<'_>, stages: &BTreeSet<&str>, sink: &mut Sink) -> Map<String, Value> {
    let mut condition = Map::new();
    match own.text("value", sink) {
        Some((text, _)) => {
            condition.insert("value".to_owned(), Value::from(text));
        }
        None => {
            if own.entry("value").is_none() {
                own.missing("value", "say the filter that gives the value", sink);
            }
            // A text that compiles: what is wrong was said.
            condition.insert("value".to_owned(), Value::from("."));
        }
    }
    if let Some((word, span)) = own.text("of", sink) {
        if stages.contains(word) {
            condition.insert("of".to_owned(), Value::from(word));
        } else {
            let known: Vec<&str> = stages.iter().copied().collect();
            sink.push(
                &span,
                format!("`of` in {} names `{word}`, which is not needed", own.what),
                suggestion(word, &known),
            );
        }
    }
    let mut bounds = 0;
    for key in NUMBERS {
        let Some(entry) = own.entry(key) else { continue };
        bounds += 1;
        match entry.node.value {
            Tree::Integer(i) => condition.insert(key.to_owned(), Value::from(i as f64)),
            Tree::Number(x) => condition.insert(key.to_owned(), Value::from(x)),
            ref other => {
                let message = format!("`{key}` in {} must be a number, not {}", own.what, other.noun());
                sink.push(&entry.node.span, message, "");
                None
            }
        };
    }
    if let Some(entry) = own.entry("equals") {
        bounds += 1;
        match scalar(&entry.node) {
            Some(value) => {
                condition.insert("equals".to_owned(), value);
            }
            None => {
                let message = format!(
                    "`equals` in {} must be a number, true, false or text, not {}",
                    own.what,
                    entry.node.value.noun()
                );
                sink.push(&entry.node.span, message, "");
            }
        }
    }
    if bounds == 0 {
        // Without one a filter that gives anything would pass.
        let message = format!("{} has no bound", own.what);
        sink.push(&own.at, message, "say `least`, `most`, `above`, `below` or `equals`");
    }
    let empty = |low: &str, high: &str| {
        let get = |key: &str| condition.get(key).and_then(Value::as_f64);
        matches!((get(low), get(high)), (Some(low), Some(high)) if low > high)
    };
    if empty("least", "most") || empty("above", "below") || empty("least", "below") || empty("above", "most") {
        sink.push(&own.at, format!("no value is within the bounds of {}", own.what), "are they exchanged?");
    }
    condition
}

fn scalar(node: &Node) -> Option<Value> {
    matches!(node.value, Tree::Integer(_) | Tree::Number(_) | Tree::Bool(_) | Tree::Text(_))
        .then(|| node.value.to_json())
}

/// The conditions of `[signoff]`.
pub(super) fn signoff(top: &Section<'_>, stages: &BTreeSet<&str>, sink: &mut Sink) -> Vec<Value> {
    let Some((table, at)) = top.table("signoff", sink) else { return Vec::new() };
    let own = Section::new(table, at, "[signoff]", &["conditions"], sink);
    conditions(&own, stages, sink)
}

/// Notes a stage that says `run = "gate"`.
pub(super) fn no_stage(kind: &str, span: &Span, what: &str, sink: &mut Sink) -> bool {
    let gate = kind == GATE_KIND;
    if gate {
        sink.push(span, format!("{what} is of kind `{GATE_KIND}`"), "write it as `[[gate]]`");
    }
    gate
}
