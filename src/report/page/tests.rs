//! The page in a browser: nothing goes wrong in it, it sorts, it fits a telephone, and the public one tells nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::*;
use crate::report::figure::{Bar, Bars, Body, Curve, Peaks, Point};
use crate::report::render::tests::{HOSTILE, grouped, hostile, keep};

/// What must not leave the house.
const CANARIES: [&str; 6] =
    ["canary-host", "canary-user", "/home/canary", "canary-job-4711", "2026-01-02", "canary-code"];

fn figures() -> Vec<Figure> {
    let all = HOSTILE.join(" ");
    let curve = |key: &str, label: &str, high: f64| Curve {
        key: key.into(),
        label: label.into(),
        n: 3,
        n_expected: 3,
        points: (0..60)
            .map(|i| {
                let mean = high * (-f64::from(i) / 20.0).exp() + 6.0;
                Point { step: 10 * i as u64, mean, band: Some((0.9 * mean, 1.1 * mean)) }
            })
            .collect(),
    };
    let bar = |value: f64| {
        Some(Bar { value, printed: format!("{value:.1}"), interval: Some((value - 6.0, value + 4.0)), n: 3 })
    };
    let figure = |key: &str, body: Body| Figure {
        key: key.into(),
        title: format!("A figure of {key}"),
        caption: "Line: mean over seeds.".into(),
        x_label: "step".into(),
        y_label: "perplexity".into(),
        log: false,
        body,
        runs: vec![],
    };
    let bars = |key: &str, label: &str, values: [f64; 3]| Bars {
        key: key.into(),
        label: label.into(),
        bars: values.into_iter().map(bar).collect(),
    };
    let mut all_hostile = figure("hostile", Body::Curves(vec![curve("a", &all, 9.0)]));
    all_hostile.title = all.clone();
    all_hostile.caption = all;
    vec![
        figure(
            "curves",
            Body::Curves(vec![
                curve("a", "Baseline", 40.0),
                curve("b", "Monotonic", 60.0),
                curve("c", "Prefix", 50.0),
                curve("d", "Causal", 30.0),
            ]),
        ),
        figure(
            "bars",
            Body::Bars {
                groups: ["HotFlip", "UAT", "Random"].map(|g| (g.to_lowercase(), g.to_owned())).to_vec(),
                bars: vec![
                    bars("a", "Baseline", [69.0, 40.0, 3.0]),
                    bars("b", "Monotonic", [20.0, 12.0, 2.5]),
                    bars("c", "Prefix", [33.0, 18.0, 2.0]),
                ],
            },
        ),
        figure(
            "peaks",
            Body::Peaks(vec![Peaks {
                key: "a".into(),
                label: "Baseline".into(),
                n_expected: 3,
                runs: vec![(Some(1), 0.9, 0.6), (Some(2), 0.8, 0.65), (Some(3), 0.85, 0.7)],
            }]),
        ),
        all_hostile,
    ]
}

