//! Figures of small made-up studies: numbers, drawings, files, and what a section may say.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::record::{CellKey, Digest, Name, SeriesPoint};
use crate::report::render::tests::keep;
use crate::report::table::Grid;
use crate::report::table::tests::{build_now, spec as table_spec, table_7, two_seeds};

/// A cell with a series `val_perplexity`.
struct Run {
    key: CellKey,
    labels: BTreeMap<String, String>,
    found: Option<(RunRef, BTreeMap<String, Vec<SeriesPoint>>)>,
}

fn run(stage: &str, arm: Option<&str>, seed: u32, points: Option<&[(u64, f64)]>) -> Run {
    let name = |s: &str| Name::new(s).unwrap();
    let key =
        CellKey { study: name("m"), profile: name("quick"), stage: name(stage), arm: arm.map(name), seed: Some(seed) };
    let found = points.map(|points| {
        let points = points.iter().map(|&(step, value)| SeriesPoint { step, value, time_s: 0.0 }).collect();
        let digest = Digest::of_bytes(key.local_name().as_bytes());
        let reference = RunRef { key: key.clone(), fingerprint: digest.clone(), content: digest };
        (reference, BTreeMap::from([("val_perplexity".to_owned(), points)]))
    });
    Run { key, labels: BTreeMap::new(), found }
}

fn sources(runs: &[Run]) -> Vec<Source<'_>> {
    runs.iter().map(|r| Source { key: &r.key, labels: &r.labels, run: r.found.as_ref().map(|(a, b)| (a, b)) }).collect()
}

fn section() -> Value {
    json!({
        "key": "curves", "kind": "curves", "title": "Validation perplexity", "series": "val_perplexity",
        "y_label": "perplexity",
        "lines": [
            {"key": "baseline", "label": "Baseline", "stage": "train_baseline"},
            {"key": "monotonic", "label": "Monotonic & 中文", "stage": "train_monotonic"},
        ],
    })
}

fn runs() -> Vec<Run> {
    vec![
        run("train_baseline", None, 42, Some(&[(100, 30.0), (200, 20.0), (300, 10.0)])),
        run("train_baseline", None, 1337, Some(&[(100, 34.0), (200, 22.0), (300, 11.0)])),
        run("train_monotonic", None, 42, Some(&[(100, 50.0), (200, 40.0), (300, 42.0)])),
        run("train_monotonic", None, 1337, None),
    ]
}

const STAGES: [&str; 2] = ["train_baseline", "train_monotonic"];

fn built(section: &Value, runs: &[Run], grids: &[Grid]) -> Result<Figure, Vec<String>> {
    let tables: Vec<Value> = grids
        .iter()
        .map(|g| json!({"key": g.key, "columns": g.columns.iter().map(|c| json!({"key": c.key})).collect::<Vec<_>>()}))
        .collect();
    let spec = FigureSpec::parse(section, &STAGES, &tables).unwrap();
    build(&spec, &sources(runs), grids).map_err(|p| p.into_iter().map(|p| p.0).collect())
}

fn table() -> Grid {
    let mut section = table_7();
    section["columns"][1]["show"] = json!("mean_ci");
    build_now(&table_spec(&section), &two_seeds()).unwrap()
}

fn bars() -> Value {
    json!({"key": "attacks", "kind": "bars", "title": "Bars", "table": "foundation", "columns": ["ppl", "attack"]})
}

