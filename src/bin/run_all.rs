//! The program `run_all`.

fn main() -> std::process::ExitCode {
    seedbed::cli::run_all()
}
