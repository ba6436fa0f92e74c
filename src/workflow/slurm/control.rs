//! Changing jobs that exist: requeue in place, cancel.

use super::{Client, Element, SlurmError};

/// Asks for a job to be run again, in place: what waits behind it goes on waiting. Called from inside the job
/// its process is ended soon after; exit then with a code that is not 0, in case it is not.
///
/// # Errors
/// The site or the job forbids it, or there is no answer.
pub fn requeue(client: &Client, element: Element) -> Result<(), SlurmError> {
    change(client, "scontrol", &["requeue", &element.to_string()])
}

/// Cancels jobs or array elements. One that has ended already is no error. No elements: nothing is done.
///
/// # Errors
/// Slurm refuses, or there is no answer.
pub fn cancel(client: &Client, elements: &[Element]) -> Result<(), SlurmError> {
    for chunk in elements.chunks(400) {
        let list: Vec<_> = chunk.iter().map(ToString::to_string).collect();
        match change(client, "scancel", &list) {
            Err(SlurmError::Failed { message, .. }) if message.contains("Invalid job id") => {}
            result => result?,
        }
    }
    Ok(())
}

fn change(client: &Client, program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<(), SlurmError> {
    let reply = client.change(program, arguments)?;
    if reply.status.success() {
        return Ok(());
    }
    Err(SlurmError::Failed { program: program.to_owned(), code: reply.status.code(), message: reply.message() })
}
