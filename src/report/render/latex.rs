//! LaTeX: booktabs rules and a siunitx `S` column for each column of numbers.
//!
//! The result is `\input`-able: a float (or a `longtable`) whose settings stay inside it. Numbers line up in an
//! `S` column and their spread or interval in a text column behind it: siunitx 3.2 sets an uncertainty in a table
//! without the space before its sign, and version 2 does not know the keys. siunitx aligns and never rounds;
//! texts in `S` columns are braced, and no macro but the one for bold stands before a number. A plain table uses
//! no package but booktabs: numbers are math in right-aligned columns, padded to one number of decimals.

use super::escape::{Tex, latex};
use super::latex_cell::Layout;
use super::{column_mark, groups, has_groups, plain, row_mark, spans};
use crate::report::table::{Env, Grid, Row};

/// Headers longer than this are broken at a space.
const HEADER_CHARS: usize = 12;

/// Width of the text of a standard page in points, and of a page of two columns.
const PAGE_PT: f64 = 345.0;
const WIDE_PT: f64 = 450.0;

pub(super) fn render(grid: &Grid) -> String {
    let table = Table::of(grid);
    let mut out = format!("% {}\n", super::visible(&grid.signature));
    out.push_str(&format!("% written by seedbed, edits are lost; needs {}\n", table.packages()));
    match grid.layout.env {
        Env::Table => table.float("table", &mut out),
        Env::Wide => table.float("table*", &mut out),
        Env::Long => table.long(&mut out),
    }
    out
}

/// A grid with how it is set.
struct Table<'g> {
    grid: &'g Grid,
    layouts: Vec<Layout>,
    /// Groups stand in a column of their own, by multirow or, in a plain table, in their first row.
    group_column: bool,
    /// Notes by threeparttable.
    part: bool,
}

impl<'g> Table<'g> {
    fn of(grid: &'g Grid) -> Self {
        let layout = grid.layout;
        Self {
            grid,
            layouts: (0..grid.columns.len()).map(|i| Layout::of(grid, i)).collect(),
            group_column: layout.multirow && has_groups(grid),
            part: layout.threeparttable && !layout.plain && layout.env != Env::Long && !grid.notes.is_empty(),
        }
    }

    fn multirow(&self) -> bool {
        self.group_column && !self.grid.layout.plain
    }

    /// The packages that the table needs, as they are loaded.
    fn packages(&self) -> String {
        let all = [
            ("booktabs", true),
            ("longtable", self.grid.layout.env == Env::Long),
            ("multirow", self.multirow()),
            ("threeparttable", self.part),
            ("siunitx", !self.grid.layout.plain),
        ];
        let needed: Vec<String> = all
            .iter()
            .filter(|(_, needed)| *needed)
            .map(|(name, _)| {
                let version = if *name == "siunitx" { " (3.0 or newer)" } else { "" };
                format!("\\usepackage{{{name}}}{version}")
            })
            .collect();
        match needed.as_slice() {
            [all @ .., last] if !all.is_empty() => format!("{} and {last}", all.join(", ")),
            _ => needed.concat(),
        }
    }

    /// Columns of the tabular.
    fn width(&self) -> usize {
        1 + usize::from(self.group_column) + self.layouts.iter().map(Layout::width).sum::<usize>()
    }

    fn preamble(&self) -> String {
        let stub = if self.group_column { "ll" } else { "l" };
        let columns: Vec<String> = self.layouts.iter().map(Layout::columns).collect();
        format!("{stub}{}", columns.concat())
    }

    /// Size of the type, and what siunitx is told.
    fn settings(&self) -> String {
        let numbers = "  \\sisetup{table-align-text-after = false, text-series-to-math = true}%\n";
        let numbers = if self.grid.layout.plain { "" } else { numbers };
        format!("{numbers}  {}\\setlength{{\\tabcolsep}}{{3pt}}%\n", self.size())
    }

