//! Documents that say the truth: exit codes, links, and commands that were run.
//!
//! Every ```` ```console ```` block of a document is run. The blocks of one document are one session, in order, in a
//! new directory with a copy of `configs/`, `slurm/` and `results/samples/`, and the programs on `PATH`. A line that
//! starts with `$ ` is a command (lines that start with `> ` go on with it); the lines behind it are what it prints,
//! stdout and stderr together. `[..]` stands for any text within a line, and a line `...` for any lines. A command
//! that is to fail says so in its last line: `[exit 64]`. Blocks of other kinds (`sh`, `text`) are not run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use seedbed::record::exit;

use crate::support::repository;

/// Every Markdown file that users read.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![repository().join("README.md"), repository().join("CHANGELOG.md")];
    let mut open = ["docs", "slurm", "results/samples"].map(|dir| repository().join(dir)).to_vec();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap().display().to_string()
}

#[test]
fn every_exit_code_is_documented() {
    let source = fs::read_to_string(repository().join("src/record/exit.rs")).unwrap();
    let constants: BTreeMap<String, u8> = source
        .lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("pub const ")?.split_once(": u8 = ")?;
            Some((name.to_owned(), value.strip_suffix(';')?.parse().ok()?))
        })
        .collect();
    let page = fs::read_to_string(repository().join("docs/exit-codes.md")).unwrap();
    let rows: BTreeMap<String, (u8, String)> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, code, name, meaning, ..] = cells.as_slice() else { return None };
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), (code.parse().ok()?, (*meaning).to_owned())))
        })
        .collect();
    assert!(constants.len() > 8, "{constants:?}");
    let documented: BTreeMap<String, u8> = rows.iter().map(|(name, (code, _))| (name.clone(), *code)).collect();
    assert_eq!(documented, constants);
    for (name, (code, meaning)) in rows {
        assert_eq!(meaning, exit::meaning(i32::from(code)), "{name}");
    }
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Lines outside fenced blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push(line);
        }
    }
    lines
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for line in prose(&text) {
            for (at, _) in line.match_indices("](") {
                let target = line[at + 2..].split(')').next().unwrap();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                count += 1;
                let (file, part) = target.split_once('#').map_or((target, None), |(f, p)| (f, Some(p)));
                let path = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
                let found = match (path.exists(), part) {
                    (there, None) => there,
                    (false, _) => false,
                    (true, Some(part)) => {
                        let text = fs::read_to_string(&path).unwrap();
                        prose(&text).iter().any(|l| l.starts_with('#') && anchor(l) == part)
                    }
                };
                if !found {
                    broken.push(format!("{}: {target}", shown(&document)));
                }
            }
        }
    }
    assert!(count > 40, "only {count} links were found");
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_linked_from_the_readme_or_the_list_of_formats() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let (readme, formats) = (read("README.md"), read("docs/formats/README.md"));
    for document in documents() {
        let name = shown(&document);
        let linked = match name.strip_prefix("docs/formats/") {
            Some(page) => page == "README.md" || formats.contains(&format!("({page})")),
            None => !name.starts_with("docs/") || readme.contains(&format!("({name})")),
        };
        assert!(linked, "{name} is on no list: link it in README.md, or in docs/formats/README.md");
    }
}

#[test]
fn every_page_that_the_source_names_is_there() {
    let mut named = 0;
    for dir in ["src", "configs", "scripts", "slurm", "tests"] {
        for file in seedbed::record::digest::files_below(&repository().join(dir)).unwrap() {
            let Ok(text) = fs::read_to_string(repository().join(dir).join(&file)) else { continue };
            for (at, _) in text.match_indices("docs/") {
                let name: String =
                    text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/._-".contains(*c)).collect();
                let name = name.trim_end_matches('.');
                if name.ends_with(".md") {
                    named += 1;
                    assert!(repository().join(name).exists(), "{dir}/{} names {name}", file.display());
                }
            }
        }
    }
    assert!(named > 10, "only {named} were found");
}

/// Command lines of Seedbed's programs in a document: in code spans, and in blocks of commands.
fn command_lines(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Option<bool> = None;
    for line in text.lines() {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(matches!(kind, "sh" | "console" | "text")) };
        } else if block == Some(true) {
            found.push(line.split(" #").next().unwrap_or_default().to_owned());
        } else if block.is_none() {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    let starts = |line: &String| line.starts_with("seedbed ") || line.starts_with("run_all ");
    let bare = |line: String| {
        let line = line.trim().trim_start_matches("$ ");
        // `EXPERIMENT_SEED=42 run_all ...`
        line.split_once(' ').filter(|(first, _)| first.contains('=')).map_or(line, |(_, rest)| rest).to_owned()
    };
    found.into_iter().map(bare).filter(starts).collect()
}

