#!/usr/bin/env python3
"""The peer of `scripts/bench/elastic`: our engine with plain accumulation and MPI_Reduce_scatter (`seedbed-bench plain`).

    python3 plain.py < config.json

Same protocol as the other peers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from ours import MPI


def main():
    text = sys.stdin.read()
    config = json.loads(text)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as told:
        told.write(text)
        told.flush()
        program = [str(Path(config["programs"]) / "seedbed-bench"), "plain", told.name]
        threads = str(config["threads_per_rank"])
        env = {**os.environ, **MPI, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(["mpirun", "-n", str(config["ranks"]), *program], env=env, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
