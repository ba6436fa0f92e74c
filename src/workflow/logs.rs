//! Where the logs of a cell lie, and following them: across attempts, requeues and new jobs.
//!
//! What a stage prints is appended to `log.txt` of its run directory by every attempt, each behind a line that begins
//! with `== attempt`. What Slurm and the attempt say of one job is in a file of its own below `logs/`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::history::CellJob;
use super::place::Place;
use crate::record::CellKey;

/// What a stage printed, over all attempts.
pub fn stage_log(run_dir: &Path) -> PathBuf {
    run_dir.join("log.txt")
}

/// The logs of the cell's jobs that are there, oldest first; `number` is that of its stage. Last the one of local runs.
pub fn job_logs(place: &Place, number: u32, key: &CellKey, jobs: &[CellJob]) -> Vec<PathBuf> {
    let arm = key.arm.as_ref().map(|arm| format!(".{arm}")).unwrap_or_default();
    let name = |element| format!("job_{number}_{}{arm}_{element}.out", key.stage);
    let slurm = jobs.iter().filter_map(|job| Some(name(job.element()?)));
    let local = format!("local_{}.log", key.local_name().replace('/', "+"));
    let mut paths: Vec<PathBuf> = slurm.chain([local]).map(|name| place.logs().join(name)).collect();
    paths.dedup();
    paths.retain(|path| path.is_file());
    paths
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// The attempt that wrote it; none before the first, and in the logs of jobs.
    pub attempt: Option<u32>,
    /// The line, without its end. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Reads a log line by line, as it grows. The file may not be there yet, and may be replaced by another one: then that
/// one is read from its beginning.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    inode: u64,
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    rest: Vec<u8>,
    attempt: Option<u32>,
}

impl Follower {
    /// From the beginning of `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, inode: 0, offset: 0, rest: Vec::new(), attempt: None }
    }

    /// The whole lines that have come since the last call. What cannot be read has no lines: it may come yet.
    pub fn lines(&mut self) -> Vec<LogLine> {
        let bytes = self.new_bytes().unwrap_or_default();
        self.rest.extend(bytes);
        let Some(end) = self.rest.iter().rposition(|&b| b == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        whole[..end].split(|&b| b == b'\n').map(|line| self.line(line)).collect()
    }

    /// The lines that are left when nothing more will come: also a last one without its end.
    pub fn rest(&mut self) -> Vec<LogLine> {
        let mut lines = self.lines();
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            lines.push(self.line(&rest));
        }
        lines
    }

    fn line(&mut self, bytes: &[u8]) -> LogLine {
        let text = String::from_utf8_lossy(bytes).trim_end_matches('\r').to_owned();
        self.attempt = attempt_of(&text).or(self.attempt);
        LogLine { attempt: self.attempt, text }
    }

    /// Opened anew each time: a network file system then looks again.
    fn new_bytes(&mut self) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let meta = file.metadata()?;
        if meta.ino() != self.inode || meta.len() < self.offset {
            self.inode = meta.ino();
            self.offset = 0;
            self.rest.clear();
            self.attempt = None;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

/// The number in `== attempt 2 at ...`.
fn attempt_of(line: &str) -> Option<u32> {
    line.strip_prefix("== attempt ")?.split(' ').next()?.parse().ok()
}

/// The last lines of a log, in plain text: what a program printed is not obeyed by a terminal.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    let read = || {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(64 * 1024);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| plain(line)).collect()
}

/// The same line for a terminal: control characters become `?`, a tab a space.
pub fn plain(line: &str) -> String {
    let plain = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    line.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_followed_across_attempts_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.txt");
        let mut follower = Follower::new(path.clone());
        let mut said = |text: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            follower.lines().into_iter().map(|l| format!("{:?} {}", l.attempt.unwrap_or(0), l.text)).collect::<Vec<_>>()
        };
        assert_eq!(said("before\n"), ["0 before"]);
        assert_eq!(said("== attempt 1 at noon on n1: x\na\nhal"), ["1 == attempt 1 at noon on n1: x", "1 a"]);
        assert_eq!(said(""), Vec::<String>::new());
        assert_eq!(said("f\r\n== attempt 12 at one\n"), ["1 half", "12 == attempt 12 at one"]);
        // Moved aside for other parameters, and begun anew.
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        assert_eq!(said("new\n"), ["0 new"]);
        std::fs::rename(dir.path().join("log.txt"), dir.path().join("older")).unwrap();
        std::fs::write(dir.path().join("log.txt"), "cut\nlast").unwrap();
        assert_eq!(follower.rest().iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["cut", "last"]);
    }

    #[test]
    fn a_log_is_not_obeyed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.txt");
        std::fs::write(&path, "one\n\x1b[2Jtwo\tthree\n").unwrap();
        assert_eq!(tail(&path, 1), ["?[2Jtwo three"]);
        assert_eq!(tail(&path, 9).len(), 2);
        assert_eq!(tail(&dir.path().join("none"), 9), Vec::<String>::new());
    }
}
