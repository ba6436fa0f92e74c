//! From results to the paper: queries, statistics, tables and their renderers.
//!
//! Data flows one way: value trees -> [`query`] -> numbers -> [`stats`] -> cells -> [`table`] -> grid ->
//! [`render`] -> text. `stats`, `table` and `render` are pure.

pub mod query;
pub mod render;
pub mod stats;
pub mod table;
