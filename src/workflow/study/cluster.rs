//! A cluster file: what a site asks of every job, and what its hours cost.
//!
//! Raw shell lines and sbatch options come from here and from nowhere else: a study cannot carry any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::load::{read_text, schema};
use super::problem::{Problem, Sink, StudyError, collect};
use super::section::Section;
use super::stage::{self, RESOURCE_KEYS, SaidResources, misfit, said_resources};
use super::tree::{self, Syntax, Table, Tree};
use super::{On, Run, Stage, Staging, Study, staging, wishes};
use crate::record::Name;
use crate::record::decision::GATE_KIND;
use crate::stages::all_specs;
use crate::workflow::plan::{Chain, Pack};
use crate::workflow::slurm::script::{Launcher, Site};
use crate::workflow::slurm::wishes::Wishes;

/// Keys of `[cluster]`.
const KEYS: &[&str] = &[
    "name",
    "account",
    "qos",
    "clusters",
    "options",
    "modules",
    "lines",
    "exports",
    "launcher",
    "mpi",
    "srun_args",
    "container",
    "resources",
    "scratch",
    "local_dir",
    "requeue",
    "kill_on_invalid_dep",
    "chain",
    "throttle",
    "pack",
    "max_array_size",
    "grace_s",
    "fs_settle_s",
    "quota_command",
    "price",
];

/// A site's settings.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name, kept in journals.
    pub name: Name,
    /// What every job script says.
    pub site: Site,
    /// What stages of a kind take here in place of what the study says.
    pub resources: BTreeMap<String, SaidResources>,
    /// The file it was read from.
    pub file: PathBuf,
    /// Absolute directory for checkpoints; absent: they lie in the run directories.
    pub scratch: Option<PathBuf>,
    /// Directory on a node's own disk for what is staged; absent: `$TMPDIR` there.
    pub local_dir: Option<String>,
    /// What stages of a kind stage here.
    pub staging: BTreeMap<String, Staging>,
    /// How the chain is carried.
    pub chain: Chain,
    /// At most so many elements of one array at a time.
    pub throttle: Option<u32>,
    /// How many cells share an allocation, whatever the study says.
    pub pack: Option<Pack>,
    /// `MaxArraySize`; absent: Slurm is asked.
    pub max_array_size: Option<u32>,
    /// How long before the time limit a stage is told, seconds.
    pub grace_s: u32,
    /// How long a file that another node wrote may take to appear, seconds.
    pub fs_settle_s: u32,
    /// A program of the site's and its arguments that print the bytes, and the files, that are left to the user.
    pub quota_command: Vec<String>,
    /// What hours cost.
    pub price: Price,
}

/// What hours cost; absent: nothing is known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// One GPU for one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_hour: Option<f64>,
    /// One core for one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_hour: Option<f64>,
    /// Currency of both, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

/// Finds a cluster file: a path if `word` has a `/` or ends in `.toml`, else `clusters/<word>.toml` beside the
/// study, else `configs/clusters/<word>.toml` here.
pub fn find_cluster(word: &str, study: &Path) -> PathBuf {
    if word.contains('/') || word.ends_with(".toml") {
        return PathBuf::from(word);
    }
    let file = format!("{word}.toml");
    let beside = study.parent().unwrap_or(Path::new("")).join("clusters").join(&file);
    if beside.is_file() {
        return beside;
    }
    let here = Path::new("configs/clusters").join(&file);
    if here.is_file() { here } else { beside }
}

/// Reads and checks a cluster file. `$NAME` and `${NAME}` in `scratch` are taken from the environment.
///
/// # Errors
/// The file cannot be read, or it is not sound: then every problem.
pub fn load_cluster(path: &Path) -> Result<Cluster, StudyError> {
    let text = read_text(path)?;
    parse_cluster(path, &text, &|name| std::env::var(name).ok())
}

/// The cluster of a site that has no file: Slurm's own defaults.
///
/// # Errors
/// None in practice: the text is this program's own.
pub fn plain_cluster() -> Result<Cluster, StudyError> {
    parse_cluster(Path::new("the built-in cluster"), "schema = 1\n[cluster]\nname = \"slurm\"\n", &|_| None)
}

