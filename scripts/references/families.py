#!/usr/bin/env python3
"""Reference numbers for the decoders of five families, their adapters and translators, from transformers.

    python3 scripts/references/families.py OUT [SEED]           writes a directory a model into OUT
    python3 scripts/references/families.py --logits DIR IDS OUT loads DIR, writes the logits of IDS

Each model's directory is as `save_pretrained` writes it, with `expected.safetensors` beside the weights: ids,
targets, logits, nll, the most likely token in bf16, the gradient of the summed NLL for every parameter and for
the input embeddings, and the logits under other masks. `lora.safetensors` has adapters (as peft defines them) and
their gradients over the frozen model; `translator.safetensors` in OUT the linear map from one model's hidden
states to another's embeddings, and its gradient. IDS is a JSON file with rows of token ids of one length.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Ministral3Config, MistralConfig, Qwen2Config

torch.set_num_threads(1)

VOCABULARY = 40
ROWS, LENGTH = 2, 13
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=32,
    bos_token_id=0,
    eos_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(
    rope_type="yarn",
    rope_theta=100.0,
    factor=4.0,
    original_max_position_embeddings=4,
    beta_fast=1.5,
    beta_slow=0.1,
    mscale=1.0,
    mscale_all_dim=0.5,
    llama_4_scaling_beta=0.3,
)
MODELS = {
    # Grouped heads, stretched rotations, a head width that is not h / n.
    "llama": LlamaConfig(**COMMON, num_key_value_heads=2, head_dim=8, rope_parameters=LLAMA3, tie_word_embeddings=False),
    # A window that is shorter than the rows.
    "mistral": MistralConfig(
        **COMMON, num_key_value_heads=1, sliding_window=5, rope_parameters=dict(rope_type="default", rope_theta=1e4)
    ),
    # Tied embeddings, biases, a window in the second block only.
    "qwen2": Qwen2Config(
        **COMMON,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        rope_parameters=dict(rope_type="default", rope_theta=1e6),
    ),
    # Rows three times as long as the original context: blended rotations, and queries that grow.
    # Its own padding id would hide the gradient of one embedding.
    "ministral": Ministral3Config(
        **COMMON, num_key_value_heads=2, head_dim=8, rope_parameters=YARN, tie_word_embeddings=True, pad_token_id=None
    ),
    # Tied embeddings and the other residual in the other family.
    "neox_tied": GPTNeoXConfig(
        **{**COMMON, "num_attention_heads": 3},
        hidden_act="gelu_new",
        use_parallel_residual=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
        tie_word_embeddings=True,
    ),
}
TARGETS = {"llama": ("q_proj", "v_proj"), "mistral": ("q_proj", "v_proj"), "qwen2": ("q_proj", "v_proj"), "ministral": ("q_proj", "v_proj"), "neox_tied": ("query_key_value",)}
RANK, ALPHA = 4, 8


def build(name, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and norms begin at 0 and 1: random ones show where they are used.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def summed(logits, targets):
    return cross_entropy(logits.reshape(-1, VOCABULARY).float(), targets.reshape(-1), reduction="sum", ignore_index=-100)


def other_masks(model, ids):
    """Logits under a prefix mask, of packed documents that are kept apart, and of padded rows that see all."""
    window = getattr(model.config, "sliding_window", None)
    layers = getattr(model.config, "layer_types", None)
    if window is not None:
        return {}
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]
    prompts = torch.tensor([5, 9])
    prefix = (key <= query)[None] | (key[None] < prompts[:, None, None])
    segments = torch.tensor([[0] * 4 + [1] * 9, [0] * 7 + [1] * 2 + [2] * 4])
    positions = torch.tensor([[*range(4), *range(9)], [*range(7), *range(2), *range(4)]])
    packed = (key <= query)[None] & (segments[:, :, None] == segments[:, None, :])
    lengths = torch.tensor([11, 6])
    padded = (key[None] < lengths[:, None, None]).expand(ROWS, LENGTH, LENGTH)
    with torch.no_grad():
        run = lambda mask, **more: model(input_ids=ids, attention_mask=mask[:, None], **more).logits
        return {
            "logits.prefix": run(prefix),
            "prompt_lens": prompts,
            "logits.packed": run(packed, position_ids=positions),
            "segments": segments,
            "positions": positions,
            "logits.padded": run(padded),
            "key_lens": lengths,
        }


class LowRank(torch.nn.Module):
    """y = W x + (alpha / r) B (A x), as peft computes it; both random, so that no gradient vanishes."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = torch.nn.Parameter(torch.randn(RANK, base.in_features) * 0.2)
        self.b = torch.nn.Parameter(torch.randn(base.out_features, RANK) * 0.2)

    def forward(self, x):
        return self.base(x) + (x @ self.a.T) @ self.b.T * (ALPHA / RANK)