fn example() -> Page {
    let digest = "347b013a6eab6022fa9120c511574a14db87b11e8c0a38b1c7c5da40434c08b4";
    let cell = |stage: &str, seed: u32, state: &str| Cell {
        name: format!("{stage}/seed-{seed}"),
        stage: stage.into(),
        arm: None,
        seed: Some(seed),
        state: state.into(),
        done: state == "done",
        detail: format!("on canary-host in /home/canary {}", HOSTILE[1]),
        fingerprint: Some(digest.into()),
        content: Some(digest.into()),
        origin: Some(Origin {
            jobs: vec!["canary-job-4711".into()],
            host: "canary-host".into(),
            attempts: 2,
            wall_s: f64::from(seed),
            code: "canary-code".into(),
            sealed_at: "2026-01-02 03:04:05 UTC".into(),
        }),
    };
    let mut tables = vec![grouped(), hostile()];
    tables[1].key = "hostile".into();
    Page {
        study: "monotone".into(),
        profile: "quick".into(),
        version: "0.1.0".into(),
        as_of: "2026-01-02 03:04:05 UTC".into(),
        problems: vec!["cannot ask canary-host".into()],
        cells: vec![
            cell("evaluate", 1337, "done"),
            cell("evaluate", 42, "done"),
            cell("hotflip", 42, "failed"),
            cell("evaluate", 2024, "running"),
        ],
        tables,
        figures: figures(),
        gates: vec![Gate {
            name: "gap".into(),
            verdict: "stop".into(),
            reason: "seen on canary-host".into(),
            conditions: vec![
                Condition {
                    name: "base_rate".into(),
                    bounds: "at most 0.3".into(),
                    found: "0.41".into(),
                    holds: false,
                },
                Condition { name: "n".into(), bounds: "at least 2".into(), found: "2".into(), holds: true },
            ],
            inputs: vec![
                ("evaluate/seed-42".into(), Ok(digest.into())),
                ("evaluate/seed-1".into(), Err("on canary-host".into())),
            ],
            evidence: digest.into(),
            confirmed: Some("canary-user".into()),
        }],
        cost: Some(Cost {
            head: ["stage", "gpu-hours", "expected"].map(str::to_owned).to_vec(),
            rows: vec![
                ["2 train", ">=12.50", "10.00"].map(str::to_owned).to_vec(),
                ["all", "9.00", "10.00"].map(str::to_owned).to_vec(),
            ],
            note: "Counted by sacct -D.".into(),
        }),
    }
}

fn browser() -> PathBuf {
    let found = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    found
        .map(|dir| dir.join("chromium"))
        .find(|file| file.exists())
        .expect("chromium is not installed: `scripts/setup` installs it (Debian package chromium)")
}

/// Opens a page without a window; what the browser prints on its standard output, and all that went to its console.
fn open(dir: &Path, html: &str, width: u32, options: &[&str]) -> (String, Vec<String>) {
    let file = dir.join("page.html");
    std::fs::write(&file, html).unwrap();
    let output = Command::new("timeout")
        .arg("60")
        .arg(browser())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-extensions", "--disable-background-networking", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(format!("--window-size={width},1000"))
        .args(options)
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let console = said.lines().filter(|l| l.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

/// Runs a script of the test in the page, beside its own, and returns what it leaves as the page's title.
fn ask(dir: &Path, html: &str, options: &[&str], script: &str) -> Value {
    let script = format!("\ndocument.title = JSON.stringify((() => {{{script}}})());");
    let allowed = crate::report::render::html::allowed(&script);
    let html = html.replacen("script-src ", &format!("script-src {allowed} "), 1);
    let html = html.replacen("</body>", &format!("<script>{script}</script></body>"), 1);
    let (page, console) = open(dir, &html, 1280, &[&["--dump-dom"], options].concat());
    assert_eq!(console, Vec::<String>::new());
    let title = page.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
    let title = title.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    serde_json::from_str(&title).unwrap_or_else(|e| panic!("{e}: {title}"))
}

#[test]
fn nothing_goes_wrong_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    for audience in [Audience::Own, Audience::Public] {
        let html = page(&example(), audience);
        let (seen, console) = open(dir.path(), &html, 1280, &["--dump-dom"]);
        assert_eq!(console, Vec::<String>::new(), "{audience:?}");
        assert!(seen.contains("aria-sort=\"none\""), "the page's own script did not run");
    }
    // A table of its own, and a figure in a page that allows nothing.
    let table = crate::report::render::render(&hostile(), crate::report::render::Format::Html);
    let bare = head("a figure", "", &[]) + "<body>" + &figures()[3].svg() + "</body></html>";
    for html in [table, bare] {
        let (_, console) = open(dir.path(), &html, 1280, &["--dump-dom"]);
        assert_eq!(console, Vec::<String>::new(), "{html}");
    }
    // The console is looked at in earnest: what the policy forbids is told there.
    let forbidden = page(&example(), Audience::Own).replacen("<main>", "<main><img src=\"http://example.org/x\">", 1);
    let (_, console) = open(dir.path(), &forbidden, 1280, &["--dump-dom"]);
    assert!(console.iter().any(|l| l.contains("Content Security Policy")), "{console:?}");
}

#[test]
fn the_page_is_light_or_dark_as_its_reader_likes() {
    let dir = tempfile::tempdir().unwrap();
    let html = page(&example(), Audience::Own);
    let script = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color, \
                  getComputedStyle(document.querySelector('figure svg')).backgroundColor];";
    // Chromium's setting: 0 is dark. Figures stay black on white.
    let dark = ask(dir.path(), &html, &["--blink-settings=preferredColorScheme=0"], script);
    assert_eq!(dark, serde_json::json!(["rgb(22, 24, 27)", "rgb(232, 232, 232)", "rgb(255, 255, 255)"]));
    let light = ask(dir.path(), &html, &["--blink-settings=preferredColorScheme=1"], script);
    assert_eq!(light, serde_json::json!(["rgb(255, 255, 255)", "rgb(26, 26, 26)", "rgb(255, 255, 255)"]));
}

