//! `seedbed paper`: fill a paper's numbers, check them, pack it to be sent.
//!
//! This is the part that reads and writes files; what changes and what is wrong is decided by `report::paper`.

mod pack;
mod results;

use std::path::{Path, PathBuf};

use serde_json::json;

use super::output::Format;
use super::{CliError, Result, output};
use crate::record::{RecordError, exit, files};
use crate::report::paper::spec::{StudyRef, StudyUnder};
use crate::report::paper::{
    self, Checked, Document, Finding, Force, Options, PAPER_VERSION, Paper, PaperRecord, Plan, Spec, Values, tex,
};

/// Put numbers into a paper, or prove that they still match.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES:
  seedbed paper fill paper.tex --study configs/monotone.toml --profile quick
  seedbed paper fill paper.tex --fill other.fill.toml --force
  seedbed paper check paper.tex --section 4.3 --strict --format json
  seedbed paper pack paper.tex DIR --unchecked
Studies lie below --root DIR where that is given. The manual is docs/paper.md.")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Fill tables, values and sentences from the results
    Fill {
        #[command(flatten)]
        paper: PaperArgs,
        /// Write over numbers that were edited by hand
        #[arg(long)]
        force: bool,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Say which numbers are no longer those of the results
    Check {
        #[command(flatten)]
        paper: PaperArgs,
        /// No red text may be left in this section: its number, title or label
        #[arg(long, value_name = "SECTION")]
        section: Vec<String>,
        /// Numerals of the named sections that no key stands for are errors
        #[arg(long)]
        strict: bool,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Copy what pdflatex needs into a new folder that names no host, user, path or job
    Pack {
        #[command(flatten)]
        paper: PaperArgs,
        /// The folder to make
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Pack although numbers are not those of the results
        #[arg(long)]
        unchecked: bool,
    },
}

/// Which paper, filled from which studies.
#[derive(Debug, clap::Args)]
pub(crate) struct PaperArgs {
    /// The paper's LaTeX file
    #[arg(value_name = "PAPER.tex")]
    paper: PathBuf,
    /// The fill file [default: PAPER.fill.toml beside it, if there is one]
    #[arg(long, value_name = "FILE")]
    fill: Option<PathBuf>,
    /// A study to read, in place of those of the fill file
    #[arg(long, value_name = "STUDY")]
    study: Vec<PathBuf>,
    /// Profile of these studies
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where results/ lies [default: beside configs/, else beside the study]
    #[arg(long, value_name = "DIR", env = "SEEDBED_ROOT")]
    root: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    match &args.action {
        Action::Fill { paper, force, format } => match Desk::open(paper, Trust::Seals)? {
            Ok(desk) => fill(&desk, if *force { Force::Overwrite } else { Force::No }, *format),
            Err(problems) => refuse(&problems, *format),
        },
        Action::Check { paper, section, strict, format } => match Desk::open(paper, Trust::Digests)? {
            Ok(desk) => {
                let checked = desk.check(&Options { sections: section.clone(), strict: *strict });
                report(&checked, *format)
            }
            Err(problems) => refuse(&problems, *format),
        },
        Action::Pack { paper, dir, unchecked } => match Desk::open(paper, Trust::Digests)? {
            Ok(desk) => {
                let checked = desk.check(&Options::default());
                if !unchecked && !(checked.problems.is_empty() && checked.errors.is_empty()) {
                    let code = report(&checked, Format::Text)?;
                    output::note("nothing was packed: mend this, or say --unchecked");
                    return Ok(code);
                }
                pack::pack(&desk, dir)
            }
            Err(problems) => refuse(&problems, Format::Text),
        },
    }
}

/// How far results are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Seals, and the digests of what is read.
    Seals,
    /// Every output is digested.
    Digests,
}

/// A paper with everything that its numbers come from.
pub(super) struct Desk {
    /// The paper's folder, without links.
    pub(super) dir: PathBuf,
    /// Its file's name.
    pub(super) name: String,
    pub(super) document: Document,
    spec: Spec,
    values: Values,
    record: PaperRecord,
    /// The studies as the record names them.
    studies: Vec<StudyRef>,
    /// What must not leave the house.
    pub(super) secrets: Vec<String>,
    /// Where the runs lie.
    pub(super) runs: Vec<PathBuf>,
}

