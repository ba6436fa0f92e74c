"""What a bench says of the machine: its processor, its GEMM rates, its load."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from side_by_side import BenchError


def processor(cpuinfo=None):
    """The model's name, made unique: where a hypervisor hides the number, family and model are added."""
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = re.sub(r"\((R|TM|r|tm)\)", "", fields.get("model name", "unknown processor"))
    name = re.sub(r"\s*(CPU)?\s*@.*$", "", name)
    name = " ".join(name.split())
    if not re.search(r"\d", name) and "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields.get('model', '?')})"
    return name


def load():
    """Processes that wanted to run during the last minute."""
    return os.getloadavg()[0]


def commit(root):
    """Short digest of the commit, with `+` where the tree differs from it; `-` outside of a repository."""
    git = ["git", "-C", str(root)]
    shown = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    if shown.returncode:
        return "-"
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    # The tables that benches write do not change what is measured.
    files = [line[3:] for line in changed.stdout.splitlines() if line[3:] != "docs/performance.md"]
    return shown.stdout.strip() + ("+" if files else "")


def gemm(program, config):
    """GFLOP/s a core of each backend at the step's shapes, with as many processes at once as the bench has ranks."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as told:
        json.dump(config, told)
        told.flush()
        command = [program, "gemm", told.name]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=env) for _ in range(config["ranks"])]
        texts = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise BenchError("GEMMs could not be timed: see the message above")
    answers = [json.loads(text) for text in texts]
    return {name: sum(answer[name] for answer in answers) / len(answers) for name in answers[0]}
