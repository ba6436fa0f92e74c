//! The one integration test binary.

mod slurm_script;
mod support;
