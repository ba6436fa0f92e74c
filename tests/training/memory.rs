//! What a rank holds: a number of bytes a parameter, and nothing else that grows with the model.

use seedbed::compute::train::{Choice, EngineName, Precision};

use super::elastic::run;
use super::worker::{self, Held, Run};

/// Layers of the two models, whose difference is all parameters.
const LAYERS: [u64; 2] = [6, 18];

/// How far from the formula a measured slope may be.
const TOLERANCE: f64 = 0.05;

/// Bytes a parameter that `ranks` ranks hold, in steps and while a checkpoint is written: the slope between two
/// sizes.
fn slopes(ranks: u32, of: &Run) -> [f64; 2] {
    let mut ends = Vec::new();
    let mut parameters = Vec::new();
    for layers in LAYERS {
        let dir = tempfile::tempdir().unwrap();
        let run = Run { shape: format!("tall-{layers}"), ..of.clone() };
        let end = worker::ends(dir.path(), ranks, std::slice::from_ref(&run)).remove(&run.name).unwrap();
        assert_eq!(end.error, None, "{}", run.name);
        ends.push(end.memory.unwrap());
        parameters.push(worker::model(&run).num_parameters() as f64);
    }
    let slope = |f: fn(&Held) -> u64| (f(&ends[1]) as f64 - f(&ends[0]) as f64) / (parameters[1] - parameters[0]);
    [slope(|h| h.steps), slope(|h| h.save)]
}

fn tall(name: &str, engine: EngineName, precision: Precision, lanes: u64) -> Run {
    let choice = Choice { engine, precision, ..Choice::default() };
    Run { lanes, steps: 8, checkpoint_interval_steps: 6, ..run(name, "gpt_neox", choice) }
}

#[cfg(feature = "mpi")]
#[test]
fn bytes_a_parameter_are_those_of_the_formula() {
    let mut wrong = Vec::new();
    let mut table = String::new();
    for (name, engine, precision, fixed, shared) in [
        // Weights and gradients; moments.
        ("fp32 native", EngineName::Native, Precision::Fp32, 8.0, 8.0),
        // Weights and fp32 gradients; masters and moments.
        ("bf16 libtorch", EngineName::Libtorch, Precision::Bf16, 6.0, 12.0),
    ] {
        for (ranks, lanes) in [(1, 1), (2, 2), (4, 4), (1, 4), (2, 4)] {
            if lanes > u64::from(ranks) && engine == EngineName::Libtorch {
                // The trainer's lanes do not know the engine.
                continue;
            }
            let n = f64::from(ranks);
            let steps = fixed + shared / n + 4.0 * (lanes as f64 / n).log2();
            let expected = [steps, steps + 12.0 / n];
            let measured = slopes(ranks, &tall(&name.replace(' ', "-"), engine, precision, lanes));
            for (what, measured, expected) in [("steps", measured[0], expected[0]), ("save", measured[1], expected[1])]
            {
                let line = format!("{name}, {ranks} ranks, {lanes} lanes, {what}: {measured:.2} ({expected:.2})\n");
                table.push_str(&line);
                if (measured / expected - 1.0).abs() > TOLERANCE {
                    wrong.push(line);
                }
            }
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "bytes a parameter (expected):\n{table}beyond 5 %:\n{}", wrong.concat());
}

/// Only the frozen weights grow with the model: no gradient, moment or copy of them is allocated.
#[test]
fn a_frozen_base_costs_its_weights_only() {
    let lora = Run { lora: true, ..tall("lora", EngineName::Libtorch, Precision::Fp32, 1) };
    let [steps, _] = slopes(1, &lora);
    println!("{steps:.2} bytes a parameter of the base");
    assert!((3.8..4.4).contains(&steps), "{steps:.2} bytes a parameter of the base, whose weights have 4");
}