#[test]
fn curves_are_means_with_bands_over_common_steps() {
    let mut runs = runs();
    // A step that one run lacks is no step of the line.
    runs[1].found.as_mut().unwrap().1.get_mut("val_perplexity").unwrap().remove(1);
    let figure = built(&section(), &runs, &[]).unwrap();
    let Body::Curves(curves) = &figure.body else { panic!("{figure:?}") };
    assert_eq!((curves[0].n, curves[0].n_expected, curves[1].n, curves[1].n_expected), (2, 2, 1, 2));
    let points: Vec<(u64, f64, Option<(f64, f64)>)> =
        curves[0].points.iter().map(|p| (p.step, p.mean, p.band)).collect();
    assert_eq!(points, [(100, 32.0, Some((30.0, 34.0))), (300, 10.5, Some((10.0, 11.0)))]);
    assert_eq!(curves[1].points.iter().filter(|p| p.band.is_some()).count(), 0, "one run has no band");
    assert_eq!(figure.runs.len(), 3);
    assert_eq!(figure.caption, "Line: mean over seeds; band: from the lowest to the highest seed.");
    assert_eq!(
        String::from_utf8(figure.file(Format::Csv)).unwrap(),
        "step,baseline,baseline_lower,baseline_upper,monotonic,monotonic_lower,monotonic_upper\n\
         100,32.0,30.0,34.0,50.0,nan,nan\n200,nan,nan,nan,40.0,nan,nan\n300,10.5,10.0,11.0,42.0,nan,nan\n"
    );
}

#[test]
fn bands_are_what_they_say() {
    for (band, lower, upper) in [
        // Two values 30 and 34: sd 2.828, t interval 32 +- 12.706 * 2.828 / sqrt(2).
        ("sd", 32.0 - 8f64.sqrt(), 32.0 + 8f64.sqrt()),
        ("ci", 32.0 - 25.412_409_472_349_39, 32.0 + 25.412_409_472_349_39),
        ("range", 30.0, 34.0),
    ] {
        let mut section = section();
        section["band"] = json!(band);
        let figure = built(&section, &runs(), &[]).unwrap();
        let Body::Curves(curves) = &figure.body else { panic!() };
        let (a, b) = curves[0].points[0].band.unwrap();
        assert!((a - lower).abs() < 1e-9 && (b - upper).abs() < 1e-9, "{band}: {a} {b}");
    }
}

#[test]
fn bars_are_the_numbers_of_the_table() {
    let grid = table();
    let figure = built(&bars(), &[], std::slice::from_ref(&grid)).unwrap();
    let Body::Bars { groups, bars } = &figure.body else { panic!() };
    assert_eq!(groups.iter().map(|g| g.1.as_str()).collect::<Vec<_>>(), ["Perplexity (Clean)", "Attack Success (%)"]);
    let bar = bars[1].bars[0].as_ref().unwrap();
    let cell = &grid.rows[1].cells[1];
    assert_eq!(Some(bar.value), cell.mean);
    assert_eq!(bar.printed, "27.60");
    assert_eq!(bar.interval, cell.interval.map(|i| (i.lower, i.upper)));
    assert_eq!(figure.runs.len(), 4);
    let text = String::from_utf8(figure.file(Format::Csv)).unwrap();
    assert!(text.starts_with("index,group,baseline,baseline_minus,baseline_plus,baseline_n,monotonic,"), "{text}");
    // One column: its rows are the groups.
    let mut one = self::bars();
    one["columns"] = json!(["attack"]);
    let figure = built(&one, &[], &[grid]).unwrap();
    let Body::Bars { groups, bars } = &figure.body else { panic!() };
    assert_eq!((groups.len(), bars.len(), figure.y_label.as_str()), (2, 1, "Attack Success (%)"));
}

#[test]
fn peaks_and_ends_of_each_run() {
    let mut section = section();
    section["kind"] = json!("peak_to_final");
    section["peak"] = json!("lowest");
    let figure = built(&section, &runs(), &[]).unwrap();
    let Body::Peaks(peaks) = &figure.body else { panic!() };
    assert_eq!(peaks[0].runs, [(Some(42), 10.0, 10.0), (Some(1337), 11.0, 11.0)]);
    assert_eq!(peaks[1].runs, [(Some(42), 40.0, 42.0)]);
    assert_eq!(
        String::from_utf8(figure.file(Format::Csv)).unwrap(),
        "index,line,seed,peak,final\n0,baseline,42,10.0,10.0\n0,baseline,1337,11.0,11.0\n1,monotonic,42,40.0,42.0\n"
    );
    // Or of two columns of a table, paired by seed.
    let of_table = json!({"key": "p", "kind": "peak_to_final", "table": "foundation", "columns": ["ppl", "attack"]});
    let figure = built(&of_table, &[], &[table()]).unwrap();
    let Body::Peaks(peaks) = &figure.body else { panic!() };
    assert_eq!(peaks[0].runs, [(Some(42), 6.91, 69.0), (Some(1337), 6.93, 69.0)]);
}