#[test]
fn hostile_texts_are_shown_and_do_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let html = page(&example(), Audience::Own);
    let found = ask(
        dir.path(),
        &html,
        &[],
        "return {images: document.images.length, scripts: document.scripts.length, links: \
         [...document.links].filter((a) => !a.getAttribute('href').startsWith('#')).length, \
         text: document.body.innerText.includes('<\\/script><img src=x onerror=alert(1)>'), \
         bidi: /[\\u0000\\u001b\\u202a-\\u202e\\u2066-\\u2069]/.test(document.body.textContent)};",
    );
    // The page's script, and this one.
    assert_eq!(found, serde_json::json!({"images": 0, "scripts": 2, "links": 0, "text": true, "bidi": false}));
}

#[test]
fn columns_sort_and_sources_open() {
    let dir = tempfile::tempdir().unwrap();
    let html = page(&example(), Audience::Own);
    let found = ask(
        dir.path(),
        &html,
        &[],
        "const column = (box, i) => [...box.querySelector('table').tBodies].flatMap((b) => [...b.rows]).filter((r) => r.cells.length > 2).map((r) => r.cells[i].textContent);\
         const cells = document.querySelector('#cells .sortable'); const heads = cells.querySelectorAll('thead th');\
         heads[2].click(); const up = column(cells, 2); heads[2].click(); const down = column(cells, 2);\
         const grid = document.querySelector('#tables .sortable'); const head = grid.querySelectorAll(':scope > table > thead > tr:last-child > th')[2]; head.click(); head.click();\
         const cost = document.querySelector('#cost .sortable'); cost.querySelectorAll('thead th')[1].click();\
         const all = document.querySelectorAll('#tables td > details'); all[1].querySelector('summary').click();\
         return {up, down, rows: column(grid, 0), cost: column(cost, 0), open: all[1].open,\
         panel: all[1].querySelector('.why').innerText.includes('canary-job-4711'),\
         shown: all[1].querySelector('.why').getBoundingClientRect().bottom <= innerHeight};",
    );
    assert_eq!(found["up"], serde_json::json!(["42", "42", "1337", "2024"]));
    assert_eq!(found["down"], serde_json::json!(["2024", "1337", "42", "42"]));
    // Rows stay in their groups.
    assert_eq!(found["rows"], serde_json::json!(["Seconda", "First", "Third"]));
    assert_eq!(found["cost"], serde_json::json!(["all", "2 train"]));
    assert_eq!(
        (&found["open"], &found["panel"], &found["shown"]),
        (&Value::Bool(true), &Value::Bool(true), &Value::Bool(true))
    );
}

