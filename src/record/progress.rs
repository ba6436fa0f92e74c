//! `progress.jsonl`: series of a running cell, one line a step that was logged. On resume it is cut back
//! to the checkpoint's step; at the end the series move into `run.h5`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{RecordError, Result, SeriesPoint, files};

/// File name in a run directory.
pub const PROGRESS_FILE: &str = "progress.jsonl";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Optimizer step.
    pub step: u64,
    /// Steps in all, for a progress bar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Seconds since the attempt began.
    pub time_s: f64,
    /// Numbers by series.
    pub values: BTreeMap<String, f64>,
}

/// Appends lines. One process writes: the stage's rank 0.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Opens the file of `run_dir`, keeping lines up to and with `step` and dropping the rest.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(run_dir: &Path, step: u64) -> Result<Self> {
        let path = run_dir.join(PROGRESS_FILE);
        let kept: Vec<Line> = read(run_dir)?.into_iter().filter(|l| l.step <= step).collect();
        let mut text = String::new();
        for line in &kept {
            text.push_str(&to_text(line)?);
        }
        files::write_atomic(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(RecordError::io("append to", &path))?;
        Ok(Self { path, file })
    }

    /// Appends a line. Not synced: a lost tail is made again from the checkpoint.
    ///
    /// # Errors
    /// The file cannot be written, or a value is not finite.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        self.file.write_all(to_text(line)?.as_bytes()).map_err(RecordError::io("append to", &self.path))
    }

    /// Makes the lines durable, before a checkpoint that continues them.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(RecordError::io("sync", &self.path))
    }
}

fn to_text(line: &Line) -> Result<String> {
    if let Some((name, value)) = line.values.iter().find(|(_, v)| !v.is_finite()) {
        return Err(RecordError::Value(format!("series `{name}` is {value} at step {}", line.step)));
    }
    serde_json::to_string(line).map(|t| t + "\n").map_err(|e| RecordError::Value(e.to_string()))
}

/// All whole lines; none if the file is not there.
///
/// # Errors
/// A whole line is damaged.
pub fn read(run_dir: &Path) -> Result<Vec<Line>> {
    files::read_lines(&run_dir.join(PROGRESS_FILE))
}

/// The last whole lines, as many as stand in the last 4 kB; cheap however long the file is.
///
/// # Errors
/// The file is not there or cannot be read. A line that is none is left out.
pub fn tail(run_dir: &Path) -> Result<Vec<Line>> {
    let path = run_dir.join(PROGRESS_FILE);
    let read = || {
        let mut file = File::open(&path)?;
        let start = file.metadata()?.len().saturating_sub(4096);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok((start, bytes))
    };
    let (start, bytes) = read().map_err(RecordError::io("read", &path))?;
    // The first may be the rest of a line, and the last one may not be whole.
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let lines = whole.split(|&b| b == b'\n').skip(usize::from(start > 0));
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// The lines as series for `run.h5`.
pub fn series(lines: &[Line]) -> BTreeMap<String, Vec<SeriesPoint>> {
    let mut series: BTreeMap<String, Vec<SeriesPoint>> = BTreeMap::new();
    for line in lines {
        for (name, value) in &line.values {
            let point = SeriesPoint { step: line.step, value: *value, time_s: line.time_s };
            series.entry(name.clone()).or_default().push(point);
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(tail(dir.path()).unwrap_err().is_not_found());
        let mut writer = Writer::resume(dir.path(), 0).unwrap();
        for step in 1..=500 {
            writer.write(&Line { step, total: None, time_s: 0.5, values: BTreeMap::new() }).unwrap();
        }
        let lines = tail(dir.path()).unwrap();
        assert!(lines.len() > 50 && lines.len() < 400, "{}", lines.len());
        let first = 501 - lines.len() as u64;
        assert_eq!(lines.iter().map(|l| l.step).collect::<Vec<_>>(), (first..=500).collect::<Vec<_>>());
        std::fs::write(dir.path().join(PROGRESS_FILE), "{\"step\":6,").unwrap();
        assert_eq!(tail(dir.path()).unwrap(), []);
    }

    #[test]
    fn resume_cuts_back_and_appends() {
        let dir = tempfile::tempdir().unwrap();
        let line =
            |step| Line { step, total: Some(9), time_s: 0.5, values: BTreeMap::from([("loss".into(), step as f64)]) };
        let mut writer = Writer::resume(dir.path(), 0).unwrap();
        for step in 1..=5 {
            writer.write(&line(step)).unwrap();
        }
        let path = dir.path().join(PROGRESS_FILE);
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"{\"step\":6,").unwrap();
        let mut writer = Writer::resume(dir.path(), 3).unwrap();
        writer.write(&line(4)).unwrap();
        let steps: Vec<u64> = read(dir.path()).unwrap().iter().map(|l| l.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        let series = series(&read(dir.path()).unwrap());
        assert_eq!(series["loss"].len(), 4);
        assert_eq!(tail(dir.path()).unwrap(), read(dir.path()).unwrap());
        let not_finite = Line { values: BTreeMap::from([("loss".into(), f64::NAN)]), ..line(5) };
        assert!(writer.write(&not_finite).unwrap_err().to_string().contains("loss"));
    }
}
