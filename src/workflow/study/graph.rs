//! Checks across stages: names, numbers, needs, cycles, arms.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Sink;
use super::stage::{self, Read};
use super::{On, Run};

/// Notes what is wrong between stages. `all` are the names of all stages of the file, those that could not be
/// read included, so that one bad stage does not make every stage behind it wrong.
pub(super) fn check(stages: &[Read], all: &BTreeSet<&str>, has_seeds: bool, sink: &mut Sink) {
    let mut by_name: BTreeMap<&str, &Read> = BTreeMap::new();
    let mut by_number: BTreeMap<u32, &Read> = BTreeMap::new();
    for read in stages {
        let name = read.stage.name.as_str();
        if by_name.insert(name, read).is_some() {
            sink.push(&read.at, format!("two stages are named `{name}`"), "rename one");
        }
        if let Some(first) = by_number.insert(read.stage.number, read) {
            let message = format!("stages {} and {name} both have number {}", first.stage.name, read.stage.number);
            sink.push(&read.number_at, message, "give every stage its own `number`");
        }
        if read.stage.axes.seed && !has_seeds {
            let message = format!("stage {name} runs per seed, and the study has no seeds");
            sink.push(&read.at, message, "say `seeds = [42]` in [study], or `per = []`");
        }
    }
    for read in stages {
        needs(read, stages, &by_name, all, sink);
    }
    cycles(stages, &by_name, sink);
}

fn needs(read: &Read, stages: &[Read], by_name: &BTreeMap<&str, &Read>, all: &BTreeSet<&str>, sink: &mut Sink) {
    let stage = &read.stage;
    for (need, span) in &read.needs {
        let Some(parent) = by_name.get(need.as_str()) else {
            if !all.contains(need.as_str()) {
                let message = format!("stage {} needs an unknown stage `{need}`", stage.name);
                sink.push(span, message, stage::nearest(need.as_str(), stages));
            }
            continue;
        };
        if stage.on == On::Login && parent.stage.on == On::Compute {
            let message =
                format!("stage {} runs before submission and needs `{need}`, which runs in a job", stage.name);
            sink.push(span, message, "set `on = \"login\"` there too, or `on = \"compute\"` here");
        }
        if stage.axes.arm && parent.stage.axes.arm {
            for arm in stage.arms.iter().filter(|a| !parent.stage.arms.iter().any(|p| p.name == a.name)) {
                let message = format!("arm `{}` of stage {} has no arm of that name in `{need}`", arm.name, stage.name);
                sink.push(&read.arms_at, message, format!("add it to stage {need}, or rename it"));
            }
        }
    }
    let Run::Builtin(spec) = stage.run else { return };
    let unread = read.needs.iter().any(|(need, _)| !by_name.contains_key(need.as_str()));
    for kind in spec.needs.iter().filter(|_| !unread) {
        let has = |r: &&Read| r.stage.kind() == *kind;
        if read.needs.iter().filter_map(|(need, _)| by_name.get(need.as_str())).any(|r| has(r)) {
            continue;
        }
        let message =
            format!("stage {} needs no stage of kind `{kind}`, and kind `{}` reads one", stage.name, spec.kind);
        let help = match stages.iter().find(has) {
            Some(found) => format!("add `{}` to its `needs`", found.stage.name),
            None => format!("add a stage with `run = \"{kind}\"` and name it in `needs`"),
        };
        sink.push(&read.needs_at, message, help);
    }
}

/// Notes every cycle once, its stages in order.
fn cycles(stages: &[Read], by_name: &BTreeMap<&str, &Read>, sink: &mut Sink) {
    // 0 unseen, 1 on the path, 2 finished. Depth is held in `path`, not on the stack: a file may have many stages.
    let mut state: BTreeMap<&str, u8> = BTreeMap::new();
    for start in stages {
        if state.get(start.stage.name.as_str()).is_some() {
            continue;
        }
        let mut path: Vec<(&Read, usize)> = vec![(start, 0)];
        state.insert(start.stage.name.as_str(), 1);
        while let Some((read, next)) = path.last_mut() {
            let Some((need, span)) = read.needs.get(*next) else {
                state.insert(read.stage.name.as_str(), 2);
                path.pop();
                continue;
            };
            *next += 1;
            let Some(parent) = by_name.get(need.as_str()) else { continue };
            match state.get(need.as_str()) {
                None => {
                    state.insert(parent.stage.name.as_str(), 1);
                    path.push((parent, 0));
                }
                Some(1) => {
                    let from = path.iter().position(|(r, _)| r.stage.name == *need).unwrap_or(0);
                    let mut names: Vec<&str> = path[from..].iter().map(|(r, _)| r.stage.name.as_str()).collect();
                    names.push(need.as_str());
                    let message = format!("a cycle: {}", names.join(" needs "));
                    sink.push(span, message, "remove one of these needs");
                }
                Some(_) => {}
            }
        }
    }
}
