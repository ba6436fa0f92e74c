//! The files that a paper inputs: what the commands name, where it is looked for, and all of it as one stream of tokens.

use super::Finding;
use super::document::{Document, Read, Source, Tok};
use super::tex::{self, Kind, Token};

/// Files in one paper, and how deep they may input each other.
const MAX_FILES: usize = 500;
const MAX_DEPTH: usize = 20;

/// A paper's files in one stream.
#[derive(Default)]
pub(super) struct Spliced {
    pub(super) sources: Vec<Source>,
    pub(super) toks: Vec<Tok>,
    /// Names that are no files of the paper's folder, with their places.
    pub(super) unread: Vec<(String, (String, usize))>,
    /// What is input, with its tokens.
    pub(super) inputs: Vec<(String, usize)>,
    pub(super) problems: Vec<Finding>,
}

/// Reads the paper `name` and, by `read`, what it inputs.
pub(super) fn splice(name: &str, text: &str, read: &mut Read<'_>) -> Spliced {
    let mut builder = Builder { found: Spliced::default(), folders: Vec::new(), read, spliced: 0 };
    builder.splice(name, text, &mut Vec::new());
    builder.found
}

/// Commands that input a file, and how many arguments name it: a file, or a folder and a file.
pub(super) fn inputs_of(command: &str) -> Option<usize> {
    match command {
        "input" | "include" | "subfile" | "subfileinclude" | "InputIfFileExists" => Some(1),
        "import" | "subimport" | "inputfrom" | "subinputfrom" | "includefrom" | "subincludefrom" => Some(2),
        _ => None,
    }
}

/// What `\input` or one of its like names.
pub(super) struct Named {
    /// The folder that it gives, and where that begins.
    folder: Option<(String, Base)>,
    /// The file, relative to the folder if there is one.
    file: String,
    /// The token behind it.
    behind: usize,
}

/// Where a folder begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    /// At the paper.
    Paper,
    /// At the folder that the file was imported from.
    Here,
}

/// What `\input` at `i` names, if that is known without TeX.
pub(super) fn input_name(document: &Document, i: usize) -> Option<Named> {
    let command = document.command(i)?;
    let arguments = inputs_of(command)?;
    let at = if arguments == 2 && document.text(i + 1) == "*" { i + 2 } else { i + 1 };
    if let Some((inner, behind)) = document.group(at) {
        let first = document.source(inner).trim().to_owned();
        let mut named = Named { folder: None, file: first, behind };
        if arguments == 2 {
            let (file, end) = document.group(behind)?;
            let from = if command.starts_with("sub") { Base::Here } else { Base::Paper };
            let file = document.source(file).trim().to_owned();
            named = Named { folder: Some((named.file, from)), file, behind: end };
        }
        let folder = named.folder.as_ref().map_or("", |(folder, _)| folder.as_str());
        let known =
            !named.file.is_empty() && ![folder, named.file.as_str()].iter().any(|part| part.contains(['#', '\\']));
        return known.then_some(named);
    }
    // TeX's own form: `\input name`.
    let at = document.solid(i + 1);
    (document.kind(at)? == Kind::Text && command == "input").then(|| Named {
        folder: None,
        file: document.text(at).to_owned(),
        behind: at + 1,
    })
}

