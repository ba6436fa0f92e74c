//! What tests share: a fake Slurm that really runs job scripts, and the real one of `scripts/slurm-sandbox`.

pub mod chain;
pub mod fake_slurm;
pub mod gated;
pub mod sandbox;
pub mod scored;
pub mod terminal;
pub mod work;

use std::path::PathBuf;

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Makes what Slurm said last of a study's jobs too old to be believed, as if 15 seconds had gone by. `base` is
/// `<root>/results/<study>/<profile>`.
pub fn let_answers_age(base: &std::path::Path) {
    for entry in std::fs::read_dir(base.join(".seedbed")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("answers-") {
            let mut answers: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            answers["asked_at"] = serde_json::Value::from("2020-01-01T00:00:00Z");
            std::fs::write(&path, answers.to_string()).unwrap();
        }
    }
}
