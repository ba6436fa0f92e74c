"""What every bench does around its measurements: arguments, programs, the line about the host, the table."""

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import host
import table
import tuning
from side_by_side import BenchError, peak, ratio_line, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EX_USAGE, EX_UNAVAILABLE = 64, 69


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        print(f"bench: {message}", file=sys.stderr)
        sys.exit(EX_USAGE)


def arguments(description, names, rounds=5, peer=True, more=lambda parser: None):
    """The arguments that all benches take. `names` are the measurements that can be chosen;
    `more` adds a bench's own."""
    parser = Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure, of {', '.join(names)}; all if none is named")
    if peer:
        parser.add_argument("--peer", metavar="PROGRAM", help="another peer: reads JSON on stdin, prints JSON lines; it is not tuned")
    else:
        parser.set_defaults(peer=None, peer_options=None)
    parser.add_argument("--ours", metavar="PROGRAM", help="another build of our side, by the same protocol; it is not tuned")
    parser.add_argument("--programs", metavar="DIR", type=Path, help="directory of built binaries; else they are built here")
    parser.add_argument("--rounds", type=positive, default=rounds, help="rounds of both sides, in turns (default %(default)s)")
    parser.add_argument("--steps", type=positive, help="steps of a round; else a number that suits the measurement")
    parser.add_argument("--doc", type=Path, default=ROOT / "docs/performance.md", help="the page that takes the table")
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    if peer:
        parser.add_argument("--peer-options", metavar="JSON", type=options, help="the peer's variant, instead of a search")
    parser.add_argument("--our-options", metavar="JSON", type=options, help="our variant, instead of a search")
    parser.add_argument("--no-tuning", action="store_true", help="take each side's preset variant")
    parser.add_argument("--rehearse", action="store_true", help="a very small model and few steps: does every part work?")
    more(parser)
    told = parser.parse_args()
    for name in told.names:
        if name not in names:
            parser.error(f"'{name}' is no measurement of this bench: use {', '.join(names)}")
    told.names = told.names or list(names)
    if told.rehearse:
        told.rounds = min(told.rounds, 2)
        told.no_write = told.no_write or told.doc == ROOT / "docs/performance.md"
    for program in (told.peer, told.ours):
        if program and not os.access(program, os.X_OK):
            parser.error(f"{program} is no program that can be run")
    return told


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def options(text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def programs(told):
    """The directory of our binaries, built if none was named."""
    if told.programs:
        for name in ("seedbed-bench", "seedbed-train"):
            if not (told.programs / name).exists():
                raise BenchError(f"{told.programs} has no {name}: name a directory that cargo filled")
        return told.programs.resolve()
    features = subprocess.run([ROOT / "scripts/setup", "--features"], stdout=subprocess.PIPE, text=True, check=True)
    say("building")
    words = ["cargo", "build", "--release", "--locked", "--features", features.stdout.strip()]
    built = subprocess.run([*words, "--bin", "seedbed-bench", "--bin", "seedbed-train"], cwd=ROOT, stdout=sys.stderr, check=False)
    if built.returncode:
        raise BenchError("the programs could not be built: see the message above; scripts/setup installs what is missing")
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release"


def control_plane(named, binaries, examples=()):
    """The directory of binaries that need no libtorch, built if none was named."""
    if named:
        for name in [*binaries, *(f"examples/{name}" for name in examples)]:
            if not (named / name).exists():
                raise BenchError(f"{named} has no {name}: name a directory that cargo filled")
        return named.resolve()
    say("building")
    words = [word for name in binaries for word in ("--bin", name)] + [word for name in examples for word in ("--example", name)]
    built = subprocess.run(["cargo", "build", "--release", "--locked", *words], cwd=ROOT, stdout=sys.stderr, check=False)
    if built.returncode:
        raise BenchError("the programs could not be built: see the message above; scripts/setup installs what is missing")
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release"


def python():
    """The interpreter of the peers' environment, which is made if it is missing."""
    made = subprocess.run([ROOT / "scripts/peers"], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        sys.exit(made.returncode)
    return made.stdout.strip()


def ours(told):
    """The command of our side."""
    return [os.path.abspath(told.ours)] if told.ours else [sys.executable, str(HERE / "ours.py")]


def sides(told):
    """The commands of our side and of the peer."""
    return ours(told), [os.path.abspath(told.peer)] if told.peer else [python(), str(HERE / "peers/train.py")]


def gemm_rates(shared, grain_tokens):
    """GFLOP/s a core of each backend at the step's shapes."""
    return host.gemm(Path(shared["programs"]) / "seedbed-bench", {**shared, "grain_tokens": grain_tokens})


def host_words(rates):
    rest = " ".join(f"{name} {rates[name]:.0f}" for name in ("mkl", "onednn", "builtin"))
    return f"host {host.processor()} {rest}"


def host_line(shared, grain_tokens):
    """Measures and prints `host MODEL mkl X onednn Y`, and our own kernels."""
    print(host_words(gemm_rates(shared, grain_tokens)), flush=True)


HEADER = [
    "processor",
    "name",
    "ours, ms",
    "peer, ms",
    "ratio",
    "min",
    "max",
    "rounds",
    "ours, peak MB",
    "peer, peak MB",
    "loss, largest difference",
    "ours runs",
    "peer runs",
    "date",
    "commit",
]


def row(comparison, difference, ours, peer):
    """A comparison as a row of the table."""
    ratios = comparison.ratios()

    def ms(runs):
        return f"{1e3 * statistics.median(r.step_seconds(comparison.warmup) for r in runs):.4g}"

    def megabytes(runs):
        bytes_ = peak(runs)
        return "-" if bytes_ is None else f"{bytes_ / 1e6:.0f}"

    return [
        host.processor(),
        comparison.name,
        ms(comparison.ours),
        ms(comparison.peer),
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f}",
        f"{max(ratios):.3f}",
        str(len(ratios)),
        megabytes(comparison.ours),
        megabytes(comparison.peer),
        "-" if difference is None else f"{difference:.1e}",
        words(ours),
        words(peer),
        today(),
        host.commit(ROOT),
    ]


def variant(told, label, command, shared, space, base, steps, warmup, took=min):
    """The options of a side, `ours` or `peer`: those that were named, the best of a search, or `base`."""
    named = told.our_options if label == "ours" else told.peer_options
    if named is not None:
        return {**base, **named}
    other = told.ours if label == "ours" else told.peer
    if told.no_tuning or told.rehearse or other or not space:
        return base
    return tuning.tune(label, command, lambda o, n: {**shared, "steps": n, label: o}, space, base, steps, warmup, took)


def check_losses(name, difference, tolerance):
    """Refuses a comparison of two sides that do not do the same work."""
    say(f"{name}: losses differ by at most {difference:.1e}")
    if difference > tolerance:
        raise BenchError(
            f"{name}: losses differ by {difference:.1e}, more than {tolerance:.0e}: the two sides do not do the same work"
        )


def words(options):
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "-"


def today():
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def keep(told, bench, header, row):
    """Writes a row into the page as soon as it is measured."""
    if not told.no_write:
        table.update(told.doc, bench, header, [row])
        say(f"wrote `{row[1]}` into {told.doc}")


def finish(header, rows, lines):
    """Prints the table, and the ratios last."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    for line in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for line in lines:
        print(line)
    sys.stdout.flush()


def ratio_lines(comparisons):
    return [ratio_line(c.name, c.ratios()) for c in comparisons]


def main(bench):
    """Runs a bench; a refusal is one line and exit 69. Asked to end, it ends its sides and takes its data away."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        bench()
    except (BenchError, table.TableError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(EX_UNAVAILABLE)
    except KeyboardInterrupt:
        sys.exit(130)


def workplace():
    """A directory for data that goes away with the bench. SEEDBED_BENCH_DIR chooses where."""
    return tempfile.TemporaryDirectory(prefix="seedbed-bench.", dir=os.environ.get("SEEDBED_BENCH_DIR"))
