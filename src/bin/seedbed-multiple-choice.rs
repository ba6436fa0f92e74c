//! Runs a cell of kind `multiple_choice`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, multiple_choice};
    context::main(&multiple_choice::SPEC, multiple_choice::run)
}