/// [`load_cluster`] without file system and environment.
///
/// # Errors
/// Every problem.
pub(super) fn parse_cluster(
    file: &Path,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Cluster, StudyError> {
    let mut outer = Sink::default();
    let (root, syntax) = tree::parse(text, &mut outer);
    let mut sink = Sink::default();
    let cluster = if syntax == Syntax::Whole { read(file, &root, variable, &mut sink) } else { None };
    sink.forget(&outer.places());
    sink.found.append(&mut outer.found);
    match cluster {
        Some(cluster) if sink.found.is_empty() => Ok(cluster),
        _ => {
            if sink.found.is_empty() {
                sink.push(&(0..0), "this is no cluster file", "start from `configs/clusters/example.toml`");
            }
            Err(StudyError::Problems(collect(file, text, vec![(None, sink)])))
        }
    }
}

fn read(file: &Path, root: &Table, variable: &dyn Fn(&str) -> Option<String>, sink: &mut Sink) -> Option<Cluster> {
    let top = Section::new(root, 0..0, "the cluster file", &["schema", "cluster"], sink);
    schema(&top, sink);
    if top.entry("cluster").is_none() {
        top.missing("cluster", "say `[cluster]` and `name = \"...\"` below it", sink);
    }
    let (table, at) = top.table("cluster", sink)?;
    let own = Section::new(table, at, "[cluster]", &[KEYS, &wishes::KEYS[..], &staging::KEYS[..]].concat(), sink);
    if own.entry("name").is_none() {
        own.missing("name", "say `name = \"...\"`", sink);
    }
    let text = |key: &str, sink: &mut Sink| own.text(key, sink).map(|(text, _)| text.to_owned());
    let kill_on_invalid_dep = own.bool("kill_on_invalid_dep", sink).unwrap_or(true);
    let wishes = wishes::read(&own, sink);
    let site = Site {
        partition: wishes.partition.clone(),
        account: text("account", sink),
        qos: text("qos", sink),
        clusters: clusters(&own, sink),
        options: options(&own, &wishes, sink),
        wishes,
        modules: modules(&own, sink),
        lines: lines(&own, sink),
        exports: exports(&own, sink),
        launcher: launcher(&own, sink),
        container: wishes::program(&own, "container", sink),
        kill_on_invalid_dep,
        requeue: own.bool("requeue", sink).unwrap_or(true),
    };
    let chain = match own.one_of("chain", &["arrays", "singles"], sink) {
        Some("arrays") if !kill_on_invalid_dep => {
            let message =
                "`chain = \"arrays\"` needs `kill_on_invalid_dep = true`: a dead element would hang the chain";
            sink.push(&own.place("chain"), message, "set `chain = \"singles\"`");
            Chain::Singles
        }
        Some("arrays") => Chain::Arrays,
        Some(_) => Chain::Singles,
        None if kill_on_invalid_dep => Chain::Arrays,
        None => Chain::Singles,
    };
    let mut count = |key: &str, least: i64, most: i64| own.integer(key, least..=most, sink).map(|n| n as u32);
    let throttle = count("throttle", 1, 1_000_000);
    let max_array_size = count("max_array_size", 2, 4_000_001);
    let grace_s = count("grace_s", 10, 65_535).unwrap_or(300);
    let fs_settle_s = count("fs_settle_s", 0, 3600).unwrap_or(90);
    let pack = stage::pack(&own, sink);
    let scratch = own.text("scratch", sink).and_then(|(text, span)| match expand(text, variable) {
        Ok(path) => Some(path),
        Err(problem) => {
            sink.push(&span, format!("`scratch` in [cluster]: {problem}"), "");
            None
        }
    });
    let quota_command = wishes::program(&own, "quota_command", sink);
    let local_dir = own.text("local_dir", sink).and_then(|(text, span)| {
        let fits = text.starts_with('/') && !text.contains('$');
        if !fits {
            let help = "write it as the nodes see it; absent, it is `$TMPDIR` there";
            sink.push(&span, format!("`local_dir` in [cluster]: `{text}` is not an absolute path"), help);
        }
        fits.then(|| text.to_owned())
    });
    let price = price(&own, sink);
    let resources = resources(&own, sink);
    Some(Cluster {
        name: own.name("name", sink)?,
        site,
        resources,
        file: file.to_path_buf(),
        scratch,
        local_dir,
        staging: staging::of_cluster(&own, sink),
        chain,
        throttle,
        pack,
        max_array_size,
        grace_s,
        fs_settle_s,
        quota_command,
        price,
    })
}

/// Slurm clusters of a site that has several.
fn clusters(own: &Section<'_>, sink: &mut Sink) -> Vec<String> {
    let mut clusters: Vec<String> = Vec::new();
    for (text, span) in own.texts("clusters", sink) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || text.starts_with('-') || text == "all" || !text.bytes().all(plain) {
            sink.push(&span, format!("`{text}` is no name of a Slurm cluster"), "`sacctmgr show cluster` lists them");
        } else if clusters.iter().any(|c| c == text) {
            sink.push(&span, format!("`clusters` in [cluster] names `{text}` twice"), "remove one");
        } else {
            clusters.push(text.to_owned());
        }
    }
    clusters
}

