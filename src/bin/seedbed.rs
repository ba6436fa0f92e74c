//! The program `seedbed`.

fn main() -> std::process::ExitCode {
    seedbed::cli::seedbed()
}
