//! Which checkpoints stay: the last k and those they need (the best), and every one whose step is a multiple of n.
//! One that a newer attempt wrote, or that belongs to another fingerprint, is not ours to remove. Nothing is
//! removed but after a newer checkpoint, with finite numbers, was sealed.
//!
//! The newest of those that go is kept as a *spare*, `.spare-<name>`, without its manifest: the next save writes
//! over its files in place, which spares the file system the allocation (twice as fast on ext4). Only the attempt
//! that wrote a file writes over it, so two processes never do.

use std::path::Path;

use super::saver::{Place, Superseded};
use super::{Checkpoint, MANIFEST_FILE, entries, list, parse_name};
use crate::compute::Result;

/// What stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The last so many whole checkpoints; at least 1.
    pub last: usize,
    /// Besides, those whose step is a multiple of this; 0: none. Of these, what they need may be gone.
    pub every_steps: u64,
}

const SPARE: &str = ".spare-";

/// Removes what need not stay. Called on rank 0 after the checkpoint `sealed` was.
pub(super) fn tidy(place: &Place, retention: Retention, superseded: &Superseded, sealed: &str) -> Result<()> {
    let dir = &place.dir;
    let foreign =
        |name: &String| Checkpoint::open(&dir.join(name)).is_ok_and(|c| c.manifest.fingerprint != place.fingerprint);
    let names: Vec<String> = list(dir)?.into_iter().filter(|n| !foreign(n)).collect();
    let mut whole: Vec<&String> = names.iter().filter(|n| dir.join(n).join(MANIFEST_FILE).exists()).collect();
    // By attempt, then by step: what an older attempt left of later steps was refused when this one began.
    whole.sort_by_key(|n| parse_name(n).map(|(step, attempt)| (attempt, step)));
    let mut kept: Vec<String> = whole.iter().rev().take(retention.last.max(1)).map(|n| (*n).clone()).collect();
    kept.push(sealed.to_owned());
    for name in kept.clone() {
        if let Ok(checkpoint) = Checkpoint::open(&dir.join(name)) {
            kept.extend(checkpoint.manifest.needs);
        }
    }
    let newest = parse_name(sealed).map(|(step, _)| step);
    // The ranks took what they could use of the spare before they wrote the checkpoint that is sealed now.
    remove_spare(dir, place.attempt);
    let mut has_spare = false;
    for name in names.iter().rev() {
        let Some((step, attempt)) = parse_name(name) else { continue };
        let marked = retention.every_steps > 0 && step % retention.every_steps == 0 && whole.contains(&name);
        // The other ranks go on once the seal is there: one of them may have begun the next checkpoint.
        let begun = attempt == place.attempt && Some(step) > newest;
        if attempt > place.attempt || begun || marked || kept.contains(name) {
            continue;
        }
        if superseded() {
            return Ok(());
        }
        let path = dir.join(name);
        let spare = dir.join(format!("{SPARE}{name}"));
        if !has_spare && attempt == place.attempt && std::fs::rename(&path, &spare).is_ok() {
            has_spare = true;
            // No name leads a reader here any more; without its manifest it is no checkpoint either.
            let _ = std::fs::remove_file(spare.join(MANIFEST_FILE));
            continue;
        }
        // Without its manifest it is no checkpoint any more, whatever happens to the rest.
        let _ = std::fs::remove_file(path.join(MANIFEST_FILE));
        let _ = std::fs::remove_dir_all(path);
    }
    Ok(())
}

/// Spares below `dir` with their attempts.
fn spares(dir: &Path) -> Vec<(String, u32)> {
    let names = entries(dir).unwrap_or_default();
    names.into_iter().filter_map(|n| parse_name(n.strip_prefix(SPARE)?).map(|(_, a)| (n.clone(), a))).collect()
}

/// Moves `file` of this attempt's spare to `target`, if there is one.
pub(super) fn take_spare(dir: &Path, attempt: u32, file: &str, target: &Path) {
    for (name, _) in spares(dir).into_iter().filter(|(_, of)| *of == attempt) {
        // Without a spare a new file is written.
        let _ = std::fs::rename(dir.join(name).join(file), target);
    }
}

/// Removes the spares of this and of older attempts.
pub(super) fn remove_spare(dir: &Path, attempt: u32) {
    for (name, _) in spares(dir).into_iter().filter(|(_, of)| *of <= attempt) {
        // A spare that stays costs room only.
        let _ = std::fs::remove_dir_all(dir.join(name));
    }
}
