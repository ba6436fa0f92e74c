//! The model seam: a decoder as a function of ids or embeddings, with outputs that others choose and a backward
//! pass from any of them. What decides between models (attacks, translators, probes) stands on it.

use tch::{Kind, Tensor};

use super::super::batch::Batch;
use super::super::decoder::embed;
use super::super::passes::Accumulate;
use super::super::places::Places;
use super::head::{self, HeadGradients, Labels};
use super::net::{Net, Want};
use super::tape::{Chance, Keep, Pass, Tape};
use super::{Sink, ids};
use crate::compute::{ComputeError, Result};

/// What goes in.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The ids of the batch.
    Ids,
    /// Embeddings `[B, T, h]`; the ids of the batch are not read.
    Embeddings(&'a Tensor),
}

/// Which outputs are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// The NLL of every position of the batch.
    pub nll: bool,
    /// Logits at these positions, numbered row by row: row T + position.
    pub logits_at: Vec<i64>,
    /// Hidden states after so many blocks: 0 is the embedding, L what the last norm sees.
    pub hidden_after: Vec<usize>,
}

/// What comes out, detached.
#[derive(Debug)]
pub struct Outputs {
    /// Weighted NLL, fp32 `[B, T]`, 0 where nothing is scored.
    pub nll_bt: Option<Tensor>,
    /// `[P, V]`, in the net's type.
    pub logits_pv: Option<Tensor>,
    /// `[B, T, h]` each, in the order asked.
    pub hidden: Vec<Tensor>,
}

/// The gradient of something by the outputs; what is absent is zero.
#[derive(Debug, Default)]
pub struct Cotangents {
    /// `[B, T]`.
    pub nll_bt: Option<Tensor>,
    /// `[P, V]`.
    pub logits_pv: Option<Tensor>,
    /// `[B, T, h]` each, in the order asked; may be shorter.
    pub hidden: Vec<Option<Tensor>>,
}

/// A forward pass whose backward pass may follow.
pub struct Forward<'a> {
    net: &'a Net,
    ask: Ask,
    tape: Tape<'a>,
    want: Want,
    ids_bt: Option<Tensor>,
    labels: Option<Labels>,
    /// What the head saw, if it was asked.
    last_bth: Option<Tensor>,
    head_rows: i64,
    /// What came out.
    pub outputs: Outputs,
}

impl Net {
    /// Runs the decoder as far as `ask` needs it. `places` are those of `batch`
    /// ([`Self::places`]); `keep` and `want` say what the backward pass will need.
    ///
    /// # Errors
    /// An id or position is out of range, or shapes and types do not fit.
    pub fn forward<'a>(
        &'a self,
        source: Source<'_>,
        (batch, places): (&Batch, &'a Places),
        ask: Ask,
        (keep, want): (Keep, Want),
    ) -> Result<Forward<'a>> {
        let head_rows = super::Settings::default().head_rows;
        let (mut x, ids_bt) = match source {
            Source::Ids => {
                let ids_bt = ids(batch, self)?;
                (embed(&self.embedding()?, &ids_bt)?, Some(ids_bt))
            }
            Source::Embeddings(x_bth) => (x_bth.f_detach()?.f_to_kind(self.kind())?, None),
        };
        let needs_head = ask.nll || !ask.logits_at.is_empty();
        let deepest = ask.hidden_after.iter().copied().max().unwrap_or(0);
        if deepest > self.depth() {
            return Err(ComputeError::Config(format!(
                "hidden states after {deepest} blocks are asked of a model with {}: ask for fewer",
                self.depth()
            )));
        }
        let depth = if needs_head { self.depth() } else { deepest };
        let mut tape = Tape::new(Pass { net: self, places, chance: Chance::NONE, keep, want });
        let mut hidden: Vec<Option<Tensor>> = ask.hidden_after.iter().map(|_| None).collect();
        for done in 0..=depth {
            for (room, _) in hidden.iter_mut().zip(&ask.hidden_after).filter(|(_, after)| **after == done) {
                *room = Some(x.shallow_clone());
            }
            if done < depth {
                x = tape.forward(x)?;
            }
        }
        let labels = if ask.nll { Some(Labels::of(batch, self.config().vocab_size, self.device())?) } else { None };
        let nll_bt = match &labels {
            Some(labels) => Some(labels.spread(&head::losses(self, &x, labels, head_rows)?, batch)?),
            None => None,
        };
        let logits_pv = if ask.logits_at.is_empty() {
            None
        } else {
            Some(head::logits_at(self, &x, &self.positions(&ask.logits_at)?)?)
        };
        let outputs = Outputs { nll_bt, logits_pv, hidden: hidden.into_iter().flatten().collect() };
        let last_bth = needs_head.then_some(x);
        Ok(Forward { net: self, ask, tape, want, ids_bt, labels, last_bth, head_rows, outputs })
    }

    /// Rotations and masks of a batch, for [`Self::forward`].
    ///
    /// # Errors
    /// A row or position is longer than the model's context.
    pub fn places(&self, batch: &Batch) -> Result<Places> {
        Places::of(self.config(), batch, self.device())
    }

    fn positions(&self, rows: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(rows)?.f_to(self.device())?)
    }
}

