#!/usr/bin/env python3
"""Our side of scripts/bench/generate: `seedbed-bench generate`, which calls what `seedbed-decode` calls.

    python3 ours_generate.py < config.json

Same protocol as the peer (docs/performance.md). `programs` in the configuration is the directory of the binaries.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main():
    config = json.load(sys.stdin)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as told:
        json.dump(config, told)
        told.flush()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        sys.exit(subprocess.run([Path(config["programs"]) / "seedbed-bench", "generate", told.name], env=env).returncode)


if __name__ == "__main__":
    main()
