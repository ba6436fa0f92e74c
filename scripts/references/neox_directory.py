#!/usr/bin/env python3
"""A GPT-NeoX directory as transformers and tokenizers write it, with reference ids and perplexity.

    python3 scripts/references/neox_directory.py tests/fixtures/neox/directory

The model has random weights; the tokenizer is a byte-level BPE trained on the texts below, with the special tokens of
GPT-NeoX and one added run of spaces. `expected.json` holds the ids of each text (without special tokens), and the perplexity
of the texts as one stream, each ended by id 0, cut every 32 tokens with one token of context, the remainder included.
"""

import json
import math
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

torch.set_num_threads(1)

LENGTH = 32
TEXTS = [
    "The river runs under the old bridge, and the boats run under it too.\n\nNobody counted them before noon.",
    "def f(x):\n    return x + 1    # a run of spaces, and\ttabs",
    "Zahlen: 12345, 3.14 und né à Zürich — \u201cquoted\u201d, \U0001f6a2 and 漢字.",
    "Text that spells <|endoftext|> is text. It's what they're told, isn't it? WE'LL SEE.",
    "  leading and trailing spaces  ",
    "Permission is granted to copy, distribute and/or modify this document under the terms of the licence. " * 4,
]


def main(root):
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=299,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("    ", normalized=True)])
    tokenizer.save(str(root / "tokenizer.json"))

    torch.manual_seed(11)
    config = GPTNeoXConfig(
        # As Pythia: more rows than the tokenizer has ids.
        vocab_size=304,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        rotary_pct=0.25,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(root)

    # Text must not forge a special token: encode it literally.
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    stream = [i for document in ids for i in [*document, 0]]
    total = 0.0
    for start in range(0, len(stream) - 1, LENGTH):
        row = torch.tensor([stream[start : start + LENGTH + 1]])
        with torch.no_grad():
            logits = model(row[:, :-1]).logits[0].double()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
    expected = {
        "texts": TEXTS,
        "ids": ids,
        "seq_len": LENGTH,
        "tokens": len(stream) - 1,
        "loss": total / (len(stream) - 1),
        "perplexity": math.exp(total / (len(stream) - 1)),
        "num_parameters": model.num_parameters(),
    }
    (root / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
