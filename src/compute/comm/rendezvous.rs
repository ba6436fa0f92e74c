//! How ranks without MPI agree on one secret: rank 0 writes a file named after the job and its step into a
//! directory that all can see, the others wait for it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::compute::{ComputeError, Result};
use crate::record::{RecordError, files};

/// First words of the file.
const MAGIC: &str = "seedbed-nccl-id 1";

/// Looks for the file this often.
const PAUSE: Duration = Duration::from_millis(20);

/// The name of this job step's file. A requeued job has the number of its restarts in it, so that nobody reads what
/// an earlier life left behind.
///
/// # Errors
/// There is no launcher that gives jobs a number.
pub(super) fn file_name(get: impl Fn(&str) -> Option<String>) -> Result<String> {
    let number = |name: &str| get(name).filter(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()));
    let Some(job) = number("SLURM_JOB_ID") else {
        return Err(ComputeError::Config(
            "several ranks without MPI find each other by the number of their Slurm job, and there is none: start with srun, or build with `--features mpi,nccl` and start with mpirun"
                .to_owned(),
        ));
    };
    let step = number("SLURM_STEP_ID").unwrap_or_else(|| "0".to_owned());
    let restart = number("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
    Ok(format!("nccl-{job}.{step}-{restart}.id"))
}

/// Rank 0's end: the file, which goes away when this is dropped.
#[derive(Debug)]
pub(super) struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        // What is left behind is never read again: its name is this step's.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes `id` for `ranks` ranks.
///
/// # Errors
/// The directory cannot be written.
pub(super) fn publish(dir: &Path, name: &str, ranks: usize, id: &[u8]) -> Result<Published> {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = dir.join(name);
    files::write_atomic(&path, format!("{MAGIC} {ranks} {hex}\n").as_bytes())?;
    Ok(Published(path))
}

/// Waits for the file.
///
/// # Errors
/// It does not come within the deadline, or is another program's.
pub(super) fn wait_for(dir: &Path, name: &str, ranks: usize, length: usize, deadline: Duration) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let began = Instant::now();
    loop {
        match files::read_text(&path) {
            Ok(text) => {
                return parse(&text, ranks, length).ok_or_else(|| {
                    ComputeError::input(&path, "is no NCCL id of this run: remove it, and start all ranks anew")
                });
            }
            Err(e) if is_not_found(&e) => {}
            Err(e) => return Err(e.into()),
        }
        if began.elapsed() > deadline {
            return Err(ComputeError::CollectiveTimeout(format!(
                "rank 0 did not write `{}` within {:.0} s: look for its message in the log, and whether all nodes see this directory; the next attempt tries again",
                path.display(),
                deadline.as_secs_f64()
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

fn is_not_found(error: &RecordError) -> bool {
    error.is_not_found()
}

fn parse(text: &str, ranks: usize, length: usize) -> Option<Vec<u8>> {
    let mut words = text.strip_prefix(MAGIC)?.split_whitespace();
    if words.next()?.parse() != Ok(ranks) {
        return None;
    }
    let hex = words.next()?;
    if hex.len() != 2 * length || !hex.is_ascii() || words.next().is_some() {
        return None;
    }
    (0..length).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn every_life_of_a_step_has_its_own_file() {
        let name = |pairs: &[(&str, &str)]| file_name(environment(pairs));
        assert_eq!(name(&[("SLURM_JOB_ID", "71"), ("SLURM_STEP_ID", "2")]).unwrap(), "nccl-71.2-0.id");
        let requeued = [("SLURM_JOB_ID", "71"), ("SLURM_STEP_ID", "2"), ("SLURM_RESTART_COUNT", "1")];
        assert_eq!(name(&requeued).unwrap(), "nccl-71.2-1.id");
        assert!(name(&[]).unwrap_err().to_string().contains("--features mpi,nccl"));
        assert!(name(&[("SLURM_JOB_ID", "../x")]).is_err());
    }

    #[test]
    fn the_others_wait_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let id: Vec<u8> = (0..128).map(|i| (i * 7) as u8).collect();
        let minute = Duration::from_secs(60);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| wait_for(dir.path(), "a.id", 4, 128, minute).unwrap());
            std::thread::sleep(2 * PAUSE);
            let published = publish(dir.path(), "a.id", 4, &id).unwrap();
            assert_eq!(waits.join().unwrap(), id);
            drop(published);
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        let late = wait_for(dir.path(), "a.id", 4, 128, PAUSE).unwrap_err();
        assert_eq!(late.exit_code(), crate::record::exit::COLLECTIVE_TIMEOUT);
        assert!(late.to_string().contains("a.id"), "{late}");
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = format!("{MAGIC} 2 00ff\n");
        assert_eq!(parse(&good, 2, 2).unwrap(), [0, 255]);
        for (text, ranks, length) in [
            (good.as_str(), 3, 2),
            (&good, 2, 3),
            ("", 2, 2),
            ("seedbed-nccl-id 2 2 00ff", 2, 2),
            ("seedbed-nccl-id 1 2 00fg", 2, 2),
        ] {
            assert!(parse(text, ranks, length).is_none(), "{text}");
        }
        std::fs::write(dir.path().join("b.id"), "else").unwrap();
        let refused = wait_for(dir.path(), "b.id", 2, 2, PAUSE).unwrap_err();
        assert!(refused.to_string().contains("remove it"), "{refused}");
    }
}