#[test]
fn what_cannot_be_drawn_is_said() {
    for (edit, fragment) in [
        (json!({"series": "lr"}), "train_baseline/seed-42 has no series `lr`: it has val_perplexity"),
        (json!({"lines": [{"key": "a", "stage": "train_baseline", "arm": "x"}]}), "no expected cell of stage"),
    ] {
        let mut section = section();
        for (key, value) in edit.as_object().unwrap() {
            section[key] = value.clone();
        }
        let problems = built(&section, &runs(), &[]).unwrap_err();
        assert!(problems[0].contains(fragment), "{problems:?}");
    }
    let mut apart = runs();
    apart[1] = run("train_baseline", None, 1337, Some(&[(150, 1.0)]));
    assert!(built(&section(), &apart, &[]).unwrap_err()[0].contains("no step in common"));
    // Of two arms the seeds need not be the same.
    for seed in [42, 1337] {
        let mut twice = runs();
        twice[0] = run("train_baseline", Some("a"), 42, Some(&[(100, 1.0)]));
        twice[1] = run("train_baseline", Some("b"), seed, Some(&[(100, 2.0)]));
        let said = format!(
            "figure `{}`: line `baseline`: train_baseline/a/seed-42 and train_baseline/b/seed-{seed} are two runs for one \
             place: narrow it with `arm` or `labels`",
            section()["key"].as_str().unwrap()
        );
        assert_eq!(built(&section(), &twice, &[]).unwrap_err(), [said]);
    }
    let none = [run("train_baseline", None, 42, None), run("train_monotonic", None, 42, None)];
    assert!(built(&section(), &none, &[]).unwrap_err()[0].contains("no value to draw"));
    let spec = FigureSpec::parse(
        &bars(),
        &[],
        &[json!({"key": "foundation", "columns": [{"key": "ppl"}, {"key": "attack"}]})],
    );
    let problems = build(&spec.unwrap(), &[], &[]).unwrap_err();
    assert!(problems[0].0.contains("its table `foundation` was not made"), "{problems:?}");
}

#[test]
fn problems_of_a_section_have_places() {
    let tables = [json!({"key": "foundation", "columns": [{"key": "ppl"}, {"key": "attack"}]})];
    let said = |section: Value| -> String {
        let problems = FigureSpec::parse(&section, &STAGES, &tables).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].said()
    };
    let with = |mut section: Value, key: &str, value: Value| {
        section[key] = value;
        said(section)
    };
    assert!(with(section(), "titel", json!("x")).starts_with("titel: unknown key `titel` in a figure"));
    assert!(
        with(section(), "kind", json!("pie")).starts_with("kind: `kind` of a figure cannot be read: unknown variant")
    );
    assert!(with(section(), "key", json!("../x")).starts_with("key: "));
    assert!(with(section(), "level", json!(95)).starts_with("level: "));
    assert!(with(section(), "table", json!("foundation")).contains("made of a series"));
    assert!(with(section(), "lines", json!([])).contains("has no `lines`"));
    assert!(with(section(), "lines", json!([{"key": "a", "stage": "trian"}])).starts_with("lines.0.stage: "));
    assert!(with(section(), "lines", json!([{"key": "a", "stag": "x"}])).starts_with("lines.0.stag: unknown key"));
    assert!(with(section(), "lines", json!("x")).starts_with("lines: `lines` must be an array"));
    assert!(with(bars(), "table", json!("x")).starts_with("table: figure `attacks` shows the unknown table `x`"));
    assert!(with(bars(), "columns", json!(["pl"])).starts_with("columns.0: "));
    assert!(with(bars(), "columns", json!(["ppl", "ppl"])).contains("named twice"));
    assert!(with(bars(), "series", json!("loss")).contains("made of a table"));
    assert!(said(json!({"key": "a", "kind": "peak_to_final"})).contains("say one of both"));
    assert!(said(json!({"kind": "bars", "table": "foundation", "columns": ["ppl"]})).contains("has no `key`"));
    assert!(said(json!(3)).contains("[[figure]]"));
    let spec = FigureSpec::parse(&section(), &STAGES, &tables).unwrap();
    let again = serde_json::to_value(&spec).unwrap();
    assert_eq!(FigureSpec::parse(&again, &STAGES, &tables).unwrap(), spec);
}

