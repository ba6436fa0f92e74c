//! A run's result in memory: what a stage hands over, what `run.h5` holds and what reports read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{CellKey, Digest, Fingerprint, digest};

/// The result of one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Which cell.
    pub key: CellKey,
    /// Its stage kind.
    pub kind: String,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Labels of its arm.
    pub labels: BTreeMap<String, String>,
    /// The value tree: an object. Nothing in it depends on where or when it was made.
    pub metrics: Value,
    /// Values that do: times, rates, hosts, devices. Laid over `metrics` in [`Self::tree`], outside the
    /// content digest.
    pub environment: Value,
    /// Numbers by step.
    pub series: BTreeMap<String, Vec<SeriesPoint>>,
    /// Tables with a row for each example, by task.
    pub items: BTreeMap<String, Items>,
    /// Digest of the final parameters, if the stage made some.
    pub param_digest: Option<Digest>,
    /// What bits depend on: libraries, processor, threads, lanes, transport. An object.
    pub numerics: Value,
}

/// One point of a series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SeriesPoint {
    /// Optimizer step.
    pub step: u64,
    /// The value.
    pub value: f64,
    /// Seconds since the attempt began; outside the content digest.
    pub time_s: f64,
}

/// One table of examples: named columns of one length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Items {
    /// Column name and values, in order.
    pub columns: Vec<(String, Column)>,
}

/// A column of [`Items`].
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Floats; NaN is allowed and means "no value".
    Floats(Vec<f64>),
    /// Texts without NUL.
    Texts(Vec<String>),
}

impl Column {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(v) => v.len(),
            Self::Floats(v) => v.len(),
            Self::Texts(v) => v.len(),
        }
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Items {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|(n, _)| n == name).map(|(_, c)| c)
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.columns.first().map_or(0, |(_, c)| c.len())
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RunRecord {
    /// An empty record of a cell.
    pub fn new(cell: &super::Cell) -> Self {
        Self {
            key: cell.key.clone(),
            kind: cell.kind.clone(),
            fingerprint: cell.fingerprint.clone(),
            labels: cell.labels.clone(),
            metrics: Value::Object(Map::new()),
            environment: Value::Object(Map::new()),
            series: BTreeMap::new(),
            items: BTreeMap::new(),
            param_digest: None,
            numerics: Value::Object(Map::new()),
        }
    }

    /// The whole value tree as queries and exports see it: metrics with the environment laid over them.
    pub fn tree(&self) -> Value {
        let mut tree = self.metrics.clone();
        lay_over(&mut tree, &self.environment);
        tree
    }

    /// Digest of what the run found: metrics, items, series' step and value, parameters. Two runs of one
    /// fingerprint on one kind of machine have the same one, whatever host, time or job they had.
    pub fn content_digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        let mut part = |name: &str, bytes: &[u8]| {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part("metrics", digest::canonical_json(&self.metrics).as_bytes());
        for (name, points) in &self.series {
            let bytes: Vec<u8> =
                points.iter().flat_map(|p| [p.step.to_le_bytes(), p.value.to_bits().to_le_bytes()].concat()).collect();
            part(&format!("series/{name}"), &bytes);
        }
        for (task, items) in &self.items {
            for (name, column) in &items.columns {
                let bytes: Vec<u8> = match column {
                    Column::Integers(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    Column::Floats(v) => v.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect(),
                    Column::Texts(v) => v.iter().flat_map(|s| [s.as_bytes(), b"\0"].concat()).collect(),
                };
                part(&format!("items/{task}/{name}"), &bytes);
            }
        }
        part("parameters", self.param_digest.as_ref().map_or("", Digest::as_str).as_bytes());
        Digest::finish(hasher)
    }
}

/// Lays `over` on `base`: objects key by key, everything else replaced.
pub fn lay_over(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}
