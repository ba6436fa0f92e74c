#!/usr/bin/env python3
"""The peer of scripts/bench/generate: `generate` of transformers with a cache, greedy, fp32, on the CPU.

    python3 generate.py < config.json

Reads a configuration (docs/performance.md, "The protocol") and prints a JSON line each time all prompts were continued, and last
what was generated. Prompts are padded on the left, as transformers wants it. The options under `peer` are what a user may turn.
Loading, imports and compilation are outside of the time: `load_seconds`.
"""

import json
import os
import resource
import sys
import time

OPTIONS = {
    "cache": "dynamic",  # dynamic, static
    "attention": "sdpa",  # sdpa, eager
    "linear": "mkl",  # mkl, onednn: whose matrix products
    "compile": "no",  # no, default: torch.compile of the forward pass, static cache only
    "malloc": "default",  # default, tuned: memory is not given back to the system
}
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456"}


def main():
    text = sys.stdin.read()
    config = json.loads(text)
    options = {**OPTIONS, **config.get("peer", {})}
    unknown = set(options) - set(OPTIONS)
    if unknown:
        sys.exit(f"unknown options of the peer: {', '.join(sorted(unknown))}")
    if options["compile"] != "no" and options["cache"] != "static":
        sys.exit("a dynamic cache cannot be compiled: its shapes change")
    if options["malloc"] == "tuned" and "MALLOC_TOP_PAD_" not in os.environ:
        # The allocator reads its environment when a program begins.
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                pipe.write(text)
            os._exit(0)
        os.close(write)
        os.dup2(read, 0)
        os.execve(sys.executable, [sys.executable, os.path.abspath(__file__)], {**os.environ, **TUNED})
    generate(config, options)


def generate(config, options):
    began = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(config["threads_per_rank"])
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config["model"], dtype=torch.float32, attn_implementation=options["attention"]
    ).eval()
    if options["linear"] == "onednn":
        import neox

        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.__class__ = neox.OneDnnLinear
    prompts, new = config["prompts"], config["max_new_tokens"]
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    settings = transformers.GenerationConfig(
        max_new_tokens=new, min_new_tokens=None, do_sample=False, num_beams=1, use_cache=True, eos_token_id=None, pad_token_id=0, bos_token_id=None,
        cache_implementation="static" if options["cache"] == "static" else None,
    )
    model.generation_config = settings
    if options["compile"] != "no":
        model.forward = torch.compile(model.forward, dynamic=False)

    def once():
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)

    if options["compile"] != "no":
        # Its shapes are compiled: the prompt's and the step's.
        once()
    loaded = time.perf_counter() - began
    for step in range(1, config["steps"] + 1):
        began = time.perf_counter()
        out = once()
        print(json.dumps({"step": step, "loss": 0.0, "seconds": time.perf_counter() - began}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"ids": out[:, longest:].tolist(), "load_seconds": loaded, "peak_rss_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