/// What each figure is, by name.
fn examples() -> Vec<Figure> {
    let mut peaks = section();
    peaks["kind"] = json!("peak_to_final");
    peaks["key"] = json!("peaks");
    peaks["title"] = json!("From the peak to the end");
    let curves = built(&section(), &runs(), &[]).unwrap();
    vec![curves, built(&bars(), &[], &[table()]).unwrap(), built(&peaks, &runs(), &[]).unwrap()]
}

/// Texts of an SVG, unescaped enough for these tests.
fn texts(svg: &str) -> Vec<String> {
    svg.split("<text")
        .skip(1)
        .filter_map(|t| Some(t.split_once('>')?.1.split("</text>").next()?.replace('\u{a0}', " ")))
        .collect()
}

#[test]
fn svg_holds_the_numbers_and_nothing_that_a_page_would_run() {
    let [curves, bars, peaks] = examples().try_into().unwrap();
    let svg = curves.svg();
    let said = texts(&svg);
    for text in [
        "Validation perplexity",
        "perplexity",
        "step",
        "100",
        "300",
        "Baseline (n = 2)",
        "Monotonic &amp; 中文 (n = 1 of 2)",
    ] {
        assert!(said.iter().any(|t| t == text), "{text}: {said:?}");
    }
    let said = texts(&bars.svg());
    for text in ["6.92", "27.60", "69.0", "20.0", "Pythia (Baseline)", "Attack Success (%)"] {
        assert!(said.iter().any(|t| t == text), "{text}: {said:?}");
    }
    assert!(texts(&peaks.svg()).contains(&"final".to_owned()));
    for figure in [curves, bars, peaks] {
        let svg = figure.svg();
        for bad in ["style=", " id=", "href", "<script", "<style", "NaN", "inf"] {
            assert!(!svg.contains(bad), "{bad}: {svg}");
        }
        assert_eq!(figure.svg(), svg, "the same numbers, the same bytes");
    }
}

/// Two lines that print in one grey are told apart by dashes and marks, two bars by hatching.
#[test]
fn figures_can_be_read_without_colour() {
    let without_colour = |svg: &str| {
        let mut out = String::new();
        for (i, part) in svg.split('#').enumerate() {
            out.push_str(if i == 0 { part } else { &part[6..] });
        }
        out
    };
    let [curves, bars, _] = examples().try_into().unwrap();
    let lines: Vec<String> = without_colour(&curves.svg())
        .lines()
        .filter(|l| l.contains("stroke-width=\"2\""))
        .map(|l| l.split("stroke=").nth(1).unwrap().to_owned())
        .collect();
    // A line of the legend and one of the plot for each curve: equal in pairs, different between them.
    assert_eq!(lines.len(), 4);
    let distinct: std::collections::BTreeSet<&String> = lines.iter().collect();
    assert_eq!(distinct.len(), 2, "{lines:?}");
    let hatched = bars.svg().lines().filter(|l| l.contains("stroke=\"#ffffff\" stroke-width=\"1.5\"")).count();
    assert!(hatched > 5, "{hatched}");
}

/// Reads a PNG back: width, height, and grey of each dot.
fn dots(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let map = tiny_skia::Pixmap::decode_png(bytes).unwrap();
    let grey =
        map.pixels().iter().map(|p| ((u32::from(p.red()) + u32::from(p.green()) + u32::from(p.blue())) / 3) as u8);
    (map.width(), map.height(), grey.collect())
}

