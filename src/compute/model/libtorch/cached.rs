//! New tokens beside kept keys and values, on libtorch: generation on any device, in fp32 and bf16.
//!
//! The rows of a group begin together and are padded on the right to the longest; a row whose text has ended goes on
//! unread until all have. So the shapes of every operation follow from the group alone.

use tch::{Kind, Tensor};

use super::super::batch::{Batch, Mask};
use super::super::decoder::embed;
use super::super::view::BlockView;
use super::head;
use super::net::Net;
use crate::compute::{ComputeError, Result};

/// Keys and values of a group of rows, in every block.
#[derive(Debug)]
pub struct Kept {
    /// `[B, capacity, key-value heads, d]` each, by block.
    blocks: Vec<[Tensor; 2]>,
    rows: usize,
    capacity: usize,
    /// Tokens of each row that are kept.
    known: Vec<usize>,
    /// Tokens of each row's prompt.
    prompts: Vec<usize>,
}

/// A decoder whose weights do not change any more.
#[derive(Debug)]
pub struct CachedDecoder<'a> {
    net: &'a Net,
    mask: Mask,
    views: Vec<BlockView>,
}

impl<'a> CachedDecoder<'a> {
    /// Over the weights of `net`.
    ///
    /// # Errors
    /// The mask lets tokens see what is yet to be generated, or libtorch refuses.
    pub fn new(net: &'a Net, mask: Mask) -> Result<Self> {
        if mask == Mask::Full {
            return Err(super::super::native::foreign_mask());
        }
        let views = (0..net.depth()).map(|layer| Ok(net.block(layer, false)?.view)).collect::<Result<_>>()?;
        Ok(Self { net, mask, views })
    }

    /// The decoder and its weights.
    pub fn net(&self) -> &Net {
        self.net
    }

    /// Runs the prompts of a group. Returns room for rows of `capacity` tokens with the prompts in it, and the logits of
    /// each row's last token, fp32 `[B, V]` on the CPU.
    ///
    /// # Errors
    /// A prompt is empty or longer than `capacity` or the model's context, or memory is short.
    pub fn begin(&self, prompts: &[&[u32]], capacity: usize) -> Result<(Kept, Tensor)> {
        let c = self.net.config();
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        if prompts.iter().any(|p| p.is_empty()) || longest > capacity {
            return Err(ComputeError::Failed(format!("prompts of up to {longest} tokens do not fit: report this")));
        }
        // A model has far fewer than 2^31 heads and tokens.
        let shape = [prompts.len() as i64, capacity as i64, c.num_key_value_heads, c.head_dim];
        let room = || -> Result<Tensor> { Ok(Tensor::f_zeros(shape, (self.net.kind(), self.net.device()))?) };
        let mut kept = Kept {
            blocks: (0..self.net.depth()).map(|_| Ok([room()?, room()?])).collect::<Result<_>>()?,
            rows: prompts.len(),
            capacity,
            known: vec![0; prompts.len()],
            prompts: prompts.iter().map(|p| p.len()).collect(),
        };
        let logits = self.advance(&mut kept, prompts, &vec![true; prompts.len()])?;
        Ok((kept, logits))
    }

    /// Runs one more token of every row; logits as of [`Self::begin`]. A row that does not go on takes part, and stays
    /// as it is.
    ///
    /// # Errors
    /// A row is full, or memory is short.
    pub fn next(&self, kept: &mut Kept, ids: &[u32], going: &[bool]) -> Result<Tensor> {
        let ids: Vec<&[u32]> = ids.chunks(1).collect();
        self.advance(kept, &ids, going)
    }

    fn advance(&self, kept: &mut Kept, new: &[&[u32]], going: &[bool]) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let (net, device) = (self.net, self.net.device());
        let t = new.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let whole = kept.known.iter().max().unwrap_or(&0) + t;
        if new.len() != kept.rows || going.len() != kept.rows || whole > kept.capacity {
            return Err(ComputeError::Failed(format!("{} rows of {whole} tokens do not fit: report this", new.len())));
        }
        let mut batch = Batch { rows: kept.rows, seq_len: t, ..Batch::default() };
        let mut positions = Vec::new();
        for (ids, known) in new.iter().zip(&kept.known) {
            // No vocabulary or context is longer than 2^24.
            batch.ids.extend(ids.iter().map(|&id| id as i32));
            batch.ids.resize(positions.len() + t, 0);
            // Padding has a position that the model knows; nobody sees it.
            let last = net.config().max_position_embeddings - 1;
            positions.extend((*known..known + t).map(|p| (p as i64).min(last) as i32));
        }
        let columns: Vec<i64> =
            kept.known.iter().flat_map(|known| *known..known + t).map(|column| column as i64).collect();
        batch.positions = Some(positions);
        let seen = |window: Option<usize>| self.sight(kept, [t, whole], window);
        let windowed = net.config().sliding_window.map(|w| seen(usize::try_from(w.size).ok())).transpose()?;
        let places = net.places(&batch)?.seeing(seen(None)?, windowed, net.config());
        let size = [kept.rows as i64, t as i64];
        let columns = Tensor::f_from_slice(&columns)?.f_view(size)?.f_to(device)?;
        let rows = Tensor::f_arange(size[0], (Kind::Int64, device))?.f_view([size[0], 1])?;
        let at = [Some(rows), Some(columns)];
        let mut x = embed(&net.embedding()?, &super::ids(&batch, net)?)?;
        for ((layer, view), kept) in self.views.iter().enumerate().zip(&mut kept.blocks) {
            let mut keep = |k: Tensor, v: Tensor| -> Result<(Tensor, Tensor)> {
                let whole_of = |room: &mut Tensor, new: &Tensor| -> Result<Tensor> {
                    let _ = room.f_index_put_(&at, &new.f_transpose(1, 2)?, false)?;
                    Ok(room.f_narrow(1, 0, whole as i64)?.f_transpose(1, 2)?)
                };
                let [keys, values] = &mut *kept;
                Ok((whole_of(keys, &k)?, whole_of(values, &v)?))
            };
            x = net.decoder().block_beside(layer, view, &x, &places, &mut keep)?;
        }
        let last: Vec<i64> = new.iter().enumerate().map(|(row, ids)| (row * t + ids.len() - 1) as i64).collect();
        for ((known, ids), _) in kept.known.iter_mut().zip(new).zip(going).filter(|(_, goes)| **goes) {
            *known += ids.len();
        }
        let logits = head::logits_at(net, &x, &Tensor::f_from_slice(&last)?.f_to(device)?)?;
        Ok(logits.f_to_kind(Kind::Float)?.f_to(tch::Device::Cpu)?.f_contiguous()?)
    }

    /// Which of `whole` keys the `t` new tokens of each row see: bool `[B, 1, T, S]`. Padding sees itself and what is
    /// before it, so that it has a defined result, which nobody reads.
    fn sight(&self, kept: &Kept, [t, whole]: [usize; 2], window: Option<usize>) -> Result<Tensor> {
        let window = window.unwrap_or(usize::MAX);
        let mut seen = Vec::with_capacity(kept.rows * t * whole);
        for (&known, &prompt) in kept.known.iter().zip(&kept.prompts) {
            for i in known..known + t {
                let end = if self.mask == Mask::Prefix { prompt.max(i + 1) } else { i + 1 };
                let first = (i + 1).saturating_sub(window);
                seen.extend((0..whole).map(|key| first <= key && key < end));
            }
        }
        let size = [kept.rows as i64, 1, t as i64, whole as i64];
        Ok(Tensor::f_from_slice(&seen)?.f_view(size)?.f_to(self.net.device())?)
    }
}
