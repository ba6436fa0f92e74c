#!/usr/bin/env python3
"""What `generate` of transformers says to unequal prompts, for the models of tests/fixtures/families.

    python3 generation.py DIRECTORY [SEED] > generated.json

Greedy, with a cache, prompts padded on the left; nothing ends a text. `margin` is the smallest difference between the two largest
logits on the way: prompts are drawn anew until it is large enough to mean something in fp32.
"""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

LENGTHS, NEW, MARGIN = [3, 12, 1, 7, 12], 14, 1e-4


def generated(directory, seed):
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    settings = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0, bos_token_id=None, output_scores=True,
        return_dict_in_generate=True,
    )
    model.generation_config = settings
    draw = random.Random(seed)
    longest = max(LENGTHS)
    for _ in range(100):
        prompts = [[draw.randrange(1, model.config.vocab_size) for _ in range(n)] for n in LENGTHS]
        ids, mask = torch.zeros(len(prompts), longest, dtype=torch.long), torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        margin = min(float((s.topk(2).values[:, 0] - s.topk(2).values[:, 1]).min()) for s in out.scores)
        if margin > MARGIN:
            return {"prompts": prompts, "ids": out.sequences[:, longest:].tolist(), "margin": margin}
    sys.exit(f"{directory}: no prompts with a margin above {MARGIN}: use another seed")


def main():
    root, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 42
    found = {path.parent.name: generated(path.parent, seed) for path in sorted(root.glob("*/config.json"))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
