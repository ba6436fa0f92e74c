//! Runs a cell of kind `apply_monotonicity`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{apply_monotonicity, context};
    context::main(&apply_monotonicity::SPEC, apply_monotonicity::run)
}
