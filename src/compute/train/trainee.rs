//! What is trained: flat groups of weights and the passes over them. A whole decoder, an adapter over a frozen
//! one, or a translator between two; the trainer knows no difference.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::compute::kernels::gemm::Backend;
use crate::compute::model::libtorch::{self, Base, Keep, LibtorchPasses, Net};
use crate::compute::model::native::{self, Activations, NativePasses};
use crate::compute::model::{ConstraintCheck, Layout, Model, Passes};
use crate::compute::{ComputeError, Result};

/// Something that can be trained.
pub struct Trainee {
    /// Its trainable groups, padded for the run's lanes.
    pub layout: Layout,
    /// Their weights, one flat tensor a group, fp32 or bf16: the same memory that `passes` read.
    pub flats: Vec<Tensor>,
    /// Forward and backward.
    pub passes: Box<dyn Passes>,
    /// The model whose constraint is checked on the way: with the same weights, or without any where those do not lie
    /// in the model's memory.
    pub constrained: Option<Model>,
    /// What the numerics record says of how it computes: engine, GEMM, device.
    pub engine: Engine,
    /// Floating-point operations of a training step, a token.
    pub flops_per_token: f64,
}

/// Who runs the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// `native` where it can, else `libtorch`.
    #[default]
    Auto,
    /// Hand-written kernels: fp32 on the CPU.
    Native,
    /// libtorch's autograd.
    Libtorch,
}

/// The type of weights and activations. Sums, norms, softmax, masters and moments are fp32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single.
    #[default]
    Fp32,
    /// bfloat16.
    Bf16,
}

/// How a model is to be computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Who runs the passes.
    pub engine: EngineName,
    /// Who multiplies matrices for the native engine.
    pub gemm: Backend,
    /// The type of weights and activations.
    pub precision: Precision,
    /// Whether a block's activations are thrown away and computed again before its backward.
    pub activation_checkpointing: bool,
    /// Probability with which embeddings, attention weights and the outputs of attention and feed-forward layers
    /// are dropped.
    pub dropout: f64,
    /// Threads of a rank.
    pub threads: usize,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            engine: EngineName::Auto,
            gemm: Backend::Builtin,
            precision: Precision::Fp32,
            activation_checkpointing: false,
            dropout: 0.0,
            threads: 1,
        }
    }
}

/// How passes are computed, for the numerics record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// `native` or `libtorch`.
    pub name: String,
    /// Who multiplies matrices.
    pub gemm: String,
    /// `cpu`, or the name of the GPU.
    pub device: String,
    /// Why equal seeds may not give equal bits; `None`: they do.
    pub inexact: Option<String>,
}

impl Trainee {
    /// Every parameter of a model, on `device`. In fp32 on the CPU it shares the model's memory; else it needs none
    /// of it.
    ///
    /// # Errors
    /// The engine does not compute that type or not there: the message says which does.
    pub fn of_model(model: &Model, choice: &Choice, device: Device) -> Result<Self> {
        match (choice.engine, choice.precision, device) {
            (EngineName::Auto | EngineName::Native, Precision::Fp32, Device::Cpu) => Self::native(model, choice),
            (EngineName::Auto | EngineName::Libtorch, ..) => Self::libtorch(model, choice, device),
            (EngineName::Native, precision, _) => {
                let wanted = if precision == Precision::Bf16 { "precision = \"bf16\"" } else { "device = \"cuda\"" };
                Err(ComputeError::Config(format!(
                    "the native engine computes in fp32 on the CPU only: set engine = \"libtorch\" for {wanted}"
                )))
            }
        }
    }

    fn native(model: &Model, choice: &Choice) -> Result<Self> {
        let activations = if choice.activation_checkpointing { Activations::Recompute } else { Activations::Keep };
        let options =
            native::Options { gemm: choice.gemm, threads: choice.threads, activations, dropout: choice.dropout };
        Ok(Self {
            layout: model.layout().clone(),
            flats: model.flats().iter().map(Tensor::shallow_clone).collect(),
            passes: Box::new(NativePasses::new(model, options)?),
            constrained: model.variant().map(|_| model.alias()),
            engine: Engine {
                name: "native".into(),
                gemm: choice.gemm.name().into(),
                device: "cpu".into(),
                inexact: None,
            },
            flops_per_token: model.flops_per_token(),
        })
    }

    fn libtorch(model: &Model, choice: &Choice, device: Device) -> Result<Self> {
        let kind = match choice.precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let keep = if choice.activation_checkpointing { Keep::Inputs } else { Keep::Graphs };
        let settings = libtorch::Settings { keep, dropout: choice.dropout, ..libtorch::Settings::default() };
        let net = Net::of(model, Base::Trainable, kind, device)?;
        let shared = kind == Kind::Float && device == Device::Cpu;
        let engine = Engine::of_net(&net);
        Ok(Self {
            layout: net.trainable_layout(),
            flats: net.trainable_flats(),
            passes: Box::new(LibtorchPasses::new(net, settings)),
            constrained: model.variant().map(|_| {
                let mut alias = model.alias();
                if !shared {
                    alias.take_flats();
                }
                alias
            }),
            engine,
            flops_per_token: model.flops_per_token(),
        })
    }

    /// Whether weights are bf16, and their fp32 masters lie with the optimizer.
    pub fn is_bf16(&self) -> bool {
        self.flats.iter().any(|f| f.kind() == Kind::BFloat16)
    }

    /// Refuses what the trainer cannot hold.
    ///
    /// # Errors
    /// Groups and tensors do not fit each other.
    pub fn check(&self) -> Result<()> {
        let kind = self.flats.first().map(Tensor::kind);
        let fits = self.flats.len() == self.layout.groups.len()
            && self.flats.iter().zip(&self.layout.groups).all(|(f, g)| f.numel() == g.len && Some(f.kind()) == kind)
            && matches!(kind, Some(Kind::Float | Kind::BFloat16));
        if fits {
            return Ok(());
        }
        Err(ComputeError::Failed("the weights do not have the layout's lengths and one type: report this".to_owned()))
    }

    /// The check of `model`'s constrained weights: the smallest and the largest.
    ///
    /// # Errors
    /// A weight left its constraint: named.
    pub fn check_constraint(model: &Model, step: u64) -> Result<[f64; 2]> {
        let ConstraintCheck { min, max, violated, .. } = model.check_constraint()?;
        if let Some(name) = violated.first() {
            return Err(ComputeError::Failed(format!(
                "`{name}` and {} others have effective weights outside their constraint at step {step} (smallest {min:e}): lower `lr`",
                violated.len() - 1,
            )));
        }
        Ok([min, max])
    }
}
