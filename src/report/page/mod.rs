//! `report.html`: one page about a study, whole in one file.
//!
//! It shows where every cell stands, the tables with the sources of each number behind it, figures, gates with their
//! evidence, and what the study cost. It loads nothing: its policy is `default-src 'none'`, and its one style and one
//! script are named in it by their digests. Without the script all is there but sorting. A page for the
//! [public](Audience::Public) holds digests only: no host, user, path, job, time or free text of a log. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::render::escape::html;
use super::render::html::{TABLE_STYLE, head, table};
use super::table::{Column, Grid, GridCell, IntervalKind, Row};
use crate::record::CellKey;

static STYLE: &str = include_str!("report.css");
static SCRIPT: &str = include_str!("report.js");

/// For whom a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The people who run the study.
    Own,
    /// Everybody.
    Public,
}

/// Everything that a page shows.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The study.
    pub study: String,
    /// Its profile.
    pub profile: String,
    /// The program that wrote it.
    pub version: String,
    /// When it was looked at; not for the public.
    pub as_of: String,
    /// What keeps tables and figures from being whole, and notes of the look; not for the public.
    pub problems: Vec<String>,
    /// Every expected cell, in order.
    pub cells: Vec<Cell>,
    /// Its tables.
    pub tables: Vec<Grid>,
    /// Its figures.
    pub figures: Vec<Figure>,
    /// Its gates.
    pub gates: Vec<Gate>,
    /// What it held and cost.
    pub cost: Option<Cost>,
}

/// Where a cell stands.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    /// `stage/arm/seed-1`, as runs of tables name it.
    pub name: String,
    /// Its stage.
    pub stage: String,
    /// Its arm.
    pub arm: Option<String>,
    /// Its seed.
    pub seed: Option<u32>,
    /// One word.
    pub state: String,
    /// Whether nothing is left to do.
    pub done: bool,
    /// Why, in words; not for the public.
    pub detail: String,
    /// What it is sealed with.
    pub fingerprint: Option<String>,
    /// What it found.
    pub content: Option<String>,
    /// Who made it where; not for the public.
    pub origin: Option<Origin>,
}

/// Who made a result where. None of it is for the public.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Slurm's jobs.
    pub jobs: Vec<String>,
    /// Host of the last attempt.
    pub host: String,
    /// Attempts.
    pub attempts: u32,
    /// Seconds of the last attempt.
    pub wall_s: f64,
    /// Revision of the code.
    pub code: String,
    /// When it was sealed.
    pub sealed_at: String,
}

/// A gate with what it found.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// Its cell.
    pub name: String,
    /// Its word: pass, stop, waiting, undecided.
    pub verdict: String,
    /// Why; not for the public.
    pub reason: String,
    /// Its conditions.
    pub conditions: Vec<Condition>,
    /// Its inputs, each with the digest of what it found, or why there is none.
    pub inputs: Vec<(String, Result<String, String>)>,
    /// Digest of question and inputs.
    pub evidence: String,
    /// Who confirmed it; who it was is not for the public.
    pub confirmed: Option<String>,
}

/// A condition of a gate.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// Its bounds, in words.
    pub bounds: String,
    /// What was found.
    pub found: String,
    /// Whether it holds.
    pub holds: bool,
}

/// What a study held and cost: a table of words.
#[derive(Debug, Clone, Default)]
pub struct Cost {
    /// Names of columns.
    pub head: Vec<String>,
    /// Rows, the first column a name.
    pub rows: Vec<Vec<String>>,
    /// How it was counted.
    pub note: String,
}

