#!/usr/bin/env python3
"""The peer of `scripts/bench/gpu`: PyTorch on one GPU in bf16, eager or compiled, with SDPA and fused AdamW.

    python3 gpu.py < config.json

Same protocol as train.py, for one rank. A step's time covers data, forward, backward, clip and update of all micro-batches and ends
when the device has done them. `device = "cpu"` rehearses it without a GPU.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy
import torch

import neox

OPTIONS = {
    "micro_rows": 0,  # rows of a micro-batch; 0: all at once
    "compile": "no",  # no, default, max-autotune-no-cudagraphs
    # autocast: fp32 weights, products in bf16. bf16: weights and moments in bf16, which loses small updates.
    "weights": "autocast",
    "adamw": "fused",  # fused, foreach, default
}


def main():
    config = json.load(sys.stdin)
    options = {**OPTIONS, **config.get("peer", {})}
    unknown = set(options) - set(OPTIONS)
    if unknown:
        sys.exit(f"unknown options of the peer: {', '.join(sorted(unknown))}")
    device = torch.device(config.get("device", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU: run this bench where there is one")
    model = neox.load(config["model"]).to(device)
    if options["weights"] == "bf16":
        model = model.to(torch.bfloat16)
    run = model if options["compile"] == "no" else torch.compile(model, mode=options["compile"], dynamic=False)
    how = {} if options["adamw"] == "default" else {options["adamw"]: True}
    optimizer = torch.optim.AdamW(
        neox.decay_groups(model, config["weight_decay"]),
        lr=config["lr"],
        betas=(config["beta1"], config["beta2"]),
        eps=config["eps"],
        **how,
    )
    seq_len, rows = config["seq_len"], config["rows_per_rank"]
    micro_rows = options["micro_rows"] or rows
    if rows % micro_rows:
        sys.exit(f"a micro-batch of {micro_rows} rows does not divide {rows} rows")
    data = numpy.memmap(config["batches"], dtype="<i4", mode="r").reshape(-1, seq_len + 1)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options["weights"] == "autocast")

    def rows_at(first):
        batch = torch.from_numpy(data[first : first + micro_rows].astype("int64"))
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(device, non_blocking=True)
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    parts = rows // micro_rows
    began = time.perf_counter()
    for number in range(config["steps"]):
        total = torch.zeros((), device=device)
        following = rows_at(number * rows)
        for part in range(parts):
            ids, targets = following
            if part + 1 < parts:
                following = rows_at(number * rows + (part + 1) * micro_rows)
            with autocast:
                loss = run(ids, targets) / parts
            loss.backward()
            total += loss.detach()
        if config["max_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # Waits for the device.
        loss = total.item()
        now = time.perf_counter()
        print(json.dumps({"step": number + 1, "loss": loss, "seconds": now - began}), flush=True)
        began = now
    facts = {"torch": torch.__version__}
    if device.type == "cuda":
        facts |= {"device": torch.cuda.get_device_name(device), "peak_device_bytes": torch.cuda.max_memory_allocated(device)}
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
