//! The rows and cells of a table of the paper, found by its label.

use std::ops::Range;

use super::Finding;
use super::document::{Document, Environment};
use super::plain::plain;
use super::tex::Kind;

/// Environments that hold rows, and how many arguments stand before these.
const TABULARS: [(&str, usize); 12] = [
    ("tabular", 1),
    ("tabular*", 2),
    ("tabularx", 2),
    ("tabulary", 2),
    ("longtable", 1),
    ("longtable*", 1),
    ("array", 1),
    ("supertabular", 1),
    ("xtabular", 1),
    ("tblr", 1),
    ("longtblr", 1),
    ("NiceTabular", 1),
];

/// What may stand between rows.
const RULES: [&str; 19] = [
    "hline",
    "toprule",
    "midrule",
    "bottomrule",
    "cmidrule",
    "cline",
    "addlinespace",
    "specialrule",
    "morecmidrules",
    "endhead",
    "endfirsthead",
    "endfoot",
    "endlastfoot",
    "rowcolor",
    "noalign",
    "arrayrulecolor",
    "hhline",
    "input",
    "rowfont",
];

/// A table of the paper.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its rows, in order.
    pub rows: Vec<Row>,
    /// Rows of the header.
    pub header: usize,
    /// Behind its `\end{tabular}`: where a note goes.
    pub behind: usize,
}

/// A row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its cells.
    pub cells: Vec<Cell>,
    /// Plain text of its first cell; that of the `\multirow` above where that covers it.
    pub first: String,
    /// Its `\\`, with star and length; none for a last row without one.
    pub ending: Option<Range<usize>>,
}

/// A cell.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its column, from 1.
    pub column: usize,
    /// Columns that it covers.
    pub span: usize,
    /// What stands in it: without rules, spaces and comments around it. Empty where nothing does.
    pub content: Range<usize>,
    /// Where that would stand: the tokens between the separators.
    pub whole: Range<usize>,
}

impl Row {
    /// Columns that its cells cover.
    pub fn columns(&self) -> usize {
        self.cells.last().map_or(0, |c| c.column.saturating_add(c.span) - 1)
    }

    /// The cell of a column.
    pub fn cell(&self, column: usize) -> Option<&Cell> {
        self.cells.iter().find(|c| c.column == column)
    }
}

impl Table {
    /// The table in whose float the label stands; `nth` chooses among several tabulars there, from 1.
    ///
    /// # Errors
    /// There is no such label, or not one tabular; with the place.
    pub fn find(document: &Document, label: &str, nth: Option<usize>) -> Result<Self, Finding> {
        let labels = document.labels();
        let Some((_, at)) = labels.iter().find(|(l, _)| l == label) else {
            let known: Vec<&str> = labels.iter().map(|(l, _)| l.as_str()).filter(|l| l.starts_with("tab")).collect();
            let hint = if known.is_empty() { String::new() } else { format!(": the tables are {}", known.join(", ")) };
            return Err(document.finding(0, format!("no table has the label `{label}`{hint}")));
        };
        let is_float = |e: &&Environment| {
            e.begin < *at
                && *at < e.end
                && (e.name.contains("table") || e.name.contains("figure") || arguments(&e.name).is_some())
        };
        let Some(float) = document.environments().iter().filter(is_float).next_back() else {
            return Err(document.finding(*at, format!("label `{label}` stands in no table")));
        };
        let is_tabular =
            |e: &&Environment| e.begin >= float.begin && e.end <= float.end && arguments(&e.name).is_some();
        let mut tabulars: Vec<&Environment> = document.environments().iter().filter(is_tabular).collect();
        let all = tabulars.clone();
        // One in a cell of another is not a table of its own.
        tabulars.retain(|e| !all.iter().any(|o| o.begin < e.begin && e.end < o.end));
        match (tabulars.as_slice(), nth) {
            ([one], None | Some(1)) => Self::read(document, one),
            ([], _) => Err(document.finding(*at, format!("the table `{label}` has no tabular"))),
            (several, Some(n)) if (1..=several.len()).contains(&n) => Self::read(document, several[n - 1]),
            (several, _) => {
                let n = several.len();
                Err(document.finding(*at, format!("the table `{label}` has {n} tabulars: say `tabular = 1` to {n}")))
            }
        }
    }

