//! From results to the paper: queries, statistics, tables and their renderers.
//!
//! Data flows one way: value trees -> [`query`] -> numbers -> [`stats`] -> cells -> [`table`] -> grid ->
//! [`render`] -> text -> [`paper`]. `stats`, `table`, `render` and `paper` are pure.

pub mod paper;
pub mod query;
pub mod render;
pub mod stats;
pub mod table;
