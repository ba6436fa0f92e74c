//! Arguments that name a study, shared by every command about one.

use std::path::PathBuf;

use crate::workflow::plan::Policy;
use crate::workflow::run::Request;
use crate::workflow::status::Which;

/// Which study, under which profile, where.
#[derive(Debug, clap::Args)]
pub(crate) struct StudyArgs {
    /// The study file
    #[arg(value_name = "STUDY")]
    pub(crate) study: PathBuf,
    /// Profile of the study, such as quick or full
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Where results/ lies [default: beside configs/, else beside the study]
    #[arg(long, value_name = "DIR", env = "SEEDBED_ROOT")]
    pub(crate) root: Option<PathBuf>,
    /// Cluster file: a path, or a name in configs/clusters
    #[arg(long, value_name = "NAME", env = "SEEDBED_CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Run or look on this machine only, although there is a Slurm
    #[arg(long)]
    pub(crate) local: bool,
}

/// Which part of the study.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    /// Only these seeds, separated by commas
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', env = "EXPERIMENT_SEED")]
    pub(crate) seeds: Option<Vec<u32>>,
    /// Only these stages, separated by commas
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    pub(crate) stages: Option<Vec<String>>,
}

impl StudyArgs {
    /// The request of a call about the whole study.
    pub(crate) fn request(&self) -> Request {
        Request {
            study: self.study.clone(),
            profile: self.profile.clone(),
            root: self.root.clone(),
            cluster: self.cluster.clone(),
            local: self.local,
            ..Request::default()
        }
    }

    /// The request of a call about a part of it.
    pub(crate) fn part(&self, part: &PartArgs, policy: Policy) -> Request {
        Request { seeds: part.seeds.clone(), stages: part.stages.clone(), policy, ..self.request() }
    }

    /// How to say this study again on a command line.
    pub(crate) fn again(&self) -> String {
        let mut words = shell_word(&self.study.display().to_string());
        if let Some(profile) = &self.profile {
            words.push_str(&format!(" --profile {profile}"));
        }
        if let Some(root) = &self.root {
            words.push_str(&format!(" --root {}", shell_word(&root.display().to_string())));
        }
        if let Some(cluster) = &self.cluster {
            words.push_str(&format!(" --cluster {}", shell_word(cluster)));
        }
        if self.local {
            words.push_str(" --local");
        }
        words
    }
}

/// Which cells of one stage.
#[derive(Debug, clap::Args)]
pub(crate) struct CellArgs {
    /// The stage
    #[arg(value_name = "STAGE")]
    pub(crate) stage: String,
    /// Only this arm of it
    #[arg(long, value_name = "NAME")]
    pub(crate) arm: Option<String>,
    /// Only this seed of it
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,
}

impl CellArgs {
    /// The cells that are meant.
    pub(crate) fn which(&self) -> Which<'_> {
        Which { stage: &self.stage, arm: self.arm.as_deref(), seed: self.seed }
    }
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
