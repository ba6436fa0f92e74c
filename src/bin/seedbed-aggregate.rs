//! Runs a cell of kind `aggregate`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{aggregate, context};
    context::main(&aggregate::SPEC, aggregate::run)
}
