#!/usr/bin/env python3
"""Reference numbers for the optimizers over 20 steps, from transformers (Adafactor) and PyTorch (AdamW).

    python3 scripts/references/optimizers.py OUT [SEED]

Writes a small Llama into OUT as `save_pretrained` does, and beside it `expected.safetensors`: `ids` and `targets` of
20 batches (prompts and filling carry no label), the rates `lr`, and for each optimizer the 20 mean losses and the
parameters after the last step. Both decay matrices and not norms; gradients are clipped to norm 1. Adafactor is as the
Trainer makes it: no scaled parameters, no relative steps.

`pure.*` are 20 updates by Adafactor of bf16 weights without fp32 masters, a matrix and a vector, by given gradients.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import Adafactor, AutoModelForCausalLM, LlamaConfig

torch.set_num_threads(1)

STEPS, ROWS, LENGTH, VOCABULARY = 20, 3, 13, 40
DECAY = 0.1
RATES = {"adafactor": 4e-3, "adamw": 2e-3}


def groups(parameters):
    """Matrices decay, vectors do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


def make(name, parameters):
    if name == "adafactor":
        return Adafactor(groups(parameters), lr=1.0, scale_parameter=False, relative_step=False)
    return torch.optim.AdamW(groups(parameters), lr=1.0, betas=(0.9, 0.999), eps=1e-8, foreach=False)


def step(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


def batches():
    ids = torch.randint(2, VOCABULARY, (STEPS, ROWS, LENGTH))
    # Something to learn: a token tells the next one, mostly.
    for i in range(1, LENGTH):
        follows = (ids[..., i - 1] * 5 + 3) % (VOCABULARY - 2) + 2
        ids[..., i] = torch.where(torch.rand(STEPS, ROWS) < 0.8, follows, ids[..., i])
    targets = torch.roll(ids, -1, -1)
    prompts = torch.randint(1, 6, (STEPS, ROWS, 1))
    filled = torch.randint(8, LENGTH + 1, (STEPS, ROWS, 1))
    at = torch.arange(LENGTH)
    targets[(at < prompts - 1) | (at >= filled - 1) | (at == LENGTH - 1)] = -100
    return ids, targets


def train(directory, name, ids, targets, shape):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    optimizer = make(name, model.parameters())
    losses = []
    for k in range(STEPS):
        logits = model(input_ids=ids[k]).logits
        loss = cross_entropy(logits.view(-1, VOCABULARY), targets[k].view(-1), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step(optimizer, RATES[name] * shape[k].item())
        losses.append(loss.item())
    found = {f"{name}.{key}": p.detach().contiguous() for key, p in model.named_parameters()}
    return found | {f"{name}.losses": torch.tensor(losses)}


def pure():
    weights = [torch.nn.Parameter((torch.randn(shape) * 0.5).bfloat16()) for shape in ((9, 14), (11,))]
    gradients = [torch.randn(STEPS, *w.shape).bfloat16() for w in weights]
    optimizer = make("adafactor", weights)
    seen = [[w.detach().float().clone()] for w in weights]
    for k in range(STEPS):
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient[k].clone()
        step(optimizer, 0.01)
        for states, weight in zip(seen, weights):
            states.append(weight.detach().float().clone())
    found = {}
    for name, gradient, states in zip(("matrix", "vector"), gradients, seen):
        found |= {f"pure.{name}.gradients": gradient.float(), f"pure.{name}.weights": torch.stack(states)}
    return found


def write(out, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(out)
    ids, targets = batches()
    # A warmup of three steps and a fall to a tenth.
    shape = torch.tensor([min((k + 1) / 3, 1 - 0.9 * k / STEPS) for k in range(STEPS)], dtype=torch.float64)
    expected = {"ids": ids, "targets": targets, "lr": shape.float()}
    for name in RATES:
        expected |= train(out, name, ids, targets, shape)
    save_file(expected | pure(), Path(out) / "expected.safetensors")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 5)