fn options(own: &Section<'_>, wishes: &Wishes, sink: &mut Sink) -> Vec<String> {
    let said = [
        ("--partition", wishes.partition.is_some()),
        ("--constraint", wishes.constraint.is_some()),
        ("--reservation", wishes.reservation.is_some()),
        ("--begin", wishes.begin.is_some()),
        ("--nice", wishes.nice.is_some()),
    ];
    let mut options = Vec::new();
    for (text, span) in own.texts("options", sink) {
        let option = text.split(['=', ' ']).next().unwrap_or_default();
        let key = option.trim_start_matches('-');
        if said.iter().any(|(name, said)| *said && *name == option) {
            sink.push(&span, format!("`{option}` stands in `options` and as `{key}`"), "keep one of the two");
        } else if ["--clusters", "--cluster", "-M"].contains(&option) {
            let help = "say `clusters = [\"...\"]`: every later question must go there, too";
            sink.push(&span, format!("`{option}` in `options` is not known to the rest of Seedbed"), help);
        } else if ["--mail-user", "--mail-type"].contains(&option) {
            let help = "say `mail = \"...\"`: not a mail for each element, but for what matters";
            sink.push(&span, format!("`{option}` in `options` would send a mail for every job"), help);
        } else if text.starts_with('-') {
            options.push(text.to_owned());
        } else {
            let help =
                format!("write it as it stands after `#SBATCH`: `--{}`", text.trim_start_matches("#SBATCH").trim());
            sink.push(&span, format!("`{text}` is no sbatch option"), help);
        }
    }
    options
}

fn modules(own: &Section<'_>, sink: &mut Sink) -> Vec<String> {
    let mut modules = Vec::new();
    for (text, span) in own.texts("modules", sink) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+/@=:".contains(&b);
        if text.bytes().all(plain) && !text.is_empty() && !text.starts_with('-') {
            modules.push(text.to_owned());
        } else {
            sink.push(&span, format!("`{text}` is no name of a module"), "write one module a text, as in `cuda/12.4`");
        }
    }
    modules
}

fn lines(own: &Section<'_>, sink: &mut Sink) -> Vec<String> {
    let mut lines = Vec::new();
    for (text, span) in own.texts("lines", sink) {
        if text.trim_start().starts_with("#SBATCH") {
            sink.push(&span, format!("`{text}` is for sbatch, not for the shell"), "put it into `options`");
        } else {
            lines.push(text.to_owned());
        }
    }
    lines
}

fn exports(own: &Section<'_>, sink: &mut Sink) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    let Some((table, _)) = own.table("exports", sink) else { return exports };
    for entry in &table.entries {
        let key = entry.key.as_str();
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let name = !key.is_empty() && key.bytes().all(word) && !key.as_bytes()[0].is_ascii_digit();
        let ours = ["SLURM_", "SBATCH_", "SEEDBED_"].iter().any(|p| key.starts_with(p)) || key == "EXPERIMENT_SEED";
        match &entry.node.value {
            Tree::Text(text) if name && !ours => {
                exports.insert(key.to_owned(), text.clone());
            }
            Tree::Text(_) if ours => {
                sink.push(&entry.key_span, format!("`{key}` is set by Slurm or Seedbed"), "remove it");
            }
            Tree::Text(_) => {
                sink.push(&entry.key_span, format!("`{key}` is no name of a variable"), "use letters, digits and `_`");
            }
            other => {
                let message = format!("`{key}` in exports must be text, not {}", other.noun());
                sink.push(&entry.node.span, message, "put it in quotes");
            }
        }
    }
    exports
}

