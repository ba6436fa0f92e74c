//! The text of a job script, from data. Pure: no file, clock, environment or process.
//!
//! A script is `#SBATCH` lines, the site's modules and exports, and one `exec` of `seedbed attempt`, which
//! owns everything that happens inside the job. Every value is quoted for the place where it stands, for
//! sbatch or for bash; what cannot be quoted (a newline, a control character) is refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use super::wishes::Wishes;
use crate::record::{Name, Resources};
use crate::workflow::plan::EdgeKind;

/// The template as shipped; a file of this name in a study's `slurm/` directory takes its place.
pub const TEMPLATE: &str = include_str!("../../../slurm/stage.sbatch.j2");

/// File name of the template.
pub const TEMPLATE_NAME: &str = "stage.sbatch.j2";

/// One call of `sbatch`: a stage (and arm) with the cells that are to run.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// `<study>.<stage>[.<arm>].<submission>`: unique, found by name when a reply is lost.
    pub name: String,
    /// The stage.
    pub stage: Name,
    /// Its arm.
    pub arm: Option<Name>,
    /// Number of the stage.
    pub number: u32,
    /// Which cells.
    pub slots: Slots,
    /// At most so many elements of the array at a time.
    pub throttle: Option<u32>,
    /// Resources of one cell.
    pub resources: Resources,
    /// Whether the stage goes on from a checkpoint, and so may be requeued.
    pub resumable: bool,
    /// How long before the time limit USR2 is sent to a resumable stage, seconds; at most half of the limit.
    pub grace_s: u32,
    /// Threads of one rank.
    pub threads_per_rank: u32,
    /// Absolute directory of the job logs; it must exist when the job starts, or Slurm writes no log.
    pub log_dir: PathBuf,
    /// Absolute directory of the submission.
    pub submission_dir: PathBuf,
    /// Absolute path of the `seedbed` program that the job runs.
    pub seedbed: PathBuf,
    /// The site.
    pub site: Site,
    /// Whether its end is that of the study: Slurm mails it, where somebody wants mail.
    pub mails_its_end: bool,
    /// What it waits for, by job name; ids are known only when it is submitted.
    pub waits_for: Vec<NamedEdge>,
}

/// The cells of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slots {
    /// One cell, no array.
    Single,
    /// An array over these indices, sorted and without repeats.
    Indices(Vec<u32>),
}

/// What a site asks of every job.
#[derive(Debug, Clone)]
pub struct Site {
    /// Partition, or several with commas between them.
    pub partition: Option<String>,
    /// Account.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Slurm clusters that may take the chain, where a site has several.
    pub clusters: Vec<String>,
    /// What jobs ask for beside resources; the partition stands above.
    pub wishes: Wishes,
    /// Further sbatch options as they stand on an `#SBATCH` line: `--constraint=a100`.
    pub options: Vec<String>,
    /// Environment modules, loaded in this order.
    pub modules: Vec<String>,
    /// Raw shell lines, after the modules.
    pub lines: Vec<String>,
    /// Exported variables.
    pub exports: BTreeMap<String, String>,
    /// How ranks are started.
    pub launcher: Launcher,
    /// Words between the launcher and a stage's program: `apptainer exec IMAGE`. `seedbed attempt` runs outside.
    pub container: Vec<String>,
    /// Whether a job whose dependency can never be met is cancelled by Slurm.
    pub kill_on_invalid_dep: bool,
    /// Whether the site lets jobs be requeued.
    pub requeue: bool,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            clusters: Vec::new(),
            wishes: Wishes::default(),
            options: Vec::new(),
            modules: Vec::new(),
            lines: Vec::new(),
            exports: BTreeMap::new(),
            launcher: Launcher::default(),
            container: Vec::new(),
            kill_on_invalid_dep: true,
            requeue: true,
        }
    }
}

/// How the ranks of a stage are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// `srun --mpi=<plugin>` with further arguments.
    Srun {
        /// MPI plugin, of those that `srun --mpi=list` names.
        mpi: String,
        /// Further arguments of srun.
        args: Vec<String>,
    },
    /// Another program and its arguments, such as `mpirun --map-by ppr:4:node`.
    Command(Vec<String>),
    /// The stage is started as it is.
    None,
}

impl Default for Launcher {
    fn default() -> Self {
        Self::Srun { mpi: "pmix".to_owned(), args: Vec::new() }
    }
}

