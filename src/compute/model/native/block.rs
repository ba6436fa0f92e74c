//! One block, forward and backward, over flat weights.
//!
//! Letters: N positions, h width of the stream, f of the feed-forward layer. Gradients are called `d` and the
//! name of what they belong to. Every sum has one order.

use super::maps::{BlockAt, Gradient, Group, Linear, Maps, NormAt};
use super::memory::{Kept, Scratch};
use super::seen::Seen;
use crate::compute::Result;
use crate::compute::kernels::attention::{Attention, Forward, Heads};
use crate::compute::kernels::dropout::{self, Dropout, Site};
use crate::compute::kernels::gemm::Gemm;
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Isa, activation, norm, residual, rotary};
use crate::compute::model::passes::GrainAt;

/// What a grain has in common for all blocks.
#[derive(Debug, Clone, Copy)]
pub struct Grain<'a> {
    pub maps: &'a Maps,
    pub table: &'a rotary::Table,
    /// `[N]`.
    pub positions: &'a [u32],
    pub rows: usize,
    pub seq_len: usize,
    /// Keys that each query sees, without a window and with the model's.
    pub seen: &'a Seen,
    /// Where chance comes from and the probability; none: no dropout.
    pub dropout: Option<(GrainAt, f64)>,
}

impl Grain<'_> {
    /// The mask of a site, if there is dropout.
    pub fn mask(&self, block: usize, site: Site) -> Option<Dropout> {
        self.dropout.map(|(at, p)| Dropout::new(p, at.seed, at.step, at.grain, block, site))
    }

    fn heads<'a>(&'a self, number: usize, block: &BlockAt, dropout: Option<&'a Dropout>) -> Heads<'a> {
        Heads { dropout, ..self.heads_of(number, block, 0..self.rows) }
    }

    /// The heads of some rows, without dropout.
    pub fn heads_of<'a>(&'a self, number: usize, block: &BlockAt, rows: std::ops::Range<usize>) -> Heads<'a> {
        let (layout, seen) = (self.maps.heads.layout, self.seen.taken_by(number, block.window));
        let scale = 1.0 / (layout.dim as f32).sqrt();
        let places = rows.start * self.seq_len..rows.end * self.seq_len;
        let (first, end) = (&seen.first[places.clone()], &seen.end[places.clone()]);
        let gaps = if seen.gaps.is_empty() { &[][..] } else { &seen.gaps[places] };
        Heads { layout, rows: rows.len(), seq_len: self.seq_len, first, end, gaps, scale, dropout: None }
    }
}

/// Who computes products and attention.
#[derive(Debug)]
pub struct Engines {
    pub gemm: Gemm,
    pub attention: Attention,
}

/// A block: its number, its place in the group, its weights.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    pub number: usize,
    pub at: &'a BlockAt,
    pub group: Group<'a>,
}

