//! What a run shows that is watched: a bar for each running cell on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{CliError, Result, gates, output};
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

/// Cells of a bar.
const BAR: usize = 6;

/// A bar; a cell that does not say how many steps there are has none. What has no room left is cut, so that no line wraps.
fn bar(total: Option<u64>) -> ProgressStyle {
    let template = match total {
        Some(_) => format!("{{prefix}} {{bar:{BAR}}} {{pos}}/{{len}}  {{wide_msg}}"),
        None => "{prefix} step {pos}  {wide_msg}".to_owned(),
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows how far a cell has come.
pub(crate) fn show(bar_: &ProgressBar, key: &CellKey, far: &Progress) {
    let total = far.line.total;
    if bar_.length() != total {
        bar_.set_style(bar(total));
        match total {
            Some(total) => bar_.set_length(total),
            None => bar_.unset_length(),
        }
    }
    let (name, numbers) = line(output::width_of(&std::io::stderr()), &key.local_name(), far);
    bar_.set_prefix(name);
    bar_.set_position(far.line.step);
    bar_.set_message(numbers);
}

/// The name and the numbers of a bar in a terminal of `width` columns. The end of a name, which has the seed, says most.
fn line(width: usize, name: &str, far: &Progress) -> (String, String) {
    let numbers = numbers(far);
    let step = match far.line.total {
        Some(total) => BAR + 1 + format!("{}/{total}", far.line.step).len(),
        None => format!("step {}", far.line.step).len(),
    };
    let room = width.saturating_sub(step + numbers.chars().count() + 3).clamp(12, 40);
    let long = name.chars().count();
    let name = match long > room {
        true => std::iter::once('…').chain(name.chars().skip(long - (room - 1))).collect(),
        false => name.to_owned(),
    };
    (name, numbers)
}

/// Bars for looking on. However the program ends, the terminal is left as it was found: Ctrl-C and its like clear the bars,
/// and nothing that is typed is shown between them.
pub(crate) struct Looking {
    pub(crate) bars: MultiProgress,
    before: Option<libc::termios>,
}

impl Looking {
    pub(crate) fn new() -> Result<Self> {
        let bars = MultiProgress::new();
        let before = without_echo();
        let signals = [SIGINT, SIGTERM, SIGHUP];
        let mut signals = signal_hook::iterator::Signals::new(signals).map_err(CliError::Output)?;
        let theirs = bars.clone();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // The bars are gone while they are suspended, and nobody draws them again.
                theirs.suspend(|| {
                    set_terminal(before.as_ref());
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                });
            }
        });
        Ok(Self { bars, before })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        set_terminal(self.before.as_ref());
    }
}

/// Turns off that the terminal shows what is typed, and gives its settings before. `^C` behind a full line would take a line
/// of its own, and nobody would clear the bars above it.
fn without_echo() -> Option<libc::termios> {
    // SAFETY: an all-zero termios is valid, and the pointer is valid for the call.
    let mut before: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: see above.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) } != 0 {
        return None;
    }
    let quiet = libc::termios { c_lflag: before.c_lflag & !libc::ECHO, ..before };
    set_terminal(Some(&quiet)).then_some(before)
}

/// Whether these are now the settings of the terminal, which belongs to us only in the foreground.
fn set_terminal(settings: Option<&libc::termios>) -> bool {
    let Some(settings) = settings else { return false };
    // SAFETY: calls of the system on a descriptor and a valid termios.
    unsafe {
        libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp()
            && libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) == 0
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::progress::Line;

    fn far(step: u64, total: Option<u64>, loss: f64, rate: f64, left_s: f64) -> Progress {
        let values = BTreeMap::from([("loss".to_owned(), loss), ("tokens_per_s".to_owned(), rate)]);
        Progress { line: Line { step, total, time_s: 1.0, values }, left_s: Some(left_s) }
    }

    #[test]
    fn a_line_fits_the_terminal_and_keeps_its_numbers() {
        let usual = far(200, Some(400), 2.5, 1200.0, 20.0);
        let (name, numbers) = line(80, "train_baseline/seed-42", &usual);
        assert_eq!(
            (name.as_str(), numbers.as_str()),
            ("train_baseline/seed-42", "loss 2.500  1200 tok/s  20.0 s left")
        );
        let (name, _) = line(80, "train_monotonic/width-1024-lr-3e-4/seed-1337", &usual);
        assert_eq!(name, "…idth-1024-lr-3e-4/seed-1337");
        for far in [usual, far(1_999_999, Some(2_000_000), 10.123, 1_234_567.0, 359_999.0), far(7, None, 2.5, 1.0, 1.0)]
        {
            let (name, numbers) = line(80, "train_monotonic/width-1024-lr-3e-4/seed-1337", &far);
            let step = match far.line.total {
                Some(total) => format!("{} {}/{total}", "#".repeat(BAR), far.line.step),
                None => format!("step {}", far.line.step),
            };
            let all = format!("{name} {step}  {numbers}");
            assert!(all.chars().count() <= 80 && all.contains("seed-1337") && all.ends_with(" left"), "{all}");
        }
    }
}
