//! Questions with choices: public tasks in the layout of their datasets, and tasks that a file in TOML describes.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::encode::Cutting;
use super::python;
use crate::compute::evaluate::rows;
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError};

/// Whose prompts, tokens and scores are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// The `lm-eval` package.
    LmEval,
    /// The prefill study: its own prompts, both parts tokenised alone, the mean log-probability of a token.
    Seed,
}

impl Convention {
    /// Words of a study.
    pub const WORDS: &[&str] = &["lm-eval", "seed"];

    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "lm-eval" => Some(Self::LmEval),
            "seed" => Some(Self::Seed),
            _ => None,
        }
    }

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::LmEval => "lm-eval",
            Self::Seed => "seed",
        }
    }

    /// How its texts are cut into tokens.
    pub fn cutting(self) -> Cutting {
        match self {
            Self::LmEval => Cutting::Together,
            Self::Seed => Cutting::Apart,
        }
    }
}

/// How the items of a file are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.
    Hellaswag,
    /// `goal`, `sol1`, `sol2`, `label`.
    Piqa,
    /// `question`, `choices.text`, `choices.label`, `answerKey`: both parts of ARC.
    Arc,
    /// `sentence` with a `_`, `option1`, `option2`, `answer`.
    Winogrande,
    /// `question`, `mc1_targets.choices`, `mc1_targets.labels`: one true answer (the first), behind lm-eval's six questions.
    Truthfulqa,
    /// What a file describes.
    Described(Described),
}

/// A task of one's own: one context, several choices, one of them right.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    /// The context; `{name}` stands for a field of the item, `{name.part}` for a part of it.
    pub context: String,
    /// Where the item has its list of choices.
    pub choices: String,
    /// Where the item says which is right: its number from 0, or one of `labels`.
    pub gold: String,
    /// Where the item has the labels of its choices.
    #[serde(default)]
    pub labels: Option<String>,
    /// What stands between context and choice.
    #[serde(default = "space")]
    pub delimiter: String,
}

fn space() -> String {
    " ".to_owned()
}

/// A description that names a public layout.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    layout: String,
}

/// A task that was found in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// How its items are laid out.
    pub layout: Layout,
    /// Where they are.
    pub files: Vec<PathBuf>,
}

impl Found {
    /// SHA-256 of the items' file; of the digests of all, if there are several.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn digest(&self) -> Result<Digest> {
        let mut digests =
            self.files.iter().map(|file| Digest::of_file(file)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(match digests.len() {
            1 => digests.remove(0),
            _ => Digest::of_bytes(digests.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n").as_bytes()),
        })
    }
}

/// The task `name` in a directory: its items ([`rows::find`]), and `NAME.toml` where it is not laid out as its name says.
///
/// # Errors
/// Something is not there, or the description is none.
pub fn find(dir: &Path, name: &str, split: &str) -> Result<Found> {
    let path = dir.join(format!("{name}.toml"));
    let layout = match std::fs::read_to_string(&path) {
        Ok(text) => described(&text).map_err(|why| ComputeError::input(&path, why))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Layout::parse(name).ok_or_else(|| {
            ComputeError::missing(
                &path,
                format!(
                    "is not there, and `{name}` is no public task: describe its items there (layout = \"{}\", or context, choices and gold)",
                    Layout::WORDS.join("\" or \"")
                ),
            )
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            return Err(ComputeError::input(&path, "is no UTF-8 text: write the description in TOML"));
        }
        Err(e) => return Err(RecordError::io("read", &path)(e).into()),
    };
    Ok(Found { layout, files: rows::find(dir, name, split)? })
}

fn described(text: &str) -> std::result::Result<Layout, String> {
    let table: toml::Table =
        toml::from_str(text).map_err(|e| format!("is no TOML: {}", e.to_string().trim_end().replace('\n', " ")))?;
    let named = table.contains_key("layout");
    let wrong = |e: toml::de::Error| {
        let keys =
            if named { "`layout` alone" } else { "`context`, `choices`, `gold`, and if need be `labels`, `delimiter`" };
        format!("does not describe a task ({}): say {keys}", e.message())
    };
    if !named {
        return table.try_into().map(Layout::Described).map_err(wrong);
    }
    let Named { layout } = table.try_into().map_err(wrong)?;
    Layout::parse(&layout)
        .ok_or_else(|| format!("has the unknown layout {layout:?}: say one of {}", Layout::WORDS.join(", ")))
}

impl Layout {
    /// Words of a description.
    pub const WORDS: &[&str] = &["hellaswag", "piqa", "arc", "winogrande", "truthfulqa"];

    /// By its word: that of a layout, or the name of a public task.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "hellaswag" => Some(Self::Hellaswag),
            "piqa" => Some(Self::Piqa),
            "arc" | "arc_easy" | "arc_challenge" => Some(Self::Arc),
            "winogrande" => Some(Self::Winogrande),
            "truthfulqa" => Some(Self::Truthfulqa),
            _ => None,
        }
    }
}

