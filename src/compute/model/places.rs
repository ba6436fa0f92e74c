//! Where the tokens of a batch stand: rotations by position, and who sees whom. Made once a batch, used by
//! every block.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Kind, Tensor};

use super::batch::{Batch, Mask};
use super::config::ModelConfig;
use crate::compute::{ComputeError, Result};

/// What attention sees in one kind of block.
#[derive(Debug)]
pub(super) enum Sight {
    /// Everything.
    All,
    /// Itself and what came before.
    Past,
    /// True where the query (third index) sees the key (fourth): bool, `[1 or B, 1, T, T]`.
    Some(Tensor),
}

/// Rotations and masks of one batch.
#[derive(Debug)]
pub struct Places {
    /// Cosine and sine, fp32 `[1 or B, T, rotary_dims / 2]`; absent if nothing is rotated.
    pub(super) rotation: Option<(Tensor, Tensor)>,
    /// Factors of the queries, fp32 `[1 or B, T]`; absent where all are 1.
    pub(super) query_factors: Option<Tensor>,
    sight: Sight,
    /// For blocks with a sliding window, where it cuts something off.
    windowed: Option<(i64, Sight)>,
    /// Of each block, whether its attention took a mask that is not causal.
    patched: Vec<AtomicBool>,
    is_causal: bool,
}

impl Places {
    /// Of full rows of `seq_len` tokens under a causal mask.
    ///
    /// # Errors
    /// They are longer than the model's context.
    pub fn causal(config: &ModelConfig, seq_len: usize, device: Device) -> Result<Self> {
        Self::of(config, &Batch { seq_len, ..Batch::default() }, device)
    }

    /// Of the tokens of `batch`; its ids and targets are not read.
    ///
    /// # Errors
    /// A row or a position is longer than the model's context, or a vector of the batch has another length.
    pub fn of(config: &ModelConfig, batch: &Batch, device: Device) -> Result<Self> {
        let (b, t) = (batch.rows as i64, batch.seq_len as i64);
        let last = batch.positions.as_ref().and_then(|p| p.iter().max()).map_or(t - 1, |&p| i64::from(p));
        if last.max(t - 1) >= config.max_position_embeddings {
            return Err(ComputeError::Config(format!(
                "an input of {} tokens is longer than the model's context of {}: shorten it",
                last.max(t - 1) + 1,
                config.max_position_embeddings
            )));
        }
        let sight = sight(batch, None, device)?;
        let windowed = match config.sliding_window {
            // A window as long as the row cuts nothing off.
            Some(window) if window.size < t => {
                Some((window.first_layer, self::sight(batch, Some(window.size), device)?))
            }
            _ => None,
        };
        let rotation = rotation(config, batch, [b, t], device)?;
        let patched = (0..config.num_hidden_layers).map(|_| AtomicBool::new(false)).collect();
        Ok(Self {
            rotation,
            query_factors: query_factors(config, batch, [b, t], device)?,
            sight,
            windowed,
            patched,
            is_causal: batch.mask == Mask::Causal,
        })
    }

    /// What block `layer` sees, which now takes it.
    pub(super) fn taken_by(&self, layer: usize) -> &Sight {
        if let (false, Some(patched)) = (self.is_causal, self.patched.get(layer)) {
            patched.store(true, Ordering::Relaxed);
        }
        self.sight_of(layer)
    }

    /// Attention layers that took another mask than a causal one from these places so far.
    pub fn patched_layers(&self) -> usize {
        self.patched.iter().filter(|patched| patched.load(Ordering::Relaxed)).count()
    }

    /// With other sights than the batch's own, of blocks without the model's window and with it: bool `[B, 1, T, S]`,
    /// where S keys were kept.
    pub(super) fn seeing(self, all: Tensor, windowed: Option<Tensor>, config: &ModelConfig) -> Self {
        let windowed = config.sliding_window.zip(windowed);
        Self { sight: Sight::Some(all), windowed: windowed.map(|(w, seen)| (w.first_layer, Sight::Some(seen))), ..self }
    }

