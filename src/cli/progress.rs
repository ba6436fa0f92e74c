//! What a local run shows: a bar for each running cell on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output;
use crate::record::progress::{Line, PROGRESS_FILE};
use crate::record::{CellKey, exit};
use crate::workflow::local::{Event, TaskEnd};

/// Shows the events of a local run.
pub(crate) struct Watch {
    bars: Option<MultiProgress>,
    running: BTreeMap<CellKey, ProgressBar>,
    total: usize,
    ended: usize,
}

impl Watch {
    /// For a run of `total` cells.
    pub(crate) fn new(total: usize) -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, running: BTreeMap::new(), total, ended: 0 }
    }

    /// Takes an event.
    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Started(task) => match &self.bars {
                Some(bars) => {
                    let bar = bars.add(ProgressBar::new(0).with_style(spinner()).with_message(task.key.local_name()));
                    bar.enable_steady_tick(Duration::from_millis(200));
                    self.running.insert(task.key.clone(), bar);
                }
                None => output::note(&format!("{} {} started", self.count(), task.key.local_name())),
            },
            Event::Running(task) => {
                if let Some(bar) = self.running.get(&task.key)
                    && let Some(line) = last_line(&task.run_dir)
                {
                    show(bar, &task.key, &line);
                }
            }
            Event::Ended(task, end, took) => {
                if let Some(bar) = self.running.remove(&task.key) {
                    bar.finish_and_clear();
                }
                self.ended += 1;
                let what = match end {
                    TaskEnd::Done => format!("done in {}", output::duration(took.as_secs_f64())),
                    TaskEnd::Failed(code) => format!("FAILED with exit {code} ({})", exit::meaning(code)),
                    TaskEnd::Skipped => "skipped: a needed cell did not finish".to_owned(),
                    TaskEnd::Interrupted => "interrupted; it goes on when you run this again".to_owned(),
                };
                self.line(&format!("{} {} {what}", self.count(), task.key.local_name()));
            }
        }
    }

    fn count(&self) -> String {
        format!("[{:>width$}/{}]", self.ended, self.total, width = self.total.to_string().len())
    }

    fn line(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => output::note(line),
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg:32!} {elapsed_precise}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template("  {msg:52!} {bar:16} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn show(bar_: &ProgressBar, key: &CellKey, line: &Line) {
    if let Some(total) = line.total
        && bar_.length() != Some(total)
    {
        bar_.set_style(bar());
        bar_.set_length(total);
    }
    bar_.set_position(line.step);
    bar_.set_message(format!("{:<28} {}", key.local_name(), numbers(line)));
}

/// The numbers that a person watches.
pub(crate) fn numbers(line: &Line) -> String {
    let mut parts = Vec::new();
    if let Some(loss) = line.values.get("loss") {
        parts.push(format!("loss {loss:.3}"));
    }
    if let Some(rate) = line.values.get("tokens_per_s") {
        parts.push(format!("{:.0} tok/s", rate));
    }
    parts.join("  ")
}

/// The last whole line of a cell's progress file.
pub(crate) fn last_line(run_dir: &Path) -> Option<Line> {
    let mut file = std::fs::File::open(run_dir.join(PROGRESS_FILE)).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let end = tail.iter().rposition(|&b| b == b'\n')?;
    let line = tail[..end].rsplit(|&b| b == b'\n').next()?;
    serde_json::from_slice(line).ok()
}
