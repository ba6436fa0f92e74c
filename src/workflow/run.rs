//! `run_all`: from a request to sealed cells, on Slurm or on this machine. Also what `plan`, `generate` and
//! `status` share with it.
//!
//! [`prepare`] only looks; [`submit`] and [`run_local`] act. Running them again at any moment is safe: what is
//! sealed does not run again, and what is queued is not submitted twice.

mod chain;
mod reply;

pub use chain::{SubmittedJob, submit};
pub use reply::{clear_dead, release_held};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::{Result, WorkflowError};
use super::journal::{self, Entry, Event, Journal, JournalJob};
use super::local::{self, Task, TaskEnd};
use super::place::Place;
use super::plan::{self, CellState, Chain, Expansion, JobShape, LiveJob, Plan, PlannedJob, Policy, SealView, Target};
use super::slurm::config::{Limits, Presence};
use super::slurm::script::{self, JobSpec, NamedEdge, Slots};
use super::slurm::{Client, SlurmError};
use super::study::{self, Cluster, Run, Study};
use super::submission::{Rules, Submission, expected_stages};
use super::survey::{self, OnDisk};
use super::{programs, retry};
use crate::record::{Name, Outcome, RecordError, files, flag};
use crate::stages;

/// Name of the cluster in journals of local runs.
pub(super) const LOCAL: &str = "local";

/// What a person asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The study file.
    pub study: PathBuf,
    /// The profile.
    pub profile: Option<String>,
    /// The root.
    pub root: Option<PathBuf>,
    /// Only these seeds.
    pub seeds: Option<Vec<u32>>,
    /// Only these stages.
    pub stages: Option<Vec<String>>,
    /// Cluster file: a path or a name.
    pub cluster: Option<String>,
    /// Run here although there is a Slurm.
    pub local: bool,
    /// Choices of the plan.
    pub policy: Policy,
    /// Digest every output instead of looking at sizes.
    pub verify: bool,
}

/// Where cells run.
#[derive(Debug)]
pub enum Site {
    /// On this machine, and why.
    Local(String),
    /// On Slurm.
    Slurm(Client),
}

/// Everything that is known before anything is done.
#[derive(Debug)]
pub struct Prepared {
    /// The study.
    pub study: Study,
    /// Its directories.
    pub place: Place,
    /// The cluster file, or its defaults.
    pub cluster: Cluster,
    /// Where cells run.
    pub site: Site,
    /// The journal.
    pub journal: Journal,
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Seeds of this request.
    pub seeds: Vec<u32>,
    /// All expected cells.
    pub expansion: Expansion,
    /// Their states.
    pub plan: Plan,
    /// Seals that were found, by local name.
    pub seals: BTreeMap<String, SealView>,
    /// Cells that have a run directory, by local name.
    pub begun: BTreeSet<String>,
    /// Jobs of unsealed cells that have ended, as far as Slurm remembers them.
    pub ended: retry::Ends,
    /// Jobs of ours that wait for what can never happen.
    pub dead: Vec<LiveJob>,
    /// Jobs of ours that Slurm holds because it could not start them.
    pub held: Vec<LiveJob>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Whether a call only looks, or is about to submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Looks: what Slurm does not answer becomes a note.
    Look,
    /// Will act: what Slurm does not answer is an error.
    Act,
}

/// Loads the study and joins it with what is sealed and queued.
///
/// # Errors
/// The study or cluster file has problems, or Slurm does not answer.
pub fn prepare(request: &Request, intent: Intent) -> Result<Prepared> {
    let ground = Ground::load(request)?;
    let mut notes = Vec::new();
    let site = choose_site(request, intent, &ground.cluster, &mut notes)?;
    gather(request, ground, site, intent, notes)
}

/// Where the cells of a request run that is about to act.
///
/// # Errors
/// Slurm does not answer.
pub fn site(request: &Request) -> Result<Site> {
    choose_site(request, Intent::Act, &load_cluster(request)?, &mut Vec::new())
}

/// As [`prepare`], to act at a site that is known already.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_at(request: &Request, site: Site) -> Result<Prepared> {
    gather(request, Ground::load(request)?, site, Intent::Act, Vec::new())
}

