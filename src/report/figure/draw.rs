//! From numbers to a drawing: axes, legend, curves with bands, bars with intervals, peaks and ends.

use super::canvas::{Anchor, BLACK, Color, Drawing, GREY, Mark, PALE, WHITE, hatch};
use super::scale::Axis;
use super::{Bars, Body, Curve, Figure, Peaks, font};

/// Okabe and Ito's colours, which people tell apart who see few colours; the darkest ones first.
const COLORS: [Color; 7] = [
    Color(0, 114, 178),
    Color(213, 94, 0),
    Color(0, 158, 115),
    Color(0, 0, 0),
    Color(204, 121, 167),
    Color(230, 159, 0),
    Color(86, 180, 233),
];

/// Dashes, for eyes and printers without colour.
const DASHES: [&[f64]; 4] = [&[], &[7.0, 4.0], &[2.0, 3.0], &[9.0, 3.0, 2.0, 3.0]];

const WIDTH: f64 = 640.0;
const PLOT_HEIGHT: f64 = 300.0;
const SMALL: f64 = 12.0;
const TEXT: f64 = 13.0;
const TITLE: f64 = 15.0;
const EDGE: f64 = 12.0;

/// A bar is never narrower, and a picture never wider.
const NARROWEST: f64 = 14.0;
const WIDEST: f64 = 2400.0;

/// Points of a line that are drawn at most; the file with the numbers has all.
const MOST_POINTS: usize = 1400;

pub(super) fn draw(figure: &Figure) -> Drawing {
    match &figure.body {
        Body::Curves(lines) => curves(figure, lines),
        Body::Bars { groups, bars } => bars_in_groups(figure, groups, bars),
        Body::Peaks(lines) => peaks(figure, lines),
    }
}

/// How an entry of the legend looks.
enum Key {
    Line { color: Color, dash: &'static [f64], mark: Mark },
    Bar { color: Color, pattern: usize },
    Dot { fill: Color },
    Rule,
}

/// A drawing with title, legend and axes, and the place that is left for the numbers.
struct Frame {
    drawing: Drawing,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    y: Axis,
}

fn line_style(i: usize) -> (Color, &'static [f64], Mark) {
    (COLORS[i % COLORS.len()], DASHES[i % DASHES.len()], Mark::ALL[i % Mark::ALL.len()])
}

/// `seeds` of a label: how many runs it has, and of how many where some are missing.
fn with_n(label: &str, n: usize, expected: usize) -> String {
    let count = if n == expected { format!("(n = {n})") } else { format!("(n = {n} of {expected})") };
    // It stays on one line.
    format!("{label} {}", count.replace(' ', "\u{a0}"))
}

impl Frame {
    /// `below` is the room under the horizontal axis.
    fn new(figure: &Figure, width: f64, legend: &[(Key, String)], y: Axis, below: f64) -> Self {
        let mut drawing = Drawing { width, height: 0.0, shapes: Vec::new() };
        let mut top = EDGE;
        for line in wrapped(&figure.title, TITLE, width - 2.0 * EDGE) {
            drawing.text((EDGE, top + TITLE), line, TITLE, Anchor::Start);
            top += TITLE * 1.35;
        }
        if !figure.title.is_empty() {
            top += 4.0;
        }
        top = draw_legend(&mut drawing, legend, top);
        let ticks = y.ticks.iter().map(|(_, label)| font::width(label, SMALL)).fold(0.0, f64::max);
        let name = if figure.y_label.is_empty() { 0.0 } else { 20.0 };
        let (left, right) = (EDGE + name + ticks + 8.0, width - EDGE - 14.0);
        let (top, bottom) = (top + 10.0, top + 10.0 + PLOT_HEIGHT);
        let x_name = if figure.x_label.is_empty() { 0.0 } else { 20.0 };
        drawing.height = (bottom + below + x_name + EDGE).ceil();
        let y = y.between(bottom, top);
        for (value, label) in &y.ticks {
            let at = y.at(*value);
            drawing.line(&[(left, at), (right, at)], PALE, 1.0, &[]);
            drawing.text((left - 6.0, at + 0.35 * SMALL), label.as_str(), SMALL, Anchor::End);
        }
        if !figure.y_label.is_empty() {
            let label = cut(&figure.y_label, TEXT, PLOT_HEIGHT);
            drawing.turned((EDGE + TEXT, (top + bottom) / 2.0), label, TEXT, Anchor::Middle);
        }
        if !figure.x_label.is_empty() {
            let label = cut(&figure.x_label, TEXT, right - left);
            drawing.text(((left + right) / 2.0, drawing.height - EDGE), label, TEXT, Anchor::Middle);
        }
        Self { drawing, left, right, top, bottom, y }
    }