    /// What block `layer` sees.
    pub(super) fn sight_of(&self, layer: usize) -> &Sight {
        match &self.windowed {
            // At most 2^24 layers.
            Some((first, sight)) if layer as i64 >= *first => sight,
            _ => &self.sight,
        }
    }
}

/// Cosine and sine of every position, in fp32 as `transformers` computes them.
fn rotation(config: &ModelConfig, batch: &Batch, [b, t]: [i64; 2], device: Device) -> Result<Option<(Tensor, Tensor)>> {
    if config.rotary_dims == 0 {
        return Ok(None);
    }
    let (positions, rows) = positions(batch, [b, t])?;
    let (inverse, factor) = (config.inverse_frequencies(), config.rotation_factor());
    let mut cos = Vec::with_capacity(positions.len() * inverse.len());
    let mut sin = Vec::with_capacity(cos.capacity());
    for &p in positions.iter() {
        // The angle is rounded to fp32 before cosine and sine: parity with the reference.
        cos.extend(inverse.iter().map(|f| (p as f32 * f).cos() * factor));
        sin.extend(inverse.iter().map(|f| (p as f32 * f).sin() * factor));
    }
    let shape = [rows, t, inverse.len() as i64];
    let table = |values: &[f32]| -> Result<Tensor> { Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to(device)?) };
    Ok(Some((table(&cos)?, table(&sin)?)))
}

/// The positions of a batch, and how many rows of them: one, if all rows count from 0.
fn positions(batch: &Batch, [b, t]: [i64; 2]) -> Result<(Cow<'_, [i32]>, i64)> {
    let (positions, rows) = match &batch.positions {
        Some(positions) => (Cow::Borrowed(positions.as_slice()), b),
        // No row is longer than 2^24 tokens.
        None => (Cow::Owned((0..t as i32).collect()), 1),
    };
    check_len("positions", positions.len(), (rows * t) as usize)?;
    Ok((positions, rows))
}

/// What the queries are multiplied by, where a position lies beyond the original context.
fn query_factors(config: &ModelConfig, batch: &Batch, [b, t]: [i64; 2], device: Device) -> Result<Option<Tensor>> {
    if config.query_scaling.is_none() {
        return Ok(None);
    }
    let (positions, rows) = positions(batch, [b, t])?;
    let factors: Vec<f32> = positions.iter().map(|&p| config.query_factor(i64::from(p))).collect();
    if factors.iter().all(|f| *f == 1.0) {
        return Ok(None);
    }
    Ok(Some(Tensor::f_from_slice(&factors)?.f_view([rows, t])?.f_to(device)?))
}

/// Who sees whom under a window of `window` keys. A query always sees itself, so that padding has a defined
/// result; no label depends on it.
fn sight(batch: &Batch, window: Option<i64>, device: Device) -> Result<Sight> {
    let (b, t) = (batch.rows as i64, batch.seq_len as i64);
    // Padding lies at the end: a causal query that is no padding does not see it.
    let key_lens = batch.key_lens.as_ref().filter(|_| batch.mask != Mask::Causal);
    let prompts = match batch.mask {
        Mask::Prefix => Some(batch.prompt_lens.as_ref().ok_or_else(|| {
            ComputeError::Config("a prefix mask needs the length of every row's prompt: give prompt lengths".to_owned())
        })?),
        _ => None,
    };
    if window.is_none() && batch.segments.is_none() && key_lens.is_none() && prompts.is_none() {
        return Ok(if batch.mask == Mask::Full { Sight::All } else { Sight::Past });
    }
    let at = Tensor::f_arange(t, (Kind::Int64, device))?;
    let (query, key) = (at.f_view([t, 1])?, at.f_view([1, t])?);
    let column = |lens: &[i32]| -> Result<Tensor> {
        check_len("row lengths", lens.len(), batch.rows)?;
        Ok(Tensor::f_from_slice(lens)?.f_to(device)?.f_view([b, 1, 1])?)
    };
    let mut seen = match (batch.mask, prompts) {
        (Mask::Full, _) => Tensor::f_ones([t, t], (Kind::Bool, device))?,
        (_, None) => key.f_le_tensor(&query)?,
        (_, Some(lens)) => key.f_le_tensor(&query)?.f_logical_or(&key.f_lt_tensor(&column(lens)?)?)?,
    };
    if let Some(window) = window {
        seen = seen.f_logical_and(&key.f_gt_tensor(&query.f_sub_scalar(window)?)?)?;
    }
    if let Some(segments) = &batch.segments {
        check_len("segments", segments.len(), batch.rows * batch.seq_len)?;
        let ids = Tensor::f_from_slice(segments)?.f_to(device)?;
        seen = seen.f_logical_and(&ids.f_view([b, t, 1])?.f_eq_tensor(&ids.f_view([b, 1, t])?)?)?;
    }
    if let Some(lens) = key_lens {
        seen = seen.f_logical_and(&key.f_lt_tensor(&column(lens)?)?)?;
    }
    let seen = seen.f_logical_or(&key.f_eq_tensor(&query)?)?;
    Ok(Sight::Some(seen.f_view([-1, 1, t, t])?))
}