fn gather(request: &Request, ground: Ground, site: Site, intent: Intent, mut notes: Vec<String>) -> Result<Prepared> {
    let cluster_name = cluster_name(request, &ground.cluster, &site);
    let journal = Journal::open(&ground.place.own(), &cluster_name);
    let mut entries = journal.read()?;
    if let (Site::Slurm(client), Intent::Act) = (&site, intent)
        && survey::settle_uncertain(client, &ground.cluster.site.clusters, &journal, &entries, &cluster_name)?
    {
        entries = journal.read()?;
    }
    let (mut ended, mut dead, mut held) = (retry::Ends::new(), Vec::new(), Vec::new());
    let mut live = |site: &Site, entries: &[Entry], found: &OnDisk| match find_live(site, &cluster_name, entries, found)
    {
        Err(error) if intent == Intent::Look => {
            notes.push(error.to_string());
            Ok(BTreeMap::new())
        }
        live => live.map(|live| {
            ended = live.ended;
            dead = live.dead;
            held = live.held;
            live.jobs
        }),
    };
    let prepared = join(request, ground, site, journal, entries, &mut live)?;
    let mut prepared = Prepared { ended, dead, held, notes, ..prepared };
    if intent == Intent::Act {
        prepared.note_retries();
    }
    Ok(prepared)
}

/// Which cells have a job that is queued or running, by local name.
pub type LiveJobs = BTreeMap<String, LiveJob>;

/// What every call about a study begins with.
pub(super) struct Ground {
    study: Study,
    /// Its directories.
    pub(super) place: Place,
    /// The cluster file, or its defaults.
    pub(super) cluster: Cluster,
}

impl Ground {
    /// Loads the study as it is on the cluster of the request.
    pub(super) fn load(request: &Request) -> Result<Self> {
        let study = load_study(request)?;
        let place = Place::new(request.root.as_deref(), &request.study, &study.name, &study.profile)?;
        let cluster = load_cluster(request)?;
        // Also where there is no Slurm: `seedbed generate` writes the cluster's scripts anywhere.
        let study = if request.local { study } else { study.on_cluster(&cluster)? };
        Ok(Self { study, place, cluster })
    }
}

/// Joins a study with its seals and with the jobs that `live` finds for what is not sealed.
pub(super) fn join(
    request: &Request,
    ground: Ground,
    site: Site,
    journal: Journal,
    entries: Vec<Entry>,
    live: &mut dyn FnMut(&Site, &[Entry], &OnDisk) -> Result<LiveJobs>,
) -> Result<Prepared> {
    let Ground { study, place, cluster } = ground;
    let asked = journal::asked(&entries);
    let seeds = match &request.seeds {
        Some(seeds) => seeds.clone(),
        None => union(&study.seeds, asked.iter().copied()),
    };
    let expected = union(&seeds, asked.iter().copied());
    let stages = selected_stages(request, &study)?;
    let digests = survey::input_digests(&study, &place.own())?;
    let expansion = plan::expand(&study, &expected, &digests)?;
    let depth = if request.verify { survey::Depth::Digests } else { survey::Depth::Sizes };
    let found = OnDisk::read(&place, &expansion, depth);
    let live = live(&site, &entries, &found)?;
    let OnDisk { seals, begun } = found;
    let mut plan = Plan::new(&study, &expansion, &seals, &live, request.policy);
    plan.select(request.seeds.as_deref(), stages.as_deref());
    let (ended, dead, held, notes) = (retry::Ends::new(), Vec::new(), Vec::new(), Vec::new());
    Ok(Prepared {
        study,
        place,
        cluster,
        site,
        journal,
        entries,
        seeds,
        expansion,
        plan,
        seals,
        begun,
        ended,
        dead,
        held,
        notes,
    })
}

/// Loads the study of a request.
///
/// # Errors
/// Every problem of the file.
pub fn load_study(request: &Request) -> Result<Study> {
    Ok(study::load(&request.study, request.profile.as_deref(), stages::all_specs())?)
}

fn load_cluster(request: &Request) -> Result<Cluster> {
    match &request.cluster {
        Some(word) => Ok(study::load_cluster(&study::find_cluster(word, &request.study))?),
        None => Ok(study::plain_cluster()?),
    }
}

