#!/usr/bin/env python3
"""What the lm-eval package and transformers say of small models: log-likelihoods of choices, accuracies, perplexities.

    python3 scripts/references/lm_eval_fixture.py OUT [SEED]

Writes into OUT: `items/` (questions in the public layouts, LAMBADA, TruthfulQA, a task of its own, documents; ARC as Parquet
too), a directory a model (`neox`: trained a little on these texts, byte-level tokens, no token begins a text; `llama`:
random weights, tokens that begin with <s>), and `expected.json`. With a SEED other than 0 models and items are other
ones. lm-eval itself reads the items and makes the requests: its own task files are included, and only told
where the rows lie.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval
import pandas
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

CONTEXT = 96
VOCABULARY = 330
TASKS = Path(lm_eval.__file__).parent / "tasks"
WORDS = (
    "river bridge boat old water stone Anna Boris market lamp bread rain window kettle ladder garden roof paint "
    "hammer rope quickly slowly under over before after because warm cold heavy broken naïve Zürich Ωmega 漢字 \U0001f6a2"
).split()


def sentence(rng, least, most):
    words = [rng.choice(WORDS) for _ in range(rng.randint(least, most))]
    return " ".join(words)


def hellaswag(rng):
    items = [
        # Markers, brackets over a line break, capitals that are lowered, spaces that come back.
        {"activity_label": "Roof  shingle removal", "ctx_a": "A man is sitting on a roof. [header] How to [substeps]", "ctx_b": "he Starts PULLING [title] Up", "endings": ["is using wrap.", " [substeps] sits  down", "b  c [title] d", "naïve Ωmega 漢字"], "label": "2"},
        {"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["one", "two three", "four", "five"], "label": "0"},
        {"activity_label": "Tea", "ctx_a": "The kettle [a\nb] is on. ", "ctx_b": "élan VITAL [title]", "endings": ["warm water ", "cold", "\u00a0heavy rain", "bread"], "label": "1"},
        # Equal endings tie, and the first is taken.
        {"activity_label": "Ties", "ctx_a": "The old bridge", "ctx_b": "", "endings": ["is cold", "is warm", "is cold", "is warm"], "label": "2"},
        {"activity_label": "ß", "ctx_a": "ßtone", "ctx_b": "ßOAT ǆep ŉOrm", "endings": ["[x] a", "b", "[[c] d]", "e ] f ["], "label": "3"},
        # Longer than the context.
        {"activity_label": "Long", "ctx_a": sentence(rng, 120, 120), "ctx_b": "the boat", "endings": ["sank", "did not sink at all", "was old", "was paint"], "label": "0"},
    ]
    for _ in range(6):
        items.append({"activity_label": sentence(rng, 1, 2), "ctx_a": sentence(rng, 4, 9) + ".", "ctx_b": sentence(rng, 0, 4), "endings": [sentence(rng, 1, 6) for _ in range(4)], "label": str(rng.randrange(4))})
    return items


def piqa(rng):
    items = [
        {"goal": "Boil water", "sol1": "heat it", "sol2": "cool it", "label": 0},
        {"goal": "Ends in spaces  ", "sol1": " begins with one", "sol2": "does not ", "label": 1},
        {"goal": "", "sol1": "\"quoted\" and 'quoted'", "sol2": "back\\slash {braces}", "label": 1},
        {"goal": "naïve 漢字 \U0001f6a2", "sol1": "Zürich", "sol2": "Zürich Zürich", "label": 0},
        {"goal": "equal", "sol1": "the same", "sol2": "the same", "label": 1},
    ]
    for _ in range(6):
        items.append({"goal": sentence(rng, 3, 8), "sol1": sentence(rng, 2, 8), "sol2": sentence(rng, 2, 8), "label": rng.randrange(2)})
    return items


def arc(rng):
    items = [
        {"id": "a", "question": "Which is warm?", "choices": {"text": ["rain", "bread", "stone"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"id": "b", "question": "Numbers as labels?", "choices": {"text": ["1", "22", "333", "4 444"], "label": ["1", "2", "3", "4"]}, "answerKey": "4"},
        {"id": "c", "question": "Five of them: naïve?", "choices": {"text": ["a", "b", "Ωmega", "d d", "漢字"], "label": ["A", "B", "C", "D", "E"]}, "answerKey": "E"},
        {"id": "d", "question": "Ends in a line break?\n", "choices": {"text": ["yes", " no", "no ", "yes"], "label": ["A", "B", "C", "D"]}, "answerKey": "D"},
    ]
    for i in range(6):
        n = rng.randint(3, 5)
        items.append({"id": f"r{i}", "question": sentence(rng, 4, 10) + "?", "choices": {"text": [sentence(rng, 1, 3) for _ in range(n)], "label": list("ABCDE"[:n])}, "answerKey": "ABCDE"[rng.randrange(n)]})
    return items


def winogrande(rng):
    items = [
        {"sentence": "Anna asked Boris for the lamp, but _ was busy.", "option1": "Anna", "option2": "Boris", "answer": "2"},
        # An empty context, and one that ends in a space.
        {"sentence": "_ ran over the bridge.", "option1": "Boris ", "option2": "Anna", "answer": "1"},
        {"sentence": "The lamp, not the rope, is _ .", "option1": "old", "option2": "naïve 漢字", "answer": "1"},
        {"sentence": "Equal are _ and nothing else.  ", "option1": "both", "option2": "both", "answer": "2"},
        {"sentence": "Two _ here, _ there.", "option1": "boats", "option2": "stones", "answer": "1"},
    ]
    for _ in range(6):
        items.append({"sentence": f"{sentence(rng, 2, 6)} _ {sentence(rng, 1, 5)}.", "option1": rng.choice(WORDS), "option2": rng.choice(WORDS), "answer": str(rng.randint(1, 2))})
    return items


def own(rng):
    # Nothing stands between context and choice: tokens reach over the border.
    items = [
        {"about": {"word": "the old bri"}, "number": 7, "options": ["dge boat", "ver", "dges over"], "right": 0},
        {"about": {"word": "under the riv"}, "number": 12, "options": ["er boat", "e x", "er bridge", "er boat"], "right": 3},
        {"about": {"word": "ends in spaces  "}, "number": 1, "options": ["x", " y"], "right": 1},
    ]
    for _ in range(14):
        word = rng.choice(WORDS)
        cut = rng.randint(1, max(1, len(word) - 1))
        items.append({"about": {"word": f"{sentence(rng, 1, 3)} {word[:cut]}"}, "number": rng.randrange(100), "options": [word[cut:] + "s", rng.choice(WORDS), rng.choice(WORDS)[1:] + "ing"], "right": rng.randrange(3)})
    return items


def truthfulqa(rng):
    items = []
    for i in range(6):
        one, two = rng.randint(2, 4), rng.randint(1, 2)
        choices = [sentence(rng, 1, 2) for _ in range(one)]
        more = [sentence(rng, 1, 2) for _ in range(two + 2)]
        items.append({
            "question": sentence(rng, 3, 6) + "?",
            "mc1_targets": {"choices": choices, "labels": [1] + [0] * (one - 1)},
            "mc2_targets": {"choices": more, "labels": [1] * two + [0] * 2},
        })
    return items


DOCUMENTS = [
    "",
    "One.",
    "  spaces at both ends, and\ttabs \n",
    "naïve Zürich — \u201cquoted\u201d, \U0001f6a2 and 漢字.\u00a0\u2003End",
    "exactly the same words again and again. " * 40,
]


def documents(rng):
    return [{"text": text} for text in DOCUMENTS + [sentence(rng, 3, 200) for _ in range(5)]]


def lambada(rng, model):
    """Texts whose last word greedy decoding by `model` may or may not write."""
    texts = [sentence(rng, 5, 12) for _ in range(6)] + ["word", "naïve 漢字", "ends in a space "]
    for start in [sentence(rng, 4, 9) for _ in range(4)]:
        ids = model.tokenizer(start, return_tensors="pt").input_ids
        with torch.no_grad():
            more = model.net.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        words = model.tokenizer.decode(more).split()
        texts.append(f"{start} {words[0]}" if words else start)
    return [{"text": text} for text in texts]


def has_tokens(tokenizer, row):
    context = f"{row['number']}: {row['about']['word']}".rstrip()
    length = len(tokenizer(context).input_ids)
    return all(len(tokenizer(context + choice).input_ids) > length for choice in row["options"])


class Model:
    def __init__(self, tokenizer, net):
        self.tokenizer, self.net = tokenizer, net.eval()

    def save(self, root):
        self.net.save_pretrained(root)
        self.tokenizer.save_pretrained(root)


def byte_level(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|padding|>")


def beginning(texts):
    """As Llama's: spaces are marks before words, bytes stand in for what is unknown, and <s> begins a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)],
        limit_alphabet=30,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def neox(texts, seed):
    tokenizer = byte_level(texts)
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=CONTEXT, rotary_pct=0.25, bos_token_id=0, eos_token_id=0,
    )
    model = Model(tokenizer, GPTNeoXForCausalLM(config))
    ids = torch.tensor([i for text in texts for i in tokenizer(text).input_ids + [0]])
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=1e-2)
    model.net.train()
    for step in range(150):
        at = torch.randint(0, len(ids) - 33, (8,))
        rows = torch.stack([ids[i : i + 33] for i in at])
        loss = model.net(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.net.eval()
    return model


def llama(texts, seed):
    tokenizer = beginning(texts)
    torch.manual_seed(seed + 1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )
    return Model(tokenizer, LlamaForCausalLM(config))


# The package's own task, and what of it is other here.
INCLUDED = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "truthfulqa": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
}
OWN = {
    "own": {
        "output_type": "multiple_choice", "doc_to_text": "{{number}}: {{about.word}}", "doc_to_choice": "options",
        "doc_to_target": "right", "target_delimiter": "",
    },
    "documents": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": m} for m in ["word_perplexity", "byte_perplexity", "bits_per_byte"]],
    },
}


