//! What of a stage's data lies on the node's own disk while it runs: `stage_in` and `stage_out`, of stages and, by kind,
//! of cluster files. None of it changes a result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::problem::Sink;
use super::section::Section;
use super::tree::Tree;
use super::{Cluster, Problem, Run, Stage, Study};
use crate::record::Name;
use crate::stages::{FieldType, all_specs};

/// Keys of a stage, and of a cluster file.
pub(super) const KEYS: [&str; 2] = ["stage_in", "stage_out"];

/// What is copied, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staging {
    /// Inputs and needed stages that are copied to every node before the stage starts, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copy: Vec<String>,
    /// Whether outputs are written there, and copied back in the end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub out: bool,
    /// Directory on the node; absent: `$TMPDIR` there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Staging {
    /// Whether nothing is staged.
    pub fn is_nothing(&self) -> bool {
        self.copy.is_empty() && !self.out
    }
}

/// Reads a stage's keys. `needs` are the stages that it needs.
pub(super) fn of_stage(own: &Section<'_>, run: Option<&Run>, needs: &[&Name], nodes: u32, sink: &mut Sink) -> Staging {
    let inputs: Vec<&str> = match run {
        Some(Run::Command(command)) => command.inputs.iter().map(|i| i.name.as_str()).collect(),
        Some(Run::Builtin(spec)) => spec.fields.iter().filter(|f| f.ty == FieldType::Path).map(|f| f.name).collect(),
        None => Vec::new(),
    };
    let mut copy: Vec<String> = Vec::new();
    for (word, span) in own.texts("stage_in", sink) {
        let known = || inputs.iter().copied().chain(needs.iter().map(|n| n.as_str()));
        if run.is_some() && !known().any(|name| name == word) {
            let message = format!("`stage_in` of {} names `{word}`, which is none of its inputs or needs", own.what);
            sink.unknown(&span, message, word, known());
        } else if copy.iter().any(|name| name == word) {
            sink.push(&span, format!("`stage_in` of {} names `{word}` twice", own.what), "remove one");
        } else {
            copy.push(word.to_owned());
        }
    }
    let out = own.bool("stage_out", sink).unwrap_or(false);
    if out && nodes > 1 {
        let message = format!("`stage_out` of {}: it runs on {nodes} nodes, and outputs would lie on each", own.what);
        sink.push(&own.place("stage_out"), message, "leave it out, or run it on one node");
    }
    Staging { copy, out, dir: None }
}

/// Reads a cluster file's keys: by kind, what of its parameters and of the kinds that it needs is copied.
pub(super) fn of_cluster(own: &Section<'_>, sink: &mut Sink) -> BTreeMap<String, Staging> {
    let mut found: BTreeMap<String, Staging> = BTreeMap::new();
    let kinds: Vec<&str> = all_specs().iter().map(|spec| spec.kind).chain(["command"]).collect();
    for entry in own.table("stage_in", sink).map(|(t, _)| t.entries.as_slice()).unwrap_or_default() {
        if !kinds.contains(&entry.key.as_str()) {
            let message = format!("unknown kind `{}` in stage_in", entry.key);
            sink.unknown(&entry.key_span, message, &entry.key, kinds.clone());
            continue;
        }
        let paths = |kind: &str| {
            let spec = all_specs().iter().find(|spec| spec.kind == kind);
            let fields = spec.map(|spec| spec.fields).unwrap_or_default();
            fields.iter().filter(|f| f.ty == FieldType::Path).map(|f| f.name).collect::<Vec<_>>()
        };
        let known: Vec<&str> = paths(&entry.key).into_iter().chain(kinds.iter().copied()).collect();
        let words = match &entry.node.value {
            Tree::Array(items) => items.as_slice(),
            other => {
                let message = format!("`{}` in stage_in must be an array of texts, not {}", entry.key, other.noun());
                sink.push(&entry.node.span, message, "name kinds that it needs, or its parameters");
                continue;
            }
        };
        for word in words {
            match &word.value {
                Tree::Text(text) if known.contains(&text.as_str()) => {
                    found.entry(entry.key.clone()).or_default().copy.push(text.clone());
                }
                Tree::Text(text) => {
                    let message = format!("`{text}` in stage_in is neither a kind nor a path of kind {}", entry.key);
                    sink.unknown(&word.span, message, text, known.clone());
                }
                other => sink.push(&word.span, format!("stage_in must name kinds in texts, not {}", other.noun()), ""),
            }
        }
    }
    for (word, span) in own.texts("stage_out", sink) {
        if kinds.contains(&word) {
            found.entry(word.to_owned()).or_default().out = true;
        } else {
            sink.unknown(&span, format!("unknown kind `{word}` in stage_out"), word, kinds.clone());
        }
    }
    found
}

/// Adds what a cluster file says for the kind of a stage; the problem if that cannot be.
pub(super) fn on_cluster(study: &Study, index: usize, cluster: &Cluster) -> (Staging, Option<Problem>) {
    let stage: &Stage = &study.stages[index];
    let mut staging = stage.staging.clone();
    staging.dir.clone_from(&cluster.local_dir);
    if let Some(said) = cluster.staging.get(stage.kind()) {
        let kind = |name: &Name| study.stage(name.as_str()).map(Stage::kind);
        for word in &said.copy {
            let needs = stage.needs.iter().filter(|need| kind(need) == Some(word)).map(ToString::to_string);
            let own = match &stage.run {
                Run::Builtin(spec) => spec.field(word).is_some_and(|f| f.ty == FieldType::Path),
                Run::Command(_) => false,
            };
            let names: Vec<String> = needs.chain(own.then(|| word.clone())).collect();
            staging.copy.extend(names.into_iter().filter(|name| !stage.staging.copy.contains(name)));
        }
        staging.out |= said.out;
    }
    let problem = (staging.out && stage.resources.nodes > 1).then(|| Problem {
        file: cluster.file.clone(),
        line: 1,
        column: 1,
        message: format!("stage {} has `stage_out` and runs on {} nodes here", stage.name, stage.resources.nodes),
        help: "outputs would lie on each: leave `stage_out` out, or give it one node".to_owned(),
    });
    (staging, problem)
}