impl Launcher {
    /// The words before the stage's own command.
    fn words(&self, cpus_per_task: u32) -> Vec<String> {
        match self {
            Self::Srun { mpi, args } => {
                let mut words = vec![
                    "srun".to_owned(),
                    format!("--mpi={mpi}"),
                    // A rank that died leaves the others waiting in a collective.
                    "--kill-on-bad-exit=1".to_owned(),
                    // A site's own WaitTime may be shorter than the end of the slowest rank.
                    "--wait=60".to_owned(),
                    // Slurm 22.05 to 23.02 does not hand sbatch's value on to srun.
                    format!("--cpus-per-task={cpus_per_task}"),
                    // Where the site has a plugin that binds; else it means nothing.
                    "--cpu-bind=cores".to_owned(),
                ];
                words.extend(args.iter().cloned());
                words
            }
            Self::Command(words) => words.clone(),
            Self::None => Vec::new(),
        }
    }
}

/// The word of an edge in a `--dependency`.
pub fn dependency_word(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::AfterCorr => "aftercorr",
        EdgeKind::AfterOk => "afterok",
        EdgeKind::AfterAny => "afterany",
    }
}

/// An edge to a job that has no id yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedEdge {
    /// Its kind.
    pub kind: EdgeKind,
    /// Name of the parent job, or any checked words that describe it.
    pub parent: String,
}

/// Why a script cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A value that neither sbatch nor bash can be told safely.
    #[error("{what} {value:?} {why}")]
    Value {
        /// Which value.
        what: String,
        /// The value.
        value: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// The template is wrong.
    #[error(
        "template `{TEMPLATE_NAME}` fails at line {line}: {reason}; correct it, or remove it to use the shipped one"
    )]
    Template {
        /// Line in the template.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template made something that is no script.
    #[error("template `{TEMPLATE_NAME}` makes no script: {0}; correct it, or remove it to use the shipped one")]
    NoScript(&'static str),
}

fn refuse<T>(what: impl Into<String>, value: &str, why: &'static str) -> Result<T, ScriptError> {
    Err(ScriptError::Value { what: what.into(), value: value.to_owned(), why })
}

/// The script of `job`.
///
/// # Errors
/// A value holds what cannot be quoted (control characters, a log path with a backslash), or the template is wrong.
pub fn render(job: &JobSpec, template: &str) -> Result<String, ScriptError> {
    check_job_name(&job.name)?;
    for edge in &job.waits_for {
        printable("name of a parent job", &edge.parent)?;
    }
    let site = &job.site;
    for option in &site.options {
        printable("cluster option", option)?;
        if !option.starts_with('-') {
            return refuse("cluster option", option, "is no option: write it as `--constraint=a100`");
        }
    }
    for line in &site.lines {
        printable("cluster line", line)?;
        if line.trim_start().starts_with("#SBATCH") {
            return refuse("cluster line", line, "is for sbatch, not for the shell: put it into `options`");
        }
    }
    let resources = &job.resources;
    let context = context! {
        title => title(job),
        waits_for => job.waits_for.iter().map(|e| format!("{}:{}", dependency_word(e.kind), e.parent)).collect::<Vec<_>>(),
        job_name => &job.name,
        output => log_pattern(job)?,
        requeue => job.resumable && site.requeue,
        grace_s => grace_s(job),
        nodes => resources.nodes,
        tasks_per_node => resources.tasks_per_node,
        cpus_per_task => resources.cpus_per_task,
        gpus_per_node => resources.gpus_per_node,
        mem => resources.mem_bytes.map(mebibytes),
        time => time_limit(resources.time_s),
        array => array(job)?,
        kill_on_invalid_dep => site.kill_on_invalid_dep,
        partition => directive_option("partition", site.partition.as_deref())?,
        account => directive_option("account", site.account.as_deref())?,
        qos => directive_option("qos", site.qos.as_deref())?,
        clusters => clusters(site)?,
        constraint => directive_option("constraint", site.wishes.constraint.as_deref())?,
        reservation => directive_option("reservation", site.wishes.reservation.as_deref())?,
        begin => directive_option("begin", site.wishes.begin.as_deref())?,
        nice => site.wishes.nice,
        mail => directive_option("mail", site.wishes.mail.as_deref().filter(|_| job.mails_its_end))?,
        site_options => &site.options,
        modules => site.modules.iter().map(|m| module(m)).collect::<Result<Vec<_>, _>>()?,
        site_lines => &site.lines,
        exports => site.exports.iter().map(|(k, v)| export(k, v)).collect::<Result<Vec<_>, _>>()?,
        threads_per_rank => job.threads_per_rank,
        seedbed => shell_path("path of the program", &job.seedbed)?,
        submission => shell_path("directory of the submission", &job.submission_dir)?,
        job => &job.name,
        launcher => launcher(job)?,
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    environment.set_syntax(syntax.build().map_err(template_error)?);
    let text = environment
        .template_from_named_str(TEMPLATE_NAME, template)
        .and_then(|template| template.render(context))
        .map_err(template_error)?;
    if !text.starts_with("#!") {
        return Err(ScriptError::NoScript("the first line must start with `#!`"));
    }
    if !text.contains(" attempt ") {
        return Err(ScriptError::NoScript("nothing in it runs `seedbed attempt`"));
    }
    Ok(text)
}

fn template_error(error: minijinja::Error) -> ScriptError {
    let kind = error.kind();
    ScriptError::Template {
        line: error.line().unwrap_or(1),
        reason: error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    }
}

/// `0-3,7` from sorted indices.
pub fn index_list(indices: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = indices;
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(u64::from(first)..).take_while(|(have, want)| u64::from(**have) == *want).count();
        if !text.is_empty() {
            text.push(',');
        }
        // Writing into a String cannot fail.
        let _ = match run {
            1 => write!(text, "{first}"),
            _ => write!(text, "{first}-{}", rest[run - 1]),
        };
        rest = &rest[run..];
    }
    text
}

/// Slurm's form of a time limit, `[D-]HH:MM:SS`.
pub fn time_limit(time_s: u64) -> String {
    let (days, rest) = (time_s / 86_400, time_s % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60);
    if days == 0 { clock } else { format!("{days}-{clock}") }
}

/// Quotes `text` as one word of bash: as it is if nothing in it is special, else between double quotes.
///
/// # Errors
/// It holds a control character.
pub fn shell_word(what: &str, text: &str) -> Result<String, ScriptError> {
    printable(what, text)?;
    Ok(quoted(text, &['"', '\\', '$', '`']))
}

/// Quotes `text` as one argument on an `#SBATCH` line, whose rules are sbatch's own: `#` starts a comment,
/// and a backslash takes the next character as it is, between quotes of either kind too.
fn directive_word(what: &str, text: &str) -> Result<String, ScriptError> {
    printable(what, text)?;
    Ok(quoted(text, &['"', '\\']))
}

fn quoted(text: &str, escaped: &[char]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut word = String::with_capacity(text.len() + 8);
    word.push('"');
    for c in text.chars() {
        if escaped.contains(&c) {
            word.push('\\');
        }
        word.push(c);
    }
    word.push('"');
    word
}

fn printable(what: &str, text: &str) -> Result<(), ScriptError> {
    if text.chars().any(char::is_control) {
        return refuse(what, text, "holds a newline or another control character: rename it");
    }
    Ok(())
}

fn path_text<'a>(what: &str, path: &'a Path) -> Result<&'a str, ScriptError> {
    let Some(text) = path.to_str() else {
        return refuse(what, &path.to_string_lossy(), "is not UTF-8: rename it");
    };
    printable(what, text)?;
    if !path.is_absolute() {
        return refuse(what, text, "is not absolute");
    }
    Ok(text)
}

