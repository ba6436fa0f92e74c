//! A task of generation: a TOML file that says how prompts are made of items, where texts end and what an answer is;
//! and the items, JSON lines. `docs/generation.md` describes both.

use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{Extraction, Form, Take};
use crate::compute::evaluate::choice::task::Fields;
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};
use crate::record::RecordError;

/// What the TOML file says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    /// The prompt; `{name}` stands for a field of the item, `{name.part}` for a part of it.
    pub prompt: String,
    /// An example before the prompt, of the file of shots; as `prompt`.
    #[serde(default)]
    pub shot: Option<String>,
    /// Strings that end a text.
    #[serde(default)]
    pub stop: Vec<String>,
    /// What the answer looks like: a regular expression, whose first group (or all of it) is the answer. Absent: the
    /// whole text.
    #[serde(default)]
    pub answer_pattern: Option<String>,
    /// Which match is the answer.
    #[serde(default)]
    pub answer_take: Take,
    /// In which form answers compare.
    #[serde(default)]
    pub answer_form: Form,
    /// Where the item says what is right. Absent: nobody knows.
    #[serde(default)]
    pub gold: Option<String>,
    /// What the right answer looks like in that field. Absent: the whole field.
    #[serde(default)]
    pub gold_pattern: Option<String>,
    /// A field by whose values results are reported too.
    #[serde(default)]
    pub group: Option<String>,
    /// Fields of an item that stand in its line of the result.
    #[serde(default)]
    pub keep: Vec<String>,
}

/// A task that can be used.
#[derive(Debug, Clone)]
pub struct Task {
    /// What the file says.
    pub described: Described,
    /// How answers are taken out of texts.
    pub answer: Extraction,
    /// How right answers are taken out of their field.
    gold: Extraction,
}

/// An item, ready to be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its number in the file, from 0.
    pub number: usize,
    /// The prompt, behind the shots.
    pub prompt: String,
    /// The field with the right answer.
    pub gold_text: Option<String>,
    /// The right answer.
    pub gold: Option<String>,
    /// The value of the field by which results are grouped.
    pub group: Option<String>,
    /// Fields that are kept.
    pub kept: Map<String, Value>,
}

impl Task {
    /// Reads a task.
    ///
    /// # Errors
    /// The file is not there or no task, or a pattern is no regular expression.
    pub fn read(path: &Path) -> Result<Self> {
        let text = text_of(path, "put the description of the task there")?;
        let described: Described = toml::from_str(&text).map_err(|e| {
            let reason = e.to_string();
            ComputeError::input(path, format!("is no task:\n{}\ncorrect it (docs/generation.md)", reason.trim_end()))
        })?;
        Self::new(described).map_err(|reason| ComputeError::input(path, reason))
    }

    /// A task as described.
    ///
    /// # Errors
    /// The rest of a sentence: which key is wrong.
    pub fn new(described: Described) -> std::result::Result<Self, String> {
        let pattern = |key: &str, text: &Option<String>| {
            let regex = text.as_deref().map(Regex::new).transpose();
            regex.map_err(|e| format!("has a `{key}` that is no regular expression ({e}): correct it"))
        };
        if described.stop.iter().any(String::is_empty) {
            return Err("has an empty string in `stop`, which would end every text: take it away".to_owned());
        }
        if described.gold_pattern.is_some() && described.gold.is_none() {
            return Err("has a `gold_pattern` and no `gold`: say which field has the right answer".to_owned());
        }
        let form = described.answer_form;
        let answer = pattern("answer_pattern", &described.answer_pattern)?;
        let gold = pattern("gold_pattern", &described.gold_pattern)?;
        Ok(Self {
            answer: Extraction { pattern: answer, take: described.answer_take, form },
            gold: Extraction { pattern: gold, take: described.answer_take, form },
            described,
        })
    }

