//! The numerics record: what the bits of a result depend on besides its fingerprint. It goes into every
//! checkpoint's manifest and into `run.h5`; a run that is resumed under another record says so.

use serde_json::{Map, Value, json};

/// What a trainer adds to the record of the machine.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// Threads of libtorch's kernels in each rank.
    pub threads_per_rank: u32,
    /// Lanes.
    pub lanes: usize,
    /// Samples of a grain.
    pub grain_samples: u64,
    /// How messages travel.
    pub transport: &'a str,
    /// `fp32` or `bf16`.
    pub compute_type: &'a str,
    /// Who runs the passes: `native` or `libtorch`.
    pub engine: &'a str,
    /// Who multiplies matrices.
    pub gemm: &'a str,
    /// `cpu`, or the GPU's name.
    pub device: &'a str,
    /// Why bits are not promised; `None`: they are.
    pub inexact: Option<&'a str>,
}

/// The record. `transport` and the host do not change bits with ordered sums; they are kept for people.
pub fn record(settings: &Settings<'_>) -> Value {
    let mut record = json!({
        "program": env!("CARGO_PKG_VERSION"),
        "libtorch": super::LIBTORCH_VERSION,
        "engine": settings.engine,
        "gemm": settings.gemm,
        "device": settings.device,
        "processor": processor_model(),
        "instruction_set": instruction_set(),
        "threads_per_rank": settings.threads_per_rank,
        "compute_type": settings.compute_type,
        "lanes": settings.lanes,
        "grain_samples": settings.grain_samples,
        "transport": settings.transport,
        "bitwise": settings.inexact.is_none(),
    });
    if let Some(reason) = settings.inexact {
        record["bitwise_note"] = json!(reason);
    }
    record
}

/// Keys in which two records differ and on which bits depend, as `key: old -> new`.
pub fn differences(old: &Value, new: &Value) -> Vec<String> {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|k| !matches!(k.as_str(), "transport" | "bitwise" | "bitwise_note" | "program"))
        .filter(|k| old.get(*k) != new.get(*k))
        .map(|k| {
            let text = |v: Option<&Value>| v.map_or("absent".to_owned(), Value::to_string);
            format!("{k}: {} -> {}", text(old.get(k)), text(new.get(k)))
        })
        .collect()
}

/// The processor's name as the kernel says, or the architecture.
fn processor_model() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The widest vector extension, by which kernels are chosen; `ATEN_CPU_CAPABILITY` chooses others.
fn instruction_set() -> String {
    std::env::var("ATEN_CPU_CAPABILITY").unwrap_or_else(|_| detected_instruction_set().to_owned())
}

fn detected_instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "default"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_bits_counts() {
        let settings = Settings {
            threads_per_rank: 1,
            lanes: 4,
            grain_samples: 3,
            transport: "solo",
            compute_type: "fp32",
            engine: "native",
            gemm: "builtin",
            device: "cpu",
            inexact: None,
        };
        let old = record(&settings);
        assert!(differences(&old, &record(&Settings { transport: "mpi", ..settings.clone() })).is_empty());
        let changed = differences(&old, &record(&Settings { threads_per_rank: 2, ..settings }));
        assert_eq!(changed, ["threads_per_rank: 1 -> 2"]);
    }
}