impl Desk {
    /// Reads the paper, its fill file, its record and the results. The inner error is what is wrong with the LaTeX.
    fn open(args: &PaperArgs, trust: Trust) -> Result<std::result::Result<Self, Vec<Finding>>> {
        let text = read_text(&args.paper)?;
        let path = std::fs::canonicalize(&args.paper).map_err(RecordError::io("read", &args.paper))?;
        let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("paper.tex").to_owned();
        let (spec, spec_dir) = fill_file(args, &path)?;
        let record: PaperRecord = match files::read_versioned_json(&record_path(&path), PAPER_VERSION) {
            Ok(record) => record,
            Err(e) if e.is_not_found() => PaperRecord::empty(),
            Err(RecordError::Damaged { path, reason }) => {
                let what = "restore it from a copy, or delete it and fill again: cells are then filled anew, and sentences \
                            that are not what they would be today are named";
                return Err(RecordError::damaged(path, format!("{reason}: {what}")).into());
            }
            Err(e) => return Err(e.into()),
        };
        let document = match Document::new(&name, &text, &mut |input| read_input(&dir, input)) {
            Ok(document) => document,
            Err(problems) => return Ok(Err(problems)),
        };
        let named = named_studies(args, &spec, &spec_dir, &record, &dir);
        if named.is_empty() {
            return Err(CliError::Usage(format!(
                "no study is named: write `studies = [\"STUDY.toml\"]` into `{}`, or say --study STUDY",
                fill_path(&path).display()
            )));
        }
        let studies =
            named.iter().map(|(file, profile)| study_ref(&relative(&dir, file), profile.as_deref())).collect();
        let loaded = results::load(&named, args.root.as_deref(), trust == Trust::Digests, &spec)?;
        loaded.notes.iter().for_each(|n| output::note(n));
        let results::Loaded { values, secrets, runs, .. } = loaded;
        Ok(Ok(Self { dir, name, document, spec, values, record, studies, secrets, runs }))
    }

    fn paper(&self) -> Paper<'_> {
        Paper { document: &self.document, spec: &self.spec, values: &self.values, record: &self.record }
    }

    fn check(&self, options: &Options) -> Checked {
        paper::check(self.paper(), options, &|file| std::fs::read_to_string(self.dir.join(file)).ok())
    }
}

fn record_path(paper: &Path) -> PathBuf {
    let mut name = paper.as_os_str().to_owned();
    name.push(".seedbed.json");
    PathBuf::from(name)
}

fn fill_path(paper: &Path) -> PathBuf {
    paper.with_extension("fill.toml")
}

/// The fill file and the directory that its studies are relative to.
fn fill_file(args: &PaperArgs, paper: &Path) -> Result<(Spec, PathBuf)> {
    let beside = fill_path(paper);
    let path = match &args.fill {
        Some(path) => path.clone(),
        None if beside.exists() => beside,
        None => return Ok((Spec::empty(), PathBuf::from("."))),
    };
    let text = read_text(&path)?;
    let spec = Spec::parse(&text).map_err(|problems| {
        CliError::Usage(format!("the fill file `{}` has problems:\n  {}", path.display(), problems.join("\n  ")))
    })?;
    Ok((spec, path.parent().map(Path::to_path_buf).unwrap_or_default()))
}

/// The studies of the command line, else of the fill file, else of the record, with their profiles.
fn named_studies(
    args: &PaperArgs,
    spec: &Spec,
    spec_dir: &Path,
    record: &PaperRecord,
    dir: &Path,
) -> Vec<(PathBuf, Option<String>)> {
    let from = |base: &Path, list: &[StudyRef], preset: Option<&String>| -> Vec<(PathBuf, Option<String>)> {
        let one = |study: &StudyRef| match study {
            StudyRef::File(file) => (base.join(file), preset.cloned()),
            StudyRef::Profile(under) => (base.join(&under.file), under.profile.clone().or_else(|| preset.cloned())),
        };
        list.iter().map(one).collect()
    };
    if !args.study.is_empty() {
        return args.study.iter().map(|file| (file.clone(), args.profile.clone())).collect();
    }
    let named = if spec.studies.is_empty() {
        from(dir, &record.studies, None)
    } else {
        from(spec_dir, &spec.studies, spec.profile.as_ref())
    };
    named.into_iter().map(|(file, profile)| (file, args.profile.clone().or(profile))).collect()
}