impl Block<'_> {
    /// The stream `[N, h]` after the block from that before it.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn forward(
        &self,
        engines: &mut Engines,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &mut Kept,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        self.attend(engines, grain, x, kept, scratch)?;
        self.finish(engines, grain, x, kept, scratch, out)
    }

    /// The first half of [`Self::forward`]: what attention gives, into `kept.attended`. Here positions see each other.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn attend(
        &self,
        Engines { gemm, attention }: &mut Engines,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &mut Kept,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.project(gemm, grain, x, kept, scratch)?;
        let mask = grain.mask(self.number, Site::Probabilities);
        let heads = grain.heads(self.number, self.at, mask.as_ref());
        attention.forward(heads, &kept.qkv, &mut kept.attended, &mut kept.lse);
        Ok(())
    }

    /// The second half, from `kept.attended` and the stream before the block: position by position, so that both may be
    /// some of the positions only.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn finish(
        &self,
        Engines { gemm, .. }: &mut Engines,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &mut Kept,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        let maps = grain.maps;
        if maps.parallel_residual {
            self.add_attended(gemm, grain, x, kept, scratch, out)?;
            self.norm(maps, &self.at.norm2, x, &mut kept.norm2, &mut kept.mean2, &mut kept.rstd2);
        } else {
            let mut middle = std::mem::take(&mut kept.middle);
            self.add_attended(gemm, grain, x, kept, scratch, &mut middle)?;
            kept.middle = middle;
            self.norm(maps, &self.at.norm2, &kept.middle, &mut kept.norm2, &mut kept.mean2, &mut kept.rstd2);
        }
        self.feed(gemm, grain, kept, scratch)?;
        let before = if maps.parallel_residual { None } else { Some(&kept.middle[..]) };
        self.add_branch(grain, &self.at.down, Site::Mlp, before, scratch, out);
        Ok(())
    }

    /// Queries, keys and values of the stream `x`, turned: `kept.qkv`.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn project(
        &self,
        gemm: &mut Gemm,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &mut Kept,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.norm(grain.maps, &self.at.norm1, x, &mut kept.norm1, &mut kept.mean1, &mut kept.rstd1);
        self.at.qkv.forward(gemm, self.group.weights, &kept.norm1, &mut kept.qkv)?;
        self.turn(grain, &mut kept.qkv, scratch);
        Ok(())
    }

    /// Adds the bias of queries, keys and values, and turns them by their positions.
    pub fn turn(&self, grain: &Grain<'_>, qkv: &mut [f32], scratch: &mut Scratch) {
        let bias = self.at.qkv.bias(self.group.weights, &mut scratch.bias);
        rotary::forward(isa(), grain.table, turned(grain.maps), grain.positions, bias, qkv);
    }

    /// to = x + what attention gave, through its output map.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn add_attended(
        &self,
        gemm: &mut Gemm,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &Kept,
        scratch: &mut Scratch,
        to: &mut [f32],
    ) -> Result<()> {
        self.at.out.forward(gemm, self.group.weights, &kept.attended, &mut scratch.branch)?;
        self.add_branch(grain, &self.at.out, Site::Attention, Some(x), scratch, to);
        Ok(())
    }

    /// The feed-forward layer on `kept.norm2`, without its last bias: `scratch.branch`.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn feed(&self, gemm: &mut Gemm, grain: &Grain<'_>, kept: &mut Kept, scratch: &mut Scratch) -> Result<()> {
        let (at, w, maps) = (self.at, self.group.weights, grain.maps);
        at.up.forward(gemm, w, &kept.norm2, &mut kept.up)?;
        let (f, bias) = (maps.intermediate, at.up.bias(w, &mut scratch.bias));
        if maps.gated {
            activation::gated_forward(isa(), maps.function, f, bias, &mut kept.up, &mut kept.active);
        } else {
            activation::forward(isa(), maps.function, f, bias, &mut kept.up, &mut kept.active);
        }
        at.down.forward(gemm, w, &kept.active, &mut scratch.branch)
    }

    /// The gradient by the stream before the block from that after it, in place; the gradient by the block's
    /// parameters goes to `gradient`. `kept` is the forward's; it is used up where that is wanted, and stays as it is
    /// where it is not.
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn backward(
        &self,
        Engines { gemm, attention }: &mut Engines,
        grain: &Grain<'_>,
        x: &[f32],
        kept: &mut Kept,
        scratch: &mut Scratch,
        dx: &mut [f32],
        gradient: &mut Gradient<'_>,
    ) -> Result<()> {
        let (at, group, maps) = (self.at, self.group, grain.maps);
        let w = group.weights;
        let Scratch { branch, dnorm, dqkv, dattended, dactive, dup, row, bias, dweight, .. } = scratch;

        let dbranch = self.branch_gradient(grain, Site::Mlp, dx, branch);
        bias_gradient(&at.down, dbranch, bias, row, gradient);
        at.down.input_gradient(gemm, w, dbranch, dactive)?;
        at.down.weight_gradient(gemm, group, dbranch, &kept.active, gradient, dweight)?;
        if !gradient.wanted {
            dup.resize(kept.up.len());
            dup.copy_from_slice(&kept.up);
        }
        let (f, du) = (maps.intermediate, if gradient.wanted { &mut kept.up } else { dup });
        let dbias = (gradient.wanted && at.up.has_bias()).then(|| zeroed(bias, at.up.outputs));
        if maps.gated {
            activation::gated_backward(isa(), maps.function, f, du, dactive, dbias, row);
        } else {
            activation::backward(isa(), maps.function, f, du, dactive, dbias, row);
        }
        at.up.add_bias_gradient(bias, gradient);
        at.up.input_gradient(gemm, w, du, dnorm)?;
        at.up.weight_gradient(gemm, group, du, &kept.norm2, gradient, dweight)?;
        if !maps.parallel_residual {
            norm_gradient(maps, &at.norm2, w, &kept.middle, (&kept.mean2, &kept.rstd2), dnorm, dx, gradient, row);
        }

        let dbranch = self.branch_gradient(grain, Site::Attention, dx, branch);
        bias_gradient(&at.out, dbranch, bias, row, gradient);
        at.out.input_gradient(gemm, w, dbranch, dattended)?;
        at.out.weight_gradient(gemm, group, dbranch, &kept.attended, gradient, dweight)?;
        if maps.parallel_residual {
            // Only now: the attention's branch has read the gradient of the sum.
            norm_gradient(maps, &at.norm2, w, x, (&kept.mean2, &kept.rstd2), dnorm, dx, gradient, row);
        }
        let mask = grain.mask(self.number, Site::Probabilities);
        let forward = Forward { qkv: &kept.qkv, out: &kept.attended, lse: &kept.lse };
        attention.backward(grain.heads(self.number, at, mask.as_ref()), forward, dattended, dqkv);
        let dbias = (gradient.wanted && at.qkv.has_bias()).then(|| zeroed(bias, at.qkv.outputs));
        rotary::backward(isa(), grain.table, turned(maps), grain.positions, dqkv, dbias, row);
        at.qkv.add_bias_gradient(bias, gradient);
        at.qkv.input_gradient(gemm, w, dqkv, dnorm)?;
        at.qkv.weight_gradient(gemm, group, dqkv, &kept.norm1, gradient, dweight)?;
        norm_gradient(maps, &at.norm1, w, x, (&kept.mean1, &kept.rstd1), dnorm, dx, gradient, row);
        Ok(())
    }

    /// y = norm(x), and its statistics.
    pub fn norm(&self, maps: &Maps, at: &NormAt, x: &[f32], y: &mut [f32], mean: &mut [f32], rstd: &mut [f32]) {
        norm_forward(maps, at, self.group.weights, x, y, (mean, rstd));
    }

    /// out = x + dropout(branch + bias); without x it is added to `out`.
    pub fn add_branch(
        &self,
        grain: &Grain<'_>,
        linear: &Linear,
        site: Site,
        x: Option<&[f32]>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let h = grain.maps.hidden;
        let mut bias = linear.bias(self.group.weights, &mut scratch.bias);
        if let Some(mask) = grain.mask(self.number, site) {
            residual::drop_out(isa(), &mask, h, bias.take(), &mut scratch.branch);
        }
        match x {
            Some(x) => residual::add(isa(), h, x, &scratch.branch, bias, out),
            None => residual::add_branch(isa(), h, &scratch.branch, bias, out),
        }
    }

    /// The gradient of a branch from that of the stream: itself, or under a mask in `room`.
    fn branch_gradient<'b>(&self, grain: &Grain<'_>, site: Site, dx: &'b [f32], room: &'b mut Floats) -> &'b [f32] {
        match grain.mask(self.number, site) {
            None => dx,
            Some(mask) => {
                room.copy_from_slice(dx);
                dropout::apply(isa(), &mask, 0, room);
                room
            }
        }
    }
}

