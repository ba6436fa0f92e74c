//! Trainees that stand on frozen decoders: an adapter over one, a translator between two. Only their own groups
//! are reduced, clipped, updated and saved; what is frozen is referenced by whoever made it.

use super::trainee::{Engine, Trainee};
use crate::compute::model::libtorch::{LibtorchPasses, Net, Settings};
use crate::compute::model::{Layout, Translator};
use crate::compute::{ComputeError, Result, gpu};
use tch::{Device, Kind, Tensor};

impl Trainee {
    /// The trainable groups of `net`, by libtorch: an adapter over a frozen decoder, or all of it.
    ///
    /// # Errors
    /// Nothing of it is trainable.
    pub fn of_net(net: Net, settings: Settings) -> Result<Self> {
        let (layout, flats) = (net.trainable_layout(), net.trainable_flats());
        if layout.groups.is_empty() {
            return Err(ComputeError::Config(
                "a frozen decoder without an adapter has nothing to train: give it one".to_owned(),
            ));
        }
        let engine = Engine::of_net(&net);
        // Forward 2 a parameter, gradients of activations 2, gradients of trained weights 2.
        let trained = layout.num_parameters().min(net.counted_parameters());
        let flops = 4 * net.counted_parameters() + 2 * trained + net.attention_flops_per_token();
        let passes = Box::new(LibtorchPasses::new(net, settings));
        Ok(Self { layout, flats, passes, constrained: None, engine, flops_per_token: flops as f64 })
    }

    /// The map between two frozen decoders.
    pub fn of_translator(translator: Translator) -> Self {
        let [_, writer] = translator.nets();
        let flops = 4 * writer.counted_parameters() + writer.attention_flops_per_token();
        let (engine, layout): (Engine, Layout) = (Engine::of_net(writer), translator.layout().clone());
        let flats: Vec<Tensor> = translator.flats();
        let passes = Box::new(translator);
        Self { layout, flats, passes, constrained: None, engine, flops_per_token: flops as f64 }
    }
}

impl Engine {
    /// How libtorch computes `net`.
    pub(super) fn of_net(net: &Net) -> Self {
        let inexact = (net.device() != Device::Cpu)
            .then(|| "libtorch's attention on a GPU adds in the order in which its parts are done".to_owned());
        let gemm = if net.kind() == Kind::BFloat16 { "libtorch (bf16 base)" } else { "libtorch" };
        Self { name: "libtorch".into(), gemm: gemm.into(), device: gpu::name(net.device()), inexact }
    }
}
