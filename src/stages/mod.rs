//! One file a stage kind: its parameters and its `run(context)`.
//!
//! `SPEC`s are always compiled; `run` needs tensors and stands behind the feature `compute`.

pub mod context;
pub mod spec;

pub use context::{Context, StageError};
pub use spec::{Field, FieldType, Preset, Role, Spec};

/// Every built-in stage kind, sorted by its word in `run = "..."`.
pub fn all_specs() -> &'static [&'static Spec] {
    &[]
}