fn launcher(own: &Section<'_>, sink: &mut Sink) -> Launcher {
    let mpi = match own.text("mpi", sink) {
        Some((text, span)) => {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                sink.push(&span, format!("`{text}` is no MPI plugin"), "choose one that `srun --mpi=list` names");
            }
            text.to_owned()
        }
        None => "pmix".to_owned(),
    };
    let args = own.texts("srun_args", sink).into_iter().map(|(text, _)| text.to_owned()).collect();
    let srun = Launcher::Srun { mpi, args };
    let launcher = match own.entry("launcher").map(|e| &e.node.value) {
        None => return srun,
        Some(Tree::Array(_)) => {
            let words: Vec<String> = own.texts("launcher", sink).into_iter().map(|(t, _)| t.to_owned()).collect();
            if words.is_empty() {
                sink.push(&own.place("launcher"), "`launcher` names no program", "say `launcher = \"none\"`");
            }
            Launcher::Command(words)
        }
        Some(_) => match own.one_of("launcher", &["srun", "none"], sink) {
            Some("none") => Launcher::None,
            _ => return srun,
        },
    };
    for key in ["mpi", "srun_args"] {
        if own.entry(key).is_some() {
            sink.push(&own.place(key), format!("`{key}` is for `launcher = \"srun\"`"), "remove one of the two");
        }
    }
    launcher
}

fn price(own: &Section<'_>, sink: &mut Sink) -> Price {
    let Some((table, at)) = own.table("price", sink) else { return Price::default() };
    let own = Section::new(table, at, "price", &["gpu_hour", "cpu_hour", "currency"], sink);
    Price {
        gpu_hour: own.amount("gpu_hour", sink),
        cpu_hour: own.amount("cpu_hour", sink),
        currency: own.text("currency", sink).map(|(text, _)| text.to_owned()),
    }
}

fn resources(own: &Section<'_>, sink: &mut Sink) -> BTreeMap<String, SaidResources> {
    let mut resources = BTreeMap::new();
    let Some((table, _)) = own.table("resources", sink) else { return resources };
    let kinds: Vec<&str> = all_specs().iter().map(|s| s.kind).chain(["command"]).collect();
    for entry in &table.entries {
        let what = format!("resources of kind {}", entry.key);
        if !kinds.contains(&entry.key.as_str()) {
            sink.unknown(
                &entry.key_span,
                format!("unknown kind `{}` in resources", entry.key),
                &entry.key,
                kinds.clone(),
            );
        }
        match &entry.node.value {
            Tree::Table(table) => {
                let kind = Section::new(table, entry.key_span.clone(), what, RESOURCE_KEYS, sink);
                resources.insert(entry.key.clone(), said_resources(&kind, sink));
            }
            other => sink.push(&entry.node.span, format!("{what} must be a table, not {}", other.noun()), ""),
        }
    }
    resources
}

impl Study {
    /// Gives stages the resources that their kinds take on this cluster.
    ///
    /// # Errors
    /// They fit no layout of a stage's ranks: names the cluster file and the stage.
    pub fn on_cluster(mut self, cluster: &Cluster) -> Result<Self, StudyError> {
        let mut problems = Vec::new();
        for stage in &mut self.stages {
            if cluster.pack.is_some() && stage.axes.seed && stage.on == On::Compute && !is_gate(stage) {
                stage.pack = cluster.pack;
            }
            if let Some(problem) = unpackable(stage, cluster) {
                problems.push(problem);
            }
            let Some(said) = cluster.resources.get(stage.kind()) else { continue };
            stage.resources = said.over(&stage.resources);
            let Run::Builtin(spec) = stage.run else { continue };
            let every: Vec<&Value> = if stage.arms.is_empty() {
                vec![&stage.params]
            } else {
                stage.arms.iter().map(|a| &a.params).collect()
            };
            if let Some((problem, help)) = misfit(spec, &stage.resources, &every) {
                problems.push(Problem {
                    file: cluster.file.clone(),
                    line: 1,
                    column: 1,
                    message: format!(
                        "resources of kind {} here and of stage {} together {problem}",
                        spec.kind, stage.name
                    ),
                    help,
                });
            }
        }
        for index in 0..self.stages.len() {
            let (staging, problem) = staging::on_cluster(&self, index, cluster);
            self.stages[index].staging = staging;
            problems.extend(problem);
        }
        if problems.is_empty() { Ok(self) } else { Err(StudyError::Problems(problems)) }
    }
}

fn is_gate(stage: &Stage) -> bool {
    stage.kind() == GATE_KIND
}

