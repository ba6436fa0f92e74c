//! The numbers of a figure as CSV that pgfplots reads: keys as column names, `nan` where there is no value.

use std::collections::{BTreeMap, BTreeSet};

use super::{Body, Figure, Point};

pub(super) fn csv(figure: &Figure) -> String {
    let mut lines: Vec<String> = Vec::new();
    let number = |x: Option<f64>| x.filter(|x| x.is_finite()).map_or_else(|| "nan".to_owned(), |x| format!("{x:?}"));
    match &figure.body {
        Body::Curves(curves) => {
            let heads = curves.iter().map(|c| format!("{0},{0}_lower,{0}_upper", c.key));
            lines.push(std::iter::once("step".to_owned()).chain(heads).collect::<Vec<_>>().join(","));
            let at: Vec<BTreeMap<u64, &Point>> =
                curves.iter().map(|c| c.points.iter().map(|p| (p.step, p)).collect()).collect();
            let steps: BTreeSet<u64> = at.iter().flat_map(|c| c.keys().copied()).collect();
            for step in steps {
                let mut fields = vec![step.to_string()];
                for curve in &at {
                    let point = curve.get(&step);
                    let band = point.and_then(|p| p.band);
                    fields.extend([
                        number(point.map(|p| p.mean)),
                        number(band.map(|b| b.0)),
                        number(band.map(|b| b.1)),
                    ]);
                }
                lines.push(fields.join(","));
            }
        }
        Body::Bars { groups, bars } => {
            let heads = bars.iter().map(|b| format!("{0},{0}_minus,{0}_plus,{0}_n", b.key));
            lines.push(["index", "group"].map(str::to_owned).into_iter().chain(heads).collect::<Vec<_>>().join(","));
            for (i, (key, _)) in groups.iter().enumerate() {
                let mut fields = vec![i.to_string(), key.clone()];
                for bar in bars.iter().map(|b| b.bars.get(i).and_then(Option::as_ref)) {
                    // How far the error bar goes to each side, as pgfplots takes it.
                    let ends = bar.and_then(|b| Some((b.value - b.interval?.0, b.interval?.1 - b.value)));
                    fields.push(number(bar.map(|b| b.value)));
                    fields.extend([number(ends.map(|e| e.0)), number(ends.map(|e| e.1))]);
                    fields.push(bar.map_or(0, |b| b.n).to_string());
                }
                lines.push(fields.join(","));
            }
        }
        Body::Peaks(peaks) => {
            lines.push("index,line,seed,peak,final".to_owned());
            for (i, line) in peaks.iter().enumerate() {
                for (seed, peak, last) in &line.runs {
                    let seed = seed.map(|s| s.to_string()).unwrap_or_default();
                    lines.push(format!("{i},{},{seed},{},{}", line.key, number(Some(*peak)), number(Some(*last))));
                }
            }
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
