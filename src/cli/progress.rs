//! What a local run shows: a bar for each running cell on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{gates, output};
use crate::record::{CellKey, exit};
use crate::workflow::local::{Event, TaskEnd};
use crate::workflow::status::{Progress, progress};

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
                    && let Some(far) = progress(&task.run_dir)
                {
                    show(bar, &task.key, &far);
                }
            }
            Event::Ended(task, end, took) => {
                if let Some(bar) = self.running.remove(&task.key) {
                    bar.finish_and_clear();
                }
                self.ended += 1;
                let what = match end {
                    TaskEnd::Done => format!("done in {}", output::duration(took.as_secs_f64())),
                    TaskEnd::Failed(_) if gates::said(task).is_some() => {
                        format!("says {}", gates::said(task).map_or("", |said| said.verdict.word()))
                    }
                    TaskEnd::Failed(code) if code == i32::from(exit::STOPPED) => "stopped".to_owned(),
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

pub(crate) fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg:32!} {elapsed_precise}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar() -> ProgressStyle {
    ProgressStyle::with_template("  {msg:70!} {bar:16} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows how far a cell has come.
pub(crate) fn show(bar_: &ProgressBar, key: &CellKey, far: &Progress) {
    if let Some(total) = far.line.total
        && bar_.length() != Some(total)
    {
        bar_.set_style(bar());
        bar_.set_length(total);
    }
    bar_.set_position(far.line.step);
    bar_.set_message(format!("{:<28} {}", key.local_name(), numbers(far)));
}

/// The numbers that a person watches.
pub(crate) fn numbers(far: &Progress) -> String {
    let mut parts = Vec::new();
    if let Some(loss) = far.line.values.get("loss") {
        parts.push(format!("loss {loss:.3}"));
    }
    if let Some(rate) = far.line.values.get("tokens_per_s") {
        parts.push(format!("{rate:.0} tok/s"));
    }
    if let Some(left_s) = far.left_s {
        parts.push(format!("{} left", output::duration(left_s)));
    }
    parts.join("  ")
}