/// The page as HTML.
pub fn page(page: &Page, audience: Audience) -> String {
    let style = format!("{TABLE_STYLE}{STYLE}");
    let own = audience == Audience::Own;
    let title = format!("{} / {}", page.study, page.profile);
    let mut out = head(&title, &style, &[SCRIPT]);
    let done = page.cells.iter().filter(|c| c.done).count();
    out.push_str(&format!("<body>\n<header>\n<h1>{}</h1>\n", html(&title)));
    out.push_str(&format!("<p>{done} of {} cells are done.", page.cells.len()));
    if own && !page.as_of.is_empty() {
        out.push_str(&format!(" As of {}.", html(&page.as_of)));
    }
    out.push_str(&format!(" Written by seedbed {}", html(&page.version)));
    out.push_str(if own { ".</p>\n" } else { "; holds digests in place of hosts, jobs and paths.</p>\n" });
    let sections = [
        ("tables", "Tables", tables(page, own)),
        ("figures", "Figures", figures(page)),
        ("gates", "Gates", gates(page, own)),
        ("cells", "Cells", cells(page, own)),
        ("cost", "Cost", cost(page)),
    ];
    let there = || sections.iter().filter(|(_, _, text)| !text.is_empty());
    let links: Vec<String> = there().map(|(id, name, _)| format!("<a href=\"#{id}\">{name}</a>")).collect();
    out.push_str(&format!("<nav>{}</nav>\n</header>\n<main>\n", links.join(" ")));
    if own && !page.problems.is_empty() {
        out.push_str("<ul class=\"problems\">\n");
        page.problems.iter().for_each(|p| out.push_str(&format!("<li>{}</li>\n", html(p))));
        out.push_str("</ul>\n");
    }
    for (id, name, text) in there() {
        out.push_str(&format!("<section id=\"{id}\">\n<h2>{name}</h2>\n{text}</section>\n"));
    }
    out.push_str(&format!("</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"));
    out
}

impl Page {
    fn has(&self, key: &CellKey) -> bool {
        key.study.as_str() == self.study && key.profile.as_str() == self.profile
    }

    /// The name of a run: that of another study says which.
    fn name_of(&self, key: &CellKey) -> String {
        if self.has(key) { key.local_name() } else { key.to_string() }
    }
}

/// The page's own cells, by name. Runs of other studies may have the same names.
struct Known<'a> {
    page: &'a Page,
    cells: BTreeMap<&'a str, &'a Cell>,
}

impl<'a> Known<'a> {
    fn cell(&self, key: &CellKey) -> Option<&'a Cell> {
        if !self.page.has(key) {
            return None;
        }
        self.cells.get(key.local_name().as_str()).copied()
    }
}

fn tables(page: &Page, own: bool) -> String {
    let cells: BTreeMap<&str, &Cell> = page.cells.iter().map(|c| (c.name.as_str(), c)).collect();
    let known = Known { page, cells };
    let mut out = String::new();
    for grid in &page.tables {
        let wrap = |row: &Row, column: &Column, cell: &GridCell, printed: String| {
            if cell.n == 0 && cell.missing.is_empty() {
                return printed;
            }
            let what = format!("{} / {} / {}", grid.key, row.key, column.key);
            format!(
                "<details name=\"why\"><summary title=\"{}\">{printed}</summary><div class=\"why\"><h3>{}</h3>{}</div></details>",
                html(&hover(cell)),
                html(&what),
                why(grid, cell, &known, own)
            )
        };
        out.push_str(&format!(
            "<div class=\"scroll sortable\">\n{}</div>\n<p class=\"signature\">{}</p>\n",
            table(grid, &wrap),
            html(&grid.signature)
        ));
    }
    out
}

/// What is seen without a click.
fn hover(cell: &GridCell) -> String {
    let mut text = format!("n = {} of {}", cell.n, cell.n_expected);
    for value in &cell.values {
        match value.seed {
            Some(seed) => text.push_str(&format!("; seed {seed}: {:?}", value.value)),
            None => text.push_str(&format!("; {:?}", value.value)),
        }
    }
    text
}

