#!/usr/bin/env python3
"""A peer of `scripts/bench/eval`: the `lm-eval` package with its `hf` backend, in fp32 on the processor.

    python3 score_lm_eval.py < config.json

Ids go in behind its tokenisation, into the method that batches and scores them, so that both sides begin with the same.
"""

import logging

import scoring

PRESETS = {"batch_size": 1, "malloc": "default"}


def load(config, options):
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging as progress

    logging.disable(logging.WARNING)
    progress.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32).eval()
    # Never asked for a text: the items are ids.
    words = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=options["batch_size"],
        max_length=config["model_config"]["max_position_embeddings"],
    )

    def score(pairs):
        requests = [((f"context {i}", f"continuation {i}"), context, continuation) for i, (context, continuation) in enumerate(pairs)]
        return [float(log_likelihood) for log_likelihood, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]

    return score


scoring.main(PRESETS, load)
