//! Whether there is a Slurm here, and what it is configured to allow.

use std::path::Path;

use super::{Client, SlurmError};

/// Whether there is a Slurm here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// Its controller answers.
    Ready,
    /// Its programs are not on `PATH`.
    NotInstalled,
    /// Its programs are here, but they belong to no cluster; with what they said.
    NotConfigured(String),
    /// There is a cluster, but its controller does not answer; with what was said.
    NotAnswering(String),
}

impl Presence {
    /// Finds out.
    ///
    /// # Errors
    /// scontrol cannot be started.
    pub fn of(client: &Client) -> Result<Self, SlurmError> {
        if client.find("sbatch").is_none() || client.find("scontrol").is_none() {
            return Ok(Self::NotInstalled);
        }
        // What the site allows ends with whether its controller is up: one question for both.
        if !has_no_file(client) {
            match client.ask("scontrol", &["show", "config"]) {
                Ok(reply) if reply.status.success() && says_up(&reply.stdout) => {
                    client.limits.get_or_init(|| Limits::parse(&reply.stdout));
                    return Ok(Self::Ready);
                }
                // Who does not answer this does not answer a second one either.
                Err(error @ SlurmError::Timeout { .. }) => return Ok(Self::NotAnswering(error.to_string())),
                _ => {}
            }
        }
        let reply = match client.ask("scontrol", &["ping"]) {
            Ok(reply) => reply,
            // Without a file only DNS can name the cluster, and without a network that takes long to fail.
            Err(error @ SlurmError::Timeout { .. }) if has_no_file(client) => {
                return Ok(Self::NotConfigured(error.to_string()));
            }
            Err(error @ SlurmError::Timeout { .. }) => return Ok(Self::NotAnswering(error.to_string())),
            Err(error) => return Err(error),
        };
        if says_up(&reply.stdout) {
            return Ok(Self::Ready);
        }
        let message = reply.message();
        let no_cluster = ["configuration source", "Unable to process configuration file", "slurm.conf"];
        let down = reply.stdout.contains("is DOWN");
        Ok(if !down && no_cluster.iter().any(|words| message.contains(words)) {
            Self::NotConfigured(message)
        } else {
            Self::NotAnswering(message.lines().next().unwrap_or_default().to_owned())
        })
    }
}

fn says_up(text: &str) -> bool {
    text.lines().any(|line| line.trim_end().ends_with("is UP"))
}

/// Whether the system's own Slurm is asked, and the system has no configuration for it. Where another one keeps its
/// configuration only it knows.
fn has_no_file(client: &Client) -> bool {
    let named = ["SLURM_CONF", "SLURM_CONF_SERVER"].iter().any(|name| std::env::var_os(name).is_some());
    let files = ["/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf"];
    let of_system = client.find("scontrol").is_some_and(|path| path == Path::new("/usr/bin/scontrol"));
    of_system && !named && !files.iter().any(|file| Path::new(file).exists())
}

/// The site's settings that a chain depends on. What a site does not print is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Version of Slurm.
    pub version: Option<String>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// One more than the greatest array index.
    pub max_array_size: Option<u32>,
    /// Most elements of one array, where it is less than that.
    pub max_array_tasks: Option<u32>,
    /// Most jobs in the queue.
    pub max_job_count: Option<u32>,
    /// How long the controller remembers a job that has ended, seconds.
    pub min_job_age_s: Option<u32>,
    /// Whether the site keeps accounts.
    pub accounting: Option<bool>,
    /// Whether it holds users to the limits of their accounts.
    pub enforced: Option<bool>,
}

impl Limits {
    /// Asks the controller, once for each client.
    ///
    /// # Errors
    /// scontrol gives no answer.
    pub fn of(client: &Client) -> Result<Self, SlurmError> {
        if let Some(limits) = client.limits.get() {
            return Ok(limits.clone());
        }
        let reply = client.ask("scontrol", &["show", "config"])?;
        if !reply.status.success() {
            return Err(SlurmError::Failed {
                program: "scontrol".to_owned(),
                code: reply.status.code(),
                message: reply.message(),
            });
        }
        Ok(client.limits.get_or_init(|| Self::parse(&reply.stdout)).clone())
    }

    /// Greatest array index that the site takes; Slurm's own default if it does not say.
    pub fn max_array_index(&self) -> u32 {
        self.max_array_size.unwrap_or(1001).saturating_sub(1)
    }

    fn parse(text: &str) -> Self {
        let mut limits = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let value = value.trim();
            // `30 sec`
            let number = || value.split_whitespace().next().and_then(|n| n.parse().ok());
            match key.trim() {
                "SLURM_VERSION" => limits.version = Some(value.to_owned()),
                "ClusterName" => limits.cluster = Some(value.to_owned()),
                "MaxArraySize" => limits.max_array_size = number(),
                "MaxJobCount" => limits.max_job_count = number(),
                "MinJobAge" => limits.min_job_age_s = number(),
                "AccountingStorageEnforce" => {
                    let binds = |word: &str| ["all", "limits", "qos", "safe"].contains(&word.trim());
                    limits.enforced = Some(value.to_lowercase().split(',').any(binds));
                }
                "AccountingStorageType" => limits.accounting = Some(!value.ends_with("/none") && value != "(null)"),
                "SchedulerParameters" => {
                    limits.max_array_tasks =
                        value.split(',').find_map(|p| p.strip_prefix("max_array_tasks=")).and_then(|n| n.parse().ok());
                }
                _ => {}
            }
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let text = "\
Configuration data as of 2025-01-02T03:04:05
AccountingStorageEnforce = associations,limits
AccountingStorageType   = accounting_storage/none
ClusterName             = sandbox
MaxArraySize            = 1001
MaxJobCount             = 10000
MinJobAge               = 30 sec
SchedulerParameters     = bf_interval=1,max_array_tasks=500,batch_sched_delay=0
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at head is UP
";
        let limits = Limits::parse(text);
        assert_eq!(limits.max_array_index(), 1000);
        assert_eq!(
            (limits.max_array_tasks, limits.min_job_age_s, limits.accounting),
            (Some(500), Some(30), Some(false))
        );
        assert_eq!((limits.version.as_deref(), limits.enforced), (Some("22.05.8"), Some(true)));
        assert_eq!(Limits::parse("").max_array_index(), 1000);
    }
}