/// Where a number comes from.
fn why(grid: &Grid, cell: &GridCell, known: &Known<'_>, own: bool) -> String {
    let mut out = String::from("<dl>");
    let mut line = |name: &str, text: String| out.push_str(&format!("<dt>{name}</dt><dd>{text}</dd>"));
    line("runs", format!("{} of {}", cell.n, cell.n_expected));
    let numbers = [
        ("value", cell.value),
        ("mean", cell.mean),
        ("sd (n - 1)", cell.sd),
        ("median", cell.median),
        ("IQM", cell.iqm),
    ];
    for (name, x) in numbers {
        if let Some(x) = x {
            line(name, format!("{x:?}"));
        }
    }
    if let Some(interval) = cell.interval {
        let kind = match cell.interval_kind {
            Some(IntervalKind::T) => "t",
            Some(IntervalKind::Bootstrap) => "bootstrap",
            Some(IntervalKind::Stratified) => "stratified bootstrap",
            Some(IntervalKind::Propagated) => "propagated",
            None => "",
        };
        let name = format!("{} interval, {}", kind, grid.level);
        line(&name, format!("{:?} to {:?}", interval.lower, interval.upper));
    }
    if let Some(reason) = &cell.degenerate {
        line("no spread", html(reason));
    }
    if let Some(test) = &cell.test {
        let number = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:?}"));
        let mut text = format!("{} against {}, n = {}", html(&test.method), html(&test.against), test.n);
        text.push_str(&format!(", p {}, corrected {}", number(test.p), number(test.adjusted)));
        if let Some(reason) = &test.degenerate {
            text.push_str(&format!(": {}", html(reason)));
        }
        line("test", text);
    }
    out.push_str("</dl>");
    for missing in &cell.missing {
        out.push_str(&format!("<p class=\"bad\">missing: {} ({})</p>", html(&missing.cell), html(&missing.reason)));
    }
    if !cell.runs.is_empty() {
        out.push_str("<table class=\"runs\"><thead><tr><th>run</th><th>value</th><th>content</th><th>fingerprint</th>");
        out.push_str(if own { "<th>job</th><th>host</th></tr></thead><tbody>" } else { "</tr></thead><tbody>" });
        for run in &cell.runs {
            let name = known.page.name_of(&run.key);
            // A difference has two runs a seed: the value is that of the seed.
            let value = cell.values.iter().find(|v| v.seed == run.key.seed).map(|v| format!("{:?}", v.value));
            out.push_str(&format!(
                "<tr><th>{}</th><td>{}</td>{}{}",
                html(&name),
                value.unwrap_or_default(),
                digest(run.content.as_str()),
                digest(run.fingerprint.as_str())
            ));
            if own {
                let origin = known.cell(&run.key).and_then(|c| c.origin.as_ref());
                let (jobs, host) = origin.map(|o| (o.jobs.join(" "), o.host.clone())).unwrap_or_default();
                out.push_str(&format!("<td>{}</td><td>{}</td>", html(&jobs), html(&host)));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table>");
    }
    out
}

/// A digest: its beginning, the whole of it on hover.
fn digest(text: &str) -> String {
    let short: String = text.chars().take(12).collect();
    format!("<td class=\"digest\" title=\"{}\">{}</td>", html(text), html(&short))
}

fn figures(page: &Page) -> String {
    let mut out = String::new();
    for figure in &page.figures {
        let caption = if figure.caption.is_empty() { &figure.key } else { &figure.caption };
        let runs: Vec<String> =
            figure.runs.iter().map(|r| format!("{} {}", page.name_of(&r.key), r.content.as_str())).collect();
        out.push_str(&format!(
            "<figure>\n{}<figcaption><details><summary>{}</summary><p>{} runs:</p><ul class=\"digest\">{}</ul></details></figcaption>\n</figure>\n",
            figure.svg(),
            html(caption),
            runs.len(),
            runs.iter().map(|r| format!("<li>{}</li>", html(r))).collect::<String>()
        ));
    }
    out
}

fn gates(page: &Page, own: bool) -> String {
    let mut out = String::new();
    for gate in &page.gates {
        let class = match gate.verdict.as_str() {
            "pass" => "good",
            "stop" => "bad",
            _ => "open",
        };
        out.push_str(&format!(
            "<article>\n<h3>{} <span class=\"state {class}\">{}</span></h3>\n",
            html(&gate.name),
            html(&gate.verdict)
        ));
        if own && !gate.reason.is_empty() {
            out.push_str(&format!("<p>{}</p>\n", html(&gate.reason)));
        }
        if !gate.conditions.is_empty() {
            out.push_str("<div class=\"scroll\"><table><thead><tr><th>condition</th><th>found</th><th>must be</th><th>holds</th></tr></thead><tbody>\n");
            for c in &gate.conditions {
                let (class, word) = if c.holds { ("good", "yes") } else { ("bad", "no") };
                out.push_str(&format!(
                    "<tr><th>{}</th><td>{}</td><td>{}</td><td><span class=\"state {class}\">{word}</span></td></tr>\n",
                    html(&c.name),
                    html(&c.found),
                    html(&c.bounds)
                ));
            }
            out.push_str("</tbody></table></div>\n");
        }
        if let Some(who) = &gate.confirmed {
            let who = if own { format!(" by {}", html(who)) } else { String::new() };
            out.push_str(&format!("<p>Confirmed{who}.</p>\n"));
        }
        out.push_str(&format!(
            "<details><summary>evidence <code>{}</code></summary><ul class=\"digest\">",
            html(&gate.evidence)
        ));
        for (cell, content) in &gate.inputs {
            let text = match content {
                Ok(digest) => digest.clone(),
                Err(reason) if own => format!("missing: {reason}"),
                Err(_) => "missing".to_owned(),
            };
            out.push_str(&format!("<li>{} {}</li>", html(cell), html(&text)));
        }
        out.push_str("</ul></details>\n</article>\n");
    }
    out
}

fn cells(page: &Page, own: bool) -> String {
    if page.cells.is_empty() {
        return String::new();
    }
    let head = if own {
        &[
            "stage",
            "arm",
            "seed",
            "state",
            "detail",
            "content",
            "fingerprint",
            "job",
            "host",
            "attempts",
            "time, s",
            "code",
            "sealed",
        ][..]
    } else {
        &["stage", "arm", "seed", "state", "content", "fingerprint"]
    };
    let mut out = String::from("<div class=\"scroll sortable\">\n<table>\n<thead><tr>");
    head.iter().for_each(|name| out.push_str(&format!("<th scope=\"col\">{name}</th>")));
    out.push_str("</tr></thead>\n<tbody>\n");
    let none = Origin::default();
    for cell in &page.cells {
        let class = match cell.state.split([' ', '-']).next() {
            _ if cell.done => "good",
            Some("failed" | "stopped" | "stale" | "damaged" | "cancelled") => "bad",
            _ => "open",
        };
        let seed = cell.seed.map(|s| s.to_string()).unwrap_or_default();
        out.push_str(&format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td data-value=\"{seed}\">{seed}</td><td><span class=\"state {class}\">{}</span></td>",
            html(&cell.stage),
            html(cell.arm.as_deref().unwrap_or_default()),
            html(&cell.state),
        ));
        if own {
            out.push_str(&format!("<td class=\"words\">{}</td>", html(&cell.detail)));
        }
        out.push_str(&digest(cell.content.as_deref().unwrap_or_default()));
        out.push_str(&digest(cell.fingerprint.as_deref().unwrap_or_default()));
        if own {
            let made = cell.origin.as_ref().unwrap_or(&none);
            let (attempts, wall) = match &cell.origin {
                Some(o) => (o.attempts.to_string(), format!("{:.1}", o.wall_s)),
                None => (String::new(), String::new()),
            };
            out.push_str(&format!(
                "<td>{}</td><td>{}</td><td data-value=\"{attempts}\">{attempts}</td><td data-value=\"{wall}\">{wall}</td><td>{}</td><td>{}</td>",
                html(&made.jobs.join(" ")),
                html(&made.host),
                html(&made.code),
                html(&made.sealed_at),
            ));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}

fn cost(page: &Page) -> String {
    let Some(cost) = &page.cost else { return String::new() };
    let mut out = String::from("<div class=\"scroll sortable\">\n<table>\n<thead><tr>");
    cost.head.iter().for_each(|name| out.push_str(&format!("<th scope=\"col\">{}</th>", html(name))));
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &cost.rows {
        out.push_str("<tr>");
        for (i, text) in row.iter().enumerate() {
            if i == 0 {
                out.push_str(&format!("<th scope=\"row\">{}</th>", html(text)));
                continue;
            }
            let number: Option<f64> = text.trim_start_matches(">=").parse().ok();
            let value = number.map(|x| format!(" data-value=\"{x:?}\"")).unwrap_or_default();
            out.push_str(&format!("<td{value}>{}</td>", html(text)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str(&format!("</tbody>\n</table>\n</div>\n<p>{}</p>\n", html(&cost.note)));
    out
}

#[cfg(test)]
mod tests;