fn shell_path(what: &str, path: &Path) -> Result<String, ScriptError> {
    shell_word(what, path_text(what, path)?)
}

fn check_job_name(name: &str) -> Result<(), ScriptError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    // A comma would separate names in `squeue --name`.
    if name.is_empty() || name.len() > 255 || name.starts_with('-') || !name.bytes().all(plain) {
        return refuse("job name", name, "may hold letters, digits, `.`, `_` and `-`, at most 255");
    }
    Ok(())
}

fn title(job: &JobSpec) -> String {
    let arm = job.arm.as_ref().map(|arm| format!(", arm {arm}")).unwrap_or_default();
    format!(
        "Stage {} {}{arm}: written by seedbed; edit the study or the template, not this file.",
        job.number, job.stage
    )
}

/// `<log_dir>/job_<number>_<stage>[.<arm>]_%A_%a.out`, with every other `%` doubled.
fn log_pattern(job: &JobSpec) -> Result<String, ScriptError> {
    let what = "log directory";
    let dir = path_text(what, &job.log_dir)?;
    if dir.contains('\\') {
        // With one in the name Slurm replaces nothing: all elements would share one log.
        return refuse(what, dir, "holds a backslash, with which Slurm writes no log by job id: use another root");
    }
    let arm = job.arm.as_ref().map(|arm| format!(".{arm}")).unwrap_or_default();
    let ids = match job.slots {
        Slots::Single => "%j",
        Slots::Indices(_) => "%A_%a",
    };
    let pattern = format!("{}/job_{}_{}{arm}_{ids}.out", dir.replace('%', "%%"), job.number, job.stage);
    directive_word(what, &pattern)
}