def task_files(items, root):
    """One YAML a task, which lm-eval reads."""
    for name in [*INCLUDED, *OWN]:
        rows = items / ("truthfulqa.jsonl" if name == "truthfulqa_mc2" else f"{name}.jsonl")
        task = {
            **({"include": str(TASKS / INCLUDED[name])} if name in INCLUDED else OWN[name]),
            "task": f"local_{name}", "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(rows.resolve())}},
            "training_split": None, "validation_split": "validation", "test_split": None, "fewshot_split": None,
        }
        if name in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "own"):
            metrics = ["acc", "acc_norm", "acc_bytes"]
            task["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in metrics]
        # JSON is YAML.
        (root / f"{name}.yaml").write_text(json.dumps(task))


def asked(model_dir, tasks):
    model = HFLM(pretrained=str(model_dir), dtype="float32", device="cpu", batch_size=1)
    names = [f"local_{name}" for name in [*INCLUDED, *OWN]]
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, num_fewshot=0, log_samples=True, bootstrap_iters=2,
        task_manager=TaskManager(include_path=str(tasks)),
    )
    answer = {}
    for name in [*INCLUDED, *OWN]:
        samples = sorted(found["samples"][f"local_{name}"], key=lambda s: s["doc_id"])
        metrics = found["results"][f"local_{name}"]
        value = {key.split(",")[0]: v for key, v in metrics.items() if isinstance(v, float)}
        if name == "documents":
            answer[name] = {"results": value, "log_likelihoods": [s["filtered_resps"][0] for s in samples]}
            answer[name]["log_likelihoods"] = [x[0] if isinstance(x, (list, tuple)) else x for x in answer[name]["log_likelihoods"]]
        else:
            resps = [[r[0] if isinstance(r[0], (list, tuple)) else r for r in s["resps"]] for s in samples]
            answer[name] = {
                "results": value,
                "log_likelihoods": [[float(r[0]) for r in choices] for choices in resps],
                "greedy": [[str(r[1]) == "True" for r in choices] for choices in resps],
            }
            for metric in ["acc", "acc_norm", "acc_bytes"]:
                if metric in samples[0]:
                    answer[name][f"{metric}_items"] = [float(s[metric]) for s in samples]
    answer["stream"] = stream(model, items_texts(tasks))
    answer["strided"] = strided(model, items_texts(tasks), 17)
    return answer


