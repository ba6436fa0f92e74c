//! Runs a cell of kind `recorded`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, recorded};
    context::main(&recorded::SPEC, recorded::run)
}
