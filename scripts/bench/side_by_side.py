"""Runs two programs that do the same work, in turns, and compares them.

A program reads a JSON configuration on stdin and prints JSON lines: one a step with `step` (from 1), `loss` and `seconds`;
others add facts, such as `peak_rss_bytes`. What it says besides goes to stderr.
"""

import json
import math
import statistics
import subprocess
import sys


class BenchError(Exception):
    """A side did not do what it was asked; says what to do."""


class Run:
    """One run of one side."""

    def __init__(self, losses, seconds, facts):
        self.losses, self.seconds, self.facts = losses, seconds, facts

    def step_seconds(self, warmup):
        """Mean time of a step after the warm-up."""
        return statistics.fmean(self.seconds[warmup:])


def run(command, config, timeout_s=3600):
    """Runs a side to its end and reads what it printed."""
    name = command[-1]
    try:
        side = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise BenchError(f"{name} cannot be run ({error.strerror}): give the path of a program") from error
    try:
        text, _ = side.communicate(json.dumps(config), timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name} did not end within {timeout_s} s: run it by hand on the same configuration") from error
    finally:
        end(side)
    if side.returncode:
        raise BenchError(f"{name} ended with {side.returncode}: see its message above")
    return read(name, text, config["steps"])


def end(side):
    """Asks a side that still runs to end, so that it can end its ranks."""
    if side.poll() is None:
        side.terminate()
        try:
            side.wait(30)
        except subprocess.TimeoutExpired:
            side.kill()
            side.wait()


def read(name, text, steps):
    """The steps and facts in what a side printed."""
    losses, seconds, facts = [], [], {}
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{name} printed {line[:80]!r}, which is no JSON: it may print JSON lines only") from error
        if not isinstance(said, dict):
            raise BenchError(f"{name} printed {line[:80]!r}: a line is a JSON object")
        if "step" not in said:
            facts.update(said)
            continue
        if said["step"] != len(seconds) + 1:
            raise BenchError(f"{name} printed step {said['step']} where step {len(seconds) + 1} was due")
        loss, took = said.get("loss"), said.get("seconds")
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in (loss, took)) or took <= 0:
            raise BenchError(f"{name} printed step {said['step']} without a finite loss and a time above 0: {line[:80]!r}")
        losses.append(loss)
        seconds.append(took)
    if len(seconds) != steps:
        raise BenchError(f"{name} printed {len(seconds)} of {steps} steps")
    return Run(losses, seconds, facts)


def largest_difference(ours, peer, steps=20):
    """Of the losses of two runs, over the first `steps` steps."""
    return max(abs(a - b) for a, b in zip(ours.losses[:steps], peer.losses))


class Comparison:
    """`rounds` of both sides, in turns; the side that begins changes every round."""

    def __init__(self, name, ours, peer, warmup):
        """Steps up to `warmup` are not counted."""
        self.name, self.ours, self.peer = name, [], []
        self.commands, self.warmup = (ours, peer), warmup

    def round(self, our_config, peer_config, after=lambda side: None):
        """One run of each side; `after` is told when `ours` or `peer` has ended."""
        turns = [
            ("ours", self.commands[0], our_config, self.ours),
            ("peer", self.commands[1], peer_config, self.peer),
        ]
        if len(self.ours) % 2:
            turns.reverse()
        for side, command, config, runs in turns:
            runs.append(run(command, config))
            after(side)
        ours, peer = (runs[-1].step_seconds(self.warmup) for runs in (self.ours, self.peer))
        say(
            f"{self.name} round {len(self.ours)}: ours {1e3 * ours:.2f} ms a step, peer {1e3 * peer:.2f} ms,"
            f" ratio {peer / ours:.3f}"
        )
        return self.ours[-1], self.peer[-1]

    def ratios(self):
        """Our throughput over the peer's, round by round."""
        return [p.step_seconds(self.warmup) / o.step_seconds(self.warmup) for o, p in zip(self.ours, self.peer)]


def peak(runs):
    """Highest resident set of a rank, in bytes; `None` if no run told."""
    told = [r.facts["peak_rss_bytes"] for r in runs if r.facts.get("peak_rss_bytes")]
    return max(told) if told else None


def ratio_line(name, ratios):
    """The line that ends a bench."""
    return f"ratio {name} {statistics.median(ratios):.3f} min {min(ratios):.3f} max {max(ratios):.3f}"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)
