//! Whether the cluster belongs to a federation.
//!
//! Jobs of a federation exist on several clusters at once, and move: a chain of dependencies by id, and the question
//! whether a job still lives, mean something else there. It is refused by name, before anything is submitted.

use super::{Client, SlurmError};

/// The federation's name; none if there is none.
///
/// # Errors
/// scontrol gives no answer. One that does not know federations is an answer.
pub fn of(client: &Client) -> Result<Option<String>, SlurmError> {
    let reply = client.ask("scontrol", &["show", "federation"])?;
    Ok(parse(&reply.stdout))
}

fn parse(text: &str) -> Option<String> {
    let name = text.lines().find_map(|line| line.trim().strip_prefix("Federation:"))?.trim();
    (!name.is_empty() && name != "(null)").then(|| name.to_owned())
}

/// The refusal, for people.
pub fn refusal(name: &str) -> String {
    format!(
        "this cluster belongs to the federation `{name}`, whose jobs may run on any of its clusters under one id: Seedbed \
         does not know how to follow them; submit from a cluster outside of it, or run here with --local; nothing was submitted"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_federation() {
        let text = "Federation: alpine\nSelf:       alps:10.0.0.1:6817 ID:1 FedState:ACTIVE Features:\nSibling:    dolomites:10.0.0.2:6817\n";
        assert_eq!(parse(text).as_deref(), Some("alpine"));
        assert_eq!((parse(""), parse("Federation: (null)\n"), parse("scontrol: error: x\n")), (None, None, None));
        assert!(refusal("alpine").contains("`alpine`"));
    }
}
