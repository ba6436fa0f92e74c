#!/usr/bin/env python3
"""The table of scripts/bench/aggregate, and the path of scripts/bench/query, as a good user of h5py, pandas and numpy writes them.

usage: results_plain.py aggregate|read|query CONFIG, a JSON file with `base`, `arms`, `seeds`, `stage`, `columns` (paths of metrics), `resamples`, `level`,
`processes`. Prints JSON: a list of rows with the mean of each column, and of `aggregate` its interval; of `query` one number a line.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np


def values_of(path, columns):
    """The columns' values of one run."""
    with h5py.File(path, "r") as run:
        metrics = run["metrics"][:]
    values = dict(zip(metrics["path"], metrics["value"]))
    return [values[column.encode()] for column in columns]


def runs(config):
    for arm in config["arms"]:
        for seed in config["seeds"]:
            yield arm, seed, Path(config["base"]) / config["stage"] / arm / f"seed-{seed}" / "run.h5"


def one(task):
    (arm, seed, path), columns = task
    return [arm, seed, *values_of(path, columns)]


def interval(values, config, rng):
    """Percentile bootstrap of the mean, vectorised over the resamples."""
    drawn = rng.integers(0, len(values), size=(config["resamples"], len(values)))
    means = values[drawn].mean(axis=1)
    tail = 50 * (1 - config["level"])
    return np.percentile(means, [tail, 100 - tail]).tolist()


def intervals(task):
    samples, config, seed = task
    rng = np.random.default_rng(seed)
    return [interval(sample, config, rng) for sample in samples]


def main():
    what, config = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    columns = config["columns"]
    tasks = ((run, columns) for run in runs(config))
    pool = ProcessPoolExecutor(config["processes"]) if config["processes"] > 1 else None
    spread = (lambda f, xs: pool.map(f, xs, chunksize=100)) if pool else map
    if what == "query":
        for row in spread(one, tasks):
            print(*row[2:], sep="\n")
        return
    import pandas as pd

    table = pd.DataFrame(list(spread(one, tasks)), columns=["arm", "seed", *columns])
    grouped = table.groupby("arm", sort=False)[columns]
    means = grouped.mean()
    rows = [{"arm": arm, "means": means.loc[arm].tolist()} for arm in config["arms"]]
    if what == "aggregate":
        samples = [[group[column].to_numpy() for column in columns] for _, group in grouped]
        work = [(sample, config, i) for i, sample in enumerate(samples)]
        for row, found in zip(rows, spread(intervals, work)):
            row["intervals"] = found
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
