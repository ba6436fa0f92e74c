#!/usr/bin/env python3
"""Our side of a bench: the program `seedbed-train` on a cell, as a user runs it.

    python3 ours.py < config.json

Same protocol as the peers (docs/performance.md). A step's time is the time between the trainer's own lines in
`progress.jsonl`, so it covers everything between two steps. After the last step the ranks are ended: the final validation, checkpoint
and export are no part of a bench. `programs` in the configuration is the directory of the binaries.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# How ranks find and wait for each other on one machine; the same as the tests of this repository use.
MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}


def main():
    config = json.load(sys.stdin)
    programs, data = Path(config["programs"]), Path(config["data"])
    with tempfile.TemporaryDirectory(prefix="seedbed-bench.", dir=data) as place:
        # The setup of the data is shared; the training cell is new in every run.
        base = Path(place) / "results/bench/quick"
        base.mkdir(parents=True)
        (base / "setup").symlink_to(data / "results/bench/quick/setup")
        told = Path(place) / "config.json"
        told.write_text(json.dumps(config))
        answer = subprocess.run([programs / "seedbed-bench", "cell", told, place], stdout=subprocess.PIPE, check=False)
        if answer.returncode:
            sys.exit(answer.returncode)
        cell = json.loads(answer.stdout)
        train(config, programs / "seedbed-train", cell["cell"], Path(cell["run_dir"]) / "progress.jsonl")


def train(config, program, cell, progress):
    command = [str(program), "--attempt", "1", "--cell", cell]
    if config["ranks"] > 1:
        command = [*config.get("launcher", []), "mpirun", *config.get("mpirun", []), "-n", str(config["ranks"]), *command]
    env = {**os.environ, **MPI, **config.get("environment", {})}
    env.update(OMP_NUM_THREADS=str(config["threads_per_rank"]), MKL_NUM_THREADS=str(config["threads_per_rank"]))
    # The launcher tells at length of ranks that were ended: what it says is shown only if they ended by themselves.
    log = tempfile.TemporaryFile("w+", errors="replace")
    child = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        # Looking costs time that both sides need: rarely, and the lines are read once.
        while child.poll() is None and count(progress) < config["steps"]:
            time.sleep(0.1)
        lines = steps(progress)
        if len(lines) < config["steps"]:
            log.seek(0)
            sys.stderr.write(log.read())
            sys.exit(f"seedbed-train ended with {child.returncode} after {len(lines)} of {config['steps']} steps")
        peak = max((peak_rss_bytes(rank) for rank in ranks_of(program, cell)), default=None)
    finally:
        for rank in ranks_of(program, cell):
            kill(rank)
        if config["ranks"] > 1:
            # The launcher cleans up behind its ranks.
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    before = 0.0
    for line in lines[: config["steps"]]:
        loss = line["values"].get("loss")
        print(json.dumps({"step": line["step"], "loss": loss, "seconds": line["time_s"] - before}))
        before = line["time_s"]
    print(json.dumps({"peak_rss_bytes": peak}), flush=True)


def count(progress):
    """Lines so far; every step writes one."""
    try:
        return progress.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def steps(progress):
    """Whole lines of steps, without those of validations."""
    try:
        text = progress.read_text()
    except FileNotFoundError:
        return []
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if "lr" in line["values"]]


def ranks_of(program, cell):
    """Processes of this run: the cell's path is in no other's arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == str(program).encode() and cell.encode() in words:
                found.append(int(entry.name))
    return found


def peak_rss_bytes(pid):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    if shutil.which("mpirun") is None and "--help" not in sys.argv:
        print("ours.py: there is no mpirun: only benches of one rank can run", file=sys.stderr)
    main()
