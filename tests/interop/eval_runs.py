"""Local lm-eval tasks, and what a model gets on them, on one process or on several."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from megatron.errors import EvaluationStopped
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.neox_arguments import NeoXArgs, RunConfig, resolve
from megatron.runtime.initialize import initialize_megatron

TASKS = ("local_choice", "local_fewshot", "local_rolling", "local_until")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
NEW_TOKENS = 20

READING_FIELDS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-4}},
}
"""What a configuration must say although nothing is trained."""

LONG = "the losses of the domains follow the weights of the tokens in the mixture, "
QUESTIONS = [
    {"question": "the weights of", "choices": ["the mixture", "them", "the domains"], "answer": 0},
    {"question": "the weights of", "choices": ["it", "the tokens and them"], "answer": 1},  # again
    {"question": "", "choices": ["the losses", "follow"], "answer": 1},
    {"question": LONG * 3, "choices": ["a", "in them", "the mixture of domains"], "answer": 2},
    {"question": "which token?  ", "choices": ["t", "x", "?", "!"], "answer": 3},
    {"question": "equal", "choices": ["same", "same", "other"], "answer": 0},
    {"question": "losses and", "choices": ["tokens", LONG], "answer": 0},
]
"""An odd number. Context and ending of some are longer than the window of 48 tokens."""

DOCUMENTS = ["t", "the losses of the domains", LONG, LONG * 4, "mixture 0101 \u00e9\u4e2d\n" * 5]
PROMPTS = ["the losses", LONG * 2, "of them and", "x", "the mixture follows"]
STOPS = ["e", "o", " t", "a", "n"]


def write_local_tasks(folder: Path) -> Path:
    """Writes `TASKS` and their data, and returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    choice: dict[str, Any] = {
        "output_type": "multiple_choice",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }
    _write(folder, "local_choice", QUESTIONS, **choice)
    _write(folder, "local_fewshot", QUESTIONS, **choice, num_fewshot=2)
    _write(
        folder,
        "local_rolling",
        [{"text": text} for text in DOCUMENTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
            for metric, aggregation in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    )
    _write(
        folder,
        "local_until",
        [{"prompt": prompt, "target": "x"} for prompt in PROMPTS],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{target}}",
        generation_kwargs={"until": STOPS, "max_gen_toks": NEW_TOKENS, "do_sample": False},
        metric_list=[_mean("exact_match")],
    )
    return folder


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _write(folder: Path, name: str, documents: list[dict], **config: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data)},
            "cache_dir": str(folder / f"cache_{os.environ.get('RANK', '0')}"),
        },
        "test_split": "test",
        "metadata": {"version": 1.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def evaluate_tasks(model: Any, tasks: Path, *, names: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Runs tasks; {"metrics": {task: {metric: value}}, "answers": {task: [a document's answers]}}.

    An answer is [log-likelihood, is_greedy], a log-likelihood, or a text.
    """
    with lm_eval_surroundings():
        import lm_eval
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        loaded = manager.load(list(names))
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=11)
        found: Any = lm_eval.evaluate(model, loaded, bootstrap_iters=0, log_samples=True)
    metrics = {
        task: {key: value for key, value in entry.items() if isinstance(value, float)}
        for task, entry in found["results"].items()
    }
    answers = {
        task: [
            [responses[0] for responses in sample["resps"]]
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
        ]
        for task, samples in found["samples"].items()
    }
    return json.loads(json.dumps({"metrics": metrics, "answers": answers}))


def reading_config(fields: dict[str, Any], load: str) -> RunConfig:
    """A configuration that loads a checkpoint."""
    rest = {"load": load, "seq_length": fields["max_position_embeddings"], **READING_FIELDS}
    return resolve(NeoXArgs.from_dict({**fields, **rest}))


def make_adapter(config: RunConfig) -> Any:
    """Loads the model on all ranks."""
    from megatron.evaluation.trained_model import load_for_inference
    from megatron.mpu.initialize import make_topology

    topology = make_topology(config, for_training=False)
    model, tokenizer = load_for_inference(config, topology)
    with lm_eval_surroundings():
        from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter
    return NeoXEvalAdapter(model, tokenizer, topology, max_batch_tokens=512)


def evaluate_layouts(
    fields: dict[str, Any], load: str, tasks: str, layouts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Runs on every rank: the same tasks on one layout after the other."""
    found = {}
    for name, cut in layouts.items():
        config = reading_config({**fields, **cut}, load)
        if not found:
            initialize_megatron(config, handle_signals=False)
        adapter = make_adapter(config)
        found[name] = evaluate_tasks(adapter, Path(tasks))
        found[name]["stops"] = stops_when_one_rank_is_asked(adapter)
    return found


def stops_when_one_rank_is_asked(adapter: Any) -> bool:
    """Whether requests end here without results if the last rank is asked to stop."""
    from lm_eval.api.instance import Instance

    texts = [(f"{number} a", " b") for number in range(30)]  # of all replicas
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in texts]
    adapter._should_stop = lambda: dist.get_rank() == dist.get_world_size() - 1
    try:
        adapter.loglikelihood(requests, disable_tqdm=True)
    except EvaluationStopped:
        return True
    finally:
        adapter._should_stop = None
    return False


def differences(got: dict[str, Any], want: dict[str, Any], *, tolerance: float) -> list[str]:
    """What two evaluations differ in; log-likelihoods may by ``tolerance``."""
    found = []
    for task, documents in want["answers"].items():
        assert len(got["answers"][task]) == len(documents)
        for number, (ours, theirs) in enumerate(zip(got["answers"][task], documents, strict=True)):
            for one, other in zip(ours, theirs, strict=True):
                if not _is_same(one, other, tolerance):
                    found.append(f"{task} {number}: {one} != {other}")
    for task, metrics in want["metrics"].items():
        for metric, value in metrics.items():
            # four decimals; of a number above 1, four decimals of its mantissa
            if abs(got["metrics"][task][metric] - value) > 5e-5 * max(1.0, abs(value)):
                found.append(f"{task} {metric}: {got['metrics'][task][metric]} != {value}")
    return found


def _is_same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(other, list):
        return abs(one[0] - other[0]) <= tolerance and one[1] == other[1]
    return abs(one - other) <= tolerance if isinstance(other, float) else one == other
