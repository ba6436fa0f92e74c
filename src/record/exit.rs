//! Exit codes: the contract between a stage, the attempt that runs it, Slurm and the user.
//!
//! They are documented in `docs/exit-codes.md`; a test keeps that page and this file together.

/// Finished.
pub const DONE: u8 = 0;
/// A check failed or results are incomplete (`paper check`, `aggregate` without all seeds).
pub const INCOMPLETE: u8 = 1;
/// Wrong usage or configuration: nothing was started.
pub const USAGE: u8 = 64;
/// An input is there but is not the one that was planned.
pub const STALE_INPUT: u8 = 65;
/// An input is not there.
pub const MISSING_INPUT: u8 = 66;
/// The outputs failed verification.
pub const BAD_OUTPUT: u8 = 70;
/// A collective operation timed out: another rank is gone.
pub const COLLECTIVE_TIMEOUT: u8 = 71;
/// The disk is full or a file cannot be written.
pub const CANNOT_WRITE: u8 = 73;
/// Checkpointed: run me again.
pub const RESUME: u8 = 75;
/// A newer attempt owns this cell.
pub const SUPERSEDED: u8 = 76;
/// A gate or a kill criterion said stop.
pub const STOPPED: u8 = 78;

/// What an exit code means, in a few words.
pub fn meaning(code: i32) -> &'static str {
    match u8::try_from(code) {
        Ok(DONE) => "done",
        Ok(INCOMPLETE) => "results are incomplete",
        Ok(USAGE) => "wrong usage or configuration",
        Ok(STALE_INPUT) => "stale input",
        Ok(MISSING_INPUT) => "missing input",
        Ok(BAD_OUTPUT) => "outputs failed verification",
        Ok(COLLECTIVE_TIMEOUT) => "a collective timed out",
        Ok(CANNOT_WRITE) => "cannot write (disk full?)",
        Ok(RESUME) => "checkpointed, to be run again",
        Ok(SUPERSEDED) => "superseded by a newer attempt",
        Ok(STOPPED) => "a gate or kill criterion said stop",
        _ => "failed",
    }
}

/// Prints an error and its causes to stderr, each once: `program: error: ...`, then `  because ...`.
pub fn report(program: &str, error: &dyn std::error::Error) {
    use std::io::Write;
    let mut text = format!("{program}: error: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  because {error}\n"));
        cause = error.source();
    }
    // Nobody is there to tell if stderr is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
