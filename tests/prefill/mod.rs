//! The prefill study: what was recorded of its first run gives that run's tables, and the study runs.

#[cfg(feature = "compute")]
mod quick;
mod recorded;