fn choose_site(request: &Request, intent: Intent, cluster: &Cluster, notes: &mut Vec<String>) -> Result<Site> {
    if request.local {
        return Ok(Site::Local("--local".to_owned()));
    }
    let client = match cluster.site.clusters.as_slice() {
        [only] => Client::new().at(Some(only)),
        _ => Client::new(),
    };
    match Presence::of(&client).map_err(slurm)? {
        Presence::Ready => Ok(Site::Slurm(client)),
        Presence::NotInstalled => Ok(Site::Local("there is no Slurm here".to_owned())),
        Presence::NotConfigured(why) => {
            Ok(Site::Local(format!("Slurm is installed but belongs to no cluster ({why})")))
        }
        Presence::NotAnswering(why) if intent == Intent::Look => {
            notes.push(format!("Slurm does not answer ({why}): queued jobs are not shown"));
            Ok(Site::Local("Slurm does not answer".to_owned()))
        }
        Presence::NotAnswering(why) => Err(WorkflowError::Slurm(format!(
            "Slurm does not answer ({why}): try again later, or run here with --local"
        ))),
    }
}

fn cluster_name(request: &Request, cluster: &Cluster, site: &Site) -> String {
    match site {
        Site::Local(_) => LOCAL.to_owned(),
        Site::Slurm(_) if request.cluster.is_some() => cluster.name.to_string(),
        Site::Slurm(client) => Limits::of(client).ok().and_then(|l| l.cluster).unwrap_or_else(|| "slurm".to_owned()),
    }
}

fn find_live(site: &Site, cluster: &str, entries: &[Entry], found: &OnDisk) -> Result<survey::Live> {
    let sealed = |cell: &str, job: &JournalJob| match (found.seals.get(cell), job.cells.get(cell)) {
        (Some(SealView::Sealed { seal, problem: None }), Some(intended)) => seal.fingerprint == intended.fingerprint,
        _ => false,
    };
    let client = match site {
        Site::Slurm(client) => Some(client),
        Site::Local(_) => None,
    };
    survey::live(client, cluster, entries, &sealed)
}

fn selected_stages(request: &Request, study: &Study) -> Result<Option<Vec<Name>>> {
    let Some(words) = &request.stages else { return Ok(None) };
    let mut names = Vec::new();
    for word in words {
        let stage = study.stage(word).ok_or_else(|| {
            let known: Vec<&str> = study.stages.iter().map(|s| s.name.as_str()).collect();
            WorkflowError::Usage(format!("the study has no stage `{word}`: its stages are {}", known.join(", ")))
        })?;
        names.push(stage.name.clone());
    }
    Ok(Some(names))
}

fn union(first: &[u32], more: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut all = first.to_vec();
    let known: BTreeSet<u32> = first.iter().copied().collect();
    all.extend(more.filter(|s| !known.contains(s)));
    all
}

pub(super) fn slurm(error: SlurmError) -> WorkflowError {
    WorkflowError::Slurm(error.to_string())
}

impl Prepared {
    /// True if cells go to Slurm.
    pub fn on_slurm(&self) -> bool {
        matches!(self.site, Site::Slurm(_))
    }

    /// Notes what the attempts of cells that are to run came to: scripts ask for it. Needed before scripts are made by
    /// who only looked.
    pub fn note_retries(&mut self) {
        if let Site::Slurm(client) = &self.site {
            let ended = std::mem::take(&mut self.ended);
            let client = self.home().map_or_else(|| client.at(client.cluster()), |home| client.at(Some(&home)));
            retry::note(&mut self.plan, &self.place, &self.begun, &self.study.retry, ended, Some(&client));
        }
    }

    /// Refuses what this call must not do: replace queued jobs unasked, or start cells without their inputs.
    ///
    /// # Errors
    /// Every such cell, with what to type.
    pub fn check_request(&self, policy: Policy) -> Result<()> {
        let conflicts = self.plan.conflicts();
        if !policy.replace && !conflicts.is_empty() {
            let lines: Vec<String> =
                conflicts.iter().map(|c| format!("  {}: {}", c.def.key.local_name(), c.state.reason())).collect();
            return Err(WorkflowError::QueuedStale(format!(
                "{} cells are queued under other parameters:\n{}\nwait for them, or cancel and submit anew with --replace",
                conflicts.len(),
                lines.join("\n")
            )));
        }
        if let Some((cell, other)) = self.plan.torn() {
            return Err(WorkflowError::Usage(format!(
                "cell {} would be submitted anew, and its job also runs {}, which is not in this call: name it too in --seeds \
                 and --stages, or leave these away",
                cell.def.key.local_name(),
                other.def.key.local_name()
            )));
        }
        let orphans = self.plan.orphans();
        if let Some((cell, parent)) = orphans.first() {
            return Err(WorkflowError::Usage(format!(
                "cell {} needs {}, which is {} and not in this call: add `{}` to --stages, or leave --stages away",
                cell.def.key.local_name(),
                parent.def.key.local_name(),
                parent.state.word(),
                parent.def.key.stage
            )));
        }
        Ok(())
    }

