//! `seedbed status --watch` on a terminal: what its bars show, that they fit and are drawn anew, and that they are gone
//! when somebody has seen enough.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::chain;
use crate::support::terminal::OnTerminal;

#[test]
fn bars_fit_are_drawn_anew_and_leave_the_terminal_as_it_was() {
    let (slurm, chain) = chain(&[42]);
    chain.touch("slow");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    slurm.wait_until(|_| chain.base().join("train_baseline/seed-42/log.txt").exists());
    let run_dir = chain.base().join("train_baseline/seed-42");
    let wrote = |steps: &[(u64, f64, f64)]| {
        let line = |&(step, time_s, loss): &(u64, f64, f64)| {
            let values = format!(r#"{{"loss":{loss},"tokens_per_s":1200.0}}"#);
            format!("{{\"step\":{step},\"total\":400,\"time_s\":{time_s},\"values\":{values}}}\n")
        };
        std::fs::write(run_dir.join("progress.jsonl"), steps.iter().map(line).collect::<String>()).unwrap();
    };
    wrote(&[(100, 10.0, 2.75), (200, 20.0, 2.5)]);
    let mut watch = OnTerminal::start(chain.seedbed("status", &["--watch"]), 80);
    // The bar says it all in one line of 80 columns. The table above says "step 200/400" of the same cell.
    let bar = ["train_baseline/seed-42 ", " 200/400  loss 2.500  1200 tok/s  20.0 s left", "\u{2588}"];
    let screen = watch.until(20, |screen| screen.find(&bar).is_some());
    let row = screen.find(&bar).unwrap();
    let table = screen.find(&["CELL", "STATE"]).unwrap();
    let counted = screen.find(&["1 of", "cells done", "1 running"]).unwrap();
    assert!(table < counted && counted < row, "{:#?}", screen.lines());
    // Half of the steps are half of the bar.
    let filled = screen.lines()[row].matches('\u{2588}').count();
    assert_eq!(filled, 3, "{:#?}", screen.lines());
    assert!(!watch.echoes());

    // It goes on: the same line changes, and no other comes.
    watch.keys("q\n");
    wrote(&[(100, 10.0, 2.75), (200, 20.0, 2.5), (300, 30.0, 2.25)]);
    let screen = watch.until(10, |screen| screen.find(&["300/400  loss 2.250  1200 tok/s  10.0 s left"]).is_some());
    assert_eq!(screen.find(&["300/400"]), Some(row), "{:#?}", screen.lines());
    assert_eq!(screen.find(&["200/400", "\u{2588}"]), None, "{:#?}", screen.lines());
    // A bar that did not fit would take another line.
    assert!(row == counted + 1 && screen.lines()[row + 1..].iter().all(String::is_empty), "{:#?}", screen.lines());

    watch.keys("\u{3}");
    let mut ended = None;
    for _ in 0..50 {
        ended = watch.child.try_wait().unwrap();
        if ended.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // As without bars: a shell sees that it was interrupted.
    assert_eq!(ended.and_then(|status| status.signal()), Some(libc::SIGINT));
    let screen = watch.until(5, |screen| screen.find(&["300/400"]).is_none());
    let lines = screen.lines();
    assert!(lines[counted..].iter().all(String::is_empty), "{lines:#?}");
    assert_eq!((screen.row, screen.column, screen.cursor_hidden), (counted, 0, false), "{lines:#?}");
    assert!(lines[table + 1..counted].iter().any(|line| line.contains("train_baseline/seed-42")), "{lines:#?}");
    assert!(watch.echoes());
    slurm.run("scancel", &[&jobs[1].to_string()]);
    chain.wait(&jobs);
}
