//! A drawing: lines, areas and texts at places. Points count from the upper left corner, in pixels of CSS.

/// A drawing, its background white.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    /// Later ones lie above earlier ones.
    pub(super) shapes: Vec<Shape>,
}

/// Red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Color(pub(super) u8, pub(super) u8, pub(super) u8);

pub(super) const BLACK: Color = Color(0, 0, 0);
pub(super) const WHITE: Color = Color(255, 255, 255);
pub(super) const GREY: Color = Color(140, 140, 140);
pub(super) const PALE: Color = Color(222, 222, 222);

/// One thing that is drawn.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Straight lines from point to point.
    Line { points: Vec<(f64, f64)>, color: Color, width: f64, dash: &'static [f64] },
    /// A closed area.
    Area { points: Vec<(f64, f64)>, fill: Color, opacity: f64, edge: Option<Color> },
    /// A text on one line.
    Text { at: (f64, f64), text: String, size: f64, anchor: Anchor, turned: bool },
}

/// Which point of a text is meant by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    pub(super) fn line(&mut self, points: &[(f64, f64)], color: Color, width: f64, dash: &'static [f64]) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points: points.to_vec(), color, width, dash });
        }
    }

    pub(super) fn area(&mut self, points: Vec<(f64, f64)>, fill: Color, opacity: f64, edge: Option<Color>) {
        if points.len() > 2 {
            self.shapes.push(Shape::Area { points, fill, opacity, edge });
        }
    }

    pub(super) fn text(&mut self, at: (f64, f64), text: impl Into<String>, size: f64, anchor: Anchor) {
        self.shapes.push(Shape::Text { at, text: text.into(), size, anchor, turned: false });
    }

    /// A text that reads upwards.
    pub(super) fn turned(&mut self, at: (f64, f64), text: impl Into<String>, size: f64, anchor: Anchor) {
        self.shapes.push(Shape::Text { at, text: text.into(), size, anchor, turned: true });
    }
}

/// Marks that tell lines apart without colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Circle,
    Square,
    Triangle,
    Diamond,
    Turned,
}

impl Mark {
    pub(super) const ALL: [Self; 5] = [Self::Circle, Self::Square, Self::Triangle, Self::Diamond, Self::Turned];

    /// Its outline around a point.
    pub(super) fn around(self, (x, y): (f64, f64), r: f64) -> Vec<(f64, f64)> {
        let regular = |n: u32, turn: f64, r: f64| -> Vec<(f64, f64)> {
            (0..n)
                .map(|i| {
                    let angle = std::f64::consts::TAU * (f64::from(i) / f64::from(n) + turn);
                    (x + r * angle.sin(), y - r * angle.cos())
                })
                .collect()
        };
        match self {
            Self::Circle => regular(16, 0.0, r),
            Self::Square => regular(4, 0.125, 1.25 * r),
            Self::Triangle => regular(3, 0.0, 1.3 * r),
            Self::Diamond => regular(4, 0.0, 1.3 * r),
            Self::Turned => regular(3, 0.5, 1.3 * r),
        }
    }
}

/// Lines across a rectangle, clipped to it, that tell bars apart without colour.
pub(super) fn hatch(pattern: usize, (x0, y0): (f64, f64), (x1, y1): (f64, f64)) -> Vec<[(f64, f64); 2]> {
    const STEP: f64 = 6.0;
    let (width, height) = (x1 - x0, y1 - y0);
    if width <= 0.0 || height <= 0.0 {
        return Vec::new();
    }
    let along = |length: f64| (1..).map(|i| STEP * f64::from(i)).take_while(move |d| *d < length);
    // Lines at 45 degrees: from the lower edge, shifted by `d`, up and to the right.
    let rising = || -> Vec<[(f64, f64); 2]> {
        along(width + height)
            .map(|d| {
                let d = d - height;
                let (from, to) = (d.max(0.0), (d + height).min(width));
                [(x0 + from, y1 - (from - d)), (x0 + to, y1 - (to - d))]
            })
            .collect()
    };
    let mirrored = |lines: Vec<[(f64, f64); 2]>| -> Vec<[(f64, f64); 2]> {
        lines.into_iter().map(|line| line.map(|(x, y)| (x0 + x1 - x, y))).collect()
    };
    match pattern % 6 {
        0 => Vec::new(),
        1 => rising(),
        2 => mirrored(rising()),
        3 => along(height).map(|d| [(x0, y1 - d), (x1, y1 - d)]).collect(),
        4 => [rising(), mirrored(rising())].concat(),
        _ => along(width).map(|d| [(x0 + d, y0), (x0 + d, y1)]).collect(),
    }
}
