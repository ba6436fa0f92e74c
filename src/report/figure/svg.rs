//! A drawing as SVG. It has no ids, no styles and no links, so that it can stand in any page under any policy.

use super::canvas::{Anchor, Color, Drawing, Shape};
use crate::report::render::escape::html;

/// The document, which is an element of HTML too.
pub(super) fn svg(drawing: &Drawing, title: &str, caption: &str) -> String {
    let (width, height) = (number(drawing.width), number(drawing.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" font-family=\"DejaVu Sans, Verdana, Arial, sans-serif\">\n"
    );
    out.push_str(&format!("<title>{}</title>\n<desc>{}</desc>\n", html(title), html(caption)));
    out.push_str(&format!("<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"));
    for shape in &drawing.shapes {
        match shape {
            Shape::Line { points, color, width, dash } => {
                let dash: Vec<String> = dash.iter().map(|d| number(*d)).collect();
                let dash = match dash.as_slice() {
                    [] => String::new(),
                    dash => format!(" stroke-dasharray=\"{}\"", dash.join(" ")),
                };
                out.push_str(&format!(
                    "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{dash}/>\n",
                    path(points),
                    hex(*color),
                    number(*width)
                ));
            }
            Shape::Area { points, fill, opacity, edge } => {
                let opacity =
                    if *opacity < 1.0 { format!(" fill-opacity=\"{}\"", number(*opacity)) } else { String::new() };
                let edge = edge.map(|c| format!(" stroke=\"{}\"", hex(c))).unwrap_or_default();
                out.push_str(&format!("<path d=\"{}Z\" fill=\"{}\"{opacity}{edge}/>\n", path(points), hex(*fill)));
            }
            Shape::Text { at: (x, y), text, size, anchor, turned } => {
                let anchor = match anchor {
                    Anchor::Start => "",
                    Anchor::Middle => " text-anchor=\"middle\"",
                    Anchor::End => " text-anchor=\"end\"",
                };
                let turn = if *turned {
                    format!(" transform=\"rotate(-90 {} {})\"", number(*x), number(*y))
                } else {
                    String::new()
                };
                out.push_str(&format!(
                    "<text x=\"{}\" y=\"{}\" font-size=\"{}\"{anchor}{turn}>{}</text>\n",
                    number(*x),
                    number(*y),
                    number(*size),
                    html(text)
                ));
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

fn path(points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        out.push_str(&format!("{}{} {}", if i == 0 { "M" } else { "L" }, number(*x), number(*y)));
    }
    out
}

/// At most two decimals.
fn number(x: f64) -> String {
    let text = crate::report::table::number::fixed(x, 2);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn hex(Color(r, g, b): Color) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}