fn check_len(what: &str, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(ComputeError::Failed(format!("a batch has {found} {what} for {wanted} places: report this")))
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Sizes, SlidingWindow};
    use super::*;

    fn config() -> ModelConfig {
        let sizes = Sizes {
            hidden_size: 8,
            num_hidden_layers: 4,
            num_attention_heads: 2,
            intermediate_size: 8,
            vocab_size: 8,
            max_position_embeddings: 16,
        };
        ModelConfig::new(Family::Mistral, sizes)
    }

    fn rows(sight: &Sight) -> Vec<String> {
        let Sight::Some(seen) = sight else { return vec![format!("{sight:?}")] };
        let [b, t] = [seen.size()[0], seen.size()[2]];
        let flat = Vec::<bool>::try_from(seen.view([-1])).unwrap();
        assert_eq!(flat.len() as i64, b * t * t);
        flat.chunks(t as usize).map(|row| row.iter().map(|&s| if s { 'x' } else { '.' }).collect()).collect()
    }

    fn seen(batch: &Batch, window: Option<i64>) -> Vec<String> {
        rows(&sight(batch, window, Device::Cpu).unwrap())
    }

    #[test]
    fn masks_are_what_their_words_say() {
        let one = Batch { rows: 1, seq_len: 4, ..Batch::default() };
        assert_eq!(seen(&one, None), ["Past"]);
        assert_eq!(seen(&Batch { mask: Mask::Full, ..one.clone() }, None), ["All"]);
        let padded = Batch { key_lens: Some(vec![2]), ..one.clone() };
        assert_eq!(seen(&padded, None), ["Past"]);
        assert_eq!(seen(&Batch { mask: Mask::Full, ..padded }, None), ["xx..", "xx..", "xxx.", "xx.x"]);
        let prefix = Batch { mask: Mask::Prefix, prompt_lens: Some(vec![3]), ..one.clone() };
        assert_eq!(seen(&prefix, None), ["xxx.", "xxx.", "xxx.", "xxxx"]);
        assert!(sight(&Batch { prompt_lens: None, ..prefix }, None, Device::Cpu).is_err());
        let packed = Batch { segments: Some(vec![0, 0, 1, 1]), ..one.clone() };
        assert_eq!(seen(&packed, None), ["x...", "xx..", "..x.", "..xx"]);
        assert_eq!(seen(&one, Some(2)), ["x...", "xx..", ".xx.", "..xx"]);
    }

    #[test]
    fn a_window_is_for_its_blocks_and_only_where_it_cuts() {
        let mut config = config();
        config.sliding_window = Some(SlidingWindow { size: 3, first_layer: 2 });
        let places = Places::causal(&config, 4, Device::Cpu).unwrap();
        assert!(matches!(places.sight_of(1), Sight::Past));
        assert_eq!(rows(places.sight_of(2)), ["x...", "xx..", "xxx.", ".xxx"]);
        assert!(matches!(Places::causal(&config, 3, Device::Cpu).unwrap().sight_of(3), Sight::Past));
        let error = Places::causal(&config, 17, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("17") && error.contains("16"), "{error}");
    }
}