#[test]
fn the_page_fits_a_telephone() {
    let dir = tempfile::tempdir().unwrap();
    let html = page(&example(), Audience::Own);
    for width in [1280, 400] {
        let script = format!(
            "document.documentElement.style.width = '{width}px'; return [document.body.scrollWidth, document.body.clientWidth];"
        );
        let found = ask(dir.path(), &html, &[], &script);
        assert!(found[0].as_u64() <= Some(width), "{width}: {found}");
        assert!(found[0] == found[1], "{width}: {found}");
    }
    // Chromium's windows are at least 500 wide: the narrow look is that of a frame of 400.
    let frame = |width: u32| {
        format!(
            "<!DOCTYPE html><meta charset=utf-8><style>body{{margin:0}}</style><iframe src=\"inner.html\" width={width} height=4000 frameborder=0></iframe>"
        )
    };
    std::fs::write(dir.path().join("inner.html"), &html).unwrap();
    for (name, html, width) in [("page-1280.png", html.clone(), 1280), ("page-400.png", frame(400), 400)] {
        let picture = dir.path().join(name);
        let option = format!("--screenshot={}", picture.display());
        let size = format!("--window-size={width},4000");
        let (_, console) = open(dir.path(), &html, width, &[&option, &size]);
        assert_eq!(console, Vec::<String>::new());
        let bytes = std::fs::read(&picture).unwrap();
        let map = tiny_skia::Pixmap::decode_png(&bytes).unwrap();
        let dark =
            map.pixels().iter().filter(|p| u32::from(p.red()) + u32::from(p.green()) + u32::from(p.blue()) < 300);
        assert!(dark.count() > 5000, "{name} is empty");
        keep(name, &bytes);
    }
    keep("page.html", html.as_bytes());
}

#[test]
fn the_public_page_tells_digests_only() {
    let own = page(&example(), Audience::Own);
    let public = page(&example(), Audience::Public);
    for canary in CANARIES {
        assert!(own.contains(canary), "{canary} is not even on our own page");
        assert!(!public.contains(canary), "{canary}");
    }
    // Digests are there.
    for there in ["347b013a6eab", "base_rate", "12.50", "Confirmed."] {
        assert!(public.contains(there), "{there}");
    }
}

#[test]
fn the_policy_names_what_stands_in_the_page() {
    let html = page(&example(), Audience::Own);
    let policy = html.split("content=\"default-src").nth(1).unwrap().split("\">").next().unwrap();
    assert!(policy.starts_with(" 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    // No attribute leads out, and none holds a style or a handler.
    let tags = html
        .split('<')
        .skip(1)
        .filter_map(|t| t.split('>').next())
        .filter(|t| t.starts_with(|c: char| c.is_ascii_lowercase()));
    let mut count = 0;
    for tag in tags.filter(|t| !t.starts_with("svg ")) {
        count += 1;
        for bad in [" style=", " src=", " onclick=", " onerror=", "javascript:"] {
            assert!(!tag.contains(bad) || tag.contains("title=\""), "{tag}");
        }
        assert!(!tag.contains(" href=") || tag.contains(" href=\"#"), "{tag}");
    }
    assert!(count > 500, "{count}");
}

#[test]
fn a_run_of_another_study_has_not_the_job_of_ours() {
    let mut own = example();
    own.tables.truncate(1);
    own.figures.clear();
    own.gates.clear();
    let runs = |tables: &mut [Grid], study: &str| {
        for cell in tables.iter_mut().flat_map(|g| &mut g.rows).flat_map(|r| &mut r.cells) {
            for run in &mut cell.runs {
                std::sync::Arc::make_mut(run).key.study = crate::record::Name::new(study).unwrap();
            }
        }
    };
    let told = |page: &Page| tables(page, true).matches("canary-job-4711").count();
    runs(&mut own.tables, "monotone");
    assert!(told(&own) > 0, "its own runs have their jobs");
    assert!(!tables(&own, true).contains("<th>monotone/quick/"));
    runs(&mut own.tables, "other");
    assert_eq!(told(&own), 0);
    assert!(tables(&own, true).contains("<th>other/quick/evaluate/seed-42</th>"), "{}", tables(&own, true));
}