fn array(job: &JobSpec) -> Result<Option<String>, ScriptError> {
    let Slots::Indices(indices) = &job.slots else { return Ok(None) };
    if indices.is_empty() || !indices.is_sorted_by(|a, b| a < b) {
        return refuse("slots of job", &job.name, "are not sorted, or there are none");
    }
    let throttle = job.throttle.map(|k| format!("%{}", k.max(1))).unwrap_or_default();
    Ok(Some(format!("{}{throttle}", index_list(indices))))
}

fn directive_option(what: &str, value: Option<&str>) -> Result<Option<String>, ScriptError> {
    value.filter(|v| !v.is_empty()).map(|v| directive_word(what, v)).transpose()
}

/// Slurm clusters, with commas between them.
fn clusters(site: &Site) -> Result<Option<String>, ScriptError> {
    let list = site.clusters.join(",");
    directive_option("clusters", Some(list.as_str()))
}

fn module(name: &str) -> Result<String, ScriptError> {
    if name.is_empty() || name.starts_with('-') {
        return refuse("module", name, "is no module's name");
    }
    shell_word("module", name)
}

fn export(name: &str, value: &str) -> Result<String, ScriptError> {
    let ok = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !ok {
        return refuse("exported variable", name, "is no variable's name: use letters, digits and `_`");
    }
    Ok(format!("{name}={}", shell_word(name, value)?))
}

fn launcher(job: &JobSpec) -> Result<String, ScriptError> {
    let words = job.site.launcher.words(job.resources.cpus_per_task);
    let words = words
        .iter()
        .chain(&job.site.container)
        .map(|w| shell_word("launcher argument", w))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(words.join(" "))
}

/// When a stage is told, seconds before its time limit; none for one that cannot go on from a checkpoint: the signal
/// would only end it early. Never more than half of the limit, or Slurm would send it as the job starts, and never more
/// than the 16 bits that Slurm has for it.
fn grace_s(job: &JobSpec) -> Option<u64> {
    let most = (job.resources.time_s / 2).min(u64::from(u16::MAX));
    job.resumable.then(|| u64::from(job.grace_s).min(most).max(1))
}

/// Slurm's form of a memory size, rounded up to mebibytes.
fn mebibytes(bytes: u64) -> String {
    format!("{}M", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_written_short() {
        for (indices, text) in [
            (&[0u32][..], "0"),
            (&[0, 1], "0-1"),
            (&[0, 1, 2, 3, 7], "0-3,7"),
            (&[1, 3, 5], "1,3,5"),
            (&[], ""),
            (&[u32::MAX - 1, u32::MAX], "4294967294-4294967295"),
        ] {
            assert_eq!(index_list(indices), text);
        }
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(time_limit(90), "00:01:30");
        assert_eq!(time_limit(32 * 3600), "1-08:00:00");
        assert_eq!(mebibytes(80 << 30), "81920M");
        assert_eq!(mebibytes(1), "1M");
    }

    #[test]
    fn the_warning_never_comes_at_the_start() {
        let name = |s| Name::new(s).unwrap();
        let mut job = JobSpec {
            name: "a".to_owned(),
            stage: name("a"),
            arm: None,
            number: 0,
            slots: Slots::Single,
            throttle: None,
            resources: Resources {
                nodes: 1,
                tasks_per_node: 1,
                cpus_per_task: 1,
                gpus_per_node: 0,
                mem_bytes: None,
                time_s: 300,
            },
            resumable: true,
            grace_s: 300,
            threads_per_rank: 1,
            log_dir: PathBuf::new(),
            submission_dir: PathBuf::new(),
            seedbed: PathBuf::new(),
            site: Site::default(),
            mails_its_end: false,
            waits_for: Vec::new(),
        };
        assert_eq!(grace_s(&job), Some(150));
        job.resources.time_s = 1_000_000;
        assert_eq!(grace_s(&job), Some(300));
        job.grace_s = 100_000;
        assert_eq!(grace_s(&job), Some(65_535));
        job.resumable = false;
        assert_eq!(grace_s(&job), None);
    }

    #[test]
    fn words_of_the_shell() {
        for (text, word) in [
            ("plain/path-1.2", "plain/path-1.2"),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("$(touch x)", r#""\$(touch x)""#),
            ("`id`", r#""\`id\`""#),
            (r#"it's "q" \"#, r#""it's \"q\" \\""#),
            ("~user", r#""~user""#),
            ("{a,b}*", r#""{a,b}*""#),
        ] {
            assert_eq!(shell_word("x", text).unwrap(), word);
        }
        assert!(shell_word("x", "a\nb").is_err());
        assert!(shell_word("x", "a\u{7f}").is_err());
    }
}
