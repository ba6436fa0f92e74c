//! A decoder with its weights: loaded, run, differentiated, saved.
//!
//! Parameters lie in flat fp32 groups ([`layout`]); the forward pass ([`decoder`]) sees them only as
//! effective weights, so that a constrained matrix ([`constraint`]) or an adapter ([`lora`]) is a matter of this
//! room alone. [`libtorch`] trains them block by block, and lets others in between ([`translator`]).
//! [`load`] and [`save`] read and write the Hugging Face layout and our own model directory
//! (`docs/formats/model.md`), which keeps V.

pub mod batch;
pub mod config;
pub mod constraint;
pub mod decoder;
pub mod init;
pub mod layout;
pub mod libtorch;
pub mod lora;
pub mod native;
pub mod passes;

mod flat;
mod load;
pub mod places;
mod save;
pub mod translator;
mod view;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

pub use batch::{Batch, Mask};
pub use config::{
    Activation, Family, Llama3Scaling, ModelConfig, Norm, QueryScaling, RopeScaling, Sizes, SlidingWindow, YarnScaling,
};
pub use constraint::{Constraint, Variant};
pub use decoder::Decoder;
pub use flat::{as_f32, as_f32_mut};
pub use layout::{CHUNK, GroupLayout, Layout, Role, Span, matrix};
pub use libtorch::{LibtorchPasses, Net};
pub use lora::{Adapter, LoraSettings};
pub use native::seen::Ranges;
pub use passes::{Accumulate, GrainAt, GrainSum, Hooks, NoHooks, Passes};
pub use places::Places;
pub use translator::{Translator, TranslatorSettings};
pub use view::Views;

use super::{ComputeError, Result};
use crate::record::Digest;
use view::{BlockView, Cut, HeadView, Signs};

/// What goes into the decoder.
#[derive(Debug)]
pub enum Input {
    /// Token ids, i64 `[B, T]`.
    Tokens(Tensor),
    /// Embeddings, fp32 `[B, T, h]`; differentiable if the tensor is.
    Embeddings(Tensor),
}

/// A decoder with its weights.
#[derive(Debug)]
pub struct Model {
    decoder: Decoder,
    layout: Layout,
    variant: Option<Variant>,
    /// One flat fp32 tensor a group.
    flats: Vec<Tensor>,
    /// Signs of [`Constraint::SignedSoftplus`] spans, fp32, by group and span.
    signs: Vec<Signs>,
    /// Effective weights without gradients, made when first asked for.
    views: OnceCell<Views>,
}

/// What the check of the constrained tensors saw.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstraintCheck {
    /// Constrained tensors that were inspected; never 0.
    pub tensors: usize,
    /// Weights in them.
    pub weights: u64,
    /// Smallest effective weight.
    pub min: f64,
    /// Largest effective weight.
    pub max: f64,
    /// Tensors with an effective weight below zero.
    pub negative: Vec<String>,
    /// Tensors whose effective weights leave what their constraint allows (or are not finite).
    pub violated: Vec<String>,
}

impl Model {
    /// Loads a directory in the Hugging Face layout (`config.json`, `model.safetensors` or shards with their
    /// index; f32, f16 or bf16), or our own model directory (`model.json`).
    ///
    /// # Errors
    /// A file is missing, cut short or damaged, a tensor is missing or has another shape: named, with what to do.
    pub fn load(dir: &Path) -> Result<Self> {
        load::load(dir)
    }

    /// A model with every parameter zero.
    fn zeros(config: &ModelConfig, variant: Option<Variant>, lanes: usize) -> Result<Self> {
        config.check().map_err(|reason| ComputeError::Config(format!("the model {reason}")))?;
        let layout = Layout::new(config, variant, lanes);
        let flats = layout
            .groups
            .iter()
            .map(|g| Ok(Tensor::f_zeros([g.len as i64], (Kind::Float, tch::Device::Cpu))?))
            .collect::<Result<_>>()?;
        let mut model =
            Self { decoder: Decoder::new(config), layout, variant, flats, signs: Vec::new(), views: OnceCell::new() };
        model.signs.resize_with(model.layout.groups.len(), BTreeMap::new);
        Ok(model)
    }

    /// A model with random weights, as GPT-NeoX begins: see [`init`].
    ///
    /// # Errors
    /// The configuration cannot be computed.
    pub fn random(config: &ModelConfig, seed: u32) -> Result<Self> {
        let mut model = Self::zeros(config, None, 1)?;
        init::randomise(&mut model, seed);
        Ok(model)
    }