    /// Makes every flag true: there where a stage is complete, gone where it is not.
    ///
    /// # Errors
    /// A flag cannot be written or removed.
    pub fn refresh_flags(&self) -> Result<()> {
        for stage in expected_stages(&self.study, &self.expansion) {
            flag::refresh(&self.place.base, stage.number, &stage.name, &stage.cells)?;
        }
        Ok(())
    }

    fn shape(&self) -> JobShape {
        let asked = match &self.site {
            Site::Slurm(client) => Limits::of(client).ok().map(|l| {
                // Indices of one array follow each other, so fewer elements are a smaller greatest index.
                l.max_array_tasks.map_or(u32::MAX, |tasks| tasks.max(1)).min(l.max_array_index() + 1)
            }),
            Site::Local(_) => None,
        };
        JobShape {
            chain: self.cluster.chain,
            max_array_size: self.cluster.max_array_size.or(asked).unwrap_or(1001),
            requeue: self.cluster.site.requeue,
            packs: true,
        }
    }

    fn rules(&self) -> Rules {
        let local = matches!(self.site, Site::Local(_));
        Rules {
            settle_s: if local { 0 } else { u64::from(self.cluster.fs_settle_s) },
            lease_s: 120,
            beat_s: if local { 5 } else { 30 },
            without_progress: self.study.retry.without_progress,
            requeue: !local && self.cluster.site.requeue,
            modules: if local { Vec::new() } else { self.cluster.site.modules.clone() },
            grace_s: (!local).then_some(self.cluster.grace_s),
            retry: Some(self.study.retry.clone()),
        }
    }

    /// Takes away the seals of stopped cells that this call tries again: an attempt that finds one ends at once.
    pub(super) fn set_stopped_aside(&self) -> Result<()> {
        for cell in self.plan.to_run().filter(|c| !plan::is_gate(&c.def)) {
            if let Some(SealView::Sealed { seal, .. }) = self.seals.get(&cell.def.key.local_name())
                && seal.outcome == Outcome::Stopped
                && seal.fingerprint == cell.def.fingerprint
            {
                seal.set_aside(&self.place.run_dir(&cell.def.key))?;
            }
        }
        Ok(())
    }

    /// The jobs of the chain, with slots given to seeds that have none yet.
    ///
    /// # Errors
    /// The slots cannot be written.
    pub fn jobs(&self) -> Result<Vec<PlannedJob>> {
        let slots = journal::slots(&self.place.own(), &self.seeds)?;
        Ok(plan::jobs(&self.study, &self.plan, &slots, self.shape()))
    }

    /// Writes a submission of `jobs` with its scripts. Nothing is submitted.
    ///
    /// # Errors
    /// A program is missing, a value cannot stand in a script, or a file cannot be written.
    pub fn write_submission(&self, jobs: &[PlannedJob]) -> Result<Written> {
        let programs = programs::install(&self.place.own(), &self.study)?;
        let mut submission = Submission::new(&self.study, &self.place, &self.expansion, jobs, programs, self.rules());
        for (job, entry) in jobs.iter().zip(&mut submission.jobs) {
            entry.tell = self.tell(job);
            entry.staging = self.study.stage(job.stage.as_str()).map(|s| s.staging.clone()).unwrap_or_default();
        }
        let dir = submission.dir(&self.place);
        files::make_dirs(&dir)?;
        let names: Vec<String> = submission.jobs.iter().map(|job| format!("{}.sbatch", job.name)).collect();
        let script = |i: usize| self.script(&jobs[i], submission.jobs[i].name.clone(), &submission, &dir);
        let texts: Vec<String> = (0..jobs.len()).map(script).collect::<Result<_>>()?;
        files::write_many(&dir, &names, |i| Ok::<_, WorkflowError>(texts[i].clone().into_bytes()))?;
        let scripts = names.iter().map(|name| dir.join(name)).zip(texts).collect();
        if let Some(file) = self.budget_file() {
            file.write(&dir)?;
        }
        let dir = submission.write(&self.study, &self.place, &self.plan, self.cluster.scratch.as_deref())?;
        Ok(Written { submission, dir, scripts })
    }

