//! The letters of figures: a part of DejaVu Sans (Latin, Greek, punctuation, arrows, mathematics) that stands in the
//! program, so that a PNG has its texts on a node without any font. Its licence lies beside it.

use std::sync::OnceLock;

use ttf_parser::{Face, OutlineBuilder};

use crate::report::render::visible;

static FILE: &[u8] = include_bytes!("dejavu-sans-part.ttf");

fn face() -> Option<&'static Face<'static>> {
    static FACE: OnceLock<Option<Face<'static>>> = OnceLock::new();
    FACE.get_or_init(|| Face::parse(FILE, 0).ok()).as_ref()
}

/// The text as this font can show it: what it lacks stands as its code point, `[U+4E2D]`.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in visible(text).chars() {
        if face().is_some_and(|f| f.glyph_index(c).is_some()) {
            out.push(c);
        } else {
            out.push_str(&format!("[U+{:04X}]", c as u32));
        }
    }
    out
}

/// Width of a text in pixels.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let Some(face) = face() else { return 0.0 };
    let advance = |c: char| face.glyph_index(c).and_then(|g| face.glyph_hor_advance(g)).map_or(0.0, f64::from);
    shown(text).chars().map(advance).sum::<f64>() * size / f64::from(face.units_per_em())
}

/// Draws a text's outlines from the origin to the right, in pixels, downwards positive.
pub(super) fn outline(text: &str, size: f64, draw: &mut dyn OutlineBuilder) {
    let Some(face) = face() else { return };
    let scale = (size / f64::from(face.units_per_em())) as f32;
    let mut x = 0.0;
    for c in shown(text).chars() {
        let Some(glyph) = face.glyph_index(c) else { continue };
        face.outline_glyph(glyph, &mut Placed { draw: &mut *draw, scale, x });
        x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
    }
}

/// A glyph at its place in the line, its axis turned: fonts count upwards.
struct Placed<'d> {
    draw: &'d mut dyn OutlineBuilder,
    scale: f32,
    x: f32,
}

impl Placed<'_> {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Placed<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.draw.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.draw.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.draw.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.draw.curve_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.draw.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_letters_or_their_code_points() {
        assert_eq!(shown("Perplexity (Δ) ± 2 µ, é → ≤"), "Perplexity (Δ) ± 2 µ, é → ≤");
        assert_eq!(shown("中\u{202e}\u{1b}"), "[U+4E2D][U+202E][U+001B]");
        // DejaVu Sans: a digit is 1303 of 2048 units wide.
        assert!((width("0123456789", 20.48) - 130.3).abs() < 1e-9);
        assert!(width("W", 10.0) > width("i", 10.0) && width("", 10.0) == 0.0);
    }
}
