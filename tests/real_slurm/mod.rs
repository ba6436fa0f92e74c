//! Tests on a real Slurm (`scripts/slurm-sandbox`). `scripts/test` counts those of this module when it skips them.

mod chain;
mod chaos;
mod commands;
mod foreign;
mod gates;
mod limits;
mod monotone;
mod nodes;
mod partly;
mod paying;
mod prefill;
mod seeds;
mod sites;
mod surviving;