#[test]
fn png_shows_its_texts() {
    let [curves, bars, peaks] = examples().try_into().unwrap();
    for figure in [&curves, &bars, &peaks] {
        let bytes = figure.file(Format::Png);
        keep(&format!("figure-{}.png", figure.key), &bytes);
        keep(&format!("figure-{}.svg", figure.key), figure.svg().as_bytes());
        assert_eq!(bytes, figure.file(Format::Png));
        let (width, height, _) = dots(&bytes);
        assert!(width == 1280 && height > 600, "{width} x {height}");
    }
    // The band of dots where the title stands is dark in places, and white without a title.
    let title_dots = |figure: &Figure| {
        let (width, _, grey) = dots(&figure.file(Format::Png));
        let rows = 26..52;
        rows.flat_map(|y| grey[(y * width) as usize..(y * width + 500) as usize].to_vec()).filter(|g| *g < 100).count()
    };
    let named = title_dots(&curves);
    assert!(named > 400, "{named}");
    let other = Figure { title: "...".into(), ..curves.clone() };
    assert!(title_dots(&other) < named / 4);
    // What the font lacks stands as its code point, and takes place.
    let foreign = Figure { title: "中".into(), ..curves };
    assert!(title_dots(&foreign) > 100);
}

/// The LaTeX of the manual, compiled with the files of these examples.
#[test]
fn the_examples_of_the_manual_compile_with_pgfplots() {
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/figures.md")).unwrap();
    let blocks: Vec<&str> = manual.split("```latex\n").skip(1).filter_map(|b| b.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    let preamble = "\\documentclass{article}\n\\usepackage{pgfplots}\n\\pgfplotsset{compat=1.18}\n\
                    \\usepgfplotslibrary{fillbetween}\n\\begin{document}\n";
    let dir = tempfile::tempdir().unwrap();
    for figure in examples() {
        std::fs::write(dir.path().join(format!("{}.csv", figure.key)), figure.file(Format::Csv)).unwrap();
    }
    std::fs::write(dir.path().join("page.tex"), format!("{preamble}{}\n\\end{{document}}\n", blocks.join("\n\n")))
        .unwrap();
    let run = std::process::Command::new("pdflatex")
        .args(["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"])
        .current_dir(dir.path())
        .output()
        .expect("pdflatex is not installed: `scripts/setup` installs it");
    let log = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && !log.contains("Missing character"), "{log}");
    keep("figures-pgfplots.pdf", &std::fs::read(dir.path().join("page.pdf")).unwrap());
}

#[test]
fn a_million_points_make_a_small_file_that_keeps_its_extremes() {
    let points: Vec<(u64, f64)> = (0..1_000_000).map(|i| (i, if i == 777_777 { 99.0 } else { 1.0 })).collect();
    let runs = [run("train_baseline", None, 42, Some(&points))];
    let mut section = section();
    section["lines"] = json!([{"key": "a", "stage": "train_baseline"}]);
    let figure = built(&section, &runs, &[]).unwrap();
    let svg = figure.svg();
    assert!(svg.len() < 60_000, "{}", svg.len());
    // The axis goes from 0 to 100; the peak stands 1 % below its upper end.
    let top =
        svg.split("M").flat_map(|p| p.split('L')).filter_map(|p| p.split_once(' ')?.1.split('"').next()?.parse().ok());
    let top: f64 = top.fold(f64::INFINITY, f64::min);
    assert!(top < 70.0, "{top}");
}