    /// The same weights under `variant`'s constraint; the model must be unconstrained.
    ///
    /// # Errors
    /// It is constrained already.
    pub fn constrained(&self, variant: Variant) -> Result<Self> {
        if let Some(old) = self.variant {
            return Err(ComputeError::Config(format!(
                "the model is constrained already ({}): start from an unconstrained one",
                old.word()
            )));
        }
        if self.config().family != Family::GptNeox {
            return Err(ComputeError::Config(format!(
                "`{}` constrains the matrices of a gpt_neox model, this one is of family {}: use a gpt_neox model",
                variant.word(),
                self.config().family.word()
            )));
        }
        let mut model = Self::zeros(self.config(), Some(variant), self.layout.lanes)?;
        for (g, group) in self.layout.groups.iter().enumerate() {
            for (i, span) in group.spans.iter().enumerate() {
                // Constraints do not move spans: both layouts have this one at the same place.
                let constraint = model.layout.groups[g].spans[i].constraint;
                let w0 = &as_f32(&self.flats[g])[span.range()];
                let v = &mut as_f32_mut(&mut model.flats[g])[span.range()];
                for (v, &w0) in v.iter_mut().zip(w0) {
                    *v = match constraint {
                        Constraint::Dense => w0,
                        Constraint::Softplus | Constraint::SignedSoftplus => constraint::softplus_init(w0),
                        Constraint::FreeFromAbs => constraint::abs_init(w0),
                    };
                }
                if constraint == Constraint::SignedSoftplus {
                    let signs: Vec<f32> = w0.iter().map(|&w| f32::from(constraint::sign(w))).collect();
                    let signs = Tensor::f_from_slice(&signs)?.f_view(&span.shape[..])?;
                    model.signs[g].insert(i, signs);
                }
            }
        }
        Ok(model)
    }

    /// The same model padded for `lanes` lanes.
    ///
    /// # Errors
    /// Out of memory.
    pub fn padded_for(self, lanes: usize) -> Result<Self> {
        if lanes == self.layout.lanes {
            return Ok(self);
        }
        let mut model = Self::zeros(self.config(), self.variant, lanes)?;
        for (new, old) in model.flats.iter_mut().zip(&self.flats) {
            let (new, old) = (as_f32_mut(new), as_f32(old));
            // What differs is padding at the end.
            let n = new.len().min(old.len());
            new[..n].copy_from_slice(&old[..n]);
        }
        model.signs = self.signs;
        Ok(model)
    }

    /// A copy with memory of its own.
    ///
    /// # Errors
    /// Out of memory.
    pub fn duplicate(&self) -> Result<Self> {
        let mut model = Self::zeros(self.config(), self.variant, self.layout.lanes)?;
        for (new, old) in model.flats.iter_mut().zip(&self.flats) {
            as_f32_mut(new).copy_from_slice(as_f32(old));
        }
        // Signs are never changed: their memory may be shared.
        model.signs = self.signs.iter().map(|s| s.iter().map(|(i, t)| (*i, t.shallow_clone())).collect()).collect();
        Ok(model)
    }

