//! The one integration test binary.

mod real_slurm;
mod scripts;
mod slurm_script;
mod study;
mod support;
