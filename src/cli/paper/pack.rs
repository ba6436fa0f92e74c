//! A folder with everything that pdflatex needs for a paper, and nothing that says where it was made.
//!
//! Comments of LaTeX files are emptied: what TeX reads stays the same, line by line. What is packed is then searched for
//! hosts, jobs, paths and the user; a find refuses the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Desk;
use crate::cli::{CliError, Result, output};
use crate::record::{RecordError, attempt, exit, files};
use crate::report::paper::Finding;
use crate::report::paper::document::Document;
use crate::report::paper::tex::{self, Kind};

/// Commands that name files: their endings, and whether one that is not beside the paper is LaTeX's own.
const FILES: [(&str, &[&str], Absent); 11] = [
    ("input", &["", ".tex"], Absent::IsSystem),
    ("include", &[".tex"], Absent::IsSystem),
    ("subfile", &["", ".tex"], Absent::IsSystem),
    ("includegraphics", &["", ".pdf", ".png", ".jpg", ".jpeg"], Absent::IsWrong),
    ("documentclass", &[".cls"], Absent::IsSystem),
    ("usepackage", &[".sty"], Absent::IsSystem),
    ("RequirePackage", &[".sty"], Absent::IsSystem),
    ("bibliographystyle", &[".bst"], Absent::IsSystem),
    ("bibliography", &["", ".bib"], Absent::IsSystem),
    ("addbibresource", &["", ".bib"], Absent::IsSystem),
    ("lstinputlisting", &[""], Absent::IsWrong),
];

/// What it means that a named file is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    IsSystem,
    IsWrong,
}

/// Files by their name in the folder.
type Packed = BTreeMap<String, Vec<u8>>;

