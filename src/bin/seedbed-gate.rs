//! Runs a cell of kind `gate`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, gate};
    context::main(&gate::SPEC, gate::run)
}