fn study_ref(file: &str, profile: Option<&str>) -> StudyRef {
    match profile {
        None => StudyRef::File(file.to_owned()),
        Some(profile) => StudyRef::Profile(StudyUnder { file: file.to_owned(), profile: Some(profile.to_owned()) }),
    }
}

/// `to` as seen from the directory `from`.
fn relative(from: &Path, to: &Path) -> String {
    let Ok(to) = std::fs::canonicalize(to) else { return to.display().to_string() };
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().count() - shared;
    let mut path: PathBuf = std::iter::repeat_n("..", up).collect();
    path.extend(to.components().skip(shared));
    path.display().to_string()
}

/// Largest file that is read as LaTeX, bytes.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A text file: regular, UTF-8, of a size that people write.
fn read_text(path: &Path) -> Result<String> {
    let meta = std::fs::metadata(path).map_err(RecordError::io("read", path))?;
    if !meta.is_file() || meta.len() > MAX_TEXT_BYTES {
        return Err(CliError::Usage(format!("`{}` is no text file: name a file of LaTeX", path.display())));
    }
    let bytes = std::fs::read(path).map_err(RecordError::io("read", path))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        CliError::Usage(format!("{}:{line}: this is not UTF-8: save the file as UTF-8", path.display()))
    })
}

/// A file that the paper inputs, if it lies in the paper's folder.
fn read_input(dir: &Path, name: &str) -> std::result::Result<Option<(String, String)>, String> {
    let with_ending = format!("{name}.tex");
    for candidate in [with_ending.as_str(), name] {
        let Ok(path) = std::fs::canonicalize(dir.join(candidate)) else { continue };
        let Ok(inside) = path.strip_prefix(dir) else { continue };
        if !path.is_file() {
            continue;
        }
        let shown = inside.to_string_lossy().into_owned();
        return read_text(&path).map(|text| Some((shown, text))).map_err(|e| e.to_string());
    }
    Ok(None)
}

/// What is wrong with the LaTeX itself: nothing was written.
fn refuse(problems: &[Finding], format: Format) -> Result<u8> {
    if format == Format::Json {
        output::json(&json!({"problems": problems}))?;
    }
    problems.iter().for_each(|p| output::note(&p.to_string()));
    output::note("nothing was written");
    Ok(exit::USAGE)
}

fn fill(desk: &Desk, force: Force, format: Format) -> Result<u8> {
    let plan = paper::plan(desk.paper(), force);
    if !plan.problems.is_empty() {
        return refuse(&plan.problems, format);
    }
    if let Some((file, other)) = of_another(desk, &plan) {
        let why = format!("`{file}` was written for `{other}`, which lies in the same folder");
        let what = format!(
            "say `folder = \"NAME\"` in `{}`, and input it from there",
            fill_path(Path::new(&desk.name)).display()
        );
        return Err(CliError::Usage(format!("{why}: {what}; nothing was written")));
    }
    let changed = paper::apply(&desk.document, &plan.edits);
    for (file, text) in &changed {
        if tex::unbalanced(&tex::tokens(text)).is_some() {
            let why = format!("`{file}` would have unbalanced braces: look at the texts of the fill file for it");
            return Err(CliError::Usage(format!("{why}; nothing was written")));
        }
    }
    let written = write(desk, &plan, &changed)?;
    let reds: Vec<Finding> = left_red(desk, &plan);
    let code = if plan.by_hand.is_empty() && plan.unfilled.is_empty() { exit::DONE } else { exit::INCOMPLETE };
    if format == Format::Json {
        output::json(&json!({
            "changes": plan.changes, "written": written, "by_hand": plan.by_hand, "unfilled": plan.unfilled,
            "partial": plan.partial, "red": reds,
        }))?;
        return Ok(code);
    }
    let mut text = String::new();
    plan.changes.iter().for_each(|f| text.push_str(&format!("{f}\n")));
    written.iter().for_each(|f| text.push_str(&format!("written: {f}\n")));
    if written.is_empty() && code == exit::DONE {
        text.push_str("nothing to do: every number is that of the results\n");
    }
    output::text(&text)?;
    for list in [&plan.by_hand, &plan.unfilled, &plan.partial, &reds] {
        list.iter().for_each(|f| output::note(&f.to_string()));
    }
    Ok(code)
}