    fn read(document: &Document, environment: &Environment) -> Result<Self, Finding> {
        let mut at = environment.body;
        for _ in 0..arguments(&environment.name).unwrap_or(1) {
            at = document.option(at).unwrap_or(at);
            at = match document.group(at) {
                Some((_, behind)) => behind,
                None => return Err(document.finding(environment.begin, "the columns of this tabular cannot be read")),
            };
        }
        let mut reader =
            Reader { document, rows: Vec::new(), header: None, head_ends: 0, covered: None, at: environment.end };
        reader.rows(at, environment.end);
        let header = if reader.head_ends > 0 { reader.head_ends } else { reader.header.unwrap_or(1) };
        let behind = outside_boxes(document, environment);
        Ok(Self { header: header.min(reader.rows.len()), rows: reader.rows, behind })
    }

    /// The row whose first cell says `first` and whose second says `second`.
    ///
    /// # Errors
    /// Several rows do.
    pub fn row(&self, document: &Document, first: &str, second: Option<&str>) -> Result<Option<&Row>, Finding> {
        // As it is written, as a reader sees it, and as a fill inserts it.
        let inserted = super::plain::plain_text(&super::fill::as_tex(first));
        let wanted = [super::plain::squeeze(first), super::plain::plain_text(first), inserted];
        let says = |row: &&Row| {
            let second = second.is_none_or(|text| {
                row.cells.get(1).is_some_and(|c| super::plain::says(document, c.content.clone(), text))
            });
            wanted.contains(&row.first) && second
        };
        let found: Vec<&Row> = self.rows.iter().filter(says).collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [one, other, ..] => {
                let (file, line) = document.place(other.cells[0].whole.start);
                let more = if second.is_none() { ": say which by `second`, the text of its second cell" } else { "" };
                Err(document.finding(
                    one.cells[0].whole.start,
                    format!("two rows begin with `{first}`, here and at {file}:{line}{more}"),
                ))
            }
        }
    }
}

/// Behind the tabular, and behind the boxes around it: in a `\resizebox` no paragraph can stand.
fn outside_boxes(document: &Document, tabular: &Environment) -> usize {
    let behind = |e: &Environment| document.group(e.end + 1).map_or(e.end + 1, |(_, behind)| behind);
    let float = document.environments().iter().filter(|e| e.begin < tabular.begin && e.end > tabular.end);
    let (boxes, floats): (Vec<_>, Vec<_>) = float.partition(|e| e.name.contains("box"));
    let from = floats.last().map_or(0, |e| e.body);
    let mut at = boxes.first().map_or(behind(tabular), |e| behind(e));
    for open in from..tabular.begin {
        // The first is the outermost.
        if let Some(close) = document.close_of(open).filter(|close| *close >= at) {
            at = close + 1;
            break;
        }
    }
    at
}

fn arguments(name: &str) -> Option<usize> {
    TABULARS.iter().find(|(n, _)| *n == name).map(|(_, arguments)| *arguments)
}

struct Reader<'a> {
    document: &'a Document,
    rows: Vec<Row>,
    /// Rows above the first rule behind a row.
    header: Option<usize>,
    /// Rows above the last end of a longtable's head or foot.
    head_ends: usize,
    /// The `\multirow` that covers first cells: its text, and how many rows more.
    covered: Option<(String, usize)>,
    at: usize,
}