def items_texts(tasks):
    path = json.loads((tasks / "documents.yaml").read_text())["dataset_kwargs"]["data_files"]["validation"]
    return [json.loads(line)["text"] for line in Path(path).read_text().strip().split("\n")]


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False).input_ids


def log_p(model, ids):
    with torch.no_grad():
        return model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def strided(model, texts, stride):
    """Transformers' guide to perplexity of models of fixed length: windows of a context, moved on by `stride`; each
    predicts what none before it has. A text begins behind the token that begins (or ends) texts."""
    answer = []
    for text in texts:
        ids, total, done = [model.prefix_token_id] + ids_of(model, text), 0.0, 0
        n = len(ids) - 1
        while done < n:
            end = min(CONTEXT if done == 0 else done + stride, n)
            begin = max(0, end - CONTEXT)
            rows = log_p(model, ids[begin:end])
            total += sum(float(rows[k - begin, ids[k + 1]]) for k in range(done, end))
            done = end
        answer.append(total)
    return {"stride": stride, "log_likelihoods": answer}


def stream(model, texts):
    """One stream of all texts, each ended, cut every CONTEXT tokens, with one token of context before each row: the sum of
    log-probabilities by document; the very first token is not predicted."""
    ids, owner = [], []
    for i, text in enumerate(texts):
        own = ids_of(model, text) + [model.tokenizer.eos_token_id]
        ids += own
        owner += [i] * len(own)
    sums = [0.0] * len(texts)
    for begin in range(0, len(ids) - 1, CONTEXT):
        end = min(begin + CONTEXT, len(ids) - 1)
        rows = log_p(model, ids[begin:end])
        for k in range(begin, end):
            sums[owner[k + 1]] += float(rows[k - begin, ids[k + 1]])
    return {"log_likelihoods": sums}


