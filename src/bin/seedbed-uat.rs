//! Runs a cell of kind `uat`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, uat};
    context::main(&uat::SPEC, uat::run)
}