    /// The axes, over what was drawn.
    fn finish(mut self) -> Drawing {
        let (left, right, top, bottom) = (self.left, self.right, self.top, self.bottom);
        self.drawing.line(&[(left, top), (left, bottom), (right, bottom)], BLACK, 1.2, &[]);
        self.drawing
    }
}

fn curves(figure: &Figure, lines: &[Curve]) -> Drawing {
    let y = Axis::of(figure.values(), figure.log, true);
    let steps = lines.iter().flat_map(|c| &c.points).map(|p| p.step as f64);
    let legend: Vec<(Key, String)> = lines
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let (color, dash, mark) = line_style(i);
            (Key::Line { color, dash, mark }, with_n(&c.label, c.n, c.n_expected))
        })
        .collect();
    let mut frame = Frame::new(figure, WIDTH, &legend, y, 20.0);
    let x = Axis::of(steps, false, false).between(frame.left, frame.right);
    for (value, label) in &x.ticks {
        let at = x.at(*value);
        frame.drawing.line(&[(at, frame.bottom), (at, frame.bottom + 4.0)], BLACK, 1.0, &[]);
        frame.drawing.text((at, frame.bottom + 17.0), label.as_str(), SMALL, Anchor::Middle);
    }
    let thinned: Vec<Curve> = lines.iter().map(thinned).collect();
    let y = frame.y.clone();
    for (i, curve) in thinned.iter().enumerate() {
        let ends: Vec<(f64, f64, f64)> = curve
            .points
            .iter()
            .filter_map(|p| p.band.filter(|(a, b)| y.admits(*a) && y.admits(*b)).map(|(a, b)| (p.step as f64, a, b)))
            .collect();
        let upper = ends.iter().map(|(step, _, b)| (x.at(*step), y.at(*b)));
        let lower = ends.iter().rev().map(|(step, a, _)| (x.at(*step), y.at(*a)));
        frame.drawing.area(upper.chain(lower).collect(), line_style(i).0, 0.22, None);
    }
    for (i, curve) in thinned.iter().enumerate() {
        let (color, dash, mark) = line_style(i);
        let points: Vec<(f64, f64)> =
            curve.points.iter().filter(|p| y.admits(p.mean)).map(|p| (x.at(p.step as f64), y.at(p.mean))).collect();
        frame.drawing.line(&points, color, 2.0, dash);
        // Six marks a line, each line's a little further than those of the one before.
        let shift = (i % 5) as f64 / 5.0;
        for k in 0..6 {
            let part = (f64::from(k) + 0.1 + 0.8 * shift) / 6.0;
            let place = ((points.len().saturating_sub(1)) as f64 * part).round() as usize;
            if let Some(at) = points.get(place) {
                frame.drawing.area(mark.around(*at, 4.0), WHITE, 1.0, Some(color));
            }
        }
    }
    frame.finish()
}