/// A file that this would write and another paper of the folder has for its own, with that paper.
fn of_another(desk: &Desk, plan: &Plan) -> Option<(String, String)> {
    let mut names: Vec<String> = std::fs::read_dir(&desk.dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".seedbed.json")?.to_owned()))
        .collect();
    names.sort();
    names.into_iter().filter(|name| *name != desk.name && desk.dir.join(name).is_file()).find_map(|name| {
        let record: PaperRecord =
            files::read_versioned_json(&record_path(&desk.dir.join(&name)), PAPER_VERSION).ok()?;
        let ours = |file: &String| plan.generated.iter().any(|g| g.file == *file);
        let file = record.files.into_iter().map(|w| w.file).find(ours)?;
        Some((file, name))
    })
}

/// Red text that the fill does not take away.
fn left_red(desk: &Desk, plan: &Plan) -> Vec<Finding> {
    let document = &desk.document;
    let left = |red: &paper::red::Red| {
        let tok = document.toks[red.outer.start];
        !plan.filled_red.contains(&(tok.file, tok.token.start))
    };
    let words = |red: &paper::red::Red| document.finding(red.outer.start, "red text is left here");
    document.reds().iter().filter(|r| left(r)).map(words).collect()
}

/// Writes what changes: generated files, then the paper's own, then the record. Names of what was written.
fn write(desk: &Desk, plan: &Plan, changed: &[(String, String)]) -> Result<Vec<String>> {
    let mut written = Vec::new();
    let generated = plan.generated.iter().filter_map(|g| Some((&g.file, g.text.as_ref()?)));
    for (file, text) in generated.chain(changed.iter().map(|(file, text)| (file, text))) {
        let path = desk.dir.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == *text) {
            continue;
        }
        // Through a link to what it means, and with the permissions that it has.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let mode = std::fs::metadata(&path).map(|m| m.permissions());
        files::write_atomic_with(&path, |out| {
            use std::io::Write;
            out.write_all(text.as_bytes())?;
            mode.map_or(Ok(()), |mode| out.set_permissions(mode))
        })?;
        written.push(file.clone());
    }
    // Edits move lines, not what was filled: the record is the same for the paper before and after.
    let record = plan.record(desk.paper(), desk.studies.clone());
    if record != desk.record {
        files::write_json(&record_path(&desk.dir.join(&desk.name)), &record)?;
    }
    Ok(written)
}

fn report(checked: &Checked, format: Format) -> Result<u8> {
    let code = match (checked.problems.is_empty(), checked.errors.is_empty()) {
        (false, _) => exit::USAGE,
        (true, false) => exit::INCOMPLETE,
        (true, true) => exit::DONE,
    };
    if format == Format::Json {
        output::json(checked)?;
        return Ok(code);
    }
    let mut text = String::new();
    checked.problems.iter().chain(&checked.errors).for_each(|f| text.push_str(&format!("{f}\n")));
    checked.warnings.iter().for_each(|f| text.push_str(&format!("warning: {f}\n")));
    let numbers = output::plural(checked.numbers, "number");
    text.push_str(&match code {
        exit::DONE => format!("{numbers} compared: all are those of the results\n"),
        _ => format!(
            "{numbers} compared: {} to look at\n",
            output::plural(checked.problems.len() + checked.errors.len(), "thing")
        ),
    });
    output::text(&text)?;
    Ok(code)
}