def lora(name, seed, ids, targets):
    model = build(name, seed)
    model.requires_grad_(False)
    adapters = {}
    for path, module in list(model.named_modules()):
        if path.split(".")[-1] in TARGETS[name]:
            parent = model.get_submodule(path.rsplit(".", 1)[0])
            adapters[path] = LowRank(module)
            setattr(parent, path.split(".")[-1], adapters[path])
    logits = model(input_ids=ids).logits
    summed(logits, targets).backward()
    answer = {"logits": logits.detach()}
    for path, adapter in adapters.items():
        for word, parameter in (("lora_A", adapter.a), ("lora_B", adapter.b)):
            answer[f"base_model.model.{path}.{word}.weight"] = parameter.detach()
            answer[f"gradient.base_model.model.{path}.{word}.weight"] = parameter.grad
    return answer


def translator(seed, ids, targets):
    """Hidden states of llama after its first block -> linear map -> the first five embeddings of qwen2."""
    reader, writer = build("llama", seed), build("qwen2", seed)
    reader.requires_grad_(False)
    writer.requires_grad_(False)
    torch.manual_seed(seed + 1)
    width = MODELS["llama"].hidden_size
    weight = torch.nn.Parameter(torch.randn(width, width) * 0.2)
    prompt = 5
    hidden = reader(input_ids=ids[:, :prompt], output_hidden_states=True).hidden_states[1]
    embeddings = torch.cat([hidden @ weight.T, writer.get_input_embeddings()(ids[:, prompt:])], 1)
    logits = writer(inputs_embeds=embeddings).logits
    loss = summed(logits, targets)
    loss.backward()
    return {"weight": weight.detach(), "gradient": weight.grad, "nll": loss.detach(), "ids": ids, "targets": targets}


def write(root, seed):
    torch.manual_seed(seed + 2)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    targets = torch.roll(ids, -1, 1)
    targets[:, -1] = -100
    targets[1, 8:] = -100
    for name in MODELS:
        model = build(name, seed)
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=embeddings).logits
        nll = cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1), reduction="none", ignore_index=-100)
        nll.sum().backward()
        expected = {
            "ids": ids,
            "targets": targets,
            "logits": logits.detach(),
            "nll": nll.detach().view(ROWS, LENGTH),
            "gradient.embeddings": embeddings.grad,
            **other_masks(model, ids),
        }
        model.zero_grad()
        summed(model(input_ids=ids).logits, targets).backward()
        for key, parameter in model.named_parameters():
            key = key.replace("lm_head", "embed_out") if name.startswith("neox") else key
            expected[f"gradient.{key}"] = parameter.grad.clone()
        out = Path(root) / name
        model.save_pretrained(out)
        with torch.no_grad():
            expected["top_bf16"] = model.bfloat16()(input_ids=ids).logits.float().argmax(-1)
        save_file({k: v.contiguous() for k, v in expected.items()}, out / "expected.safetensors")
        save_file({k: v.contiguous() for k, v in lora(name, seed, ids, targets).items()}, out / "lora.safetensors")
    answer = translator(seed, ids, targets)
    save_file({k: v.contiguous() for k, v in answer.items()}, Path(root) / "translator.safetensors")


def logits(directory, ids_path, out):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor(json.loads(Path(ids_path).read_text()))
    with torch.no_grad():
        answer = model(input_ids=ids).logits
    save_file({"logits": answer, "parameters": torch.tensor(model.num_parameters())}, out)


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--logits":
        logits(*sys.argv[2:])
    elif len(sys.argv) in (2, 3) and not sys.argv[1].startswith("--"):
        write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 7)
    else:
        sys.exit(__doc__)
