//! One file a stage kind: its parameters and its `run(context)`.
//!
//! `SPEC`s are always compiled; `run` needs tensors and stands behind the feature `compute`.

pub mod spec;

pub use spec::{Field, FieldType, Preset, Role, Spec};