    /// Names and scripts of the jobs that would be submitted. Nothing is written.
    ///
    /// # Errors
    /// A value cannot stand in a script.
    pub fn preview(&self) -> Result<Vec<(String, String)>> {
        self.preview_of(&self.jobs_to_come()?)
    }

    /// The jobs that would be submitted; no slot is given.
    ///
    /// # Errors
    /// `slots.json` is damaged.
    pub fn jobs_to_come(&self) -> Result<Vec<PlannedJob>> {
        let slots = journal::preview_slots(&self.place.own(), &self.seeds)?;
        Ok(plan::jobs(&self.study, &self.plan, &slots, self.shape()))
    }

    /// Names and scripts that `jobs` would have. Nothing is written.
    ///
    /// # Errors
    /// A value cannot stand in a script.
    pub fn preview_of(&self, jobs: &[PlannedJob]) -> Result<Vec<(String, String)>> {
        let programs = self.place.own().join("bin/preview");
        let mut submission = Submission::new(&self.study, &self.place, &self.expansion, jobs, programs, self.rules());
        submission.name_as_preview();
        let dir = submission.dir(&self.place);
        let script = |i: usize| {
            let name = submission.jobs[i].name.clone();
            self.script(&jobs[i], name.clone(), &submission, &dir).map(|text| (name, text))
        };
        (0..jobs.len()).map(script).collect()
    }

    fn script(&self, job: &PlannedJob, name: String, submission: &Submission, dir: &Path) -> Result<String> {
        let stage = self
            .study
            .stage(job.stage.as_str())
            .ok_or_else(|| WorkflowError::Usage(format!("the study has no stage `{}`", job.stage)))?;
        let resumable = match &stage.run {
            Run::Builtin(spec) => spec.resumable,
            Run::Command(command) => command.resumable,
        };
        let params = stage.params_of(job.arm.as_ref());
        let threads = params.get("threads_per_rank").and_then(serde_json::Value::as_u64);
        let mut site = self.cluster.site.clone();
        site.wishes = stage.wishes.over(&site.wishes);
        site.partition.clone_from(&site.wishes.partition);
        retry::keep_away(&mut site.options, &job.adjust.exclude);
        let indices: Option<Vec<u32>> = job.cells.iter().map(|(index, _)| *index).collect();
        let spec = JobSpec {
            name,
            stage: job.stage.clone(),
            arm: job.arm.clone(),
            number: stage.number,
            slots: indices.map_or(Slots::Single, Slots::Indices),
            throttle: self.cluster.throttle.into_iter().chain(stage.max_running).min(),
            resources: match job.pack {
                Some(pack) => pack.resources(&retry::resources(&stage.resources, &job.adjust)),
                None => retry::resources(&stage.resources, &job.adjust),
            },
            resumable,
            grace_s: self.cluster.grace_s.max(job.adjust.grace_s.unwrap_or(0)),
            threads_per_rank: threads.and_then(|t| u32::try_from(t).ok()).unwrap_or(1),
            log_dir: self.place.logs(),
            submission_dir: dir.to_path_buf(),
            seedbed: submission.programs.join("seedbed"),
            site,
            mails_its_end: self.tell(job).is_some_and(|tell| tell.end),
            waits_for: job
                .edges
                .iter()
                .map(|edge| NamedEdge {
                    kind: edge.kind,
                    parent: match &edge.target {
                        Target::Planned(i) => submission.jobs[*i].name.clone(),
                        Target::Element(i, index) => format!("{}_{index}", submission.jobs[*i].name),
                        Target::Live(id) => format!("job {id}"),
                    },
                })
                .collect(),
        };
        script::render(&spec, &self.template()?).map_err(|e| WorkflowError::Usage(e.to_string()))
    }