    /// The items of a file, at most `limit`, behind `shots` ([`Self::shots`]).
    ///
    /// # Errors
    /// The file cannot be read or has no item, or a line lacks what the task names; the message has its number.
    pub fn items(&self, path: &Path, shots: &str, limit: Option<usize>) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for (number, value) in lines(path, limit)? {
            let item = self.item(&value, number, shots);
            items.push(item.map_err(|reason| wrong(path, number, &reason))?);
        }
        if items.is_empty() {
            return Err(ComputeError::missing(path, "has no item: put them there, as JSON lines"));
        }
        Ok(items)
    }

    /// `count` examples of a file, one behind the other, drawn by `seed` and the same for every item.
    ///
    /// # Errors
    /// The task has no `shot`, or the file has too few lines or one that lacks what it names.
    pub fn shots(&self, path: &Path, count: usize, seed: u32) -> Result<String> {
        let Some(template) = &self.described.shot else {
            return Err(ComputeError::Config(
                "`num_shots` asks for examples, and the task has no `shot`: say there how an example reads".to_owned(),
            ));
        };
        let lines = lines(path, None)?;
        if lines.len() < count {
            return Err(ComputeError::input(
                path,
                format!("has {} lines for {count} examples: lower `num_shots`", lines.len()),
            ));
        }
        let mut rng = Rng::new(seed, Purpose::Shots, 0, 0);
        let mut left: Vec<&(usize, Value)> = lines.iter().collect();
        let mut shots = String::new();
        for _ in 0..count {
            // Far fewer than 2^32 lines.
            let (number, value) = left.swap_remove(rng.below(left.len() as u64) as usize);
            shots += &Fields(value).filled(template).map_err(|reason| wrong(path, *number, &reason))?;
        }
        Ok(shots)
    }

    fn item(&self, value: &Value, number: usize, shots: &str) -> std::result::Result<Item, String> {
        let (fields, described) = (Fields(value), &self.described);
        let gold_text = described.gold.as_deref().map(|path| fields.number_or_text(path)).transpose()?;
        let gold = match &gold_text {
            None => None,
            Some(text) => Some(self.gold.of(text).ok_or_else(|| {
                let field = described.gold.as_deref().unwrap_or_default();
                format!("has no answer in `{field}`, by `gold_pattern` and `answer_form`: correct one of them")
            })?),
        };
        let mut kept = Map::new();
        for name in &described.keep {
            kept.insert(name.clone(), fields.at(name)?.clone());
        }
        Ok(Item {
            number,
            prompt: format!("{shots}{}", fields.filled(&described.prompt)?),
            gold_text,
            gold,
            group: described.group.as_deref().map(|path| fields.number_or_text(path)).transpose()?,
            kept,
        })
    }
}

fn wrong(path: &Path, number: usize, reason: &str) -> ComputeError {
    ComputeError::input(path, format!("has an item {number} that {reason}"))
}

/// The JSON objects of a file with their numbers, empty lines left out.
fn lines(path: &Path, limit: Option<usize>) -> Result<Vec<(usize, Value)>> {
    let text = text_of(path, "put the items there, as JSON lines")?;
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(limit.unwrap_or(usize::MAX)).enumerate();
    lines
        .map(|(number, line)| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => Ok((number, value)),
            Ok(_) => Err(wrong(path, number, "is no JSON object: correct the line")),
            Err(e) => Err(wrong(path, number, &format!("is no JSON ({e}): correct the line"))),
        })
        .collect()
}

