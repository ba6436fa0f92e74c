//! Which checkpoints stay: the last k and those they need. One that a newer attempt wrote, or that belongs to
//! another fingerprint, is not ours to remove.

use std::path::Path;

use super::{Checkpoint, MANIFEST_FILE, list, parse_name};
use crate::compute::Result;
use crate::record::Digest;

/// Removes checkpoints below `dir` that are neither among the last `keep_last` whole ones nor needed by one of
/// them. Called on rank 0 after a checkpoint was sealed by `attempt`.
///
/// # Errors
/// The directory cannot be listed. A directory that cannot be removed is left.
pub fn tidy(dir: &Path, keep_last: usize, attempt: u32, fingerprint: &Digest) -> Result<()> {
    let foreign =
        |name: &String| Checkpoint::open(&dir.join(name)).is_ok_and(|c| &c.manifest.fingerprint != fingerprint);
    let names: Vec<String> = list(dir)?.into_iter().filter(|n| !foreign(n)).collect();
    let whole: Vec<&String> = names.iter().filter(|n| dir.join(n).join(MANIFEST_FILE).exists()).collect();
    let mut kept: Vec<String> = whole.iter().rev().take(keep_last.max(1)).map(|n| (*n).clone()).collect();
    for name in kept.clone() {
        if let Ok(checkpoint) = Checkpoint::open(&dir.join(name)) {
            kept.extend(checkpoint.manifest.needs);
        }
    }
    for name in names {
        let newer = parse_name(&name).is_some_and(|(_, n)| n > attempt);
        if newer || kept.contains(&name) {
            continue;
        }
        let path = dir.join(name);
        // Without its manifest it is no checkpoint any more, whatever happens to the rest.
        let _ = std::fs::remove_file(path.join(MANIFEST_FILE));
        let _ = std::fs::remove_dir_all(path);
    }
    Ok(())
}