/// Writes the folder, whole or not at all.
pub(super) fn pack(desk: &Desk, dir: &Path) -> Result<u8> {
    let used = std::fs::read_dir(dir).map(|mut entries| entries.next().is_some());
    if used.unwrap_or_else(|_| dir.exists()) {
        return Err(CliError::Usage(format!("`{}` is there already: name a new folder", dir.display())));
    }
    let mut problems = Vec::new();
    let packed = gather(desk, &mut problems);
    tell_tales(desk, &packed, &mut problems);
    if !problems.is_empty() {
        problems.sort();
        problems.dedup();
        problems.iter().for_each(|p| output::note(&p.to_string()));
        output::note("nothing was packed");
        return Ok(exit::INCOMPLETE);
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or("paper");
    let making = parent.join(format!(".{name}.{}.making", std::process::id()));
    let made = packed.iter().try_for_each(|(file, bytes)| files::write_atomic(&making.join(file), bytes));
    // An empty folder that is there gives way.
    let made = made.and_then(|()| std::fs::rename(&making, dir).map_err(RecordError::io("rename onto", dir)));
    if made.is_err() {
        // Nothing of it is needed by anybody.
        let _ = std::fs::remove_dir_all(&making);
    }
    made?;
    let names: Vec<&str> = packed.keys().map(String::as_str).collect();
    output::text(&format!("packed {}: {}\n", output::plural(names.len(), "file"), names.join(", ")))?;
    output::note(&format!("to compile: cd {} && pdflatex {}", dir.display(), desk.name));
    Ok(exit::DONE)
}

/// Everything that the paper names and that lies beside it.
fn gather(desk: &Desk, problems: &mut Vec<Finding>) -> Packed {
    let mut packed = Packed::new();
    for i in desk.document.unresolved() {
        let text = "the file that this inputs cannot be known without TeX: write its name out";
        problems.push(desk.document.finding(i, text));
    }
    for source in &desk.document.sources {
        packed.insert(source.name.clone(), without_comments(&source.text).into_bytes());
    }
    let mut folders = vec![String::new()];
    folders.extend(graphics_folders(&desk.document));
    let mut has_bibliography = None;
    let document = &desk.document;
    for i in 0..document.toks.len() {
        let Some((command, endings, absent)) =
            document.command(i).and_then(|name| FILES.iter().find(|(command, ..)| *command == name))
        else {
            continue;
        };
        let mut at = i + 1;
        while let Some(behind) = document.option(at) {
            at = behind;
        }
        let Some((inner, _)) = document.group(at) else { continue };
        let list = document.source(inner);
        if matches!(*command, "bibliography" | "addbibresource") {
            has_bibliography.get_or_insert(i);
        }
        // An imported file names others as from its own folder.
        let own = document.sources[document.toks[i].file].name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        let folders: Vec<String> = own.into_iter().chain(folders.iter().cloned()).collect();
        for name in list.split(',').map(str::trim).filter(|n| !n.is_empty() && !n.contains(['#', '\\'])) {
            match find(&desk.dir, &folders, name, endings) {
                Some((file, path)) => {
                    if packed.contains_key(&file) {
                        continue;
                    }
                    match std::fs::read(&path) {
                        Ok(bytes) => {
                            let bytes = as_packed(&file, bytes);
                            packed.insert(file, bytes);
                        }
                        Err(e) => problems.push(document.finding(i, format!("`{name}` cannot be read: {e}"))),
                    }
                }
                None if outside(&desk.dir, name) => {
                    let text = format!("`{name}` lies outside of the paper's folder: copy it beside the paper");
                    problems.push(document.finding(i, text));
                }
                None if *absent == Absent::IsWrong => {
                    problems.push(document.finding(i, format!("`{name}` is not there: make it, or take it out")));
                }
                None => {}
            }
        }
    }
    named_files(desk, &mut packed, problems);
    let stem = desk.name.strip_suffix(".tex").unwrap_or(&desk.name);
    match std::fs::read(desk.dir.join(format!("{stem}.bbl"))) {
        Ok(bytes) => {
            packed.insert(format!("{stem}.bbl"), bytes);
        }
        Err(_) => {
            if let Some(i) = has_bibliography {
                let text = format!(
                    "`{stem}.bbl` is not there: run bibtex once, so that pdflatex alone can set the references"
                );
                problems.push(document.finding(i, text));
            }
        }
    }
    packed
}

/// A file of LaTeX without its comments, any other as it is.
fn as_packed(file: &str, bytes: Vec<u8>) -> Vec<u8> {
    let is_tex = [".tex", ".sty", ".cls"].iter().any(|e| file.ends_with(e));
    let text = is_tex.then(|| std::str::from_utf8(&bytes).ok().map(without_comments)).flatten();
    text.map_or(bytes, String::into_bytes)
}

/// What any other command names in braces and lies beside the paper: data of plots, code, styles of references.
fn named_files(desk: &Desk, packed: &mut Packed, problems: &mut Vec<Finding>) {
    let document = &desk.document;
    for open in 0..document.toks.len() {
        let Some(close) = document.close_of(open).filter(|close| close - open <= 8) else { continue };
        let name = document.source(open + 1..close).trim().to_owned();
        let own = name.ends_with(".fill.toml") || name.ends_with(".seedbed.json");
        if own || !name.contains(['.', '/']) || name.contains(['\\', '#', '\n']) {
            continue;
        }
        let Some((file, path)) = find(&desk.dir, &[String::new()], &name, &[""]) else { continue };
        if packed.contains_key(&file) {
            continue;
        }
        match std::fs::read(&path) {
            Ok(bytes) => {
                let bytes = as_packed(&file, bytes);
                packed.insert(file, bytes);
            }
            Err(e) => problems.push(document.finding(open, format!("`{name}` cannot be read: {e}"))),
        }
    }
}

/// Folders of `\graphicspath{{a/}{b/}}`.
fn graphics_folders(document: &Document) -> Vec<String> {
    let mut found = Vec::new();
    for i in 0..document.toks.len() {
        if document.command(i) != Some("graphicspath") {
            continue;
        }
        let Some((inner, _)) = document.group(i + 1) else { continue };
        let mut at = inner.start;
        while let Some((folder, behind)) = document.group(at).filter(|(_, behind)| *behind <= inner.end) {
            found.push(document.source(folder).trim().to_owned());
            at = behind;
        }
    }
    found
}

/// The file that `name` means: its name in the folder, and its path.
fn find(dir: &Path, folders: &[String], name: &str, endings: &[&str]) -> Option<(String, PathBuf)> {
    for folder in folders {
        for ending in endings {
            let Ok(path) = std::fs::canonicalize(dir.join(folder).join(format!("{name}{ending}"))) else { continue };
            let inside =
                path.strip_prefix(dir).ok().filter(|_| path.is_file()).map(|i| i.to_string_lossy().into_owned());
            if let Some(inside) = inside {
                return Some((inside, path));
            }
        }
    }
    None
}

/// True for a name that leads out of the paper's folder.
fn outside(dir: &Path, name: &str) -> bool {
    name.starts_with('/')
        || std::fs::canonicalize(dir.join(name)).is_ok_and(|p| !p.starts_with(dir))
        || name.split('/').any(|part| part == "..")
}

/// The text with every comment emptied: `%` stays, for it ends its line without a space.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for token in tex::tokens(text) {
        match token.kind {
            Kind::Comment => out.push('%'),
            // Behind \end{document}: nobody reads it.
            Kind::Opaque if token.end == text.len() && out.ends_with("\\end{document}") => out.push('\n'),
            _ => out.push_str(&text[token.start..token.end]),
        }
    }
    out
}

