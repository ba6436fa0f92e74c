//! From results to the paper: queries, statistics, tables and their renderers.
//!
//! Data flows one way: value trees -> [`query`] -> numbers -> [`stats`] -> cells -> [`table`] -> grid ->
//! [`render`] -> text -> [`paper`]; series and grids -> [`figure`] -> SVG, PNG; all of it -> [`page`]. All but `query`
//! and `sources` are pure.

pub mod document;
pub mod figure;
pub mod page;
pub mod paper;
pub mod query;
pub mod render;
pub mod section;
pub mod sources;
pub mod stats;
pub mod table;