#[test]
fn every_subcommand_and_option_in_documents_exists() {
    let mut pages: BTreeMap<String, String> = BTreeMap::new();
    let mut help = |words: &[&str]| {
        if let Some(page) = pages.get(&words.join(" ")) {
            return page.clone();
        }
        let program = match words[0] {
            "run_all" => env!("CARGO_BIN_EXE_run_all"),
            _ => env!("CARGO_BIN_EXE_seedbed"),
        };
        let output = Command::new(program).args(&words[1..]).arg("--help").output().unwrap();
        let page = String::from_utf8(output.stdout).unwrap();
        pages.insert(words.join(" "), page.clone());
        page
    };
    let seedbed = help(&["seedbed"]);
    let mut checked = 0;
    for document in documents() {
        for line in command_lines(&fs::read_to_string(&document).unwrap()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let subcommand = words[1].trim_end_matches([',', ';', '.']);
            let text = if words[0] == "run_all" {
                help(&["run_all"])
            } else if subcommand.starts_with('-') || !subcommand.chars().all(|c| c.is_ascii_lowercase()) {
                seedbed.clone()
            } else {
                let known = seedbed.lines().any(|l| l.trim_start().starts_with(&format!("{subcommand} ")));
                assert!(known, "{}: there is no `seedbed {subcommand}`: {line}", shown(&document));
                help(&["seedbed", subcommand])
            };
            for word in words.iter().take_while(|w| **w != "|").filter(|w| w.starts_with("--") && w.len() > 2) {
                let option = word.split('=').next().unwrap().trim_end_matches([',', ';', '.', ')']);
                assert!(text.contains(option), "{}: `{line}` has no option {option}", shown(&document));
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} command lines were found");
}

#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
    exit: i32,
    line: usize,
}

/// The commands of a document's console blocks.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = !inside && line == "```console";
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), line: i + 1, ..Step::default() });
        } else {
            let step = steps.last_mut().unwrap_or_else(|| panic!("line {}: output before any command", i + 1));
            let code = line.strip_prefix("[exit ").and_then(|rest| rest.strip_suffix(']')).and_then(|n| n.parse().ok());
            match (line.strip_prefix("> "), code) {
                (Some(more), _) => step.command.push_str(&format!("\n{more}")),
                (_, Some(code)) => step.exit = code,
                _ => step.expected.push(line.to_owned()),
            }
        }
    }
    steps
}

/// True if `line` is `pattern`, in which `[..]` stands for any text.
fn line_fits(pattern: &str, line: &str) -> bool {
    let parts: Vec<&str> = pattern.trim_end().split("[..]").collect();
    let line = line.trim_end();
    let [first, middle @ .., last] = parts.as_slice() else { return parts == [line] };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// True if `lines` are `patterns`, in which `...` stands for any lines.
fn fits(patterns: &[String], lines: &[&str]) -> bool {
    match patterns {
        [] => lines.is_empty(),
        [any, rest @ ..] if any.trim() == "..." => (0..=lines.len()).any(|n| fits(rest, &lines[n..])),
        [pattern, rest @ ..] => match lines {
            [line, behind @ ..] => line_fits(pattern, line) && fits(rest, behind),
            [] => false,
        },
    }
}

fn copy_dir(from: &Path, to: &Path) {
    for file in seedbed::record::digest::files_below(from).unwrap() {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(from.join(&file), target).unwrap();
    }
}

/// Runs the console blocks of `document`; what does not fit, as text.
fn run(document: &str) -> (usize, Vec<String>) {
    let steps = steps(&fs::read_to_string(repository().join(document)).unwrap());
    let dir = tempfile::tempdir().unwrap();
    for part in ["configs", "slurm", "results/samples"] {
        copy_dir(&repository().join(part), &dir.path().join(part));
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_seedbed")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut wrong = Vec::new();
    for step in &steps {
        let mut command = Command::new("timeout");
        command.args(["120", "bash", "-c", &format!("exec 2>&1\n{}", step.command)]).current_dir(dir.path());
        for (name, _) in std::env::vars() {
            if name.starts_with("SEEDBED_") || name.starts_with("SLURM_") || name == "EXPERIMENT_SEED" {
                command.env_remove(name);
            }
        }
        let output = command.env("PATH", &path).env("NO_COLOR", "1").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let code = output.status.code().unwrap_or(-1);
        if code != step.exit || !fits(&step.expected, &lines) {
            wrong.push(format!("{document}:{}: $ {}\n[exit {code}]\n{text}", step.line, step.command));
            break;
        }
    }
    (steps.len(), wrong)
}

#[test]
fn commands_in_documents_print_what_the_documents_say() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        let (steps, failed) = run(&shown(&document));
        count += steps;
        wrong.extend(failed);
    }
    assert!(count >= 15, "only {count} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_runner_of_documents_sees_differences() {
    let text = "```console\n$ echo a\n> echo b\na\nb\n$ false\n[exit 1]\n```\n```sh\n$ not run\n```\n";
    let found = steps(text);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].command, "echo a\necho b");
    assert_eq!((found[0].expected.as_slice(), found[1].exit), (&["a".to_owned(), "b".to_owned()][..], 1));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    for (pattern, output, expected) in [
        ("a\nb", "a\nb", true),
        ("a", "a\nb", false),
        ("a\nb", "a", false),
        ("a\n...", "a\nb\nc", true),
        ("...\nc", "a\nb\nc", true),
        ("...\nb", "a\nb\nc", false),
        ("done in [..] s", "done in 1.5 s", true),
        ("done in [..] s", "done in 1.5 min", false),
        ("[..]/results/[..]", "/tmp/x/results/hello", true),
        ("a[..]a", "a", false),
        ("a", "b", false),
    ] {
        assert_eq!(fits(&lines(pattern), &output.lines().collect::<Vec<_>>()), expected, "{pattern:?} {output:?}");
    }
}

#[test]
fn licences_are_whole() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    assert!(read("LICENSE-APACHE").contains("END OF TERMS AND CONDITIONS"));
    assert!(read("LICENSE-MIT").contains("WITHOUT WARRANTY OF ANY KIND"));
    assert!(read("Cargo.toml").contains("license = \"MIT OR Apache-2.0\""));
    assert!(read("CHANGELOG.md").contains("## Unreleased"));
}
