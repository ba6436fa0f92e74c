//! Telling people: the end of the study, a stop, the first failure. Once each, and never for every element.
//!
//! Mail goes by Slurm, which can send some also where nodes cannot: the job asks for it on its own behalf, moments before
//! it ends. The end of the study is mailed as the job script says, so that it is whatever happens to the job.

use std::time::Duration;

use super::say;
use crate::record::{Cell, JobRef, Next, Verdict, Why, exit, files};
use crate::workflow::slurm::wishes::Tell;
use crate::workflow::slurm::{Client, Element, control};

/// How long a person's program may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The last job of the study has ended, however it did.
    Finished,
    /// A gate or kill criterion said stop, or waits for a person.
    Stopped,
    /// A cell has failed for good; only the first of a submission.
    Failed,
}

impl Event {
    fn word(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// Tells of the end of an attempt, if it is one to be told.
pub fn of_end(
    tell: Option<&Tell>,
    submission: &str,
    cell: &Cell,
    job: Option<&JobRef>,
    code: u8,
    end: (&Verdict, &str),
) {
    let (verdict, cause) = end;
    if let Some((tell, event)) = tell.and_then(|tell| Some((tell, event(tell, code, verdict)?))) {
        send(tell, event, submission, cell, job, code, cause);
    }
}

/// Tells of a last job that was refused by its gate.
pub fn of_refusal(tell: Option<&Tell>, submission: &str, cell: &Cell, code: u8, why: &str) {
    if let Some(tell) = tell.filter(|tell| tell.end) {
        send(tell, Event::Finished, submission, cell, None, code, why);
    }
}

fn event(tell: &Tell, code: u8, verdict: &Verdict) -> Option<Event> {
    let goes_on = matches!(verdict.next, Next::Requeue | Next::NextLink);
    match (code, verdict.why) {
        _ if goes_on => None,
        (exit::SUPERSEDED, _) | (_, Why::Cancelled) => None,
        _ if tell.end => Some(Event::Finished),
        (exit::STOPPED, _) => Some(Event::Stopped),
        (_, Why::Done) => None,
        _ => Some(Event::Failed),
    }
}

fn send(tell: &Tell, event: Event, submission: &str, cell: &Cell, job: Option<&JobRef>, code: u8, cause: &str) {
    let mark = match event {
        Event::Finished => None,
        // Each gate has its own.
        Event::Stopped => Some(format!("{submission}-stopped-{}", cell.key.stage)),
        Event::Failed => Some(format!("{submission}-failed")),
    };
    if let Some(mark) = mark {
        let path = cell.base.join(".seedbed/told").join(mark);
        match files::create_exclusive(&path, cell.key.local_name().as_bytes()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return say(&format!("nobody was told: {error}")),
        }
    }
    let message = format!("{} {}: {cause} (exit {code}, {})", cell.key, event.word(), exit::meaning(i32::from(code)));
    let client = Client::new();
    // The script asked for the mail of the last job.
    if let (Some(user), false) = (&tell.mail, event == Event::Finished)
        && let Some(element) = job.and_then(|job| job.id.parse::<Element>().ok())
    {
        match control::mail_failure(&client, element, user) {
            Ok(()) => say(&format!("Slurm mails {user} that this job failed")),
            Err(error) => say(&format!("no mail to {user}: {error}")),
        }
    }
    if !tell.notify.is_empty() {
        notify(&client, tell, event, cell, code, &message);
    }
}

fn notify(client: &Client, tell: &Tell, event: Event, cell: &Cell, code: u8, message: &str) {
    let plain: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let variables = [
        ("SEEDBED_EVENT", event.word().to_owned()),
        ("SEEDBED_MESSAGE", plain),
        ("SEEDBED_EXIT_CODE", code.to_string()),
        ("SEEDBED_KEY", cell.key.to_string()),
        ("SEEDBED_RESULTS", cell.base.display().to_string()),
    ];
    let program = tell.notify.first().map_or("", String::as_str);
    match client.tell_site(&tell.notify, &variables, PATIENCE) {
        Ok(reply) if reply.status.success() => say(&format!("told `{program}`: {}", event.word())),
        Ok(reply) => say(&format!("`{program}` of `notify` ended with {}: {}", reply.status, reply.message())),
        Err(error) => say(&format!("`notify` of the study or cluster file: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Adjust;

    #[test]
    fn what_is_told() {
        let tell = |end| Tell { mail: None, notify: vec!["tell".to_owned()], end };
        let of = |end, code, why, next| event(&tell(end), code, &Verdict { why, next, adjust: Adjust::default() });
        for (end, code, why, next, expected) in [
            (false, 0, Why::Done, Next::Nothing, None),
            (false, 3, Why::Failed, Next::Nothing, Some(Event::Failed)),
            (false, 137, Why::OutOfMemory, Next::Requeue, None),
            (false, 137, Why::OutOfMemory, Next::RunAll, Some(Event::Failed)),
            (false, 75, Why::Checkpointed, Next::NextLink, None),
            (false, 76, Why::Failed, Next::Nothing, None),
            (false, 143, Why::Cancelled, Next::Nothing, None),
            (false, 78, Why::Failed, Next::Nothing, Some(Event::Stopped)),
            (true, 0, Why::Done, Next::Nothing, Some(Event::Finished)),
            (true, 66, Why::Failed, Next::Nothing, Some(Event::Finished)),
            (true, 75, Why::Checkpointed, Next::Requeue, None),
        ] {
            assert_eq!(of(end, code, why, next), expected, "{end} {code} {why} {next:?}");
        }
    }
}