/// Names that say where, by whom or in which job something was made.
fn tell_tales(desk: &Desk, packed: &Packed, problems: &mut Vec<Finding>) {
    let mut words: BTreeSet<String> = desk.secrets.iter().cloned().collect();
    for dir in &desk.runs {
        // Earlier attempts ran elsewhere, and as other jobs; what cannot be read of them was never sealed.
        for n in 1..=attempt::last(dir).unwrap_or(0) {
            if let Ok(start) = attempt::read_start(dir, n) {
                words.extend(start.job.map(|job| job.id).into_iter().chain([start.host]));
            }
        }
    }
    words.insert(desk.dir.display().to_string());
    words.insert(files::host_name());
    if let Some(home) = std::env::var_os("HOME") {
        words.insert(home.to_string_lossy().into_owned());
    }
    for name in ["USER", "LOGNAME"] {
        // Alone it may be a word of the paper.
        if let Ok(user) = std::env::var(name) {
            words.extend([format!("{user}@"), format!("/{user}/"), format!("~{user}")]);
        }
    }
    words.retain(|w| (w.len() > 3 || is_short_host(w)) && w != "localhost");
    for (file, bytes) in packed {
        for (at, word) in named(bytes, &words) {
            let line = 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
            let text = format!("this names `{word}`: take it out before the paper leaves the house");
            problems.push(Finding::at((file.clone(), line), text));
        }
    }
}

/// Where some of `words` stand, each as a word of its own.
fn named<'w>(bytes: &[u8], words: &'w BTreeSet<String>) -> Vec<(usize, &'w str)> {
    // Thousands of jobs are looked up by the words of a file, a few paths are looked for.
    let (names, others): (BTreeSet<&str>, BTreeSet<&str>) =
        words.iter().map(String::as_str).partition(|w| w.bytes().all(is_part));
    // In a picture three letters or a number stand anywhere.
    let is_text = std::str::from_utf8(bytes).is_ok();
    let mut found = Vec::new();
    let mut at = 0;
    for word in bytes.split(|b| !is_part(*b)) {
        let name = std::str::from_utf8(word).ok().and_then(|word| names.get(word));
        let counts = |name: &&&str| match name.bytes().all(|b| b.is_ascii_digit()) {
            true => (is_text && name.len() > 4) || is_of_a_job(bytes, at),
            false => is_text || name.len() > 3,
        };
        if let Some(name) = name.filter(counts) {
            found.push((at, *name));
        }
        at += word.len() + 1;
    }
    let others = others.iter().filter(|word| is_text || word.len() > 3);
    found.extend(others.flat_map(|word| places(bytes, word.as_bytes()).into_iter().map(move |at| (at, *word))));
    found
}

/// `n17` is a host; a number or a part of a path so short is anything.
fn is_short_host(word: &str) -> bool {
    word.len() > 1
        && word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A bare number of few digits is a job's where the text before it says so; elsewhere it may be a seed or a count.
fn is_of_a_job(bytes: &[u8], at: usize) -> bool {
    let before = String::from_utf8_lossy(&bytes[at.saturating_sub(12)..at]).to_lowercase();
    before.contains("job") || before.contains("slurm")
}

/// Part of a word.
fn is_part(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Where `word` stands as a word of its own.
fn places(bytes: &[u8], word: &[u8]) -> Vec<usize> {
    let is_part = |b: Option<&u8>| b.is_some_and(|b| is_part(*b));
    let ends = |at: usize| {
        let (first, last) = (word.first().copied().unwrap_or(b' '), word.last().copied().unwrap_or(b' '));
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        !(first.is_ascii_alphanumeric() && is_part(before))
            && !(last.is_ascii_alphanumeric() && is_part(bytes.get(at + word.len())))
    };
    if word.is_empty() {
        return Vec::new();
    }
    (0..bytes.len().saturating_sub(word.len() - 1)).filter(|at| bytes[*at..].starts_with(word) && ends(*at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_jobs_and_paths_are_found_as_words() {
        let words = ["node17", "n1", "9172", "81723", "81724_3", "/home/ada", "ada@", "gpu-01.site"].map(str::to_owned);
        let words = BTreeSet::from(words);
        for (text, expected) in [
            ("on node17, node170 and xnode17", vec!["node17"]),
            ("9172 samples in job 9172", vec!["9172"]),
            ("seed 81723, n1, n12 and xn1", vec!["81723", "n1"]),
            ("slurm-81723.out", vec!["81723"]),
            ("task 81724_3", vec!["81724_3"]),
            ("/home/ada/x and /home/adam", vec!["/home/ada"]),
            ("ada@there, Ada", vec!["ada@"]),
            ("at gpu-01.site.", vec!["gpu-01.site"]),
            ("", vec![]),
        ] {
            let found: Vec<&str> = named(text.as_bytes(), &words).into_iter().map(|(_, word)| word).collect();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(named(b"\xff node17 n1 81723 job 9172 \xff", &words), [(2, "node17"), (22, "9172")]);
    }

    #[test]
    fn short_names_are_those_of_hosts() {
        for (word, is) in [("n17", true), ("c1", true), ("a", false), ("17", false), ("/x", false), ("~ad", false)] {
            assert_eq!(is_short_host(word), is, "{word}");
        }
    }

    #[test]
    fn comments_are_emptied_and_tex_reads_the_same() {
        let text = "a % b\n  \\verb|%| \\% c%\n\\url{x%20y}\n\\end{document}\nrest % x\n";
        let expected = "a %\n  \\verb|%| \\% c%\n\\url{x%20y}\n\\end{document}\n";
        assert_eq!(without_comments(text), expected);
    }
}
