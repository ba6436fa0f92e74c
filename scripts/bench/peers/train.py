#!/usr/bin/env python3
"""The peer of `scripts/bench/train`, `train-link` and `train-tiny`: PyTorch with DDP over Gloo, in fp32.

    python3 train.py < config.json

Reads a configuration (docs/performance.md, "The protocol") and prints a JSON line a step: step, loss, seconds. The options
under `peer` are what a user may turn; their presets are PyTorch as installed. A step's time covers data, forward,
backward, clip and update; losses are gathered after the last step, so that they cost it nothing.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time

OPTIONS = {
    "micro_tokens": 0,  # tokens of a micro-batch; 0: all of a rank's at once
    "compile": "no",  # no, default, max-autotune-no-cudagraphs
    "adamw": "default",  # default, foreach, fused
    "bucket_mb": 25,
    "bucket_view": False,
    "linear": "mkl",  # mkl, onednn
    "precision": "highest",  # highest, high
    "malloc": "default",  # default, tuned, jemalloc, tcmalloc
}


def main():
    config = json.load(sys.stdin)
    options = {**OPTIONS, **config.get("peer", {})}
    unknown = set(options) - set(OPTIONS)
    if unknown:
        sys.exit(f"unknown options of the peer: {', '.join(sorted(unknown))}")
    if "SEEDBED_PEER_RANK" in os.environ:
        step(config, options, int(os.environ["SEEDBED_PEER_RANK"]))
    else:
        launch(config, options)


# --- ranks -------------------------------------------------------------------------------------------------


def launch(config, options):
    """One process a rank, each behind the words that bring it to its place; ends with the first that fails."""
    env = {**os.environ, **malloc_environment(options["malloc"])}
    threads = str(config.get("threads_per_rank", 1))
    env.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, MASTER_ADDR=config.get("address", "127.0.0.1"))
    env.update(MASTER_PORT=str(config.get("port", 29511)))
    ranks = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for rank in range(config["ranks"]):
            place = (config.get("places") or [[]] * config["ranks"])[rank]
            interface = (config.get("interfaces") or [None] * config["ranks"])[rank]
            own = {**env, "SEEDBED_PEER_RANK": str(rank)}
            if interface:
                own["GLOO_SOCKET_IFNAME"] = interface
            child = subprocess.Popen([*place, sys.executable, __file__], stdin=subprocess.PIPE, env=own)
            child.stdin.write(json.dumps(config).encode())
            child.stdin.close()
            ranks.append(child)
        while any(child.poll() is None for child in ranks):
            if any(child.poll() for child in ranks):
                break
            time.sleep(0.02)
        sys.exit(max((child.poll() or 0 for child in ranks), key=abs))
    finally:
        for child in ranks:
            if child.poll() is None:
                child.kill()


def malloc_environment(malloc):
    if malloc == "default":
        return {}
    if malloc == "tuned":
        return {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}
    import ctypes.util

    name = {"jemalloc": "jemalloc", "tcmalloc": "tcmalloc_minimal"}[malloc]
    library = ctypes.util.find_library(name)
    if library is None:
        sys.exit(f"{malloc} is not installed: Debian packages libjemalloc2 and libtcmalloc-minimal4 have them")
    return {"LD_PRELOAD": library}


# --- a rank ------------------------------------------------------------------------------------------------


def step(config, options, rank):
    import numpy
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import neox

    torch.set_num_threads(config.get("threads_per_rank", 1))
    torch.set_float32_matmul_precision(options["precision"])
    ranks, seq_len, rows = config["ranks"], config["seq_len"], config["rows_per_rank"]
    model = neox.load(config["model"], options["linear"])
    # Row after row, T + 1 ids each, in the order of the steps; a rank takes its run of every step's rows.
    data = numpy.memmap(config["batches"], dtype="<i4", mode="r").reshape(-1, seq_len + 1)
    facts = {"torch": torch.__version__}
    if options["precision"] != "highest":
        facts["fp32_gradient_error"] = fp32_gradient_error(config, options, model, data[:1])
    run = model
    if options["compile"] != "no":
        run = torch.compile(model, mode=options["compile"], dynamic=False)
    if ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        run = DistributedDataParallel(
            run,
            bucket_cap_mb=options["bucket_mb"],
            gradient_as_bucket_view=options["bucket_view"],
            # The only buffers are tables that never change.
            broadcast_buffers=False,
        )
    how = {} if options["adamw"] == "default" else {options["adamw"]: True}
    optimizer = torch.optim.AdamW(
        neox.decay_groups(model, config["weight_decay"]),
        lr=config["lr"],
        betas=(config["beta1"], config["beta2"]),
        eps=config["eps"],
        **how,
    )
    micro_rows = max(1, min(rows, options["micro_tokens"] // seq_len or rows))
    if rows % micro_rows:
        sys.exit(f"a micro-batch of {micro_rows} rows does not divide {rows} rows of a rank")
    parts = rows // micro_rows
    losses, seconds, cpu_seconds = [], [], []
    began, cpu_began = time.perf_counter(), time.process_time()
    for number in range(config["steps"]):
        first = (number * ranks + rank) * rows
        total = torch.zeros(())
        for part in range(parts):
            at = first + part * micro_rows
            batch = torch.from_numpy(data[at : at + micro_rows].astype("int64"))
            ids, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
            if ranks > 1:
                run.require_backward_grad_sync = part == parts - 1
            loss = run(ids, targets)
            if parts > 1:
                loss = loss / parts
            loss.backward()
            total += loss.detach()
        if config["max_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
        now = time.process_time()
        cpu_seconds.append(now - cpu_began)
        cpu_began = now
    losses = torch.stack(losses)
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024])
    if ranks > 1:
        dist.all_reduce(losses)
        losses /= ranks
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    if rank == 0:
        for number, (loss, took, cpu) in enumerate(zip(losses.tolist(), seconds, cpu_seconds)):
            print(json.dumps({"step": number + 1, "loss": loss, "seconds": took, "cpu_seconds": cpu}))
        print(json.dumps({**facts, "peak_rss_bytes": peak.item()}), flush=True)
    if ranks > 1:
        # All is said. The threads of Gloo and of autograd sometimes abort a process that ends in order.
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)


def fp32_gradient_error(config, options, model, rows):
    """The fp32 test of a precision flag: the gradient's distance from that of an fp64 run, over its norm. At most 1e-5 is fp32."""
    import torch

    import neox

    batch = torch.from_numpy(rows.astype("int64"))
    ids, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
    exact = neox.load(config["model"]).double()
    torch.nn.functional.cross_entropy(exact.logits(ids).flatten(0, 1), targets.flatten()).backward()
    model(ids, targets).backward()
    pairs = [(p.grad.double(), q.grad) for p, q in zip(model.parameters(), exact.parameters())]
    model.zero_grad(set_to_none=True)
    distance = sum((p - q).square().sum() for p, q in pairs)
    return (distance / sum(q.square().sum() for _, q in pairs)).sqrt().item()


if __name__ == "__main__":
    main()
