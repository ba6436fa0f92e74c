//! Runs a cell of kind `decode`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, decode};
    context::main(&decode::SPEC, decode::run)
}