fn text_of(path: &Path, what_to_do: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => ComputeError::missing(path, format!("is not there: {what_to_do}")),
        std::io::ErrorKind::InvalidData => ComputeError::input(path, "is no UTF-8 text: write it as UTF-8"),
        _ => ComputeError::Record(RecordError::io("read", path)(e)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TASK: &str = r#"
prompt = "Q: {question}\nA:"
shot = "Q: {question}\nA: {answer}\n\n"
stop = ["Q:"]
answer_pattern = '#### (-?[0-9.,]+)'
answer_form = "commas"
gold = "answer"
gold_pattern = '#### (-?[0-9.,]+)'
group = "kind"
keep = ["question"]
"#;

    fn files(task: &str, items: &str) -> (tempfile::TempDir, Result<Vec<Item>>) {
        let dir = tempfile::tempdir().unwrap();
        let [task_path, items_path] = ["task.toml", "items.jsonl"].map(|name| dir.path().join(name));
        std::fs::write(&task_path, task).unwrap();
        std::fs::write(&items_path, items).unwrap();
        let items = Task::read(&task_path).and_then(|task| task.items(&items_path, "", Some(100)));
        (dir, items)
    }

    #[test]
    fn items_are_made_of_lines() {
        let line = json!({"question": "2 + 2?", "answer": "it is 1,004\n#### 1,004", "kind": "sum", "n": 3});
        let (_dir, items) = files(TASK, &format!("{line}\n\n{line}\n"));
        let items = items.unwrap();
        let expected = Item {
            number: 1,
            prompt: "Q: 2 + 2?\nA:".into(),
            gold_text: Some("it is 1,004\n#### 1,004".into()),
            gold: Some("1004".into()),
            group: Some("sum".into()),
            kept: json!({"question": "2 + 2?"}).as_object().unwrap().clone(),
        };
        assert_eq!((items.len(), &items[1]), (2, &expected));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let line = json!({"question": "q", "answer": "#### 1", "kind": "k"}).to_string();
        for (task, items, named) in [
            (TASK.replace("stop", "stopp"), line.clone(), "task.toml"),
            (TASK.replace("stop", "stopp"), line.clone(), "stopp"),
            (TASK.replace(r#"["Q:"]"#, r#"[""]"#), line.clone(), "empty string in `stop`"),
            (TASK.replace("gold = \"answer\"", ""), line.clone(), "no `gold`"),
            (TASK.replace("gold_pattern = '####", "gold_pattern = '(####"), line.clone(), "`gold_pattern`"),
            (TASK.to_owned(), format!("{line}\n{{"), "item 1"),
            (TASK.to_owned(), format!("{line}\n3"), "no JSON object"),
            (TASK.to_owned(), line.replace("####", "##"), "no answer in `answer`"),
            (TASK.to_owned(), line.replace("question", "asked"), "no `question`"),
            (TASK.to_owned(), line.replace("kind", "sort"), "no `kind`"),
            (TASK.to_owned(), "\n".to_owned(), "has no item"),
        ] {
            let (_dir, found) = files(&task, &items);
            let error = found.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(Task::read(Path::new("/nowhere/task.toml")).unwrap_err().to_string().contains("is not there"));
    }

    #[test]
    fn shots_are_drawn_once_and_by_the_seed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shots.jsonl");
        let lines: Vec<String> =
            (0..20).map(|i| json!({"question": format!("q{i}"), "answer": i}).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let task = Task::new(toml::from_str(TASK).unwrap()).unwrap();
        let eight = task.shots(&path, 8, 42).unwrap();
        assert_eq!(eight, task.shots(&path, 8, 42).unwrap());
        assert_ne!(eight, task.shots(&path, 8, 43).unwrap());
        let mut questions: Vec<&str> = eight.lines().filter(|l| l.starts_with("Q:")).collect();
        assert_eq!(questions.len(), 8);
        questions.sort_unstable();
        questions.dedup();
        assert_eq!(questions.len(), 8, "no example comes twice");
        assert_eq!(task.shots(&path, 0, 1).unwrap(), "");
        assert!(task.shots(&path, 21, 1).unwrap_err().to_string().contains("20 lines for 21"));
        let plain = Task::new(toml::from_str("prompt = \"{q}\"").unwrap()).unwrap();
        assert!(plain.shots(&path, 1, 1).unwrap_err().to_string().contains("`shot`"));
    }
}
