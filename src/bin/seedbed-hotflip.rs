//! Runs a cell of kind `hotflip`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, hotflip};
    context::main(&hotflip::SPEC, hotflip::run)
}