    fn float(&self, env: &str, out: &mut String) {
        let grid = self.grid;
        out.push_str(&format!("\\begin{{{env}}}\n  \\centering\n"));
        if self.part {
            out.push_str("  \\begin{threeparttable}\n");
        }
        if !grid.caption.is_empty() {
            out.push_str(&format!("  \\caption{{{}}}\n", latex(&grid.caption).0));
        }
        if let Some(label) = &grid.label {
            out.push_str(&format!("  \\label{{{label}}}\n"));
        }
        out.push_str(&self.settings());
        out.push_str(&format!("  \\begin{{tabular}}{{{}}}\n    \\toprule\n", self.preamble()));
        out.push_str(&self.head());
        out.push_str("    \\midrule\n");
        self.body(out);
        out.push_str("    \\bottomrule\n  \\end{tabular}\n");
        if self.part {
            self.part_notes(out);
            out.push_str("  \\end{threeparttable}\n");
        } else {
            self.notes("\\par\\smallskip", out);
        }
        out.push_str(&format!("\\end{{{env}}}\n"));
    }

    fn long(&self, out: &mut String) {
        let grid = self.grid;
        out.push_str("\\begingroup\n");
        out.push_str(&self.settings());
        out.push_str(&format!("  \\begin{{longtable}}{{{}}}\n", self.preamble()));
        if !grid.caption.is_empty() || grid.label.is_some() {
            let label = grid.label.iter().map(|l| format!("\\label{{{l}}}")).collect::<String>();
            out.push_str(&format!("    \\caption{{{}}}{label} \\\\\n", latex(&grid.caption).0));
        }
        let head = self.head();
        out.push_str(&format!("    \\toprule\n{head}    \\midrule\n    \\endfirsthead\n"));
        out.push_str(&format!("    \\toprule\n{head}    \\midrule\n    \\endhead\n"));
        out.push_str(&format!(
            "    \\midrule\n    \\multicolumn{{{}}}{{r}}{{\\textit{{continues}}}} \\\\\n    \\endfoot\n",
            self.width()
        ));
        out.push_str("    \\bottomrule\n    \\endlastfoot\n");
        self.body(out);
        out.push_str("  \\end{longtable}\n");
        self.notes("\\noindent", out);
        out.push_str("\\endgroup\n");
    }

    /// The header: what spans columns above, with its rules, then the columns.
    fn head(&self) -> String {
        let grid = self.grid;
        let mut out = String::new();
        let before = if self.group_column { 2 } else { 1 };
        if let Some(spans) = spans(grid) {
            let mut cells = vec![String::new(); before];
            let mut rules = Vec::new();
            let (mut column, mut first) = (0, before + 1);
            for (span, count) in spans {
                let width: usize = self.layouts[column..column + count].iter().map(Layout::width).sum();
                match span {
                    Some(text) => {
                        cells.push(format!("\\multicolumn{{{width}}}{{c}}{{{}}}", latex(text).0));
                        rules.push(format!("\\cmidrule(lr){{{first}-{}}}", first + width - 1));
                    }
                    None => cells.extend(vec![String::new(); width]),
                }
                column += count;
                first += width;
            }
            out.push_str(&format!("    {} \\\\\n    {}\n", cells.join(" & ").trim_start(), rules.join(" ")));
        }
        let stub = format!("{{{}}}", header(&grid.stub));
        let group = self.group_column.then(|| "{}".to_owned());
        let columns = grid.columns.iter().zip(&self.layouts).map(|(c, layout)| {
            let note = column_mark(grid, c).map(|m| format!("\\textsuperscript{{{}}}", latex(m).0)).unwrap_or_default();
            layout.text(&format!("{}{note}", header(&c.label)))
        });
        let head: Vec<String> = group.into_iter().chain([stub]).chain(columns).collect();
        out.push_str(&format!("    {} \\\\\n", head.join(" & ")));
        out
    }

