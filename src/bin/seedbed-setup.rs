//! Runs a cell of kind `setup`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, setup};
    context::main(&setup::SPEC, setup::run)
}
