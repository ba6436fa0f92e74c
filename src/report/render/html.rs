//! HTML: a table as a page of its own, and as a part of a larger page.
//!
//! The page loads nothing and runs nothing: its policy is `default-src 'none'`, and its one style stands in it by
//! its digest. No attribute holds a style, and all text is escaped.

use sha2::{Digest as _, Sha256};

use super::escape::{html, visible};
use super::{column_mark, groups, mark, plain, row_mark, spans};
use crate::report::table::{Column, Grid, GridCell, Row};

/// How tables look, wherever they stand.
pub(in crate::report) const TABLE_STYLE: &str = "\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
caption{text-align:left;padding:.3em 0;font-weight:600}\
th,td{padding:.25em .7em;text-align:right;vertical-align:top}\
th{font-weight:600}\
th:first-child,td:first-child{text-align:left}\
thead tr:last-child th{border-bottom:1px solid}\
thead tr:first-child th{border-top:2px solid}\
tbody:last-of-type tr:last-child>*{border-bottom:2px solid}\
th.span{text-align:center;border-bottom:1px solid}\
th.group{text-align:left;font-style:italic;font-weight:400;padding-top:.7em}\
tbody.in th[scope=row]{padding-left:1.8em}\
tbody th[scope=row]{font-weight:400}\
td.best{font-weight:700}\
td.second .n{text-decoration:underline}\
.notes{list-style:none;padding:0;font-size:85%}";

/// The source of a policy that allows this text as a style or script of the page.
pub(in crate::report) fn allowed(text: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(text.as_bytes())))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// The beginning of a page: its policy, its title and its style. `scripts` are what it may run.
pub(in crate::report) fn head(title: &str, style: &str, scripts: &[&str]) -> String {
    let mut policy = format!("default-src 'none'; style-src {}", allowed(style));
    if !scripts.is_empty() {
        let sources: Vec<String> = scripts.iter().map(|s| allowed(s)).collect();
        policy.push_str(&format!("; script-src {}", sources.join(" ")));
    }
    policy.push_str("; base-uri 'none'; form-action 'none'");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n<title>{}</title>\n<style>{style}</style>\n</head>\n",
        html(title)
    )
}

pub(super) fn render(grid: &Grid) -> String {
    let style =
        format!(":root{{color-scheme:light dark}}body{{font:16px/1.4 system-ui,sans-serif;margin:1.5em}}{TABLE_STYLE}");
    let title = if grid.caption.is_empty() { &grid.key } else { &grid.caption };
    format!(
        "{}<body>\n<!-- {} -->\n{}</body>\n</html>\n",
        head(title, &style, &[]),
        // Two hyphens would end the comment.
        visible(&grid.signature).replace("--", "- -").replace('>', "&gt;"),
        table(grid, &|_, _, _, text| text)
    )
}

/// The table with its notes below. `wrap` puts more around what a cell prints.
pub(in crate::report) fn table(grid: &Grid, wrap: &dyn Fn(&Row, &Column, &GridCell, String) -> String) -> String {
    let mut out = String::from("<table class=\"grid\">\n");
    if !grid.caption.is_empty() {
        out.push_str(&format!("<caption>{}</caption>\n", html(&grid.caption)));
    }
    out.push_str("<thead>\n");
    if let Some(spans) = spans(grid) {
        out.push_str("<tr><th></th>");
        for (span, count) in spans {
            match span {
                Some(text) => out.push_str(&format!(
                    "<th class=\"span\" colspan=\"{count}\" scope=\"colgroup\">{}</th>",
                    html(text)
                )),
                None => out.push_str(&"<th></th>".repeat(count)),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str(&format!("<tr><th scope=\"col\">{}</th>", html(&grid.stub)));
    for column in &grid.columns {
        let note = column_mark(grid, column).map(|m| format!("<sup>{}</sup>", html(m))).unwrap_or_default();
        out.push_str(&format!("<th scope=\"col\">{}{note}</th>", html(&column.label)));
    }
    out.push_str("</tr>\n</thead>\n");
    for group in groups(grid) {
        let inside = group.label.is_some();
        out.push_str(if inside { "<tbody class=\"in\">\n" } else { "<tbody>\n" });
        if let Some(label) = group.label {
            let width = grid.columns.len() + 1;
            out.push_str(&format!(
                "<tr><th class=\"group\" colspan=\"{width}\" scope=\"rowgroup\">{}</th></tr>\n",
                html(label)
            ));
        }
        for row in group.rows {
            let note = row_mark(grid, row).map(|m| format!("<sup>{}</sup>", html(m))).unwrap_or_default();
            out.push_str(&format!("<tr><th scope=\"row\">{}{note}</th>", html(&row.label)));
            for (column, cell) in grid.columns.iter().zip(&row.cells) {
                out.push_str(&data(grid, row, column, cell, wrap));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n");
    }
    out.push_str("</table>\n");
    if !grid.notes.is_empty() {
        out.push_str("<ul class=\"notes\">\n");
        for note in &grid.notes {
            let mark = note.mark.as_ref().map(|m| format!("<sup>{}</sup> ", html(m))).unwrap_or_default();
            out.push_str(&format!("<li>{mark}{}</li>\n", html(&note.text)));
        }
        out.push_str("</ul>\n");
    }
    out
}

fn data(
    grid: &Grid,
    row: &Row,
    column: &Column,
    cell: &GridCell,
    wrap: &dyn Fn(&Row, &Column, &GridCell, String) -> String,
) -> String {
    let mut classes = Vec::new();
    if cell.best {
        classes.push("best");
    }
    if cell.second {
        classes.push("second");
    }
    let class = if classes.is_empty() { String::new() } else { format!(" class=\"{}\"", classes.join(" ")) };
    // What a reader of the page sorts by: the number before it was rounded.
    let value = cell.value.or(cell.mean).map(|x| format!(" data-value=\"{x:?}\"")).unwrap_or_default();
    let marks = mark(grid, cell).map(|m| format!("<sup>{}</sup>", html(&m))).unwrap_or_default();
    let printed = format!("<span class=\"n\">{}</span>{marks}", html(&plain(cell)));
    format!("<td{class}{value}>{}</td>", wrap(row, column, cell, printed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        // `printf 'doSomething();' | openssl dgst -sha256 -binary | base64`, an example of the policy's standard.
        assert_eq!(allowed("doSomething();"), "'sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc='");
    }
}