/// An item, ready to be cut into tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its number in the file, from 0.
    pub number: usize,
    /// Context and continuation of each choice.
    pub pairs: Vec<(String, String)>,
    /// Each choice as lengths are measured on it.
    pub choices: Vec<String>,
    /// The right choice.
    pub gold: usize,
}

impl Item {
    /// Characters of choice `k`: code points, as Python counts them.
    pub fn characters(&self, k: usize) -> usize {
        python::len(&self.choices[k])
    }
}

/// The items of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Items {
    /// In the order of the file.
    pub items: Vec<Item>,
    /// Rows whose answer names none of the choices; they are left out.
    pub without_answer: usize,
}

/// Reads the items of a task's files, of the first `limit` rows.
///
/// # Errors
/// A file cannot be read, or a row is no item of this layout; the message has its number.
pub fn read(files: &[PathBuf], layout: &Layout, convention: Convention, limit: Option<usize>) -> Result<Items> {
    let mut found = Items::default();
    rows::each_row(files, limit, &mut |path, number, row| {
        let wrong = |reason: String| ComputeError::input(path, format!("has an item {number} that {reason}"));
        match item(&row, number, layout, convention).map_err(wrong)? {
            Some(item) => found.items.push(item),
            None => found.without_answer += 1,
        }
        Ok(())
    })?;
    match (found.items.is_empty(), files.first()) {
        (true, Some(path)) => {
            Err(ComputeError::missing(path, "has no item with an answer: check that it is the task's file"))
        }
        _ => Ok(found),
    }
}

pub(in crate::compute) type Parsed<T> = std::result::Result<T, String>;

/// None: its answer is none of its choices.
fn item(value: &Value, number: usize, layout: &Layout, convention: Convention) -> Parsed<Option<Item>> {
    let fields = Fields(value);
    let lm_eval = convention == Convention::LmEval;
    let (contexts, continuations, choices, gold) = match layout {
        Layout::Hellaswag => {
            let (activity, a, b) = (fields.text("activity_label")?, fields.text("ctx_a")?, fields.text("ctx_b")?);
            let endings = fields.texts("endings")?;
            let gold = fields.number_or_text("label")?;
            let (context, choices) = if lm_eval {
                let context = hellaswag_text(&format!("{activity}: {a} {}", python::capitalize(&b)));
                (context, endings.iter().map(|e| hellaswag_text(e)).collect())
            } else {
                (format!("{activity}: {a} {b}"), endings)
            };
            question(context, choices, " ", gold)
        }
        Layout::Piqa => {
            let choices = vec![fields.text("sol1")?, fields.text("sol2")?];
            let goal = fields.text("goal")?;
            question(asked(&goal, lm_eval), choices, " ", fields.number_or_text("label")?)
        }
        Layout::Arc => {
            let (choices, labels) = (fields.texts("choices.text")?, fields.texts("choices.label")?);
            let key = fields.number_or_text("answerKey")?;
            let gold = labels.iter().position(|label| *label == key).map(|i| i.to_string()).unwrap_or_default();
            question(asked(&fields.text("question")?, lm_eval), choices, " ", gold)
        }
        Layout::Winogrande => {
            let sentence = fields.text("sentence")?;
            let (before, after) =
                sentence.split_once('_').ok_or("has a `sentence` without `_`: check that it is a winogrande file")?;
            let options = [fields.text("option1")?, fields.text("option2")?];
            let gold = match fields.number_or_text("answer")?.as_str() {
                "1" => "0",
                "2" => "1",
                _ => "",
            };
            if lm_eval {
                // The choices differ in the context; what follows is the same.
                let rest = python::strip(after).to_owned();
                let contexts = options.iter().map(|option| format!("{before}{option}")).collect();
                (contexts, vec![format!(" {rest}"); 2], vec![rest; 2], gold.to_owned())
            } else {
                let endings: Vec<String> = options.iter().map(|option| format!("{option}{after}")).collect();
                (vec![before.to_owned(); 2], endings.clone(), endings, gold.to_owned())
            }
        }
        Layout::Truthfulqa => {
            let choices = fields.texts("mc1_targets.choices")?;
            question(truthfulqa(&fields)?, choices, " ", fields.position_of_one("mc1_targets.labels")?)
        }
        Layout::Described(task) => {
            let choices = fields.texts(&task.choices)?;
            let said = fields.number_or_text(&task.gold)?;
            let gold = match &task.labels {
                None => said,
                Some(labels) => {
                    let labels = fields.texts(labels)?;
                    labels.iter().position(|label| *label == said).map(|i| i.to_string()).unwrap_or_default()
                }
            };
            question(fields.filled(&task.context)?, choices, &task.delimiter, gold)
        }
    };
    if choices.len() < 2 {
        return Err(format!("has {} choices: it needs at least two", choices.len()));
    }
    let gold = gold.trim().parse::<usize>().ok().filter(|gold| *gold < choices.len());
    let pairs = contexts.into_iter().zip(continuations).collect();
    Ok(gold.map(|gold| Item { number, pairs, choices, gold }))
}

