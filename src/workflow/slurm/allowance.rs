//! How many jobs the site takes of one user at a time: the limits of the association and of the quality of service.
//!
//! Only a site that keeps accounts and enforces them has such limits. What cannot be found out limits nothing here:
//! sbatch itself has the last word.

use super::config::Limits;
use super::{Client, SlurmError};

/// At most so many jobs, array elements counted one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// How many.
    pub most: u32,
    /// What says so, for people.
    pub by: String,
    /// How many of the user's are queued or running already.
    pub queued: u32,
}

/// The least allowance of `user` in the account, partition and quality of service that jobs ask for; none if there is no
/// limit.
///
/// # Errors
/// sacctmgr or squeue gives no answer.
pub fn of(
    client: &Client,
    user: &str,
    account: Option<&str>,
    partition: Option<&str>,
    qos: Option<&str>,
) -> Result<Option<Allowance>, SlurmError> {
    let limits = Limits::of(client)?;
    if limits.accounting != Some(true) || limits.enforced != Some(true) {
        return Ok(None);
    }
    let format = "format=Account,Partition,MaxSubmitJobs,QOS,DefaultQOS";
    let said = ask(client, "sacctmgr", &["-n", "-P", "show", "assoc", &format!("user={user}"), format])?;
    let (mut most, qos) = association(&said, account, partition, qos);
    if let Some(qos) = qos {
        let format = "format=Name,MaxSubmitPU";
        let said = ask(client, "sacctmgr", &["-n", "-P", "show", "qos", &format!("name={qos}"), format])?;
        most.extend(quality(&said, &qos).map(|most| (most, format!("QOS {qos}"))));
    }
    let Some((most, by)) = most.into_iter().min() else { return Ok(None) };
    let states = "PENDING,RUNNING,CONFIGURING,SUSPENDED";
    let queued = ask(client, "squeue", &["-h", "-r", "-u", user, "-t", states, "-o", "%A"])?;
    let queued = queued.lines().filter(|line| line.trim().parse::<u32>().is_ok()).count();
    Ok(Some(Allowance { most, by, queued: u32::try_from(queued).unwrap_or(u32::MAX) }))
}

fn ask(client: &Client, program: &str, arguments: &[&str]) -> Result<String, SlurmError> {
    let reply = client.ask(program, arguments)?;
    if reply.status.success() {
        return Ok(reply.stdout);
    }
    Err(SlurmError::Failed { program: program.to_owned(), code: reply.status.code(), message: reply.message() })
}

/// The limit of the association that jobs run under, and the quality of service that they get. A user of several
/// accounts who names none gets the widest: which one is preset is not asked.
fn association(
    text: &str,
    account: Option<&str>,
    partition: Option<&str>,
    qos: Option<&str>,
) -> (Vec<(u32, String)>, Option<String>) {
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let fits = |row: &&Vec<&str>| {
        row.len() == 5
            && account.is_none_or(|account| account == row[0])
            && (row[1].is_empty()
                || partition.is_none_or(|several| several.split(',').any(|partition| partition == row[1])))
    };
    let rows: Vec<&Vec<&str>> = rows.iter().filter(fits).collect();
    let limits: Option<Vec<(u32, String)>> =
        rows.iter().map(|row| Some((row[2].parse().ok()?, format!("account {}", row[0])))).collect();
    let widest = limits.unwrap_or_default().into_iter().max();
    let preset = |row: &&Vec<&str>| match (row[4], row[3]) {
        ("", only) if !only.is_empty() && !only.contains(',') => Some(only.to_owned()),
        ("", _) => None,
        (preset, _) => Some(preset.to_owned()),
    };
    let qos = qos.map(str::to_owned).or_else(|| rows.iter().find_map(preset));
    (widest.into_iter().collect(), qos)
}

fn quality(text: &str, qos: &str) -> Option<u32> {
    text.lines().filter_map(|line| line.split_once('|')).find(|(name, _)| name.trim() == qos)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_associations_and_qualities() {
        let text = "lab||20|normal|\nlab|gpu|5|normal,high|high\nother||||\n";
        let of = |account, partition, qos| association(text, account, partition, qos);
        let one = |n, account: &str| vec![(n, format!("account {account}"))];
        assert_eq!(of(Some("lab"), Some("cpu"), None), (one(20, "lab"), Some("normal".to_owned())));
        assert_eq!(of(Some("lab"), Some("gpu"), Some("low")), (one(20, "lab"), Some("low".to_owned())));
        // No account named: one of them has no limit.
        assert_eq!(of(None, None, None), (Vec::new(), Some("normal".to_owned())));
        assert_eq!(of(Some("other"), None, None), (Vec::new(), None));
        assert_eq!((quality("normal|20\nhigh|\n", "normal"), quality("normal|20\nhigh|\n", "high")), (Some(20), None));
    }
}
