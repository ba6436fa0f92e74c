//! From results to the paper: queries, statistics, tables and their renderers.