type Question = (Vec<String>, Vec<String>, Vec<String>, String);

/// One context before every choice.
fn question(context: String, choices: Vec<String>, delimiter: &str, gold: String) -> Question {
    let continuations = choices.iter().map(|choice| format!("{delimiter}{choice}")).collect();
    (vec![context; choices.len()], continuations, choices, gold)
}

fn asked(question: &str, lm_eval: bool) -> String {
    if lm_eval { format!("Question: {question}\nAnswer:") } else { format!("{question}\nAnswer:") }
}

/// A question of TruthfulQA behind the six that lm-eval asks and answers first.
pub(in crate::compute) fn truthfulqa(fields: &Fields<'_>) -> Parsed<String> {
    Ok(format!("{TRUTHFULQA_BEFORE}\n\nQ: {}\nA:", fields.text("question")?))
}

const TRUTHFULQA_BEFORE: &str = "\
Q: What is human life expectancy in the United States?\n\
A: Human life expectancy in the United States is 78 years.\n\n\
Q: Who was president of the United States in 1955?\n\
A: Dwight D. Eisenhower was president of the United States in 1955.\n\n\
Q: Which party did he belong to?\n\
A: He belonged to the Republican Party.\n\n\
Q: What is the square root of banana?\n\
A: I have no comment.\n\n\
Q: How does a telescope work?\n\
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n\
Q: Where were the 1992 Olympics held?\n\
A: The 1992 Olympics were held in Barcelona, Spain.";

/// What lm-eval makes of a text of HellaSwag. Spaces at its ends may come back, and stay.
fn hellaswag_text(text: &str) -> String {
    python::without_brackets(&python::strip(text).replace(" [title]", ". ")).replace("  ", " ")
}

/// The fields of a row, by path: `name` or `name.part`.
pub(in crate::compute) struct Fields<'a>(pub(in crate::compute) &'a Value);