    /// Another handle of the same memory.
    pub fn alias(&self) -> Self {
        Self {
            decoder: self.decoder.clone(),
            layout: self.layout.clone(),
            variant: self.variant,
            flats: self.flats.iter().map(Tensor::shallow_clone).collect(),
            signs: self.signs.iter().map(|s| s.iter().map(|(i, t)| (*i, t.shallow_clone())).collect()).collect(),
            views: OnceCell::new(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The decoder without its weights.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Where every parameter lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The constraint, if there is one.
    pub fn variant(&self) -> Option<Variant> {
        self.variant
    }

    /// Parameters, without padding.
    pub fn num_parameters(&self) -> i64 {
        self.layout.num_parameters()
    }

    /// Parameters of the feed-forward layers, biases included.
    pub fn ffn_parameters(&self) -> i64 {
        self.layout.ffn_parameters()
    }

    /// Floating-point operations of a training step, a token of a full context: 6 N + 12 L h T, where N leaves out
    /// the input embedding and counts the head (Chowdhery et al. 2022, appendix B).
    pub fn flops_per_token(&self) -> f64 {
        let c = self.config();
        let embedding = c.vocab_size * c.hidden_size;
        let counted = self.num_parameters() - if c.tie_word_embeddings { 0 } else { embedding };
        let attention = 12 * c.num_hidden_layers * c.hidden_size * c.max_position_embeddings;
        (6 * counted + attention) as f64
    }

    /// The effective input embedding, `[V, h]`, detached.
    ///
    /// # Errors
    /// Out of memory.
    pub fn embedding(&self) -> Result<Tensor> {
        Ok(self.views()?.embed.shallow_clone())
    }

    /// Effective weights without gradients.
    ///
    /// # Errors
    /// Out of memory.
    pub fn views(&self) -> Result<&Views> {
        if let Some(views) = self.views.get() {
            return Ok(views);
        }
        let views = {
            let _guard = tch::no_grad_guard();
            let flats: Vec<Tensor> = self.flats.iter().map(Tensor::detach).collect();
            self.views_of(&flats)?
        };
        Ok(self.views.get_or_init(|| views))
    }

    /// Effective weights made from other flat tensors of this layout, for example leaves that want gradients.
    ///
    /// # Errors
    /// The tensors do not have the layout's lengths.
    pub fn views_of(&self, flats: &[Tensor]) -> Result<Views> {
        let mut groups = flats.iter().zip(&self.layout.groups).zip(&self.signs).map(|((flat, group), signs)| {
            let cut = Cut::of(group);
            cut.effective(&cut.pieces(flat)?, group, signs)
        });
        let mut next = || groups.next().unwrap_or_else(|| Err(view::too_few()));
        let config = self.config();
        let embed = next()?.pop().ok_or_else(view::too_few)?;
        let blocks =
            (0..config.num_hidden_layers).map(|_| BlockView::assemble(config, next()?)).collect::<Result<_>>()?;
        Ok(Views { embed, blocks, head: HeadView::assemble(config, next()?)? })
    }

    /// Logits `[B, T, V]`, without parameter gradients.
    ///
    /// # Errors
    /// Shapes do not fit, an id is out of range, or T is longer than the context.
    pub fn logits(&self, input: &Input) -> Result<Tensor> {
        let views = self.views()?;
        match input {
            Input::Tokens(ids_bt) => self.decoder.logits(views, &decoder::embed(&views.embed, ids_bt)?),
            Input::Embeddings(x_bth) => self.decoder.logits(views, x_bth),
        }
    }

    /// NLL of every position, fp32 `[B, T]`, zero where the target is -100; without parameter gradients.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn nll(&self, input: &Input, targets_bt: &Tensor) -> Result<Tensor> {
        let views = self.views()?;
        match input {
            Input::Tokens(ids_bt) => self.decoder.nll(views, &decoder::embed(&views.embed, ids_bt)?, targets_bt),
            Input::Embeddings(x_bth) => self.decoder.nll(views, x_bth, targets_bt),
        }
    }

    /// Gradient of the summed NLL with respect to the input embeddings: (NLL `[B, T]`, gradient `[B, T, h]`),
    /// both detached. No parameter gradient is computed. By autograd, for tests to compare with: attacks take
    /// [`native::NativePasses::input_gradient`].
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn embedding_gradient(&self, ids_bt: &Tensor, targets_bt: &Tensor) -> Result<(Tensor, Tensor)> {
        let x_bth = decoder::embed(&self.views()?.embed, ids_bt)?.f_detach()?.f_set_requires_grad(true)?;
        let input = Input::Embeddings(x_bth.shallow_clone());
        let nll_bt = self.nll(&input, targets_bt)?;
        let total = nll_bt.f_sum(Kind::Float)?;
        let gradient = Tensor::f_run_backward(&[total], &[x_bth], false, false)?;
        let gradient = gradient
            .into_iter()
            .next()
            .ok_or_else(|| ComputeError::Failed("libtorch returned no gradient: report this".to_owned()))?;
        Ok((nll_bt.f_detach()?, gradient))
    }

    /// The flat groups.
    pub fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// Takes the weights away: until [`Self::put_flats`] only the configuration and the layout may be asked for.
    pub fn take_flats(&mut self) -> Vec<Tensor> {
        self.views = OnceCell::new();
        std::mem::take(&mut self.flats)
    }

    /// Gives it these weights, which it keeps.
    ///
    /// # Errors
    /// They are not fp32 on the CPU with the layout's lengths.
    pub fn put_flats(&mut self, flats: Vec<Tensor>) -> Result<()> {
        let fits = flats.len() == self.layout.groups.len()
            && flats.iter().zip(&self.layout.groups).all(|(flat, group)| {
                flat.numel() == group.len && flat.kind() == Kind::Float && flat.device() == tch::Device::Cpu
            });
        if !fits {
            return Err(ComputeError::Failed("weights without the layout's lengths: report this".to_owned()));
        }
        self.views = OnceCell::new();
        self.flats = flats;
        Ok(())
    }

    /// The flat groups, to be changed in place.
    pub fn flats_mut(&mut self) -> &mut [Tensor] {
        self.views.take();
        &mut self.flats
    }

    /// Names and effective weights of the constrained tensors (also of the free control).
    ///
    /// # Errors
    /// Out of memory.
    pub fn effective_weights(&self) -> Result<Vec<(&Span, Tensor)>> {
        let _guard = tch::no_grad_guard();
        let mut found = Vec::new();
        for ((group, flat), signs) in self.layout.groups.iter().zip(&self.flats).zip(&self.signs) {
            if group.spans.iter().all(|s| s.constraint == Constraint::Dense) {
                continue;
            }
            for (i, span) in group.spans.iter().enumerate().filter(|(_, s)| s.constraint != Constraint::Dense) {
                let v = flat.detach().f_narrow(0, span.offset as i64, span.len as i64)?;
                found.push((span, view::effective(&v, i, span, signs)?));
            }
        }
        Ok(found)
    }

    /// Inspects the effective weights of all constrained tensors.
    ///
    /// # Errors
    /// None was inspected: a check that sees nothing proves nothing.
    pub fn check_constraint(&self) -> Result<ConstraintCheck> {
        let mut check = ConstraintCheck {
            tensors: 0,
            weights: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            negative: Vec::new(),
            violated: Vec::new(),
        };
        for (span, weight) in self.effective_weights()? {
            let weight = weight.f_contiguous()?;
            let values = as_f32(&weight);
            let finite = values.iter().all(|w| w.is_finite());
            let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
            for &w in values {
                min = min.min(f64::from(w));
                max = max.max(f64::from(w));
            }
            check.tensors += 1;
            check.weights += values.len() as u64;
            check.min = check.min.min(min);
            check.max = check.max.max(max);
            if min < 0.0 {
                check.negative.push(span.name.clone());
            }
            let kept = match span.constraint {
                Constraint::Softplus => min >= 0.0,
                Constraint::SignedSoftplus => self.signs_kept(span, values),
                Constraint::FreeFromAbs | Constraint::Dense => true,
            };
            if !(kept && finite) {
                check.violated.push(span.name.clone());
            }
        }
        if check.tensors == 0 {
            return Err(ComputeError::Failed(
                "the check of constrained weights inspected no tensor: the model has no constrained weights, give it a variant"
                    .to_owned(),
            ));
        }
        Ok(check)
    }

    fn signs_kept(&self, span: &Span, values: &[f32]) -> bool {
        let signs = self.layout.groups.iter().zip(&self.signs).find_map(|(group, signs)| {
            let i = group.spans.iter().position(|s| s.name == span.name)?;
            signs.get(&i)
        });
        signs.is_some_and(|signs| as_f32(signs).iter().zip(values).all(|(s, w)| s * w >= 0.0))
    }

    /// SHA-256 over name, type, shape and little-endian bytes of every stored parameter (V where constrained),
    /// sorted by name, without padding.
    pub fn param_digest(&self) -> Digest {
        let mut spans: Vec<(usize, &Span)> = self.layout.spans().collect();
        spans.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        let mut hasher = Sha256::new();
        let mut bytes = Vec::new();
        for (g, span) in spans {
            let shape: Vec<String> = span.shape.iter().map(i64::to_string).collect();
            hasher.update(format!("{}\0F32\0{}\0", span.name, shape.join(",")).as_bytes());
            for block in as_f32(&self.flats[g])[span.range()].chunks(1 << 14) {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|x| x.to_le_bytes()));
                hasher.update(&bytes);
            }
        }
        Digest::finish(hasher)
    }

    /// Saves our own model directory: stored parameters (V), signs, configuration, digest. `tokenizer_from`: a
    /// directory whose tokenizer files are copied along.
    ///
    /// # Errors
    /// The disk is full or cannot be written.
    pub fn save(&self, dir: &Path, tokenizer_from: Option<&Path>) -> Result<()> {
        save::save(self, dir, tokenizer_from)
    }

    /// Exports effective weights in the Hugging Face layout, in shards of at most `shard_bytes`.
    ///
    /// # Errors
    /// The disk is full or cannot be written.
    pub fn export_hf(&self, dir: &Path, tokenizer_from: Option<&Path>, shard_bytes: usize) -> Result<()> {
        save::export_hf(self, dir, tokenizer_from, shard_bytes)
    }
}

/// Sets the threads of libtorch's kernels in this process, and one thread between operations.
pub fn set_threads(threads: u32) {
    // libtorch refuses to be told the second number twice in a process.
    static BETWEEN: std::sync::Once = std::sync::Once::new();
    BETWEEN.call_once(|| tch::set_num_interop_threads(1));
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(1));
}