fn isa() -> Isa {
    Isa::best()
}

fn turned(maps: &Maps) -> rotary::Heads<'_> {
    let layout = &maps.heads.layout;
    rotary::Heads { row: layout.row, starts: &maps.heads.turned, queries: layout.queries, dim: layout.dim }
}

fn zeroed(room: &mut [f32], len: usize) -> &mut [f32] {
    let room = &mut room[..len];
    room.fill(0.0);
    room
}

/// Adds the sum of the rows of `dy` to the gradient of a map's bias.
fn bias_gradient(linear: &Linear, dy: &[f32], bias: &mut [f32], row: &mut [f32], gradient: &mut Gradient<'_>) {
    if gradient.wanted && linear.has_bias() {
        let dbias = zeroed(bias, linear.outputs);
        residual::bias_backward(isa(), linear.outputs, dy, dbias, row);
        linear.add_bias_gradient(dbias, gradient);
    }
}

/// y = norm(x), and its statistics (mean and rstd).
pub fn norm_forward(
    maps: &Maps,
    at: &NormAt,
    weights: &[f32],
    x: &[f32],
    y: &mut [f32],
    (mean, rstd): (&mut [f32], &mut [f32]),
) {
    let weight = &weights[at.weight.clone()];
    match &at.bias {
        Some(bias) => norm::layer_norm(isa(), x, weight, &weights[bias.clone()], maps.norm_eps, y, mean, rstd),
        None => norm::rms_norm(isa(), x, weight, maps.norm_eps, y, rstd),
    }
}

/// Adds the gradient through a norm to `dx`, and that by its parameters to `gradient`.
#[allow(clippy::too_many_arguments)] // They are the operands of one formula.
pub fn norm_gradient(
    maps: &Maps,
    at: &NormAt,
    weights: &[f32],
    x: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    dx: &mut [f32],
    gradient: &mut Gradient<'_>,
    room: &mut [f32],
) {
    debug_assert_eq!(x.len() % maps.hidden, 0);
    let weight = &weights[at.weight.clone()];
    // Where nobody wants them, the sums by parameters go to room that nobody reads.
    let h = maps.hidden;
    let (dweight_at, dbias_at) = match (&at.bias, gradient.wanted) {
        (bias, true) => (at.weight.clone(), bias.clone()),
        (bias, false) => (0..h, bias.as_ref().map(|_| h..2 * h)),
    };
    match dbias_at {
        None => norm::rms_norm_backward(isa(), x, rstd, weight, dy, dx, &mut gradient.flat[dweight_at], room),
        Some(bias) => {
            // The bias lies behind its weight.
            let (before, after) = gradient.flat.split_at_mut(bias.start);
            let (dweight, dbias) = (&mut before[dweight_at], &mut after[..bias.len()]);
            norm::layer_norm_backward(isa(), x, mean, rstd, weight, dy, dx, dweight, dbias, room);
        }
    }
}
