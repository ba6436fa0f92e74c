//! Tables of numbers over runs: from a specification and the cells a plan expects to a grid.
//!
//! A cell of the grid knows its runs, how many of the expected ones it has, and why the others are
//! missing; it holds raw values at full precision and the one rounding that every format prints. Pure:
//! values come in as [`Expected`] cells and as answers to [`requests`]; nothing is read here. Ties, signs
//! and digits are settled in [`number`] alone.

mod build;
mod grid;
pub mod number;
mod place;
mod spec;
#[cfg(test)]
pub(crate) mod tests;

pub use super::section::{PathStep, SpecProblem};
pub use build::{Expected, Reads, Request, Resample, Run, TableProblem, build, grids, grids_with, requests};
pub use grid::{
    Alignment, CellTest, Column, Env, Grid, GridCell, IntervalKind, Layout, MissingRun, Note, Printed, Row, RunRef,
    SeedValue,
};
pub use number::Rounding;
pub use place::{Meant, two_for_one};
pub use spec::{
    APPENDIX_ENDING, Allow, Better, COLUMN_KEYS, ColumnSpec, DELTA_KEYS, DeltaKind, DeltaSpec, FOOTNOTE_KEYS,
    FootnoteSpec, IntervalMethod, LEAST_BOOTSTRAP, LEVEL_KEYS, LevelSpec, Notation, Partial, RATIO_KEYS, ROW_KEYS,
    RatioError, RatioSpec, RowSpec, Seeds, Show, StudyRef, TABLE_KEYS, TEST_KEYS, TableSpec, TestMethod, TestSpec,
};
