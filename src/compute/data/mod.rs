//! Tokens: where text comes from, how it is stored and in which order it is read.