impl Reader<'_> {
    fn rows(&mut self, start: usize, end: usize) {
        let document = self.document;
        let mut from = start;
        let mut cells: Vec<Range<usize>> = Vec::new();
        let mut row_start = start;
        let mut i = start;
        while i < end {
            match document.kind(i) {
                Some(Kind::Open) => i = document.close_of(i).unwrap_or(i),
                Some(Kind::Amp) => {
                    cells.push(from..i);
                    from = i + 1;
                }
                Some(Kind::Command) => match document.command(i) {
                    Some("begin") => i = document.environment_at(i).map_or(i, |e| e.end),
                    Some("\\" | "tabularnewline" | "cr") => {
                        cells.push(from..i);
                        let behind = self.ending(i, end);
                        self.row(std::mem::take(&mut cells), Some(i..behind));
                        (from, row_start) = (behind, behind);
                        i = behind;
                        continue;
                    }
                    _ => {}
                },
                _ => {}
            }
            i += 1;
        }
        cells.push(from..end);
        let last = self.rules(row_start, end);
        if cells.len() > 1 || self.document.solid(last) < end {
            self.row(cells, None);
        }
        self.at = end;
    }

    /// Behind `\\*[2pt]`.
    fn ending(&self, i: usize, end: usize) -> usize {
        let document = self.document;
        let mut at = i + 1;
        if document.kind(at) == Some(Kind::Text) && document.text(at) == "*" {
            at += 1;
        }
        // A length, not a cell that begins with a bracket: `\\[2pt]`.
        let Some(behind) = document.option(at).filter(|behind| *behind <= end) else { return at };
        let inside = document.source(at..behind);
        let is_length = inside.trim_start().trim_start_matches(['[', '-', '+', ' ']);
        if is_length.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '\\') { behind } else { at }
    }

    /// Behind the rules at `i`; what they say of header and head is kept.
    fn rules(&mut self, mut i: usize, end: usize) -> usize {
        let document = self.document;
        loop {
            let at = document.solid(i);
            let Some(rule) = document.command(at).filter(|name| at < end && RULES.contains(name)) else { return i };
            let count = self.rows.len();
            match rule {
                "midrule" | "hline" | "specialrule" | "hhline" if count > 0 => {
                    self.header.get_or_insert(count);
                }
                "endhead" | "endfirsthead" | "endfoot" | "endlastfoot" => self.head_ends = count,
                _ => {}
            }
            i = at + 1;
            // Its arguments, of any kind.
            loop {
                let next = document.solid(i);
                if let Some(behind) = document.option(i).filter(|b| *b <= end) {
                    i = behind;
                } else if document.kind(next) == Some(Kind::Text)
                    && document.text(next).starts_with('(')
                    && document.text(next).ends_with(')')
                    && rule == "cmidrule"
                {
                    i = next + 1;
                } else if takes_groups(rule)
                    && let Some((_, behind)) = document.group(i).filter(|(_, b)| *b <= end)
                {
                    i = behind;
                } else {
                    break;
                }
            }
        }
    }

    fn row(&mut self, wholes: Vec<Range<usize>>, ending: Option<Range<usize>>) {
        let document = self.document;
        let mut cells = Vec::new();
        let mut column = 1;
        for (n, whole) in wholes.into_iter().enumerate() {
            let start = if n == 0 { self.rules(whole.start, whole.end) } else { whole.start };
            let whole = start..whole.end;
            let content = trimmed(document, whole.clone());
            let span = match document.command(content.start) {
                Some("multicolumn") if !content.is_empty() => number(document, content.start + 1).unwrap_or(1).max(1),
                _ => 1,
            };
            cells.push(Cell { column, span, content, whole });
            column = column.saturating_add(span);
        }
        let Some(cell) = cells.first() else { return };
        let mut first = plain(document, cell.content.clone());
        match self.covered.take() {
            Some((text, rows)) if cell.content.is_empty() => {
                first.clone_from(&text);
                self.covered = (rows > 1).then_some((text, rows - 1));
            }
            _ => {
                let multirow = (!cell.content.is_empty() && document.command(cell.content.start) == Some("multirow"))
                    .then(|| {
                        number(document, document.option(cell.content.start + 1).unwrap_or(cell.content.start + 1))
                    })
                    .flatten();
                self.covered = multirow.filter(|n| *n > 1).map(|n| (first.clone(), n - 1));
            }
        }
        self.rows.push(Row { cells, first, ending });
    }
}

/// Rules whose arguments stand in braces. Behind another rule a brace begins a cell.
fn takes_groups(rule: &str) -> bool {
    matches!(
        rule,
        "cmidrule"
            | "cline"
            | "specialrule"
            | "rowcolor"
            | "noalign"
            | "arrayrulecolor"
            | "hhline"
            | "input"
            | "rowfont"
    )
}

/// The number in the group at `i`.
fn number(document: &Document, i: usize) -> Option<usize> {
    let (inner, _) = document.group(i)?;
    document.source(inner).trim().parse().ok()
}

