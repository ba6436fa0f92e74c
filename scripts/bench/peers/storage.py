"""The other sides of scripts/bench/checkpoint: PyTorch's way to a file, and the raw ways of the same bytes.

    python3 storage.py < config.json

The configuration says `measure` (`save` or `load`), `ways`, `bytes` and `dir`. Prints a JSON line for each way: `way`, `seconds`. A save ends when fsync has returned. A load is into fresh memory, from files that the page cache does
not hold; the raw ways read a file that any `save` of this program has left.

    torch         torch.save, fsync; torch.load
    torch-mmap    torch.load with mmap, and a copy of every tensor
    buffered      through the page cache
    direct        past the page cache (O_DIRECT), a new file
    preallocated  the same, after fallocate
    reused        the same, over a file of equal size
    large-pages   past the page cache into memory of large pages
"""

import json
import mmap
import os
import sys
import time
from pathlib import Path

PAGE = 4096
PIECES = {"buffered": 4 << 20, "direct": 64 << 20, "preallocated": 64 << 20, "reused": 64 << 20, "large-pages": 1 << 30}


def main():
    config = json.load(sys.stdin)
    place = Path(config["dir"])
    place.mkdir(parents=True, exist_ok=True)
    run = {"save": save, "load": load}[config["measure"]]
    for way, seconds in run(config, place):
        print(json.dumps({"way": way, "seconds": seconds}), flush=True)


def save(config, place):
    size = config["bytes"]
    content = None
    if any(not way.startswith("torch") for way in config["ways"]):
        content = mmap.mmap(-1, round_up(size))
        block = os.urandom(1 << 20)
        for at in range(0, len(content), len(block)):
            content[at : at + len(block)] = block[: len(content) - at]
    state = torch_state(size) if any(way.startswith("torch") for way in config["ways"]) else None
    for way in config["ways"]:
        path = place / f"{way}.bin"
        yield way, save_torch(state, path) if way == "torch" else save_raw(way, memoryview(content), path)


def torch_state(size):
    """Parameters and moments, as the tensors of a small model."""
    import torch

    torch.set_num_threads(1)
    count = 96
    each = size // 4 // count
    names = [f"{kind}.{i}" for kind in ("model", "exp_avg", "exp_avg_sq") for i in range(count // 3)]
    return {name: torch.rand(each) for name in names}


def save_torch(state, path):
    import torch

    began = time.perf_counter()
    new = path.with_suffix(".new")
    torch.save(state, new)
    sync(new)
    os.replace(new, path)
    return time.perf_counter() - began


def save_raw(way, content, path):
    if way != "reused" and path.exists():
        path.unlink()
    flags = os.O_WRONLY | os.O_CREAT | (0 if way == "buffered" else os.O_DIRECT)
    if way == "reused" and not path.exists():
        save_raw("preallocated", content, path)
    began = time.perf_counter()
    file = os.open(path, flags)
    if way == "preallocated":
        os.posix_fallocate(file, 0, len(content))
    at = 0
    while at < len(content):
        at += os.pwrite(file, content[at : at + PIECES[way]], at)
    os.fsync(file)
    os.close(file)
    return time.perf_counter() - began


def load(config, place):
    for way in config["ways"]:
        path = place / ("torch.bin" if way.startswith("torch") else "reused.bin")
        drop(path)
        yield way, load_torch(way, path) if way.startswith("torch") else load_raw(way, path, config["bytes"])


def load_torch(way, path):
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    state = torch.load(path, weights_only=True, mmap=way == "torch-mmap")
    if way == "torch-mmap":
        state = {name: tensor.clone() for name, tensor in state.items()}
    return time.perf_counter() - began


def load_raw(way, path, size):
    began = time.perf_counter()
    room = mmap.mmap(-1, round_up(size))
    if way == "large-pages":
        room.madvise(mmap.MADV_HUGEPAGE)
    file = os.open(path, os.O_RDONLY | (0 if way == "buffered" else os.O_DIRECT))
    at, view = 0, memoryview(room)
    while at < size:
        got = os.preadv(file, [view[at : at + PIECES[way]]], at)
        if not got:
            sys.exit(f"{path} is shorter than {size} bytes: save it first")
        at += got
    os.close(file)
    return time.perf_counter() - began


def drop(path):
    """Takes a file out of the page cache."""
    sync(path)
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        if os.preadv(file, [bytearray(PAGE)], 0, os.RWF_NOWAIT):
            print(f"{path} stays in the page cache: the load will not be a cold one", file=sys.stderr)
    except OSError:
        pass  # Not there, as it should be; or a file system that cannot tell.
    os.close(file)


def sync(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def round_up(size):
    return (size + PAGE - 1) // PAGE * PAGE


if __name__ == "__main__":
    main()