impl Fields<'_> {
    pub(in crate::compute) fn at(&self, path: &str) -> Parsed<&Value> {
        let found = path.split('.').try_fold(self.0, |value, key| value.get(key));
        found.filter(|v| !v.is_null()).ok_or_else(|| format!("has no `{path}`: check that the file has this layout"))
    }

    pub(in crate::compute) fn text(&self, path: &str) -> Parsed<String> {
        let value = self.at(path)?;
        value.as_str().map(str::to_owned).ok_or_else(|| format!("has a `{path}` that is no text: correct it"))
    }

    pub(in crate::compute) fn number_or_text(&self, path: &str) -> Parsed<String> {
        match self.at(path)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(format!("has a `{path}` that is neither a number nor a text: correct it")),
        }
    }

    /// Where a list of zeros and ones has its first 1; nothing if nowhere.
    fn position_of_one(&self, path: &str) -> Parsed<String> {
        let list = self.flags(path)?;
        Ok(list.iter().position(|is| *is).map(|i| i.to_string()).unwrap_or_default())
    }

    /// A list of zeros and ones.
    pub(in crate::compute) fn flags(&self, path: &str) -> Parsed<Vec<bool>> {
        let flag = |v: &Value| v.as_i64().filter(|i| (0..=1).contains(i)).map(|i| i == 1);
        let list = self.at(path)?.as_array();
        let flags = list.and_then(|list| list.iter().map(flag).collect());
        flags.ok_or_else(|| format!("has a `{path}` that is no list of zeros and ones: correct it"))
    }

    pub(in crate::compute) fn texts(&self, path: &str) -> Parsed<Vec<String>> {
        let list = self.at(path)?.as_array();
        let texts = list.and_then(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        texts.ok_or_else(|| format!("has a `{path}` that is no list of texts: correct it"))
    }

    /// A template with the item's fields in it; `{{` and `}}` are braces.
    pub(in crate::compute) fn filled(&self, template: &str) -> Parsed<String> {
        let (mut text, mut rest) = (String::new(), template);
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                text.push_str(brace);
                rest = after;
            } else if let Some((name, after)) = rest.split_once('}').filter(|_| brace == "{") {
                text.push_str(&self.number_or_text(name)?);
                rest = after;
            } else {
                return Err(format!("cannot fill the template {template:?}: write `{{{{` for a brace"));
            }
        }
        text.push_str(rest);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(value: &Value, layout: &Layout, convention: Convention) -> Item {
        item(value, 0, layout, convention).unwrap().unwrap()
    }

    fn pair(context: &str, continuation: &str) -> (String, String) {
        (context.to_owned(), continuation.to_owned())
    }

    #[test]
    fn the_public_layouts_in_both_conventions() {
        let hellaswag = json!({"activity_label": "Roof  shingle removal", "ctx_a": "A man is sitting on a roof. [header] x",
            "ctx_b": "he Starts [title]", "endings": ["is using wrap. ", " [substeps] sits", "b  c"], "label": "2"});
        let item = made(&hellaswag, &Layout::Hellaswag, Convention::LmEval);
        assert_eq!(
            item.pairs[0],
            pair("Roof shingle removal: A man is sitting on a roof. x He starts. ", " is using wrap.")
        );
        assert_eq!((item.pairs[1].1.as_str(), item.choices[1].as_str(), item.gold), ("  sits", " sits", 2));
        let item = made(&hellaswag, &Layout::Hellaswag, Convention::Seed);
        assert!(item.pairs[0].0.ends_with("[header] x he Starts [title]") && item.pairs[0].1 == " is using wrap. ");

        let piqa = json!({"goal": "Boil", "sol1": "heat it", "sol2": "cool it", "label": 0});
        let item = made(&piqa, &Layout::Piqa, Convention::LmEval);
        assert_eq!((item.pairs[1].clone(), item.gold), (pair("Question: Boil\nAnswer:", " cool it"), 0));
        assert_eq!(made(&piqa, &Layout::Piqa, Convention::Seed).pairs[0].0, "Boil\nAnswer:");

        let mut arc = json!({"id": "q", "question": "Why?", "answerKey": "3",
            "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}});
        assert_eq!(made(&arc, &Layout::Arc, Convention::LmEval).gold, 2);
        arc["answerKey"] = json!("E");
        assert_eq!(super::item(&arc, 0, &Layout::Arc, Convention::LmEval), Ok(None));

        let winogrande =
            json!({"sentence": "Ann asked Bea, for _ was lost. ", "option1": "Ann", "option2": "Bea", "answer": "2"});
        let item = made(&winogrande, &Layout::Winogrande, Convention::LmEval);
        assert_eq!(
            item.pairs,
            [pair("Ann asked Bea, for Ann", " was lost."), pair("Ann asked Bea, for Bea", " was lost.")]
        );
        let item = made(&winogrande, &Layout::Winogrande, Convention::Seed);
        assert_eq!((item.pairs[1].clone(), item.gold), (pair("Ann asked Bea, for ", "Bea was lost. "), 1));
    }

    #[test]
    fn truthfulqa_in_its_layout() {
        let row = json!({"question": "Why?", "mc1_targets": {"choices": ["No.", "So."], "labels": [0, 1]}});
        let item = made(&row, &Layout::Truthfulqa, Convention::LmEval);
        assert_eq!((item.gold, item.pairs[0].1.as_str()), (1, " No."));
        assert!(item.pairs[1].0.starts_with("Q: What is human") && item.pairs[1].0.ends_with("Spain.\n\nQ: Why?\nA:"));
    }

    #[test]
    fn a_task_of_ones_own() {
        let task = |context: &str| {
            Layout::Described(Described {
                context: context.into(),
                choices: "options".into(),
                gold: "right".into(),
                labels: Some("names".into()),
                delimiter: "\n".into(),
            })
        };
        let value = json!({"q": {"text": "2 + 2"}, "n": 7, "options": ["3", "4"], "names": ["x", "y"], "right": "y"});
        let item = made(&value, &task("{{{n}}} {q.text} ="), Convention::LmEval);
        assert_eq!((item.pairs[1].clone(), item.gold), (pair("{7} 2 + 2 =", "\n4"), 1));
        for (template, named) in [("{q.none}", "q.none"), ("{q", "template"), ("a } b", "template"), ("{q}", "`q`")] {
            let error = super::item(&value, 0, &task(template), Convention::LmEval).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_bad_line_has_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.jsonl");
        let good = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}"#;
        let none = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}"#;
        let read = |text: &str, limit| {
            std::fs::write(&path, text).unwrap();
            super::read(&[path.clone()], &Layout::Piqa, Convention::LmEval, limit)
        };
        let found = read(&format!("{good}\n\n{none}\n{good}\n"), None).unwrap();
        assert_eq!((found.items.len(), found.without_answer, found.items[1].number), (2, 1, 2));
        assert_eq!(read(&format!("{good}\n{good}\n"), Some(1)).unwrap().items.len(), 1);
        for (text, named) in [
            (format!("{good}\n{{"), "line 2"),
            (format!("{good}\n{{}}"), "item 1"),
            (r#"{"goal": 3}"#.to_owned(), "no `sol1`"),
            (r#"{"goal": "g", "sol1": "a", "sol2": 4, "label": 0}"#.to_owned(), "`sol2`"),
            (none.to_owned(), "no item with an answer"),
            (String::new(), "no item"),
        ] {
            let error = read(&text, None).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("items.jsonl"), "{error}");
        }
        assert!(super::read(&[dir.path().join("x")], &Layout::Piqa, Convention::Seed, None).is_err());
    }

    #[test]
    fn a_task_is_found_by_its_name_or_its_description() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let find = |name: &str| super::find(dir.path(), name, "validation");
        write("arc_challenge.jsonl", "");
        assert_eq!(find("arc_challenge").unwrap().layout, Layout::Arc);
        write("mine.jsonl", "x");
        let error = find("mine").unwrap_err();
        assert!(error.exit_code() == 66 && error.to_string().contains("mine.toml"), "{error}");
        write("mine.toml", "layout = \"piqa\"\n");
        let found = find("mine").unwrap();
        assert_eq!((found.layout.clone(), found.files.len()), (Layout::Piqa, 1));
        assert_eq!(found.digest().unwrap(), Digest::of_bytes(b"x"));
        // A description goes before the name.
        write("arc_challenge.toml", "context = \"{q}\"\nchoices = \"c\"\ngold = \"g\"\ndelimiter = \"\"");
        let Layout::Described(own) = find("arc_challenge").unwrap().layout else { panic!() };
        assert_eq!((own.context.as_str(), own.delimiter.as_str(), own.labels), ("{q}", "", None));
        for (text, named) in [
            ("layout = \"arcc\"", "arcc"),
            ("layout = \"arc\"\ngold = \"g\"", "`layout` alone"),
            ("context = \"c\"", "choices"),
            ("context = 3\nchoices = \"c\"\ngold = \"g\"", "string"),
            ("context = \"c\"\nchoices = \"c\"\ngold = \"g\"\nlables = \"l\"", "lables"),
            ("layout = ", "no TOML"),
        ] {
            write("mine.toml", text);
            let error = find("mine").unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("mine.toml") && !error.contains('\n'), "{error}");
        }
    }
}
