//! Figures of numbers over runs: from a `[[figure]]` section and results to SVG, PNG and CSV.
//!
//! A figure has three forms, each made from the one before: the section ([`FigureSpec`]), the numbers that it
//! shows ([`Figure`]), and a drawing of lines, areas and texts, which is written as SVG or painted as PNG. Bars
//! take their numbers from a table's grid, so that a figure never says anything else than the table. Colours tell
//! apart for people who see few of them; dashes, marks and hatching tell the same without colour. Pure: a
//! font stands in the program, and the same numbers give the same bytes.

mod build;
mod canvas;
mod csv;
mod draw;
mod font;
mod paint;
mod scale;
mod spec;
mod svg;

use crate::report::table::RunRef;

pub use build::{Source, build, default_curves};
pub use spec::{ERROR_WORDS, FIGURE_KEYS, FigureSpec, Kind, LINE_KEYS, LineSpec};

/// A finished figure: everything that is drawn, as numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name, and that of its files.
    pub key: String,
    /// Printed above it, plain text.
    pub title: String,
    /// What it shows and how it was made, plain text; for the page below it.
    pub caption: String,
    /// Name of the horizontal axis.
    pub x_label: String,
    /// Name of the vertical axis.
    pub y_label: String,
    /// Whether the vertical axis is logarithmic.
    pub log: bool,
    /// What is drawn.
    pub body: Body,
    /// The runs that it shows, sorted.
    pub runs: Vec<RunRef>,
}

/// What a figure draws.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Lines over steps, with bands.
    Curves(Vec<Curve>),
    /// Groups of bars with intervals.
    Bars {
        /// Key and label of each group.
        groups: Vec<(String, String)>,
        /// The bars of each group, in the order of the legend.
        bars: Vec<Bars>,
    },
    /// For each run where it stood highest (or lowest) and where it ended.
    Peaks(Vec<Peaks>),
}

/// A line over steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its key.
    pub key: String,
    /// Its label, plain text.
    pub label: String,
    /// Runs in it.
    pub n: usize,
    /// Runs that the plan expects.
    pub n_expected: usize,
    /// Its points, by step.
    pub points: Vec<Point>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Optimizer step.
    pub step: u64,
    /// Mean over the runs.
    pub mean: f64,
    /// Ends of the band, if there is one.
    pub band: Option<(f64, f64)>,
}

/// Bars of one colour, one in each group.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// Its key.
    pub key: String,
    /// Its label, plain text.
    pub label: String,
    /// One a group; nothing where there is no value.
    pub bars: Vec<Option<Bar>>,
}

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its height.
    pub value: f64,
    /// What the table prints for it.
    pub printed: String,
    /// Ends of the interval, if there is one.
    pub interval: Option<(f64, f64)>,
    /// Runs in it.
    pub n: usize,
}

/// Peak and end of the runs of one line.
#[derive(Debug, Clone, PartialEq)]
pub struct Peaks {
    /// Its key.
    pub key: String,
    /// Its label, plain text.
    pub label: String,
    /// Runs that the plan expects.
    pub n_expected: usize,
    /// Seed, peak and end of each run.
    pub runs: Vec<(Option<u32>, f64, f64)>,
}

/// A format of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines and texts, for papers and pages.
    Svg,
    /// Dots, 1280 a line, for slides and mail.
    Png,
    /// The numbers, for pgfplots.
    Csv,
}

impl Format {
    /// All of them, in the order in which they are written.
    pub const FILES: [Format; 3] = [Format::Svg, Format::Png, Format::Csv];

    /// Ending of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Svg => "svg",
            Format::Png => "png",
            Format::Csv => "csv",
        }
    }
}

impl Figure {
    /// The bytes of its file in a format.
    pub fn file(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Svg => self.svg().into_bytes(),
            Format::Png => paint::png(&draw::draw(self)),
            Format::Csv => csv::csv(self).into_bytes(),
        }
    }

    /// It as SVG: an XML document that is also an element of an HTML page, without ids and styles.
    pub fn svg(&self) -> String {
        svg::svg(&draw::draw(self), &self.title, &self.caption)
    }
}

#[cfg(test)]
mod tests;
