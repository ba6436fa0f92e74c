//! Attention over the heads of a row of queries, keys and values.

use super::maps::HeadsAt;
use crate::compute::kernels::Isa;
use crate::compute::kernels::dropout::Dropout;
use crate::compute::model::batch::{Batch, Mask};
use crate::compute::{ComputeError, Result};

/// Keys that each query sees: `first[i]..end[i]` in its row, `[N]`.
#[derive(Debug, Default, Clone)]
pub struct Ranges {
    pub first: Vec<u32>,
    pub end: Vec<u32>,
}

/// [`Ranges`] of a batch, without a window and with it.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    all: Ranges,
    windowed: Ranges,
}

impl Seen {
    /// Of a batch, for blocks with and without a window of `window` positions.
    ///
    /// # Errors
    /// A segment is in two parts.
    pub fn fill(&mut self, batch: &Batch, window: Option<usize>) -> Result<()> {
        self.all.fill(batch, u32::MAX)?;
        if let Some(window) = window {
            self.windowed.fill(batch, u32::try_from(window).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    /// For a block.
    pub fn of(&self, window: Option<usize>) -> &Ranges {
        if window.is_some() { &self.windowed } else { &self.all }
    }
}

impl Ranges {
    fn fill(&mut self, batch: &Batch, window: u32) -> Result<()> {
        self.first.clear();
        self.end.clear();
        let seq_len = batch.seq_len as u32;
        for row in 0..batch.rows {
            let at = |lens: &Option<Vec<i32>>, none: u32| {
                lens.as_ref().map_or(none, |l| u32::try_from(l[row]).unwrap_or(0).min(seq_len))
            };
            let (keys, prompt) = (at(&batch.key_lens, seq_len), at(&batch.prompt_lens, 0));
            let segments = batch.segments.as_ref().map(|s| &s[row * batch.seq_len..][..batch.seq_len]);
            let (mut begin, mut stop) = (0, 0);
            for t in 0..seq_len {
                if t == stop {
                    begin = t;
                    stop = run_end(segments, t, seq_len);
                    refuse_second_part(segments, begin)?;
                }
                let end = match batch.mask {
                    Mask::Causal => t + 1,
                    Mask::Full => seq_len,
                    Mask::Prefix => prompt.max(t + 1),
                };
                let end = end.min(stop).min(keys);
                let first = begin.max((t + 1).saturating_sub(window)).min(end);
                self.first.push(first);
                self.end.push(end);
            }
        }
        Ok(())
    }
}

/// Where the run of equal segments that begins at `t` ends.
fn run_end(segments: Option<&[i32]>, t: u32, seq_len: u32) -> u32 {
    let Some(segments) = segments else { return seq_len };
    let own = segments[t as usize];
    segments[t as usize..].iter().position(|&s| s != own).map_or(seq_len, |n| t + n as u32)
}

fn refuse_second_part(segments: Option<&[i32]>, begin: u32) -> Result<()> {
    let Some(segments) = segments else { return Ok(()) };
    let own = segments[begin as usize];
    if segments[..begin as usize].contains(&own) {
        return Err(ComputeError::Failed(format!(
            "segment {own} of a row is in two parts: tokens of a segment must follow each other"
        )));
    }
    Ok(())
}

/// The heads of a grain.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    pub at: &'a HeadsAt,
    pub rows: usize,
    pub seq_len: usize,
    pub seen: &'a Ranges,
}

/// What the forward pass left.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    pub qkv: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

pub fn forward(heads: Heads<'_>, qkv: &[f32], mask: Option<&Dropout>, out: &mut [f32], lse: &mut [f32]) {
    let _ = Isa::best();
    let (at, t, d) = (heads.at, heads.seq_len, heads.at.dim);
    let scale = 1.0 / (d as f32).sqrt();
    let per_row = t.next_multiple_of(64) as u64;
    let mut p = vec![0f32; t];
    for b in 0..heads.rows {
        for n in 0..at.queries {
            let kv = n / (at.queries / at.key_values);
            let (q0, k0, v0) = (at.first[0] + n * at.step, at.first[1] + kv * at.step, at.first[2] + kv * at.step);
            for i in 0..t {
                let token = b * t + i;
                let (first, end) = (heads.seen.first[token] as usize, heads.seen.end[token] as usize);
                let q = &qkv[token * at.row + q0..][..d];
                let mut max = f32::NEG_INFINITY;
                for j in first..end {
                    let k = &qkv[(b * t + j) * at.row + k0..][..d];
                    p[j] = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>();
                    max = max.max(p[j]);
                }
                let sum: f32 = p[first..end].iter().map(|s| (s - max).exp()).sum();
                lse[(b * at.queries + n) * t + i] = max + sum.ln();
                let out = &mut out[token * at.query_width() + n * d..][..d];
                out.fill(0.0);
                for j in first..end {
                    let mut pj = (p[j] - max).exp() / sum;
                    if let Some(mask) = mask {
                        let e = ((b * at.queries + n) * t + i) as u64 * per_row + j as u64;
                        pj *= mask.factors(e / 64)[(e % 64) as usize];
                    }
                    let v = &qkv[(b * t + j) * at.row + v0..][..d];
                    for (o, v) in out.iter_mut().zip(v) {
                        *o += pj * v;
                    }
                }
            }
        }
    }
}

pub fn backward(heads: Heads<'_>, of: Forward<'_>, mask: Option<&Dropout>, dout: &[f32], dqkv: &mut [f32]) {
    let (at, t, d) = (heads.at, heads.seq_len, heads.at.dim);
    let scale = 1.0 / (d as f32).sqrt();
    let per_row = t.next_multiple_of(64) as u64;
    dqkv.fill(0.0);
    for b in 0..heads.rows {
        for n in 0..at.queries {
            let kv = n / (at.queries / at.key_values);
            let (q0, k0, v0) = (at.first[0] + n * at.step, at.first[1] + kv * at.step, at.first[2] + kv * at.step);
            for i in 0..t {
                let token = b * t + i;
                let (first, end) = (heads.seen.first[token] as usize, heads.seen.end[token] as usize);
                let o = token * at.query_width() + n * d;
                let delta: f32 = of.out[o..o + d].iter().zip(&dout[o..o + d]).map(|(a, b)| a * b).sum();
                for j in first..end {
                    let (q, k) = (token * at.row + q0, (b * t + j) * at.row + k0);
                    let v = (b * t + j) * at.row + v0;
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                    let s = scale * dot(&of.qkv[q..q + d], &of.qkv[k..k + d]);
                    let p = (s - of.lse[(b * at.queries + n) * t + i]).exp();
                    let mut factor = 1.0;
                    if let Some(mask) = mask {
                        let e = ((b * at.queries + n) * t + i) as u64 * per_row + j as u64;
                        factor = mask.factors(e / 64)[(e % 64) as usize];
                    }
                    let dp = factor * dot(&dout[o..o + d], &of.qkv[v..v + d]);
                    let ds = p * (dp - delta) * scale;
                    for c in 0..d {
                        dqkv[v + c] += p * factor * dout[o + c];
                        dqkv[q + c] += ds * of.qkv[k + c];
                        dqkv[k + c] += ds * of.qkv[q + c];
                    }
                }
            }
        }
    }
}