/// The curve with at most [`MOST_POINTS`] points: of neighbours the lowest and the highest stay, and the whole band.
fn thinned(curve: &Curve) -> Curve {
    if curve.points.len() <= MOST_POINTS {
        return curve.clone();
    }
    let together = curve.points.len().div_ceil(MOST_POINTS / 2);
    let mut points = Vec::new();
    for neighbours in curve.points.chunks(together) {
        let by_mean = |a: &&super::Point, b: &&super::Point| a.mean.total_cmp(&b.mean);
        let (Some(least), Some(most)) = (neighbours.iter().min_by(by_mean), neighbours.iter().max_by(by_mean)) else {
            continue;
        };
        let bands = || neighbours.iter().filter_map(|p| p.band);
        let band = bands().reduce(|(a, b), (c, d)| (a.min(c), b.max(d)));
        let (first, second) = if least.step <= most.step { (least, most) } else { (most, least) };
        points.push(super::Point { band, ..*first });
        if first.step != second.step {
            points.push(super::Point { band, ..*second });
        }
    }
    Curve { points, ..curve.clone() }
}

/// Places for names of groups below the axis.
struct Names {
    lines: Vec<Vec<String>>,
    turned: bool,
    height: f64,
}

fn names(labels: &[&str], room: f64) -> Names {
    let words = labels.iter().flat_map(|l| words(l));
    let widest = words.map(|w| font::width(w, SMALL)).fold(0.0, f64::max);
    if widest > room {
        let lines: Vec<Vec<String>> = labels.iter().map(|l| vec![cut(l, SMALL, 170.0)]).collect();
        let height = lines.iter().flatten().map(|l| font::width(l, SMALL)).fold(0.0, f64::max) + 12.0;
        return Names { lines, turned: true, height };
    }
    let lines: Vec<Vec<String>> = labels.iter().map(|l| wrapped(l, SMALL, room)).collect();
    let most = lines.iter().map(Vec::len).max().unwrap_or(0);
    Names { lines, turned: false, height: 8.0 + 15.0 * most as f64 }
}

impl Names {
    fn draw(&self, frame: &mut Frame, middle: &dyn Fn(usize) -> f64) {
        for (i, lines) in self.lines.iter().enumerate() {
            for (k, line) in lines.iter().enumerate() {
                if self.turned {
                    let at = (middle(i) + 0.35 * SMALL, frame.bottom + 8.0);
                    frame.drawing.turned(at, line.as_str(), SMALL, Anchor::End);
                } else {
                    let at = (middle(i), frame.bottom + 17.0 + 15.0 * k as f64);
                    frame.drawing.text(at, line.as_str(), SMALL, Anchor::Middle);
                }
            }
        }
    }
}

