#!/usr/bin/env python3
"""A peer of `scripts/bench/eval`: PyTorch as its best user scores choices, in fp32 on the processor.

    python3 score_fast.py < config.json

Rows are sorted by length and batched by a budget of tokens, padding included; attention is SDPA; positions that predict a
continuation are gathered before the last norm and the output matrix; Linear layers run on MKL or oneDNN.
"""

import scoring

PRESETS = {"linear": "mkl", "tokens": 2048, "nll": "logsumexp", "malloc": "default"}


def load(config, options):
    import neox
    import torch

    model = neox.load(config["model"], options["linear"]).eval()

    def batches(rows):
        """Numbers of rows, the longest first, whose padded batch has at most so many tokens."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        begin = 0
        while begin < len(order):
            count = max(1, options["tokens"] // len(rows[order[begin]]))
            yield order[begin : begin + count]
            begin += count

    def states(ids, places):
        """What the last block says at some places of the flat batch."""
        x = model.embed_in(ids)
        cos, sin = model.cos[: ids.shape[1]], model.sin[: ids.shape[1]]
        for layer in model.layers:
            x = layer(x, cos, sin)
        return x.view(-1, x.shape[-1]).index_select(0, places)

    def score(pairs):
        rows = [context + continuation[:-1] for context, continuation in pairs]
        scores = [0.0] * len(pairs)
        for batch in batches(rows):
            longest = len(rows[batch[0]])
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            places, targets, counts = [], [], []
            for r, i in enumerate(batch):
                ids[r, : len(rows[i])] = torch.tensor(rows[i])
                continuation = pairs[i][1]
                end = r * longest + len(rows[i])
                places.extend(range(end - len(continuation), end))
                targets.extend(continuation)
                counts.append(len(continuation))
            logits = model.embed_out(model.final_layer_norm(states(ids, torch.tensor(places))))
            target = torch.tensor(targets).unsqueeze(1)
            if options["nll"] == "logsumexp":
                log_p = logits.gather(1, target).squeeze(1) - logits.logsumexp(1)
            else:
                log_p = torch.log_softmax(logits, 1).gather(1, target).squeeze(1)
            for i, part in zip(batch, log_p.double().split(counts)):
                scores[i] = part.sum().item()
        return scores

    return score


scoring.main(PRESETS, load)
