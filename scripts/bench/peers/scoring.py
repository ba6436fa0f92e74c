"""What the peers of `scripts/bench/eval` share: the configuration, the clock, and what they print (docs/performance.md).

A peer is a function that gets pairs of a context and a continuation, as ids, and returns their log-likelihoods. Imports, loading
and the warm-up are outside of the clock.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

# Questions of each task that are scored before the clock runs.
WARM_UP = 4
# glibc without giving memory back to the kernel after every tensor.
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}


def main(presets, load):
    """`load(config, options)` gives the function that scores; `presets` are the options that it knows."""
    text = sys.stdin.read()
    config = json.loads(text)
    options = {**presets, **config.get("peer", {})}
    unknown = set(options) - set(presets)
    if unknown:
        sys.exit(f"unknown options of the peer: {', '.join(sorted(unknown))}")
    threads = str(config["threads_per_rank"])
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if options.get("malloc") == "tuned":
        own |= TUNED_MALLOC
    if any(os.environ.get(name) != value for name, value in own.items()):
        # They are read when a process begins: this one begins again, and finds its configuration on stdin again.
        with tempfile.TemporaryFile() as told:
            told.write(text.encode())
            told.seek(0)
            os.dup2(told.fileno(), 0)
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **own})
    began = time.perf_counter()
    import torch

    torch.set_num_threads(config["threads_per_rank"])
    imported = time.perf_counter()
    score = load(config, options)
    loaded = time.perf_counter()
    tasks = [task["questions"][: config.get("questions")] for task in json.loads(Path(config["items"]).read_text())["tasks"]]
    say({"import_s": imported - began, "loading_s": loaded - imported, "items_s": time.perf_counter() - loaded, "torch": torch.__version__})
    with torch.inference_mode():
        for questions in tasks:
            score(pairs_of(questions[:WARM_UP]))
        forget_peak()
        scores = []
        for number, questions in enumerate(tasks, 1):
            pairs = pairs_of(questions)
            began = time.perf_counter()
            found = score(pairs)
            seconds = time.perf_counter() - began
            loss = -sum(found) / sum(len(continuation) for _, continuation in pairs)
            say({"step": number, "loss": loss, "seconds": seconds})
            scores.append(found)
    say({"scores": scores, "peak_rss_bytes": peak_rss_bytes()})


def pairs_of(questions):
    return [(context, continuation) for question in questions for context, continuation in question]


def say(line):
    print(json.dumps(line), flush=True)


def forget_peak():
    """Begins the peak of this process's memory anew, where the kernel lets it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_rss_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
