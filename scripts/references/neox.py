#!/usr/bin/env python3
"""Reference numbers for the GPT-NeoX decoder and for AdamW, from transformers and PyTorch.

    python3 scripts/references/neox.py tests/fixtures/neox      writes the fixtures
    python3 scripts/references/neox.py --perplexity DIR IDS     loads DIR and prints the mean NLL of IDS

Each fixture is a directory as `save_pretrained` writes it, with `expected.safetensors` beside the weights:
ids, targets, logits, nll, the gradient of the summed NLL for every parameter and for the input embeddings.
IDS is a JSON file with rows of token ids of one length.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

torch.set_num_threads(1)

FAMILIES = {
    # As Pythia: parallel residual, erf-GELU, a quarter rotated.
    "parallel": dict(hidden_act="gelu", use_parallel_residual=True, rotary_pct=0.25, attention_bias=True),
    # Everything else the configuration can say.
    "sequential": dict(hidden_act="gelu_new", use_parallel_residual=False, rotary_pct=1.0, attention_bias=False),
}


def config(name):
    common = dict(
        vocab_size=40,
        hidden_size=16 * 2,
        num_hidden_layers=2,
        num_attention_heads=4 if name == "sequential" else 2,
        intermediate_size=48,
        max_position_embeddings=32,
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXConfig(**common, **FAMILIES[name])


def write(root):
    for name in FAMILIES:
        torch.manual_seed(7)
        model = GPTNeoXForCausalLM(config(name)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and norms begin at 0 and 1: random ones show where they are used.
                parameter.add_(torch.randn_like(parameter) * 0.2)
        ids = torch.randint(0, 40, (2, 13))
        targets = torch.roll(ids, -1, 1)
        targets[:, -1] = -100
        targets[1, 8:] = -100
        embeddings = model.gpt_neox.embed_in(ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=embeddings).logits
        nll = torch.nn.functional.cross_entropy(logits.view(-1, 40), targets.view(-1), reduction="none", ignore_index=-100)
        nll.sum().backward()
        expected = {
            "ids": ids,
            "targets": targets,
            "logits": logits.detach(),
            "nll": nll.detach().view(2, 13),
            "gradient.embeddings": embeddings.grad,
        }
        model.zero_grad()
        logits = model(input_ids=ids).logits
        torch.nn.functional.cross_entropy(
            logits.view(-1, 40), targets.view(-1), reduction="sum", ignore_index=-100
        ).backward()
        for key, parameter in model.named_parameters():
            # Newer transformers call the output matrix lm_head in memory and embed_out on disk.
            expected[f"gradient.{key.replace('lm_head', 'embed_out')}"] = parameter.grad
        out = Path(root) / name
        model.save_pretrained(out)
        save_file({k: v.contiguous() for k, v in expected.items()}, out / "expected.safetensors")
    adamw(Path(root))


def adamw(root):
    """Five steps of torch.optim.AdamW on 40 numbers with fixed gradients."""
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(40))
    gradients = torch.randn(5, 40)
    steps = [weight.detach().clone()]
    optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        steps.append(weight.detach().clone())
    save_file({"gradients": gradients, "weights": torch.stack(steps)}, root / "adamw.safetensors")


def perplexity(directory, ids_path):
    model = GPTNeoXForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor(json.loads(Path(ids_path).read_text()))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    print(json.dumps({"nll": nll.item(), "perplexity": nll.exp().item(), "parameters": model.num_parameters()}))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--perplexity":
        perplexity(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 2:
        write(sys.argv[1])
    else:
        sys.exit(__doc__)
