//! `seedbed paper fill`, ended by SIGKILL from outside at several moments: every file of the paper is the old one or the new
//! one, and so is the record; the next `fill` finishes what was begun and takes nothing for a person's edit.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Desk, NUMBERS};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// When a fill is killed.
#[derive(Debug, Clone)]
enum Moment {
    /// So long after it began.
    After(Duration),
    /// As soon as this file is another one than before.
    Changed(PathBuf),
}

/// Starts a fill that a signal can reach at once.
fn start(desk: &Desk) -> Child {
    let mut command = desk.command(env!("CARGO_BIN_EXE_seedbed"));
    command.args(["paper", "fill", "paper/paper.tex"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Which file stands under a name now.
fn standing(path: &Path) -> Option<(u64, i64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.ino(), meta.mtime_nsec()))
}

/// Whether the fill ended before it was killed.
fn killed_at(desk: &Desk, moment: &Moment) -> bool {
    let watched = |name: &PathBuf| desk.path("paper").join(name);
    let before = if let Moment::Changed(name) = moment { standing(&watched(name)) } else { None };
    let mut child = start(desk);
    match moment {
        Moment::After(delay) => std::thread::sleep(*delay),
        Moment::Changed(name) => {
            let deadline = Instant::now() + Duration::from_secs(60);
            while standing(&watched(name)) == before && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "the fill does not end");
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
    let _ = child.kill();
    child.wait().unwrap().success()
}

/// The paper's folder without what a killed program left of its temporary files.
fn named(desk: &Desk) -> Files {
    let mut files = desk.files();
    let is_temp = |name: &Path| {
        let name = name.file_name().unwrap().to_str().unwrap();
        name.starts_with('.') && name.ends_with(".tmp")
    };
    files.retain(|name, _| !is_temp(name));
    files
}

fn restore(desk: &Desk, files: &Files) {
    let dir = desk.path("paper");
    std::fs::remove_dir_all(&dir).unwrap();
    for (name, bytes) in files {
        std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Kills fills that would make `new` of `old`; how many were between the two.
fn fills_are_whole(desk: &Desk, old: &Files, new: &Files, took: Duration) -> usize {
    let changing: Vec<&PathBuf> =
        new.iter().filter(|(name, bytes)| old.get(*name) != Some(*bytes)).map(|(n, _)| n).collect();
    let delays = (1..=5).map(|i| Moment::After(took * i / 5));
    let events = changing.iter().flat_map(|name| [Moment::Changed((*name).clone()), Moment::Changed((*name).clone())]);
    let mut between = 0;
    for moment in delays.chain(events) {
        restore(desk, old);
        let ended = killed_at(desk, &moment);
        let found = named(desk);
        for (name, bytes) in &found {
            let whole = [old.get(name), new.get(name)].contains(&Some(bytes));
            assert!(whole, "{moment:?}: {} is neither the old file nor the new one", name.display());
        }
        for name in old.keys() {
            assert!(found.contains_key(name), "{moment:?}: {} is gone", name.display());
        }
        assert!(!ended || found == *new, "{moment:?}: it said that it was done");
        between += usize::from(found != *old && found != *new);
        let said = desk.says("fill", &[], 0);
        assert!(!said.contains("by hand"), "{moment:?}: {said}");
        assert!(named(desk) == *new, "{moment:?}: {said}");
    }
    between
}

#[test]
fn a_killed_fill_leaves_every_file_old_or_new_and_the_next_one_finishes() {
    let desk = Desk::with_plain_paper();
    desk.edit(
        "paper/paper.tex",
        "\\section{Conclusion}\n",
        "\\section{Conclusion}\n\\input{seedbed/values}\\input{seedbed/foundation}\nIt is \\seedbed{foundation/monotonic/delta}.\n",
    );
    let unfilled = named(&desk);
    let began = Instant::now();
    desk.says("fill", &[], 0);
    let took = began.elapsed();
    let filled = named(&desk);
    let names: Vec<String> = filled.keys().map(|name| name.display().to_string()).collect();
    assert_eq!(
        names,
        [
            "paper.fill.toml",
            "paper.tex",
            "paper.tex.seedbed.json",
            "rows.tex",
            "seedbed/foundation.tex",
            "seedbed/values.tex"
        ]
    );
    let mut between = fills_are_whole(&desk, &unfilled, &filled, took);

    desk.numbers(&NUMBERS.replace("37.86", "38.06"));
    desk.run_all();
    restore(&desk, &filled);
    desk.says("fill", &[], 0);
    let other = named(&desk);
    assert_ne!(other, filled);
    between += fills_are_whole(&desk, &filled, &other, took);
    assert!(between > 0, "no fill was killed between its first file and its last");
    desk.says("check", &["--section", "4.3"], 0);
}
