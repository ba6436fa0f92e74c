//! What the fake controller knows: one table of job elements in a file, behind one lock.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

unsafe extern "C" {
    fn flock(fd: i32, operation: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
}

pub const HUP: i32 = 1;
pub const KILL: i32 = 9;
pub const USR1: i32 = 10;
pub const USR2: i32 = 12;
pub const TERM: i32 = 15;
pub const CONT: i32 = 18;

/// Sends `signal` to a process, or to a group if `pid` is negative.
pub fn send(pid: i32, signal: i32) {
    if pid.abs() > 1 {
        // SAFETY: kill(2) takes no memory.
        unsafe { kill(pid, signal) };
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// One job, or one element of an array: a row of the table.
#[derive(Debug, Clone, Default)]
pub struct Element {
    fields: BTreeMap<String, String>,
}

impl Element {
    pub fn text(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    pub fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or(0)
    }

    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.fields.insert(key.to_owned(), value.to_string());
    }

    pub fn job(&self) -> u32 {
        self.number("job") as u32
    }

    pub fn index(&self) -> Option<u32> {
        self.text("index").parse().ok()
    }

    /// `A_i` or `A`.
    pub fn id(&self) -> String {
        self.index().map_or(self.job().to_string(), |index| format!("{}_{index}", self.job()))
    }

    pub fn state(&self) -> &str {
        self.text("state")
    }

    pub fn is_ended(&self) -> bool {
        !matches!(self.state(), "PENDING" | "RUNNING")
    }

    /// Ends it now.
    pub fn end(&mut self, state: &str, reason: &str) {
        self.set("state", state);
        self.set("reason", reason);
        self.set("end_ms", now_ms());
    }
}

/// The folder of one fake Slurm, with its lock held.
pub struct Controller {
    pub root: PathBuf,
    pub elements: Vec<Element>,
    pub config: BTreeMap<String, String>,
    _lock: fs::File,
}

impl Controller {
    /// Takes the lock and reads everything.
    pub fn open(root: &Path) -> Self {
        fs::create_dir_all(root).unwrap();
        let lock = fs::File::create(root.join("lock")).unwrap();
        // SAFETY: flock(2) takes no memory; the descriptor lives as long as the controller. 2 is LOCK_EX.
        unsafe { flock(lock.as_raw_fd(), 2) };
        let elements = fs::read_to_string(root.join("elements")).unwrap_or_default().lines().map(row).collect();
        Self { root: root.to_owned(), elements, config: config(root), _lock: lock }
    }

    pub fn setting(&self, key: &str, preset: u64) -> u64 {
        self.config.get(key).and_then(|v| v.parse().ok()).unwrap_or(preset)
    }

    /// Writes the table.
    pub fn save(&self) {
        let mut text = String::new();
        for element in &self.elements {
            let row: Vec<_> = element.fields.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
            text.push_str(&row.join("\t"));
            text.push('\n');
        }
        let temp = self.root.join(format!("elements.{}", std::process::id()));
        fs::write(&temp, text).unwrap();
        fs::rename(&temp, self.root.join("elements")).unwrap();
    }

    pub fn next_id(&self) -> u32 {
        self.elements.iter().map(|e| e.job().max(e.number("raw") as u32)).max().unwrap_or(0) + 1
    }

    pub fn get(&mut self, id: &str) -> Option<&mut Element> {
        self.elements.iter_mut().find(|e| e.id() == id)
    }

    /// Elements named by `A` (all of it) or `A_i`.
    pub fn matching(&self, id: &str) -> Vec<usize> {
        let hit = |e: &Element| e.id() == id || e.job().to_string() == id;
        (0..self.elements.len()).filter(|&i| hit(&self.elements[i])).collect()
    }

    /// Whether the controller still remembers it.
    pub fn remembers(&self, element: &Element) -> bool {
        let age_ms = self.setting("min_job_age_ms", 300_000);
        !element.is_ended() || now_ms() < element.number("end_ms") + age_ms
    }

    /// Adds the run that just ended to the accounts.
    pub fn account(&self, element: &Element, state: &str) {
        let mut record = element.clone();
        record.set("state", state);
        record.set("end_ms", now_ms());
        let row: Vec<_> = record.fields.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
        append(&self.root.join("accounts"), &row.join("\t"));
    }

    pub fn accounts(&self) -> Vec<Element> {
        fs::read_to_string(self.root.join("accounts")).unwrap_or_default().lines().map(row).collect()
    }
}

/// `key=value` lines.
pub fn config(root: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root.join("config")).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Appends one line.
pub fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn row(line: &str) -> Element {
    let pairs = line.split('\t').filter_map(|pair| pair.split_once('='));
    Element { fields: pairs.map(|(k, v)| (k.to_owned(), unescape(v))).collect() }
}

fn escape(value: &str) -> String {
    value.replace('%', "%25").replace('\t', "%09").replace('\n', "%0A")
}

fn unescape(value: &str) -> String {
    value.replace("%0A", "\n").replace("%09", "\t").replace("%25", "%")
}
