#!/usr/bin/env python3
"""The peer of `scripts/bench/attack`: PyTorch in fp32, as its best user writes the two attacks, or as the public references do.

    python3 attack.py < config.json

Reads a configuration (docs/performance.md, "The protocol") and prints a JSON line a step: a position of the trigger, or a flip of
every text. Gradients are asked for embeddings only, logits are made where something is scored only, and candidates or texts go
through the model in batches of `batch` rows. With `reference` the batches are those of the public code (Wallace et al., `gpt2/
create_adv_token.py`; TextAttack, `word_swap_gradient_based.py`): one forward a candidate, one text at a time, and
parameters get gradients, too.
"""

import json
import os
import resource
import subprocess
import sys
import time

OPTIONS = {
    "batch": 64,  # rows of a forward pass
    "compile": "no",  # no, default
    "linear": "mkl",  # mkl, onednn
    "malloc": "default",  # default, tuned
    "chunk": 2048,  # rows whose logits exist together
    "reference": False,
}


def main():
    config = json.load(sys.stdin)
    options = {**OPTIONS, **config.get("peer", {})}
    unknown = set(options) - set(OPTIONS)
    if unknown:
        sys.exit(f"unknown options of the peer: {', '.join(sorted(unknown))}")
    if options["malloc"] == "tuned" and "SEEDBED_PEER_STARTED" not in os.environ:
        tuned = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "67108864"}
        env = {**os.environ, **tuned, "SEEDBED_PEER_STARTED": "1"}
        sys.exit(subprocess.run([sys.executable, __file__], input=json.dumps(config), text=True, env=env).returncode)
    run(config, options)


def run(config, options):
    import numpy
    import torch

    import neox

    torch.set_num_threads(config.get("threads_per_rank", 1))
    model = neox.load(config["model"], options["linear"])
    model.requires_grad_(options["reference"])
    data = numpy.fromfile(config["batches"], dtype="<i4").reshape(-1, config["seq_len"] + 1)
    texts = torch.from_numpy(data[: config["rows_per_rank"]].astype("int64"))
    attack = {"uat": uat, "hotflip": hotflip}[config["attack"]](config, options, Passes(model, options), texts)
    last, step = time.perf_counter(), 0
    for loss in attack:
        if isinstance(loss, dict):
            print(json.dumps(loss))
            continue
        now = time.perf_counter()
        if loss is not None:
            step += 1
            print(json.dumps({"step": step, "loss": loss, "seconds": now - last}))
        # None says that what comes now is timed.
        last = time.perf_counter()
    print(json.dumps({"peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


class Passes:
    """Losses of rows, and their gradient by the embeddings."""

    def __init__(self, model, options):
        import torch

        self.torch, self.model, self.chunk = torch, model, options["chunk"]
        self.body = hidden if options["compile"] == "no" else torch.compile(hidden, mode="default", dynamic=False)

    def nll(self, ids, first):
        """Summed NLL of each row's ids from `first` on."""
        torch = self.torch
        with torch.inference_mode():
            x = self.body(self.model, self.model.embed_in(ids[:, :-1]))[:, first - 1 :]
            return self.scores(x, ids[:, first:]).sum(1)

    def gradient(self, ids, first):
        """The NLL and the gradient of its sum by the embeddings, [B, T, h]."""
        x = self.model.embed_in(ids[:, :-1]).detach().requires_grad_(True)
        nll = self.scores(self.body(self.model, x)[:, first - 1 :], ids[:, first:])
        nll.sum().backward()
        return nll.detach(), x.grad

    def scores(self, x, targets):
        F = self.torch.nn.functional
        flat, wanted = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
        parts = [
            F.cross_entropy(self.model.embed_out(flat[i : i + self.chunk]), wanted[i : i + self.chunk], reduction="none")
            for i in range(0, len(flat), self.chunk)
        ]
        return (parts[0] if len(parts) == 1 else self.torch.cat(parts)).view(targets.shape)


def hidden(model, x):
    t = x.shape[1]
    cos, sin = model.cos[:t], model.sin[:t]
    for layer in model.layers:
        x = layer(x, cos, sin)
    return model.final_layer_norm(x)


def uat(config, options, passes, texts):
    """The trigger's positions from left to right: a gradient, the best candidates by it, each by its true loss."""
    torch, model = passes.torch, passes.model
    trigger = torch.tensor(config["trigger"])
    length, count, tokens = len(trigger), config["candidates"], len(texts) * config["seq_len"]

    def rows(triggers):
        """Every trigger before every text."""
        return torch.cat([triggers.repeat_interleave(len(texts), 0), texts.repeat(len(triggers), 1)], 1)

    def losses(triggers):
        at_once = len(texts) if options["reference"] else options["batch"]
        every = torch.cat([passes.nll(part, length + 1) for part in rows(triggers).split(at_once)])
        # Sums of a few hundred numbers: in fp64, so that the order of candidates is that of their losses.
        return every.double().view(len(triggers), -1).sum(1) / tokens

    best = losses(trigger[None])[0].item()
    yield None
    while True:
        for position in range(length):
            _, gradient = passes.gradient(rows(trigger[None]), length + 1)
            score = model.embed_in.weight.detach() @ gradient[:, position].sum(0)
            if options["reference"]:
                model.zero_grad()
            # The loss is to fall. Id 0 ends documents and is no candidate; nor is the one that is there.
            score[0] = score[trigger[position]] = float("inf")
            candidates = score.topk(count, largest=False).indices
            triggers = trigger.repeat(count, 1)
            triggers[:, position] = candidates
            found = losses(triggers)
            at = int(found.argmin())
            if found[at].item() < best:
                best, trigger = found[at].item(), triggers[at].clone()
            yield best
            config["steps"] -= 1
            if config["steps"] == 0:
                yield {"found": [trigger.tolist()]}
                return


def hotflip(config, options, passes, texts):
    """A flip of every text: a gradient, and the best position and id by (E_b - E_a) g among those that were not flipped."""
    torch, model = passes.torch, passes.model
    embedding = model.embed_in.weight.detach()
    texts = texts.clone()
    flipped = torch.zeros_like(texts[:, :-1], dtype=torch.bool)
    flips = [[] for _ in texts]
    at_once = 1 if options["reference"] else options["batch"]
    yield None
    for _ in range(config["steps"]):
        total = 0.0
        for first in range(0, len(texts), at_once):
            ids, done = texts[first : first + at_once], flipped[first : first + at_once]
            nll, gradient = passes.gradient(ids, 1)
            total += nll.double().sum().item()
            with torch.inference_mode():
                here = ids[:, :-1]
                gains = gradient @ embedding.t()
                gains -= (gradient * embedding[here]).sum(-1, keepdim=True)
                gains[:, :, 0] = float("-inf")
                gains.scatter_(2, here[:, :, None], float("-inf"))
                gains[done] = float("-inf")
                at = gains.flatten(1).argmax(1)
            for row, place in enumerate(at.tolist()):
                position, id_ = divmod(place, embedding.shape[0])
                texts[first + row, position], flipped[first + row, position] = id_, True
                flips[first + row] += [position, id_]
            if options["reference"]:
                model.zero_grad()
        yield total / (len(texts) * config["seq_len"])
    yield {"found": flips}


if __name__ == "__main__":
    main()