/// The name of a file in a folder, without steps that lead nowhere.
fn below(folder: &str, file: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let joined = if file.starts_with('/') { file.to_owned() } else { format!("{folder}/{file}") };
    for part in joined.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let root = if joined.starts_with('/') && (file.starts_with('/') || folder.starts_with('/')) { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

struct Builder<'a, 'b> {
    found: Spliced,
    /// Folders that files are being imported from, the newest last: where names are looked for.
    folders: Vec<String>,
    read: &'a mut Read<'b>,
    spliced: usize,
}

impl Builder<'_, '_> {
    fn splice(&mut self, name: &str, text: &str, stack: &mut Vec<String>) {
        let file = match self.found.sources.iter().position(|s| s.name == name) {
            Some(known) => known,
            None => {
                self.found.sources.push(Source::new(name, text));
                self.found.sources.len() - 1
            }
        };
        let piece = Document::piece(text);
        let tokens: Vec<Token> = piece.toks.iter().map(|t| t.token).collect();
        if let Some(wrong) = tex::unbalanced(&tokens) {
            let line = self.found.sources[file].line(wrong.at);
            let what = if wrong.open {
                "this `{` is never closed: add the missing `}`"
            } else {
                "this `}` closes nothing: remove it, or add the missing `{`"
            };
            self.found.problems.push(Finding::at((name.to_owned(), line), what));
            return;
        }
        stack.push(name.to_owned());
        let mut i = 0;
        while i < piece.toks.len() {
            let read = input_name(&piece, i);
            let behind = read.as_ref().map_or(i + 1, |named| named.behind);
            let at = self.found.toks.len();
            self.found.toks.extend(piece.toks[i..behind].iter().map(|t| Tok { file, token: t.token }));
            if let Some(named) = read {
                let place = (name.to_owned(), self.found.sources[file].line(piece.toks[i].token.start));
                self.input(&named, at, place, stack);
            }
            i = behind;
        }
        stack.pop();
    }

    /// Reads what token `at` inputs. As TeX does, it looks in the folders that files were imported from, the newest first, and
    /// then in that of the paper; what `\import` itself names lies where it says.
    fn input(&mut self, named: &Named, at: usize, place: (String, usize), stack: &mut Vec<String>) {
        let folder = named.folder.as_ref().map(|(folder, from)| match from {
            Base::Here => below(self.folders.last().map_or("", String::as_str), folder),
            Base::Paper => below("", folder),
        });
        let candidates: Vec<String> = match &folder {
            Some(folder) => vec![below(folder, &named.file)],
            None => self.folders.iter().rev().map(|f| below(f, &named.file)).chain([named.file.clone()]).collect(),
        };
        // There is at least one; the last is what the paper says.
        let (mut name, mut found) = (String::new(), Ok(None));
        for candidate in candidates {
            found = (self.read)(&candidate);
            name = candidate;
            if !matches!(found, Ok(None)) {
                break;
            }
        }
        match found {
            Ok(Some((inner, _))) if stack.contains(&inner) => {
                self.found.problems.push(Finding::at(place, format!("`{inner}` inputs itself: break the circle")));
            }
            Ok(Some(_)) if stack.len() >= MAX_DEPTH || self.spliced >= MAX_FILES => {
                let text = format!("more than {MAX_FILES} files, or {MAX_DEPTH} one in another: input fewer");
                self.found.problems.push(Finding::at(place, text));
            }
            Ok(Some((inner, text))) => {
                self.spliced += 1;
                self.found.inputs.push((name, at));
                let nested = folder.is_some();
                self.folders.extend(folder);
                self.splice(&inner, &text, stack);
                if nested {
                    self.folders.pop();
                }
            }
            Ok(None) => {
                self.found.inputs.push((name.clone(), at));
                self.found.unread.push((name, place));
            }
            Err(why) => self.found.problems.push(Finding::at(place, why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imported_files_name_others_as_from_their_own_folder() {
        let files = [
            ("a/b.tex", "b \\input{own} \\subimport{c}{d} \\input{own} \\input{shared} \\input{seedbed/t}"),
            ("a/own.tex", "a/own"),
            ("own.tex", "WRONG"),
            ("a/c/d.tex", "d \\input{own} \\input{deep} \\import{x/}{y} \\subimport{../}{up}"),
            ("a/c/deep.tex", "a/c/deep"),
            ("a/up.tex", "a/up"),
            ("x/y.tex", "x/y \\subinputfrom{./z/}{w}"),
            ("x/z/w.tex", "x/z/w"),
            ("shared.tex", "shared"),
        ];
        let text = "\\import{a/}{b}\\input{shared}\\input{x/y}\\subimport{a}{gone}";
        let mut read = |name: &str| {
            let found = files.iter().find(|(file, _)| *file == name || *file == format!("{name}.tex"));
            Ok(found.map(|(file, text)| ((*file).to_owned(), (*text).to_owned())))
        };
        let document = Document::new("p.tex", text, &mut read).unwrap();
        let names: Vec<&str> = document.inputs().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "a/b",
                "a/own",
                "a/c/d",
                "a/own",
                "a/c/deep",
                "x/y",
                "x/z/w",
                "a/up",
                "a/own",
                "shared",
                "seedbed/t",
                "shared",
                "x/y",
                "z/w",
                "a/gone",
            ]
        );
        let unread: Vec<(&str, &str, usize)> =
            document.unread.iter().map(|(name, (file, line))| (name.as_str(), file.as_str(), *line)).collect();
        // Input by its path, x/y.tex is not imported: its own names are those of the paper.
        assert_eq!(unread, [("seedbed/t", "a/b.tex", 1), ("z/w", "x/y.tex", 1), ("a/gone", "p.tex", 1)]);
        for (name, token) in document.inputs() {
            assert!(document.command(*token).is_some_and(|command| inputs_of(command).is_some()), "{name}");
        }
    }

    #[test]
    fn names_below_folders() {
        for (folder, file, name) in [
            ("", "a", "a"),
            ("a/", "./b", "a/b"),
            ("a/b", "../c", "a/c"),
            ("", "../a", "../a"),
            ("..", "../a", "../../a"),
            ("a", "/tmp/b", "/tmp/b"),
            ("/tmp", "b", "/tmp/b"),
        ] {
            assert_eq!(below(folder, file), name, "{folder} {file}");
        }
    }
}