def main(root, seed):
    rng = random.Random(seed)
    items = root / "items"
    items.mkdir(parents=True, exist_ok=True)
    made = {"hellaswag": hellaswag, "piqa": piqa, "arc_easy": arc, "winogrande": winogrande, "own": own, "truthfulqa": truthfulqa, "documents": documents}
    rows = {name: make(rng) for name, make in made.items()}
    texts = [json.dumps(row, ensure_ascii=False) for name in made for row in rows[name] if name not in ("hellaswag", "documents")]
    texts += [sentence(rng, 8, 30) + "." for _ in range(200)]
    models = {"neox": neox(texts, seed), "llama": llama(texts, seed)}
    # A continuation that disappears in the tokens of its context cannot be scored, here or there.
    rows["own"] = [row for row in rows["own"] if all(has_tokens(model.tokenizer, row) for model in models.values())]
    rows["arc_challenge"] = arc(random.Random(f"{seed} arc_challenge"))
    rows["lambada"] = lambada(rng, models["neox"])
    for name, found in rows.items():
        (items / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    (items / "own.toml").write_text(
        'context   = "{number}: {about.word}"\nchoices   = "options"\ngold      = "right"\ndelimiter = ""\n'
    )
    parquet = root / "parquet"
    parquet.mkdir(exist_ok=True)
    pandas.DataFrame(rows["arc_easy"]).to_parquet(parquet / "arc_easy.parquet")
    pandas.DataFrame(rows["piqa"][:4]).to_parquet(parquet / "piqa.parquet", compression="gzip")
    pandas.DataFrame(rows["winogrande"]).to_parquet(parquet / "winogrande.parquet", compression=None)
    pandas.DataFrame(rows["hellaswag"]).to_parquet(parquet / "hellaswag.parquet", compression="zstd")
    expected = {"lm_eval": lm_eval.__version__, "context": CONTEXT}
    with tempfile.TemporaryDirectory() as tasks:
        task_files(items, Path(tasks))
        for name, model in models.items():
            model.save(root / name)
            expected[name] = asked(root / name, Path(tasks))
    (root / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
