"""Finds the best variant of a side: one option after the other, the winners once more against each other.

`space` is a list of (option, values); the search begins with `base` and keeps, option by option, the value with the shortest
step. Every trial is printed. A trial that fails is printed too and never wins.
"""

import json

from side_by_side import BenchError, run, say

# Gradients of fp32 lie within this part of their norm from those of an fp64 run.
FP32_ERROR = 1e-5


def tune(label, command, config_with, space, base, steps, warmup, took=min):
    """The best options. `config_with(options, steps)` makes a configuration; a trial counts its fastest step, or what `took`
    makes of the times of its steps."""
    tried = {}

    def trial(options):
        key = json.dumps(options, sort_keys=True)
        if key not in tried:
            tried[key] = measure(label, command, config_with(options, steps), options, warmup, took)
        return tried[key]

    best = dict(base)
    for option, values in space:
        best = min(({**best, option: value} for value in values), key=trial)
    finalists = sorted(tried, key=tried.get)[:3]
    if len(finalists) > 1:
        again = {key: measure(label, command, config_with(json.loads(key), steps), json.loads(key), warmup, took) for key in finalists}
        finalists.sort(key=lambda key: min(again[key], tried[key]))
    if tried[finalists[0]] == float("inf"):
        raise BenchError(f"{label}: no variant runs; see the messages above")
    say(f"{label} takes {finalists[0]}")
    return json.loads(finalists[0])


def measure(label, command, config, options, warmup, took):
    shown = f"{label} {json.dumps(options, sort_keys=True)}"
    try:
        done = run(command, config)
    except BenchError as error:
        say(f"{shown}: {error}")
        return float("inf")
    error = done.facts.get("fp32_gradient_error", 0)
    if error > FP32_ERROR:
        say(f"{shown}: not fp32, gradients are {error:.1e} from an fp64 run")
        return float("inf")
    seconds = took(done.seconds[warmup:])
    say(f"{shown}: {1e3 * seconds:.2f} ms")
    return seconds


def our_space(rows_per_rank):
    """What our side may choose: who multiplies, and how many rows go through the model at once."""
    return [
        ("gemm", ["builtin", "onednn", "mkl"]),
        ("grain_samples", [n for n in (1, 2, 4, 8, 16) if n <= rows_per_rank]),
    ]
