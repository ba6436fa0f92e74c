"""What scripts/bench/aggregate and scripts/bench/query share: a study with its sealed results, and its sides as whole processes."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import session
from side_by_side import BenchError, say

HERE = Path(__file__).resolve().parent
STAGE = "score"
COLUMNS = [("arc", "arc_challenge", "accuracy"), ("hella", "hellaswag", "accuracy_norm"), ("mmlu", "mmlu", "accuracy"), ("lambada", "lambada", "nll"), ("sciq", "sciq", "brier")]
RESAMPLES, LEVEL = 10_000, 0.95
ARMS = 100


def study(arms, seeds, resampled):
    """A study of one stage of arms and seeds, and a table with a row an arm."""
    show = 'show = "mean_ci"' if resampled else 'show = "mean"'
    interval = f'interval = "bootstrap"\nresamples = {RESAMPLES}\nlevel = {LEVEL}\n' if resampled else ""
    listed = ", ".join(f'{{name = "{arm}"}}' for arm in arms)
    rows = ", ".join(f'{{key = "{arm}", arm = "{arm}"}}' for arm in arms)
    columns = "".join(
        f'[[table.columns]]\nkey = "{key}"\nstage = "{STAGE}"\nmetric = ".tasks.{task}.{metric}"\ndigits = 4\n{show}\n' for key, task, metric in COLUMNS
    )
    return f"""schema = 1
[study]
name = "results"
seeds = {list(seeds)}

[[stage]]
name = "{STAGE}"
command = ["sh", "-c", "exit 1"]
per = ["arm", "seed"]
arms = [{listed}]
resources = {{time = "0:05:00"}}

[[table]]
key = "scores"
{interval}rows = [{rows}]
{columns}"""


class Tree:
    """A study on disk with its results; made once for all sides."""

    def __init__(self, programs, place, arms, seeds):
        self.dir = Path(place) / f"{arms * seeds}"
        self.dir.mkdir(parents=True)
        self.arms, self.seeds = [f"arm{i:03}" for i in range(arms)], list(range(1, seeds + 1))
        self.files = arms * seeds
        self.programs, self.root = programs, self.dir / "root"
        self.base = self.root / "results/results/default"
        # The same study with two tables: two files of one name may not lie side by side.
        self.study, self.read_only = self.dir / "resampled/results.toml", self.dir / "read/results.toml"
        for path in (self.study, self.read_only):
            path.parent.mkdir()
        self.study.write_text(study(self.arms, self.seeds, True))
        self.read_only.write_text(study(self.arms, self.seeds, False))
        self.env = {**os.environ, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for name in ("SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED", "SLURM_CONF"):
            self.env.pop(name, None)
        began = time.perf_counter()
        self.maker("make")
        one = next(self.base.glob(f"{STAGE}/*/*/run.h5")).stat().st_size
        say(f"{self.files} runs of {one / 1e3:.1f} kB, made in {time.perf_counter() - began:.1f} s")
        self.warm()

    def maker(self, what, processes=None):
        words = [str(self.programs / "examples/results-tree"), what, str(self.study), str(self.root)]
        done = subprocess.run(pinned(words, processes), stdout=subprocess.PIPE, text=True, env=self.env)
        if done.returncode:
            raise BenchError(f"the results could not be made or checked: see the message above ({what})")
        return done.stdout

    def warm(self):
        """Every file in the page cache."""
        for path in self.base.rglob("*"):
            if path.is_file():
                path.read_bytes()

    def remove(self):
        shutil.rmtree(self.dir)

    def seals(self, processes):
        """Seconds of checking every seal and the digest of its run, and nothing else."""
        return json.loads(self.maker("check", processes))["seconds"]

    def config(self, columns, processes):
        """The file that tells a peer what to do."""
        told = {
            "base": str(self.base),
            "stage": STAGE,
            "arms": self.arms,
            "seeds": self.seeds,
            "columns": [f"tasks.{task}.{metric}" for _, task, metric in columns],
            "resamples": RESAMPLES,
            "level": LEVEL,
            "processes": processes,
        }
        path = self.dir / f"peer-{len(columns)}-{processes}.json"
        path.write_text(json.dumps(told))
        return path

    def peer(self, python, name, what, columns, processes):
        return Side(name, pinned([python, str(HERE / f"peers/results_{name}.py"), what, str(self.config(columns, processes))], processes), self.env)

    def ours(self, *words, processes):
        return Side("ours", pinned([str(self.programs / "seedbed"), *words], processes), self.env)


def pinned(words, processes):
    """On one core, where one process is asked for: whoever has threads has one."""
    return ["taskset", "-c", "0", *words] if processes == 1 else list(words)


class Side:
    """A whole program: from its start to its end."""

    def __init__(self, name, words, env):
        self.name, self.words, self.env = name, words, env
        self.seconds, self.peak, self.said = [], 0, ""

    def run(self):
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
            began = time.perf_counter()
            process = subprocess.Popen(self.words, stdout=said, stderr=told, env=self.env)
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds.append(time.perf_counter() - began)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                told.seek(0)
                raise BenchError(f"{self.name} ended with {process.returncode}: {told.read().decode(errors='replace').strip()[-2000:]}")
            said.seek(0)
            self.said = said.read().decode()
        self.peak = max(self.peak, usage.ru_maxrss * 1024)
        return self.seconds[-1]

    def median(self):
        return statistics.median(self.seconds)


def in_turns(sides, rounds):
    """Every side in every round; the one that begins changes. The first run of each is not counted."""
    for side in sides:
        side.run()
        side.seconds.clear()
    for number in range(rounds):
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            side.run()
        say(f"round {number + 1}: " + ", ".join(f"{side.name} {1e3 * side.seconds[-1]:.0f} ms" for side in sides))


def programs(told):
    return session.control_plane(told.programs, ["seedbed"], ["results-tree"])


def more(parser):
    """Options that both benches add."""
    parser.add_argument("--arms", type=session.positive, default=ARMS, help="arms of the study (default %(default)s)")
    parser.add_argument("--seeds", type=session.positive, default=100, help="seeds of each arm (default %(default)s)")
    parser.add_argument("--python", metavar="PROGRAM", help="a Python with h5py, pandas and numpy, instead of the peers' environment")


def python(told):
    return told.python or session.python()


def refuse_options(told):
    """Of the options of all benches, those that mean nothing here."""
    for name in ("ours", "steps", "our_options"):
        if getattr(told, name, None):
            print(f"bench: --{name.replace('_', '-')} means nothing to this bench", file=sys.stderr)
            sys.exit(session.EX_USAGE)
