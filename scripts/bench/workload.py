"""The models and batches of the benches, and what both sides are told of them."""

import json
import subprocess
from pathlib import Path

from side_by_side import BenchError, say


def neox(hidden, layers, heads, context, vocabulary):
    """`config.json` of a GPT-NeoX, in all else as Pythia."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


# 33 M parameters.
SMALL = neox(hidden=512, layers=8, heads=8, context=256, vocabulary=8192)
# Pythia-70m: 70 M parameters, of which 26 M are the output matrix.
PYTHIA_70M = neox(hidden=512, layers=6, heads=8, context=2048, vocabulary=50304)
TINY = neox(hidden=64, layers=2, heads=4, context=48, vocabulary=160)
# What a rehearsal runs, to see that every part of a bench works.
REHEARSAL = neox(hidden=32, layers=2, heads=2, context=16, vocabulary=64)


def config(model, rows_per_rank, steps, ranks=2, seq_len=None):
    """What both sides are told."""
    return {
        "protocol": 1,
        "model_config": model,
        "seq_len": seq_len or model["max_position_embeddings"],
        "rows_per_rank": rows_per_rank,
        "ranks": ranks,
        "threads_per_rank": 1,
        "steps": steps,
        "seed": 1,
        "lr": 1e-4,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    }


def prepare(programs, told, place):
    """Weights and batches in `place`; returns what both sides are told of them."""
    place = Path(place)
    place.mkdir(parents=True, exist_ok=True)
    file = place / "config.json"
    file.write_text(json.dumps(told))
    done = subprocess.run([programs / "seedbed-bench", "data", file, place], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise BenchError("the data of the bench could not be made: see the message above")
    answer = json.loads(done.stdout)
    say(f"{answer['parameters']} parameters, {told['ranks']} x {told['rows_per_rank']} rows of {told['seq_len']} tokens a step")
    return {
        **told,
        "model": answer["model"],
        "batches": answer["batches"],
        "parameters": answer["parameters"],
        "data": str(place),
        "programs": str(programs),
    }


def flops_a_token(c, seq_len):
    """6 N + 12 L h T, N without the input embedding."""
    h, f, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    block = 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h
    return 6 * (layers * block + 2 * h + h * c["vocab_size"]) + 12 * layers * h * seq_len