#[test]
fn odd_values_are_drawn_somewhere_or_left_out() {
    for points in [
        vec![(1, 0.0)],
        vec![(1, f64::MAX), (2, -f64::MAX)],
        vec![(1, 1e-300), (2, 2e-300)],
        vec![(u64::MAX, 3.0), (0, f64::MIN_POSITIVE)],
    ] {
        for scale in ["linear", "log"] {
            let runs = [run("train_baseline", None, 42, Some(&points))];
            let mut section = section();
            section["lines"] = json!([{"key": "a", "stage": "train_baseline"}]);
            section["scale"] = json!(scale);
            // No positive value on a logarithmic axis is a problem, told; all else is drawn.
            let Ok(figure) = built(&section, &runs, &[]) else { continue };
            let svg = figure.svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?} {scale}");
            assert!(!figure.file(Format::Png).is_empty());
        }
    }
}

#[test]
fn hostile_texts_stay_texts() {
    let hostile = "</svg></script><img src=x onerror=alert(1)> \u{1b}[31m \u{202e}x \0 \u{ffff} & \"'";
    let mut section = section();
    section["title"] = json!(hostile);
    section["y_label"] = json!(hostile);
    section["lines"][0]["label"] = json!(hostile);
    let svg = built(&section, &runs(), &[]).unwrap().svg();
    assert_eq!(svg.matches("</svg>").count(), 1);
    for bad in ["<img", "<script", "\u{1b}", "\u{202e}", "\0", "\u{ffff}"] {
        assert!(!svg.contains(bad), "{bad:?}");
    }
    assert!(svg.contains("[U+001B]") && svg.contains("&lt;img"));
}

#[test]
fn what_the_table_drops_is_not_drawn() {
    let mut section = table_7();
    section["partial"] = json!("drop");
    let mut cells = two_seeds();
    // An evaluation of one seed is missing; its HotFlip run is there.
    cells[3].run = Err("not sealed".into());
    let grid = build_now(&table_spec(&section), &cells).unwrap();
    assert!(grid.rows[1].cells[1].value.is_some(), "the value is known and dropped");
    let figure = built(&bars(), &[], std::slice::from_ref(&grid)).unwrap();
    let Body::Bars { bars, .. } = &figure.body else { panic!() };
    assert!(bars.iter().all(|row| row.bars[0].is_none() && row.bars[1].is_some()), "{bars:?}");
    let peaks = json!({"key": "p", "kind": "peak_to_final", "table": "foundation", "columns": ["ppl", "attack"]});
    assert!(built(&peaks, &[], &[grid]).unwrap_err()[0].contains("there is no value to draw"));
}

#[test]
fn bars_of_ratios_have_the_error_of_the_table() {
    let mut section = table_7();
    section["columns"][2] =
        json!({"key": "times", "label": "Times", "ratio": {"of": "attack", "to_column": "ppl"}, "show": "mean_sd"});
    let drawn = |section: &Value| {
        let grid = build_now(&table_spec(section), &two_seeds()).unwrap();
        let mut bars = bars();
        bars["columns"] = json!(["times", "attack"]);
        bars["error"] = json!("sd");
        (built(&bars, &[], std::slice::from_ref(&grid)), grid)
    };
    let (figure, grid) = drawn(&section);
    let figure = figure.unwrap();
    let Body::Bars { bars, .. } = &figure.body else { panic!() };
    let (bar, cell) = (bars[1].bars[0].as_ref().unwrap(), &grid.rows[1].cells[2]);
    assert_ne!(cell.spread, cell.sd, "the sd of the ratios is another number");
    let (lower, upper) = bar.interval.unwrap();
    let half = cell.spread.unwrap();
    assert!((bar.value - lower - half).abs() < 1e-12 && (upper - bar.value - half).abs() < 1e-12, "{bar:?} {cell:?}");
    assert!(
        figure
            .caption
            .ends_with("a sample standard deviation to both sides; of a ratio, as it is propagated from both."),
        "{}",
        figure.caption
    );
    // Where the table prints no error of the ratio there is none to draw.
    section["columns"][2]["show"] = json!("mean");
    let problems = drawn(&section).0.unwrap_err();
    assert_eq!(
        problems,
        [
            "figure `attacks`: row `baseline`, column `times`: the table prints no standard deviation of it: give the column \
             `show = \"mean_sd\"`, or say `error = \"ci\"` or `error = \"none\"`"
        ]
    );
}