/// Without spaces and comments around it.
fn trimmed(document: &Document, tokens: Range<usize>) -> Range<usize> {
    let blank = |i: usize| matches!(document.kind(i), Some(Kind::Space | Kind::Comment));
    let (mut start, mut end) = (tokens.start, tokens.end);
    while start < end && blank(start) {
        start += 1;
    }
    while end > start && blank(end - 1) {
        end -= 1;
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(body: &str) -> (Document, Table) {
        let text =
            format!("\\begin{{table}}\\label{{tab:x}}\\begin{{tabular}}{{lrr}}{body}\\end{{tabular}}\\end{{table}}");
        let document = Document::new("p.tex", &text, &mut |_| Ok(None)).unwrap();
        let table = Table::find(&document, "tab:x", None).unwrap();
        (document, table)
    }

    /// First text, then column and content of each cell.
    fn shown(body: &str) -> Vec<String> {
        let (document, table) = table(body);
        let row = |row: &Row| {
            let cells: Vec<String> =
                row.cells.iter().map(|c| format!("{}={}", c.column, document.source(c.content.clone()))).collect();
            format!("{} | {}", row.first, cells.join(" | "))
        };
        table.rows.iter().map(row).collect()
    }

    #[test]
    fn rows_and_cells() {
        let body = "\\toprule\nModel & A \\& B & \\multicolumn{2}{c}{C} & D \\\\[2pt]\n\\cmidrule(lr){2-3}\\midrule\n\
             \\multirow{2}{*}{T5} & a % x & y \\\\\n  & b\\\\*\n & {x & y} & \\begin{tabular}{l}p\\\\q\\end{tabular} \\\\\n\
             Last & % nothing & here\n 7 \\\\ \\bottomrule\n";
        assert_eq!(
            shown(body),
            [
                "Model | 1=Model | 2=A \\& B | 3=\\multicolumn{2}{c}{C} | 5=D",
                "T5 | 1=\\multirow{2}{*}{T5} | 2=a | 3=b",
                "T5 | 1= | 2={x & y} | 3=\\begin{tabular}{l}p\\\\q\\end{tabular}",
                "Last | 1=Last | 2=7"
            ]
        );
        assert_eq!(table(body).1.header, 1);
    }

    #[test]
    fn a_last_row_needs_no_end_and_an_empty_one_is_none() {
        assert_eq!(shown("a & 1 \\\\ b & 2"), ["a | 1=a | 2=1", "b | 1=b | 2=2"]);
        assert_eq!(shown("a & 1 \\\\ \\hline"), ["a | 1=a | 2=1"]);
        assert_eq!(shown("a & 1 \\\\ [x] & 2 \\\\"), ["a | 1=a | 2=1", "[x] | 1=[x] | 2=2"]);
        assert!(shown("").is_empty());
    }

    #[test]
    fn rows_that_an_input_holds_are_rows_of_the_table() {
        let text = "\\begin{table}\\begin{tabular}{lr}a & 1 \\\\\n\\input{rows}\nc & 3 \\\\\n\\end{tabular}\\label{tab:x}\\end{table}";
        let mut read = |name: &str| Ok((name == "rows").then(|| ("rows.tex".to_owned(), "b & 2 \\\\\n".to_owned())));
        let document = Document::new("p.tex", text, &mut read).unwrap();
        let table = Table::find(&document, "tab:x", None).unwrap();
        let firsts: Vec<&str> = table.rows.iter().map(|r| r.first.as_str()).collect();
        assert_eq!(firsts, ["a", "b", "c"]);
        let cell = table.rows[1].cell(2).unwrap();
        let span = document.span(cell.content.clone()).unwrap();
        assert_eq!(
            (document.line_of(&span).0.as_str(), &document.sources[span.file].text[span.range]),
            ("rows.tex", "2")
        );
    }

    #[test]
    fn a_note_comes_behind_the_boxes_around_a_tabular() {
        for (before, behind) in [
            ("", ""),
            ("\\resizebox{\\textwidth}{!}{%\n", "}"),
            ("\\begin{adjustbox}{w}{\\small ", "}\\end{adjustbox}"),
        ] {
            let text = format!(
                "\\begin{{table}}\\label{{t}}{before}\\begin{{tabular}}{{l}}a\\\\\\end{{tabular}}{behind}|\\end{{table}}"
            );
            let document = Document::new("p.tex", &text, &mut |_| Ok(None)).unwrap();
            let at = Table::find(&document, "t", None).unwrap().behind;
            assert_eq!(document.text(at), "|", "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let (document, table) = table("a & 1 \\\\ a & 2 \\\\");
        assert!(table.row(&document, "a", None).unwrap_err().to_string().contains("two rows begin with `a`"));
        assert_eq!(table.row(&document, "a", Some("2")).unwrap().unwrap().cells[1].column, 2);
        assert!(table.row(&document, "b", None).unwrap().is_none());
        let error = Table::find(&document, "tab:y", None).unwrap_err().to_string();
        assert!(error.contains("no table has the label `tab:y`: the tables are tab:x"), "{error}");
    }
}
