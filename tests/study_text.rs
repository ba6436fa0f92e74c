//! Study files as text: the shipped ones are sound and documented, and no text panics.

use std::path::PathBuf;

use proptest::prelude::*;
use seedbed::record::Name;
use seedbed::stages::{Spec, all_specs};
use seedbed::workflow::study::{self, StudyError};

use super::study::{ARMS, COMMAND, GOOD, SPECS, write};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every study and cluster file of the repository is sound, under every profile it has.
#[test]
fn the_shipped_files_are_sound() {
    let toml = |dir: &str| -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(repository(dir))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "toml"))
            .collect();
        files.sort();
        files
    };
    let studies = toml("configs");
    assert!(studies.iter().any(|f| f.ends_with("hello.toml")));
    for file in studies {
        let profiles = match study::load(&file, None, all_specs()) {
            Ok(study) => study.profiles,
            // Those that have profiles say so: the list is in the help.
            Err(StudyError::Problems(problems)) => {
                assert_eq!(problems.len(), 1, "{problems:#?}");
                assert!(problems[0].message.contains("none was chosen"), "{problems:#?}");
                let quoted = problems[0].help.split('`').filter_map(|w| w.strip_prefix("--profile "));
                quoted.map(|w| Name::new(w).unwrap()).collect()
            }
            Err(other) => panic!("{other}"),
        };
        for profile in profiles {
            match study::load(&file, Some(profile.as_str()), all_specs()) {
                Ok(_) => {}
                // Models and text that are the user's to bring.
                Err(StudyError::Problems(problems)) => {
                    let others = problems.iter().filter(|p| !p.message.contains("which is not there"));
                    assert_eq!(others.count(), 0, "{problems:#?}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    for file in toml("configs/clusters") {
        let cluster = study::load_cluster(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(Some(cluster.name.as_str()), file.file_stem().and_then(|s| s.to_str()));
        assert_eq!(study::find_cluster(cluster.name.as_str(), &repository("configs/hello.toml")), file);
    }
}

#[test]
fn a_new_study_is_sound_and_bears_its_name() {
    let text = study::new_study(&Name::new("my-study.2").unwrap());
    let (_dir, file) = write(&text);
    let study = study::load(&file, None, all_specs()).unwrap();
    assert_eq!(study.name.as_str(), "my-study.2");
    assert!(!text.contains("hello"), "{text}");
}

/// The tables of parameters in the documentation are those of the kinds.
/// `SEEDBED_UPDATE_DOCS=1` writes them anew.
#[test]
fn the_documented_parameters_are_those_of_the_kinds() {
    let file = repository("docs/study-file.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (begin, end) = ("<!-- kinds: begin -->\n", "<!-- kinds: end -->\n");
    let (before, rest) = text.split_once(begin).unwrap();
    let (between, after) = rest.split_once(end).unwrap();
    let wanted = format!("\n{}\n", study::kinds_markdown(all_specs()));
    if std::env::var_os("SEEDBED_UPDATE_DOCS").is_some() {
        std::fs::write(&file, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
    } else {
        assert_eq!(between, wanted, "run `SEEDBED_UPDATE_DOCS=1 cargo test the_documented_parameters`");
    }
}

/// What is said about any text: nothing panics, and a problem has a place in the text.
fn any_text(text: &str, profile: Option<&str>, specs: &[&'static Spec]) -> Option<Vec<study::Problem>> {
    let (_dir, file) = write(text);
    let problems = match study::load(&file, profile, specs) {
        Ok(_) => return None,
        Err(StudyError::Problems(problems)) => problems,
        Err(other) => panic!("{other}"),
    };
    assert!(!problems.is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    let mut last = (0, 0);
    for problem in &problems {
        assert!(problem.line >= 1 && problem.line <= lines.len(), "{problem}");
        assert!(problem.column >= 1 && problem.column <= lines[problem.line - 1].chars().count() + 1, "{problem}");
        assert!(!problem.to_string().chars().any(char::is_control), "{problem}");
        assert!((problem.line, problem.column) >= last, "not in order: {problems:#?}");
        last = (problem.line, problem.column);
    }
    Some(problems)
}

/// Values that a study may not expect.
const HOSTILE: &[&str] = &[
    "0",
    "-1",
    "9223372036854775807",
    "99999999999999999999",
    "1e308",
    "-0.0",
    "nan",
    "true",
    "\"\"",
    "\"$(touch x)\"",
    "\"a\\nb\"",
    "\"../..\"",
    "'; rm -rf /'",
    "\"\\u202e\"",
    "[]",
    "[[]]",
    "{}",
    "[{}]",
    "[1, \"a\", {}]",
    "{a = {b = {c = [1]}}}",
    "1979-05-27T07:32:00Z",
    "\"setup\"",
    "[\"setup\", \"setup\"]",
    "\"999999999:59:59\"",
    "\"999999999999G\"",
    "[\"arm\", \"seed\"]",
    "[{name = \"x\", params = {}}]",
    "4294967295",
    "\"quick\"",
];

/// Changes the value behind one `=`, or one line, so that most results are still TOML.
fn mutate(text: &str, steps: &[(usize, usize, usize)]) -> String {
    let mut lines: Vec<String> = text.lines().filter(|l| !l.trim_start().starts_with('#')).map(str::to_owned).collect();
    for &(how, at, with) in steps {
        if lines.is_empty() {
            break;
        }
        let at = at % lines.len();
        let line = lines[at].clone();
        match how % 5 {
            0 | 1 => {
                // The value of a pair, on a line of its own or inside an inline table.
                let pairs: Vec<usize> = line.match_indices('=').map(|(i, _)| i).collect();
                if let Some(&from) = pairs.get(with / HOSTILE.len() % pairs.len().max(1)) {
                    let rest = &line[from + 1..];
                    let depth = |c: char, d: i32| d + i32::from("[{".contains(c)) - i32::from("]}".contains(c));
                    let mut d = 0;
                    let end = rest
                        .char_indices()
                        .find(|(_, c)| {
                            let stop = d == 0 && ",}#".contains(*c) && !pairs.is_empty();
                            d = depth(*c, d);
                            stop
                        })
                        .map_or(rest.len(), |(i, _)| i);
                    lines[at] = format!("{}= {}{}", &line[..from], HOSTILE[with % HOSTILE.len()], &rest[end..]);
                }
            }
            2 => {
                lines.remove(at);
            }
            3 => {
                let other = with % lines.len();
                lines.swap(at, other);
            }
            _ => {
                let other = with % lines.len();
                let copy = lines[other].clone();
                lines.insert(at, copy);
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_dir, file) = write("");
        std::fs::write(&file, &bytes).unwrap();
        prop_assert!(study::load(&file, Some("quick"), SPECS).is_err());
        prop_assert!(study::load_cluster(&file).is_err());
    }

    #[test]
    fn no_toml_like_text_panics(text in "(\\[|\\]|\\{|\\}|=|,|\\.|\"|'|\n|stage|study|profile|name|run|params|arms|seeds|1|-|quick|é| |\u{202e}){0,120}") {
        any_text(&text, Some("quick"), SPECS);
    }

    #[test]
    fn no_change_of_a_study_panics(steps in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..6)) {
        for profile in [None, Some("quick"), Some("full")] {
            any_text(&mutate(GOOD, &steps), profile, SPECS);
        }
        any_text(&mutate(ARMS, &steps), None, SPECS);
        any_text(&mutate(COMMAND, &steps), None, SPECS);
    }

    #[test]
    fn no_change_of_the_shipped_study_panics(
        steps in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..8),
    ) {
        any_text(&mutate(include_str!("../configs/monotone.toml"), &steps), Some("quick"), all_specs());
    }

    #[test]
    fn no_change_of_a_cluster_file_panics(steps in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..6)) {
        let text = mutate(include_str!("../configs/clusters/example.toml"), &steps);
        let (_dir, file) = write(&text);
        if let Err(error) = study::load_cluster(&file) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

/// The changes above must reach the checks behind the parser, or they prove little.
#[test]
fn changes_get_past_the_parser() {
    for (text, specs) in [(GOOD, SPECS), (include_str!("../configs/monotone.toml"), all_specs())] {
        let (mut past, all) = (0, 300);
        for n in 0..all {
            let text = mutate(text, &[(n, n * 17, n / 3), (n / 7, n * 13, n * 31)]);
            let problems = any_text(&text, Some("quick"), specs).unwrap_or_default();
            past += usize::from(!problems.iter().any(|p| p.message.starts_with("this is not TOML")));
        }
        assert!(past * 2 > all, "{past} of {all}");
    }
}
