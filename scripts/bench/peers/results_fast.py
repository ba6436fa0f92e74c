#!/usr/bin/env python3
"""The same as results_plain.py, as fast as Python can be.

Files are opened by h5py's low-level calls, and the rows of a file are read as they lie in it, into one buffer, without conversion. Where a column stands is
looked up again only when the paths of a file are others than those of the one before. All resamples of all cells are one product of a matrix of counts, drawn
once, with the values; only the two order statistics of each cell that are asked for are looked for. Each process does a share of the arms from the files to the
intervals. No pandas.
"""

import gc
import json
import os
import pickle
import sys

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s


class Reader:
    def __init__(self, columns):
        self.columns, self.buffer, self.paths = [c.encode() for c in columns], None, None
        self.access = h5p.create(h5p.FILE_ACCESS)
        self.access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_V110)

    def read(self, path):
        """The columns' values of one run."""
        file = h5f.open(path, h5f.ACC_RDONLY, self.access)
        rows = h5d.open(file, b"metrics")
        if self.buffer is None or rows.shape != self.buffer.shape:
            self.type = rows.get_type()
            self.buffer = np.empty(rows.shape, self.type.dtype)
            self.paths = None
        rows.read(h5s.ALL, h5s.ALL, self.buffer, self.type)
        paths = self.buffer["path"].tobytes()
        if paths != self.paths:
            names = self.buffer["path"].tolist()
            self.at = [names.index(column) for column in self.columns]
            self.paths = paths
        return self.buffer["value"][self.at]


def read(config, arms):
    """Arms x seeds x columns."""
    reader = Reader(config["columns"])
    stage = f"{config['base']}/{config['stage']}"
    values = np.empty((len(arms), len(config["seeds"]), len(config["columns"])))
    for a, arm in enumerate(arms):
        for s, seed in enumerate(config["seeds"]):
            values[a, s] = reader.read(f"{stage}/{arm}/seed-{seed}/run.h5".encode())
    return values


def intervals(values, config):
    arms, n, columns = values.shape
    rng = np.random.default_rng(1)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=config["resamples"]).astype(np.float64)
    samples = values.transpose(1, 0, 2).reshape(n, arms * columns)
    # Cell by cell in a row: what is looked for lies together.
    means = (samples.T @ counts.T) / n
    found = []
    for p in ((1 - config["level"]) / 2, (1 + config["level"]) / 2):
        place = p * (config["resamples"] - 1)
        below = int(place)
        means.partition([below, below + 1], axis=1)
        low, high = means[:, below], means[:, below + 1]
        found.append(low + (high - low) * (place - below))
    return np.stack(found, axis=1).reshape(arms, columns, 2)


def work(what, config, arms):
    values = read(config, arms)
    if what == "query":
        return values
    return values.mean(axis=1), intervals(values, config) if what == "aggregate" else None


def shares(what, config):
    """The work of each process, in the order of the arms."""
    arms, processes = config["arms"], config["processes"]
    size = -(-len(arms) // processes)
    parts = [arms[i : i + size] for i in range(0, len(arms), size)]
    pipes = []
    for part in parts[1:]:
        reading, writing = os.pipe()
        if os.fork() == 0:
            with os.fdopen(writing, "wb") as out:
                pickle.dump(work(what, config, part), out, protocol=5)
            os._exit(0)
        os.close(writing)
        pipes.append(os.fdopen(reading, "rb"))
    return [work(what, config, parts[0]), *(pickle.load(pipe) for pipe in pipes)]


def main():
    gc.disable()
    what = sys.argv[1]
    with open(sys.argv[2]) as told:
        config = json.load(told)
    done = shares(what, config)
    if what == "query":
        sys.stdout.write("\n".join(map(repr, np.concatenate(done).ravel().tolist())) + "\n")
        return
    means = np.concatenate([part[0] for part in done]).tolist()
    found = np.concatenate([part[1] for part in done]).tolist() if what == "aggregate" else [None] * len(means)
    rows = [{"arm": arm, "means": m, **({"intervals": i} if i else {})} for arm, m, i in zip(config["arms"], means, found)]
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