    fn body(&self, out: &mut String) {
        for (i, group) in groups(self.grid).iter().enumerate() {
            if i > 0 {
                out.push_str("    \\addlinespace\n");
            }
            let label = group.label.map(|text| latex(text).0);
            if let (Some(label), false) = (&label, self.group_column) {
                out.push_str(&format!("    \\multicolumn{{{}}}{{l}}{{\\textit{{{label}}}}} \\\\\n", self.width()));
            }
            for (r, row) in group.rows.iter().enumerate() {
                let mut cells = Vec::new();
                if self.group_column {
                    cells.push(match &label {
                        Some(label) if r == 0 && self.multirow() => {
                            format!("\\multirow{{{}}}{{*}}{{{label}}}", group.rows.len())
                        }
                        Some(label) if r == 0 => format!("{{{label}}}"),
                        _ => "{}".to_owned(),
                    });
                }
                let indent = if label.is_some() && !self.group_column { "\\quad " } else { "" };
                cells.push(format!("{indent}{{{}}}{}", latex(&row.label).0, self.row_note(row)));
                cells.extend(self.layouts.iter().zip(&row.cells).map(|(layout, c)| layout.cell(self.grid, c)));
                out.push_str(&format!("    {} \\\\\n", cells.join(" & ")));
            }
        }
    }

    fn row_note(&self, row: &Row) -> String {
        row_mark(self.grid, row).map(|m| format!("\\textsuperscript{{{}}}", latex(m).0)).unwrap_or_default()
    }

    /// Notes below the tabular, in a box as wide as the text.
    fn notes(&self, lead: &str, out: &mut String) {
        if self.grid.notes.is_empty() {
            return;
        }
        out.push_str(&format!("  {lead}\n  \\begin{{minipage}}{{\\linewidth}}\\footnotesize\n"));
        for note in &self.grid.notes {
            let mark = note.mark.as_ref().map(|m| format!("\\textsuperscript{{{}}} ", latex(m).0)).unwrap_or_default();
            out.push_str(&format!("    {mark}{}\\par\n", latex(&note.text).0));
        }
        out.push_str("  \\end{minipage}\n");
    }

    fn part_notes(&self, out: &mut String) {
        out.push_str("  \\begin{tablenotes}[flushleft]\\footnotesize\n");
        for note in &self.grid.notes {
            let Tex(text) = latex(&note.text);
            match &note.mark {
                Some(mark) => out.push_str(&format!("    \\item[{}] {text}\n", latex(mark).0)),
                None => out.push_str(&format!("    \\item {text}\n")),
            }
        }
        out.push_str("  \\end{tablenotes}\n");
    }

    /// A smaller type where the columns would not fit the page.
    fn size(&self) -> &'static str {
        use unicode_width::UnicodeWidthStr;
        let grid = self.grid;
        let of_header = |text: &str| broken(text).iter().map(|l| l.width()).max().unwrap_or(0);
        let indent = if has_groups(grid) && !self.group_column { 2 } else { 0 };
        let labels = grid.rows.iter().map(|r| r.label.width() + indent + usize::from(r.note.is_some())).max();
        let labels = labels.unwrap_or(0).max(of_header(&grid.stub));
        let groups = grid.rows.iter().filter_map(|r| r.group.as_ref()).map(|g| g.width()).max().unwrap_or(0);
        let groups = if self.group_column { groups + 1 } else { 0 };
        let columns = grid.columns.iter().enumerate().map(|(i, c)| {
            let cells = grid.rows.iter().map(|r| {
                let marks = super::mark(grid, &r.cells[i]).map_or(0, |m| m.width());
                plain(&r.cells[i]).width() + usize::from(r.cells[i].best) + marks.saturating_sub(1)
            });
            of_header(&c.label).max(cells.max().unwrap_or(0))
        });
        // A digit is 5 pt wide at 10 pt, letters a little less on the average.
        let points = 5.0 * (labels + groups + columns.sum::<usize>()) as f64 + 6.0 * (grid.columns.len() + 1) as f64;
        let page = if grid.layout.env == Env::Wide { WIDE_PT } else { PAGE_PT };
        match points / page {
            ..=1.0 => "",
            ..=1.1 => "\\small",
            ..=1.25 => "\\footnotesize",
            _ => "\\scriptsize",
        }
    }
}

/// The lines of a header.
fn broken(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= HEADER_CHARS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A header, broken at spaces when it is long.
fn header(text: &str) -> String {
    let lines: Vec<String> = broken(text).iter().map(|line| latex(line).0).collect();
    if lines.len() > 1 { format!("\\shortstack{{{}}}", lines.join("\\\\")) } else { lines.concat() }
}
