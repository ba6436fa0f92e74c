//! Values as text: JSON on one line or indented, or raw.
//!
//! Numbers print as jq prints them: the shortest digits that read back as the same float, `1` for 1.0 and
//! `1e-05` for 0.00001. NaN and infinities, which JSON lacks, print as the strings "NaN", "Infinity" and
//! "-Infinity", so that they do not pass for `null`.

use jaq_json::{Num, Val};
use serde_json::Value;

use super::rows::{RowFormat, Rows};

/// How outputs are printed, one after another, each with a newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// JSON, indented by two spaces: what `jq` prints.
    #[default]
    Pretty,
    /// JSON on one line: `jq -c`.
    Compact,
    /// As pretty, but texts stand without quotes: `jq -r`.
    Raw,
    /// One JSON array of all outputs.
    Json,
    /// A row for each output.
    Rows(RowFormat),
}

/// Prints outputs one after another.
#[derive(Debug)]
pub(super) struct Printer {
    style: Style,
    rows: Option<Rows>,
    count: usize,
}

impl Printer {
    pub(super) fn new(style: Style) -> Self {
        let rows = if let Style::Rows(format) = style { Some(Rows::new(format)) } else { None };
        Self { style, rows, count: 0 }
    }

    /// The text of one output, with its newline.
    ///
    /// # Errors
    /// It cannot stand below the rows before it.
    pub(super) fn push(&mut self, value: &Val) -> Result<String, String> {
        self.count += 1;
        match (&mut self.rows, self.style) {
            (Some(rows), _) => rows.push(value),
            (None, Style::Json) => {
                let mut out = if self.count == 1 { "[\n  " } else { ",\n  " }.to_owned();
                write(value, Some(1), &mut out);
                Ok(out)
            }
            _ => Ok(format!("{}\n", print(value, self.style))),
        }
    }

    /// What follows the last output.
    pub(super) fn end(&self) -> String {
        match (&self.rows, self.style, self.count) {
            (Some(rows), ..) => rows.end(),
            (None, Style::Json, 0) => "[]\n".to_owned(),
            (None, Style::Json, _) => "\n]\n".to_owned(),
            _ => String::new(),
        }
    }
}

