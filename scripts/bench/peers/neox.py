"""GPT-NeoX in plain PyTorch modules, as its best user writes it for a training step.

Same mathematics as `transformers`' GPTNeoXForCausalLM (tests/benches.rs compares them), with SDPA, rotary tables made once, and
Linear layers that may run on oneDNN. Weights come from a directory in the Hugging Face layout.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


@torch.library.custom_op("seedbed::onednn_linear", mutates_args=())
def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b by oneDNN, which takes transposed views as they are; one opaque call for torch.compile."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_onednn.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _onednn_setup(ctx, inputs, output):
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _onednn_backward(ctx, dy):
    x, weight = ctx.saved_tensors
    # What nobody asked for is not computed: attacks want no gradient of a weight.
    wants_x, wants_weight, wants_bias = (*ctx.needs_input_grad, False)[:3]
    dy2 = dy.reshape(-1, dy.shape[-1])
    dx = _onednn(dy2, weight.t(), None).view(x.shape) if wants_x else None
    dw = _onednn(dy2.t(), x.reshape(-1, x.shape[-1]).t(), None) if wants_weight else None
    return dx, dw, dy2.sum(0) if ctx.has_bias and wants_bias else None


_onednn.register_autograd(_onednn_backward, setup_context=_onednn_setup)


class OneDnnLinear(nn.Linear):
    def forward(self, x):
        return _onednn(x, self.weight, self.bias)


LINEAR = {"mkl": nn.Linear, "onednn": OneDnnLinear}


class Attention(nn.Module):
    def __init__(self, c, linear):
        super().__init__()
        self.heads = c["num_attention_heads"]
        self.head_dim = c["hidden_size"] // self.heads
        self.rotary_dims = int(self.head_dim * rotary_pct(c))
        bias = c.get("attention_bias", True)
        self.query_key_value = linear(c["hidden_size"], 3 * c["hidden_size"], bias=bias)
        self.dense = linear(c["hidden_size"], c["hidden_size"], bias=bias)

    def forward(self, x_btd, cos, sin):
        b, t, d = x_btd.shape
        # Per head: query, key, value.
        qkv = self.query_key_value(x_btd).view(b, t, self.heads, 3, self.head_dim)
        q, k, v = (qkv[:, :, :, i].transpose(1, 2) for i in range(3))
        q, k = rotate(q, cos, sin, self.rotary_dims), rotate(k, cos, sin, self.rotary_dims)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dense(y.transpose(1, 2).reshape(b, t, d))


def rotate(x_bhtd, cos, sin, n):
    rotated, rest = x_bhtd[..., :n], x_bhtd[..., n:]
    left, right = rotated[..., : n // 2], rotated[..., n // 2 :]
    turned = torch.cat((-right, left), -1)
    return torch.cat((rotated * cos + turned * sin, rest), -1)


class Mlp(nn.Module):
    def __init__(self, c, linear):
        super().__init__()
        self.dense_h_to_4h = linear(c["hidden_size"], c["intermediate_size"])
        self.dense_4h_to_h = linear(c["intermediate_size"], c["hidden_size"])
        self.approximate = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}[
            c["hidden_act"]
        ]

    def forward(self, x):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate=self.approximate))


class Layer(nn.Module):
    def __init__(self, c, linear):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.post_attention_layernorm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.attention = Attention(c, linear)
        self.mlp = Mlp(c, linear)
        self.parallel = c["use_parallel_residual"]

    def forward(self, x, cos, sin):
        a = self.attention(self.input_layernorm(x), cos, sin)
        if self.parallel:
            return x + a + self.mlp(self.post_attention_layernorm(x))
        x = x + a
        return x + self.mlp(self.post_attention_layernorm(x))


class GptNeoX(nn.Module):
    """`forward(ids, targets)` is the mean NLL of a micro-batch, `[B, T]` each."""

    def __init__(self, c, linear="mkl"):
        super().__init__()
        linear = LINEAR[linear]
        self.embed_in = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, linear) for _ in range(c["num_hidden_layers"]))
        self.final_layer_norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.embed_out = linear(c["hidden_size"], c["vocab_size"], bias=False)
        n = self.layers[0].attention.rotary_dims
        inverse = rotary_base(c) ** (-torch.arange(0, n, 2, dtype=torch.float32) / n)
        angles = torch.outer(torch.arange(c["max_position_embeddings"], dtype=torch.float32), inverse)
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def logits(self, ids):
        t = ids.shape[1]
        x = self.embed_in(ids)
        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.embed_out(self.final_layer_norm(x))

    def forward(self, ids, targets):
        logits = self.logits(ids).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def rotary_pct(c):
    rope = c.get("rope_parameters") or {}
    return c.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))


def rotary_base(c):
    rope = c.get("rope_parameters") or {}
    return float(c.get("rotary_emb_base", rope.get("rope_theta", 10000)))


def load(directory, linear="mkl"):
    """The model of `directory` in fp32."""
    directory = Path(directory)
    c = json.loads((directory / "config.json").read_text())
    model = GptNeoX(c, linear)
    state = {}
    for file in sorted(directory.glob("model*.safetensors")):
        for key, value in load_file(file).items():
            key = key.removeprefix("gpt_neox.")
            if not key.endswith(("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")):
                state[key] = value
    if c.get("tie_word_embeddings"):
        model.embed_out.weight = model.embed_in.weight
        state["embed_out.weight"] = state["embed_in.weight"]
    model.load_state_dict(state)
    return model


def decay_groups(model, weight_decay):
    """Matrices decay, embeddings included; norms and biases do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def flops_a_token(c, seq_len):
    """6 N + 12 L h T; N without the input embedding."""
    h, f, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    bias = 3 * h + h if c.get("attention_bias", True) else 0
    block = 4 * h * h + bias + 2 * h * f + f + h + 4 * h
    n = layers * block + 2 * h + h * c["vocab_size"]
    return 6 * n + 12 * layers * h * seq_len