    /// The template: the study's own in `slurm/` below the root, else the one that is shipped.
    fn template(&self) -> Result<String> {
        let own = self.place.root.join("slurm").join(script::TEMPLATE_NAME);
        match std::fs::read_to_string(&own) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(script::TEMPLATE.to_owned()),
            Err(e) => Err(RecordError::io("read", own)(e).into()),
        }
    }
}

/// A submission on disk.
#[derive(Debug)]
pub struct Written {
    /// What it says.
    pub submission: Submission,
    /// Where it lies.
    pub dir: PathBuf,
    /// Its scripts, one for each job.
    pub scripts: Vec<(PathBuf, String)>,
}

/// How a local run ended.
#[derive(Debug)]
pub struct LocalRun {
    /// Its tasks with their ends, in the order of the plan.
    pub tasks: Vec<(Task, TaskEnd)>,
}

/// Which cells a local run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of the call.
    All,
    /// Those that run on the login node, before anything is submitted.
    Login,
}

/// Runs the chosen cells on this machine.
///
/// # Errors
/// A program is missing, or a file cannot be written. A stage that fails is an end, not an error.
pub fn run_local(prepared: &Prepared, which: Which, watch: &mut dyn FnMut(local::Event)) -> Result<LocalRun> {
    prepared.journal.write(Event::Asked { seeds: prepared.seeds.clone() })?;
    prepared.set_stopped_aside()?;
    // One job for each cell: the local executor needs no arrays.
    let shape = JobShape { chain: Chain::Singles, max_array_size: u32::MAX, requeue: true, packs: false };
    let slots = journal::slots(&prepared.place.own(), &prepared.seeds)?;
    let mut plan = prepared.plan.clone();
    for cell in &mut plan.cells {
        cell.selected &= which == Which::All || cell.on == study::On::Login;
        // Here login node and compute node are one.
        cell.on = study::On::Compute;
    }
    let jobs = plan::jobs(&prepared.study, &plan, &slots, shape);
    if jobs.is_empty() {
        return Ok(LocalRun { tasks: Vec::new() });
    }
    let written = prepared.write_submission(&jobs)?;
    let stages = prepared.bill().stages;
    prepared.journal.write(Event::Billed { submission: written.submission.name.clone(), stages })?;
    let mut tasks: Vec<Task> = Vec::new();
    for (job, entry) in jobs.iter().zip(&written.submission.jobs) {
        for (slot, key) in &job.cells {
            let Some(cell) = plan.cell(key) else { continue };
            let stage = &prepared.study.stages[cell.def.stage];
            let parents = cell.def.needs.iter().map(|&i| &plan.cells[i].def.key);
            let needs = parents.filter_map(|p| tasks.iter().position(|t| t.key == *p)).collect();
            tasks.push(Task {
                key: key.clone(),
                run_dir: prepared.place.run_dir(key),
                log: prepared.place.logs().join(format!("local_{}.log", key.local_name().replace('/', "+"))),
                job: entry.name.clone(),
                slot: slot.unwrap_or(0),
                resources: stage.resources.clone(),
                max_running: stage.max_running,
                needs,
                partial_inputs: matches!(&stage.run, Run::Builtin(spec) if spec.partial_inputs),
            });
        }
    }
    let ends = local::run(&written.dir, &written.submission.programs, &tasks, watch)?;
    prepared.refresh_flags()?;
    Ok(LocalRun { tasks: tasks.into_iter().zip(ends).collect() })
}

impl Prepared {
    /// Cells of this call that become chains of links, and the most links of one; none where jobs are requeued.
    pub fn links(&self) -> Option<(usize, u32)> {
        if !self.on_slurm() || self.cluster.site.requeue {
            return None;
        }
        let shape = JobShape { chain: self.cluster.chain, max_array_size: 1, requeue: false, packs: true };
        let stage = |cell: &plan::PlannedCell| plan::links(&self.study.stages[cell.def.stage], shape);
        let links: Vec<u32> = self.plan.to_run().filter(|c| c.on == study::On::Compute).filter_map(stage).collect();
        links.iter().max().map(|&most| (links.len(), most))
    }

    /// Number of cells that are sealed and fresh, of all expected ones.
    pub fn done(&self) -> (usize, usize) {
        (self.plan.count(CellState::is_done), self.plan.cells.len())
    }
}
