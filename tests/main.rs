//! The one integration test binary.

mod again;
mod architecture;
mod asking;
#[cfg(feature = "compute")]
mod attacks;
mod benches;
mod chain;
mod chaos;
#[cfg(feature = "compute")]
mod data_stages;
#[cfg(feature = "compute")]
mod decode;
mod doctor;
mod documents;
#[cfg(feature = "compute")]
mod evaluation;
#[cfg(feature = "compute")]
mod families;
mod figures;
mod foreign;
mod formats;
mod gates;
#[cfg(feature = "compute")]
mod generate;
mod local;
#[cfg(feature = "compute")]
mod model;
#[cfg(feature = "compute")]
mod optimizers;
mod packing;
mod paper;
mod paying;
mod prefill;
mod query;
#[cfg(feature = "mpi")]
mod ranks;
mod real_slurm;
mod results;
mod scale;
mod scripts;
#[cfg(feature = "compute")]
mod seam;
mod sites;
mod slurm;
mod slurm_script;
mod staging;
mod statistics;
mod study;
mod study_text;
mod support;
mod surviving;
mod tables;
#[cfg(feature = "compute")]
mod tokens;
#[cfg(feature = "compute")]
mod training;
