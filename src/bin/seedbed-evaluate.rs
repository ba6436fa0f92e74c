//! Runs a cell of kind `evaluate`.

fn main() -> std::process::ExitCode {
    use seedbed::stages::{context, evaluate};
    context::main(&evaluate::SPEC, evaluate::run)
}