/// One output in a style, without its newline.
pub fn print(value: &Val, style: Style) -> String {
    match (style, value) {
        // A text may be bytes that are no UTF-8; they cannot stand in our text output.
        (Style::Raw, Val::TStr(bytes) | Val::BStr(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        (Style::Raw | Style::Pretty | Style::Json | Style::Rows(_), _) => {
            let mut out = String::new();
            write(value, Some(0), &mut out);
            out
        }
        (Style::Compact, _) => compact(value),
    }
}

/// JSON on one line.
pub fn compact(value: &Val) -> String {
    let mut out = String::new();
    write(value, None, &mut out);
    out
}

fn write(value: &Val, level: Option<usize>, out: &mut String) {
    match value {
        Val::Null => out.push_str("null"),
        Val::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Val::Num(n) => out.push_str(&number(n)),
        Val::TStr(bytes) | Val::BStr(bytes) => quote(&String::from_utf8_lossy(bytes), out),
        Val::Arr(items) => sequence(out, level, '[', ']', items.iter(), |item, level, out| write(item, level, out)),
        Val::Obj(map) => sequence(out, level, '{', '}', map.iter(), |(key, value), level, out| {
            match key {
                Val::TStr(bytes) | Val::BStr(bytes) => quote(&String::from_utf8_lossy(bytes), out),
                // jaq allows other keys; JSON does not.
                other => quote(&compact(other), out),
            }
            out.push_str(if level.is_some() { ": " } else { ":" });
            write(value, level, out);
        }),
    }
}

fn sequence<T>(
    out: &mut String,
    level: Option<usize>,
    open: char,
    close: char,
    items: impl ExactSizeIterator<Item = T>,
    each: impl Fn(T, Option<usize>, &mut String),
) {
    out.push(open);
    let inner = level.map(|l| l + 1);
    let empty = items.len() == 0;
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        indent(inner, out);
        each(item, inner, out);
    }
    if !empty {
        indent(level, out);
    }
    out.push(close);
}

fn indent(level: Option<usize>, out: &mut String) {
    if let Some(level) = level {
        out.push('\n');
        out.push_str(&"  ".repeat(level));
    }
}

fn quote(text: &str, out: &mut String) {
    // A string is always JSON. DEL and what lies above ASCII stays as it is, but bidirectional marks and
    // C1 controls could rewrite a terminal.
    for c in Value::from(text).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
}

fn number(n: &Num) -> String {
    match n {
        Num::Int(i) => i.to_string(),
        Num::BigInt(i) => i.to_string(),
        Num::Float(x) => float(*x),
        Num::Dec(digits) => digits.parse().map_or_else(|_| digits.to_string(), float),
    }
}

/// A float as jq 1.6 prints it.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "\"NaN\"".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }.to_owned();
    }
    if x == 0.0 {
        return if x.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    // Rust's exponent form has the shortest digits that read back: "-1.2345e-7".
    let text = format!("{:e}", x.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = digits.len() as i32;
    let body = if point <= -4 || point > count + 15 {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let sign = if point > 0 { '+' } else { '-' };
        format!("{first}{dot}{rest}e{sign}{:02}", (point - 1).abs())
    } else if point <= 0 {
        format!("0.{}{digits}", "0".repeat(point.unsigned_abs() as usize))
    } else if point >= count {
        format!("{digits}{}", "0".repeat((point - count) as usize))
    } else {
        let (whole, fraction) = digits.split_at(point as usize);
        format!("{whole}.{fraction}")
    };
    if x < 0.0 { format!("-{body}") } else { body }
}

#[cfg(test)]
mod tests {
    use super::super::filter::to_val;
    use super::*;
    use serde_json::json;

    #[test]
    fn styles() {
        let value = to_val(&json!({"a": [1, 2.5, []], "t": "x\"\u{1b}[31m\u{202e}"}));
        assert_eq!(compact(&value), r#"{"a":[1,2.5,[]],"t":"x\"\u001b[31m\u202e"}"#);
        assert_eq!(
            print(&value, Style::Pretty),
            "{\n  \"a\": [\n    1,\n    2.5,\n    []\n  ],\n  \"t\": \"x\\\"\\u001b[31m\\u202e\"\n}"
        );
        assert_eq!(print(&to_val(&json!("a b")), Style::Raw), "a b");
        assert_eq!(compact(&to_val(&json!({}))), "{}");
    }

    #[test]
    fn one_array_of_all_outputs_is_json() {
        let mut printer = Printer::new(Style::Json);
        let mut text = String::new();
        for value in [json!({"a": 1}), json!([]), json!("x")] {
            text.push_str(&printer.push(&to_val(&value)).unwrap());
        }
        text.push_str(&printer.end());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!([{"a": 1}, [], "x"]));
        assert_eq!(Printer::new(Style::Json).end(), "[]\n");
    }

    #[test]
    fn what_json_lacks_does_not_pass_for_null() {
        assert_eq!(compact(&Val::from(f64::NAN)), "\"NaN\"");
        assert_eq!(compact(&Val::from(f64::NEG_INFINITY)), "\"-Infinity\"");
    }

    #[test]
    fn numbers_print_as_jq_prints_them() {
        for (x, text) in [
            (1.0, "1"),
            (6.919, "6.919"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e15, "1000000000000000"),
            (1e17, "1e+17"),
            (1e100, "1e+100"),
            (123_456_789_012_345_680.0, "123456789012345680"),
            (0.1 + 0.2, "0.30000000000000004"),
            (5e-324, "5e-324"),
            (-1.5, "-1.5"),
            (-0.0, "-0"),
        ] {
            assert_eq!(float(x), text);
        }
    }

    /// Against jq itself, where it is installed: the same text for the same floats.
    #[test]
    fn numbers_print_as_the_installed_jq_prints_them() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let Ok(version) = Command::new("jq").arg("--version").output() else {
            eprintln!("skipped: jq is not installed");
            return;
        };
        if !String::from_utf8_lossy(&version.stdout).starts_with("jq-1.6") {
            eprintln!("skipped: jq 1.7 keeps the digits of its input");
            return;
        }
        let mut rng = crate::report::stats::Rng::new(7);
        let mut floats: Vec<f64> = (-30..30).map(|e| 10f64.powi(e)).collect();
        floats.extend((-20..20).map(|e| 1.2345 * 10f64.powi(e)));
        floats.extend((0..2000).map(|_| f64::from_bits(rng.next_u64())).filter(|x| x.is_finite()));
        floats.extend((0..2000).map(|_| rng.next_u64() as f64 / 2f64.powi(60)));
        let input: String = floats.iter().map(|x| format!("{x:e}\n")).collect();
        let mut jq = Command::new("jq").args(["-c", "."]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = jq.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
        let output = jq.wait_with_output().unwrap();
        writer.join().unwrap();
        let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), floats.len());
        for (x, line) in floats.iter().zip(lines) {
            // jq 1.6 reads decimals through its own routine; where that is off by a bit, so is its text.
            if line.parse::<f64>().unwrap() == *x {
                assert_eq!(float(*x), line, "{x:e}");
            }
        }
    }
}
