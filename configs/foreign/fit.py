#!/usr/bin/env python3
"""Fits a line to data.csv by stochastic gradient descent. Knows signals and checkpoints, and nothing of Seedbed but the
names of a few environment variables."""

import argparse
import json
import os
import random
import signal
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--rate", type=float, required=True)
arguments = parser.parse_args()

# Told that time is nearly over (USR2), or that the job has to go (TERM): finish the step, save, and say 75.
told_to_stop = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda *_: told_to_stop.append(True))

with open(os.path.join(os.environ["SEEDBED_NEED_data"], "data.csv")) as lines:
    points = [tuple(map(float, line.split(","))) for line in lines]

checkpoint = os.path.join(os.environ["SEEDBED_CHECKPOINT_DIR"], "state.json")
chance = random.Random(int(os.environ["SEEDBED_SEED"]))
step, slope, intercept = 0, 0.0, 0.0
if os.path.exists(checkpoint):
    with open(checkpoint) as file:
        step, slope, intercept, state = json.load(file)
    chance.setstate((state[0], tuple(state[1]), state[2]))
    print(f"goes on at step {step}", flush=True)


def save():
    """Whole or not at all: the old checkpoint stays until the new one is complete."""
    with open(checkpoint + ".tmp", "w") as file:
        json.dump([step, slope, intercept, chance.getstate()], file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(checkpoint + ".tmp", checkpoint)


pause_s = float(os.environ.get("FOREIGN_PAUSE_S", "0"))  # for tests: a step that takes long
while step < arguments.steps:
    x, y = points[chance.randrange(len(points))]
    error = slope * x + intercept - y
    slope -= arguments.rate * error * x
    intercept -= arguments.rate * error
    step += 1
    if step % 50 == 0:
        print(f"step {step}: slope {slope:.4f}", flush=True)
    if told_to_stop:
        save()
        print(f"saved at step {step}", flush=True)
        sys.exit(75)
    time.sleep(pause_s)

loss = sum((slope * x + intercept - y) ** 2 for x, y in points) / len(points)
with open("model.json", "w") as file:
    json.dump({"slope": slope, "intercept": intercept}, file)
with open("metrics.json", "w") as file:
    json.dump({"slope": slope, "intercept": intercept, "loss": loss, "steps": step}, file)