impl Forward<'_> {
    /// Walks the blocks in reverse and adds tapped cotangents on the way. The gradients of the trainable groups
    /// go into `gradients`, if they are wanted; what is returned is that of the embeddings, `[B, T, h]`, if it is.
    ///
    /// # Errors
    /// A cotangent belongs to an output that was not asked for.
    pub fn backward(
        mut self,
        cotangents: &Cotangents,
        gradients: &mut [Tensor],
        how: Accumulate,
    ) -> Result<Option<Tensor>> {
        let net = self.net;
        let params = self.want.params;
        let mut sink = Sink { net, gradients, how };
        let mut out = if params { sink.out_gradient()? } else { None };
        if params && how == Accumulate::Assign {
            // Blocks that no cotangent reaches have no gradient.
            sink.gradients.iter_mut().try_for_each(|g| g.f_zero_().map(drop))?;
        }
        sink.how = Accumulate::Add;
        let mut total: Option<Tensor> = None;
        for HeadGradients { dx_bth, norm } in self.head(cotangents, &mut out)? {
            if params {
                sink.head(&norm)?;
            }
            total = sum(total, dx_bth)?;
        }
        if cotangents.hidden.len() > self.ask.hidden_after.len() {
            return Err(not_asked("hidden states"));
        }
        loop {
            let done = self.tape.len();
            for (tap, _) in cotangents.hidden.iter().zip(&self.ask.hidden_after).filter(|(_, after)| **after == done) {
                total = sum(total, tap.as_ref().map(|t| t.f_to_kind(net.kind())).transpose()?)?;
            }
            if done == 0 {
                break;
            }
            let Some(dy) = total.take() else {
                // Nothing has come down to here: this block adds nothing.
                self.tape.skip();
                continue;
            };
            if let Some((below, block)) = self.tape.backward(&dy)? {
                if params {
                    sink.block(block.layer, &block.base, &block.adapter)?;
                }
                total = below;
            }
        }
        if let (true, Some(ids_bt), Some(dx)) = (params, &self.ids_bt, &total) {
            sink.embedding(ids_bt, dx)?;
        }
        Ok(total.filter(|_| self.want.inputs))
    }

    /// The gradients from the head's outputs.
    fn head(&self, cotangents: &Cotangents, out: &mut head::OutGradient) -> Result<Vec<HeadGradients>> {
        let wants_x = self.want.inputs || self.want.params && self.net.trains_below(self.net.depth());
        let mut found = Vec::new();
        if let Some(d_bt) = &cotangents.nll_bt {
            let (Some(labels), Some(x)) = (&self.labels, &self.last_bth) else { return Err(not_asked("the NLL")) };
            let d_m = labels.gather(&d_bt.f_detach()?.f_to_kind(Kind::Float)?.f_to(self.net.device())?)?;
            let how = (self.head_rows, wants_x);
            found.push(head::losses_backward(self.net, x, labels, Some(&d_m), how, out)?.1);
        }
        if let Some(d_pv) = &cotangents.logits_pv {
            let Some(x) = self.last_bth.as_ref().filter(|_| !self.ask.logits_at.is_empty()) else {
                return Err(not_asked("logits"));
            };
            let rows = self.net.positions(&self.ask.logits_at)?;
            found.push(head::logits_backward(self.net, x, &rows, d_pv, wants_x, out)?);
        }
        Ok(found)
    }
}

fn sum(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Some(a.f_add(&b)?),
        (a, b) => a.or(b),
    })
}

fn not_asked(what: &str) -> ComputeError {
    ComputeError::Failed(format!(
        "there is a cotangent of {what}, which the forward pass was not asked for: ask for it"
    ))
}
