//! A drawing as PNG, painted by tiny-skia at two dots a pixel, letters as outlines of our font.

use tiny_skia::{Color as Paint8, FillRule, Paint, Path, PathBuilder, Pixmap, Stroke, StrokeDash, Transform};
use ttf_parser::OutlineBuilder;

use super::canvas::{Anchor, BLACK, Color, Drawing, Shape};
use super::font;

/// Dots a pixel.
const DOTS: f32 = 2.0;

/// The bytes of the file; empty for a drawing without extent.
pub(super) fn png(drawing: &Drawing) -> Vec<u8> {
    let size = |x: f64| (x as f32 * DOTS).ceil() as u32;
    let Some(mut map) = Pixmap::new(size(drawing.width), size(drawing.height)) else { return Vec::new() };
    map.fill(Paint8::WHITE);
    let whole = Transform::from_scale(DOTS, DOTS);
    for shape in &drawing.shapes {
        match shape {
            Shape::Line { points, color, width, dash } => {
                let dash: Vec<f32> = dash.iter().map(|d| *d as f32).collect();
                let dash = if dash.is_empty() { None } else { StrokeDash::new(dash, 0.0) };
                let stroke = Stroke { width: *width as f32, dash, ..Stroke::default() };
                if let Some(path) = path(points, false) {
                    map.stroke_path(&path, &paint(*color, 1.0), &stroke, whole, None);
                }
            }
            Shape::Area { points, fill, opacity, edge } => {
                let Some(path) = path(points, true) else { continue };
                map.fill_path(&path, &paint(*fill, *opacity), FillRule::Winding, whole, None);
                if let Some(edge) = edge {
                    map.stroke_path(&path, &paint(*edge, 1.0), &Stroke::default(), whole, None);
                }
            }
            Shape::Text { at: (x, y), text, size, anchor, turned } => {
                let mut letters = Letters(PathBuilder::new());
                font::outline(text, *size, &mut letters);
                let Some(path) = letters.0.finish() else { continue };
                let left = match anchor {
                    Anchor::Start => 0.0,
                    Anchor::Middle => -font::width(text, *size) / 2.0,
                    Anchor::End => -font::width(text, *size),
                };
                let turn = if *turned { Transform::from_rotate(-90.0) } else { Transform::identity() };
                let place = Transform::from_translate(left as f32, 0.0)
                    .post_concat(turn)
                    .post_translate(*x as f32, *y as f32)
                    .post_concat(whole);
                map.fill_path(&path, &paint(BLACK, 1.0), FillRule::Winding, place, None);
            }
        }
    }
    map.encode_png().unwrap_or_default()
}

fn paint(Color(r, g, b): Color, opacity: f64) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(r, g, b, (opacity * 255.0).round() as u8);
    paint
}

fn path(points: &[(f64, f64)], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let (x, y) = (*x as f32, *y as f32);
        if i == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
    }
    if closed {
        builder.close();
    }
    builder.finish()
}

/// Outlines of a font as a path.
struct Letters(PathBuilder);

impl OutlineBuilder for Letters {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.0.close();
    }
}
