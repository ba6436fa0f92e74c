//! One file a stage kind: its parameters and its `run(context)`.
//!
//! `SPEC`s are always compiled; `run` needs tensors and stands behind the feature `compute`.

pub mod aggregate;
pub mod apply_monotonicity;
#[cfg(feature = "compute")]
mod attack_frame;
#[cfg(feature = "compute")]
mod attack_summary;
#[cfg(feature = "compute")]
pub mod bench;
pub mod context;
pub mod decode;
pub mod evaluate;
pub mod gate;
pub mod hotflip;
pub mod multiple_choice;
pub mod recorded;
pub mod setup;
pub mod spec;
pub mod subjects;
pub mod train;
pub mod uat;

pub use context::{Context, StageError};
pub use spec::{Field, FieldType, Preset, Role, Spec};

/// Every built-in stage kind, sorted by its word in `run = "..."`.
pub fn all_specs() -> &'static [&'static Spec] {
    static ALL: &[&Spec] = &[
        &aggregate::SPEC,
        &apply_monotonicity::SPEC,
        &decode::SPEC,
        &evaluate::SPEC,
        &gate::SPEC,
        &hotflip::SPEC,
        &multiple_choice::SPEC,
        &recorded::SPEC,
        &setup::SPEC,
        &train::SPEC,
        &uat::SPEC,
    ];
    ALL
}
