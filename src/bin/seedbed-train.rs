//! Runs a cell of kind `train`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, train};
    context::main(&train::SPEC, train::run)
}
