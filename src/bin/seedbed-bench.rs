//! Prepares what the scripts in `scripts/bench/` measure.

fn main() -> std::process::ExitCode {
    seedbed::stages::bench::main()
}