/// Why cells of a stage cannot run side by side here.
fn unpackable(stage: &Stage, cluster: &Cluster) -> Option<Problem> {
    stage.pack.filter(|pack| !pack.in_turn)?;
    let turns = format!("say `pack = {{cells = {}, in_turn = true}}`", stage.pack.map_or(2, |p| p.cells));
    let resources = cluster.resources.get(stage.kind()).map_or(stage.resources.clone(), |r| r.over(&stage.resources));
    let (message, help) = match &cluster.site.launcher {
        Launcher::Srun { .. } if resources.mem_bytes.is_none() => (
            format!("stage {} runs cells side by side and does not say what memory each takes", stage.name),
            format!("say `mem` in its resources, or {turns}"),
        ),
        Launcher::Srun { .. } => return None,
        Launcher::Command(words) => (
            format!(
                "stage {} runs cells side by side, and `{}` would give each the whole allocation",
                stage.name,
                words.first().map_or("the launcher", String::as_str)
            ),
            format!("use `launcher = \"srun\"`, or {turns}"),
        ),
        Launcher::None if resources.gpus_per_node > 0 => (
            format!("stage {} runs cells side by side, and without srun each would see all GPUs", stage.name),
            format!("use `launcher = \"srun\"`, or {turns}"),
        ),
        Launcher::None => return None,
    };
    Some(Problem { file: cluster.file.clone(), line: 1, column: 1, message, help })
}

/// An absolute path with `$NAME` and `${NAME}` replaced.
fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
    let mut path = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        path.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = match rest.strip_prefix('{') {
            Some(inner) => {
                let (name, after) = inner.split_once('}').ok_or("a `${` has no `}`: close it")?;
                rest = after;
                name
            }
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                rest = after;
                name
            }
        };
        match variable(name) {
            Some(value) if !value.is_empty() && !value.chars().any(char::is_control) => path.push_str(&value),
            _ => return Err(format!("the variable `{name}` is not set: set it, or write the path out")),
        }
    }
    path.push_str(rest);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(format!("`{path}` is not an absolute path: start it with `/`, or with a variable that does"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Cluster, Vec<String>> {
        let env = |name: &str| (name == "USER").then(|| "ann".to_owned());
        parse_cluster(Path::new("c.toml"), text, &env).map_err(|e| e.to_string().lines().map(str::to_owned).collect())
    }

    #[test]
    fn presets() {
        let cluster = parse("schema = 1\ncluster.name = 'here'").unwrap();
        assert!(cluster.site.requeue && cluster.site.kill_on_invalid_dep);
        assert_eq!((cluster.chain, cluster.grace_s, cluster.fs_settle_s), (Chain::Arrays, 300, 90));
        assert_eq!(cluster.site.launcher, Launcher::default());
        let text = "schema = 1\n[cluster]\nname = 'here'\nkill_on_invalid_dep = false\nscratch = '/s/${USER}/x$USER'\n\
                    launcher = ['mpirun', '--bind-to', 'none']\nexports = {NCCL_DEBUG = 'WARN'}";
        let cluster = parse(text).unwrap();
        assert_eq!(cluster.chain, Chain::Singles);
        assert_eq!(cluster.scratch.unwrap(), Path::new("/s/ann/xann"));
        assert_eq!(cluster.site.launcher, Launcher::Command(vec!["mpirun".into(), "--bind-to".into(), "none".into()]));
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        let text = "schema = 1\n[cluster]\nname = 'a b'\npartion = 'x'\nlines = ['#SBATCH -x n1']\n\
                    options = ['#SBATCH exclusive']\nmodules = ['a; rm']\nexports = {SLURM_CONF = 'x', '1a' = 'y', A = 1}\n\
                    scratch = '$NOPE/x'\nchain = 'arrays'\nkill_on_invalid_dep = false\ngrace_s = 0\nlauncher = 'none'\n\
                    mpi = 'pmix;x'\nqos = \"a\\nb\"";
        let said = parse(text).unwrap_err();
        let lines: Vec<&str> = said.iter().map(|s| s.split(':').nth(1).unwrap_or_default()).collect();
        assert_eq!(lines, ["3", "4", "5", "6", "7", "8", "8", "8", "9", "10", "12", "14", "14", "15"], "{said:#?}");
        assert_eq!(said[1], "c.toml:4:1: unknown key `partion` in [cluster]: did you mean `partition`?");
    }
}