fn bars_in_groups(figure: &Figure, groups: &[(String, String)], bars: &[Bars]) -> Drawing {
    let count = bars.len().max(1) as f64;
    let wanted = 120.0 + groups.len() as f64 * (count * NARROWEST / 0.8);
    let width = wanted.clamp(WIDTH, WIDEST);
    // A bar begins at zero, unless the axis has none.
    let zero = (!figure.log).then_some(0.0);
    let y = Axis::of(figure.values().chain(zero), figure.log, true);
    let legend: Vec<(Key, String)> = bars
        .iter()
        .enumerate()
        .filter(|_| bars.len() > 1)
        .map(|(i, b)| (Key::Bar { color: COLORS[i % COLORS.len()], pattern: i }, b.label.clone()))
        .collect();
    let labels: Vec<&str> = groups.iter().map(|(_, label)| label.as_str()).collect();
    let room = (width - 110.0) / groups.len().max(1) as f64;
    let names = names(&labels, room - 8.0);
    let mut frame = Frame::new(figure, width, &legend, y, names.height);
    let (left, room) = (frame.left, (frame.right - frame.left) / groups.len().max(1) as f64);
    let y = frame.y.clone();
    let base = y.at(if figure.log { 1e-300 } else { 0.0 });
    let bar_width = (0.8 * room / count).min(90.0);
    for (g, _) in groups.iter().enumerate() {
        let middle = left + room * (g as f64 + 0.5);
        let start = middle - bar_width * count / 2.0;
        for (i, series) in bars.iter().enumerate() {
            let (x0, x1) = (start + bar_width * i as f64 + 1.0, start + bar_width * (i + 1) as f64 - 1.0);
            let centre = (x0 + x1) / 2.0;
            let Some(bar) = series.bars.get(g).and_then(Option::as_ref).filter(|b| y.admits(b.value)) else {
                frame.drawing.text((centre, base - 4.0), "n/a", 10.0, Anchor::Middle);
                continue;
            };
            let end = y.at(bar.value);
            let (y0, y1) = (base.min(end), base.max(end));
            let color = COLORS[i % COLORS.len()];
            frame.drawing.area(vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, 1.0, None);
            for line in hatch(i, (x0, y0), (x1, y1)) {
                frame.drawing.line(&line, WHITE, 1.5, &[]);
            }
            frame.drawing.line(&[(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], BLACK, 1.0, &[]);
            let mut above = y0;
            if let Some((low, high)) = bar.interval.filter(|(a, b)| y.admits(*a) && y.admits(*b)) {
                let (low, high) = (y.at(low), y.at(high));
                let cap = (bar_width / 5.0).min(6.0);
                // White around black: seen on every fill.
                frame.drawing.line(&[(centre, low), (centre, high)], WHITE, 4.0, &[]);
                frame.drawing.line(&[(centre, low), (centre, high)], BLACK, 1.5, &[]);
                for end in [low, high] {
                    frame.drawing.line(&[(centre - cap, end), (centre + cap, end)], BLACK, 1.5, &[]);
                }
                above = above.min(high);
            }
            if font::width(&bar.printed, 10.0) <= bar_width + 2.0 {
                frame.drawing.text((centre, above - 4.0), bar.printed.as_str(), 10.0, Anchor::Middle);
            }
        }
    }
    if !figure.log {
        frame.drawing.line(&[(frame.left, base), (frame.right, base)], BLACK, 1.0, &[]);
    }
    names.draw(&mut frame, &|g| left + room * (g as f64 + 0.5));
    frame.finish()
}

fn peaks(figure: &Figure, lines: &[Peaks]) -> Drawing {
    let width = (120.0 + 60.0 * lines.len() as f64).clamp(WIDTH, WIDEST);
    let y = Axis::of(figure.values(), figure.log, true);
    let several = lines.iter().any(|l| l.runs.len() > 1);
    let mut legend =
        vec![(Key::Dot { fill: COLORS[0] }, "peak".to_owned()), (Key::Dot { fill: WHITE }, "final".to_owned())];
    if several {
        legend.push((Key::Rule, "a run; thick: their mean".to_owned()));
    }
    let labels: Vec<String> = lines.iter().map(|l| with_n(&l.label, l.runs.len(), l.n_expected)).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let room = (width - 110.0) / lines.len().max(1) as f64;
    let names = names(&labels, room - 8.0);
    let mut frame = Frame::new(figure, width, &legend, y, names.height);
    let (left, room) = (frame.left, (frame.right - frame.left) / lines.len().max(1) as f64);
    let y = frame.y.clone();
    let apart = (0.22 * room).min(60.0);
    for (i, line) in lines.iter().enumerate() {
        let middle = left + room * (i as f64 + 0.5);
        let (from, to) = (middle - apart, middle + apart);
        let runs: Vec<(f64, f64)> =
            line.runs.iter().map(|r| (r.1, r.2)).filter(|(a, b)| y.admits(*a) && y.admits(*b)).collect();
        for (peak, last) in &runs {
            let thin = if runs.len() > 1 { GREY } else { COLORS[0] };
            frame.drawing.line(&[(from, y.at(*peak)), (to, y.at(*last))], thin, 1.2, &[]);
            frame.drawing.area(Mark::Circle.around((from, y.at(*peak)), 3.0), thin, 1.0, Some(thin));
            frame.drawing.area(Mark::Circle.around((to, y.at(*last)), 3.0), WHITE, 1.0, Some(thin));
        }
        if runs.len() > 1 {
            let n = runs.len() as f64;
            let mean = |of: fn(&(f64, f64)) -> f64| runs.iter().map(of).sum::<f64>() / n;
            let (peak, last) = (y.at(mean(|r| r.0)), y.at(mean(|r| r.1)));
            frame.drawing.line(&[(from, peak), (to, last)], COLORS[0], 3.0, &[]);
            frame.drawing.area(Mark::Circle.around((from, peak), 5.0), COLORS[0], 1.0, Some(BLACK));
            frame.drawing.area(Mark::Circle.around((to, last), 5.0), WHITE, 1.0, Some(BLACK));
        } else if runs.is_empty() {
            frame.drawing.text((middle, frame.bottom - 6.0), "n/a", 10.0, Anchor::Middle);
        }
    }
    names.draw(&mut frame, &|i| left + room * (i as f64 + 0.5));
    frame.finish()
}

/// Entries side by side, in as many lines as they need; the place below them.
fn draw_legend(drawing: &mut Drawing, legend: &[(Key, String)], top: f64) -> f64 {
    let (mut x, mut y) = (EDGE, top);
    for (key, label) in legend {
        let label = cut(label, TEXT, drawing.width - 2.0 * EDGE - 44.0);
        let width = 36.0 + font::width(&label, TEXT) + 18.0;
        if x > EDGE && x + width > drawing.width - EDGE {
            (x, y) = (EDGE, y + 20.0);
        }
        let middle = y + 9.0;
        match key {
            Key::Line { color, dash, mark } => {
                drawing.line(&[(x, middle), (x + 30.0, middle)], *color, 2.0, dash);
                drawing.area(mark.around((x + 15.0, middle), 4.0), WHITE, 1.0, Some(*color));
            }
            Key::Bar { color, pattern } => {
                let (from, to) = ((x + 2.0, y + 2.0), (x + 28.0, y + 16.0));
                let corners = vec![from, (to.0, from.1), to, (from.0, to.1)];
                drawing.area(corners, *color, 1.0, None);
                for line in hatch(*pattern, from, to) {
                    drawing.line(&line, WHITE, 1.5, &[]);
                }
                drawing.line(&[from, (to.0, from.1), to, (from.0, to.1), from], BLACK, 1.0, &[]);
            }
            Key::Dot { fill } => drawing.area(Mark::Circle.around((x + 22.0, middle), 5.0), *fill, 1.0, Some(BLACK)),
            Key::Rule => drawing.line(&[(x, middle), (x + 30.0, middle)], GREY, 1.2, &[]),
        }
        drawing.text((x + 36.0, y + 14.0), label, TEXT, Anchor::Start);
        x += width;
    }
    if legend.is_empty() { top } else { y + 20.0 }
}

/// What may not be broken. A space that joins is no end of it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() && c != '\u{a0}').filter(|w| !w.is_empty())
}

/// Lines of at most `room` pixels, broken at spaces; a longer word is cut.
fn wrapped(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words(text) {
        let joined = lines.last().map(|line| format!("{line} {word}")).filter(|l| font::width(l, size) <= room);
        match (joined, lines.last_mut()) {
            (Some(joined), Some(line)) => *line = joined,
            _ => lines.push(cut(word, size, room)),
        }
    }
    lines
}

/// The text, shortened with an ellipsis to `room` pixels.
fn cut(text: &str, size: f64, room: f64) -> String {
    if font::width(text, size) <= room {
        return text.to_owned();
    }
    let mut out = String::new();
    for c in text.chars() {
        out.push(c);
        if font::width(&out, size) + font::width("…", size) > room {
            out.pop();
            break;
        }
    }
    out.push('…');
    out
}
