"""Local lm-eval tasks of a few short documents, in folders of a test."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

QUESTIONS = [
    {"question": "abc", "choices": ["de", "01", "hh"], "answer": 0},
    {"question": "0101", "choices": ["ab", "01"], "answer": 1},
    {"question": "hgf", "choices": ["10", "ed c", "gfe"], "answer": 2},
    {"question": "a b", "choices": ["c", "d"], "answer": 0},
    {"question": "11", "choices": ["00", "0", "aa"], "answer": 1},
]


def write_tasks(folder: Path, *, prefix: str = "tiny") -> Path:
    """Writes ``<prefix>_choice``, ``_rolling`` and ``_text``, and returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder,
        f"{prefix}_choice",
        QUESTIONS,
        output_type="multiple_choice",
        fewshot_split="test",
        doc_to_text="Q {{question}}\nA",
        doc_to_choice="choices",
        doc_to_target="answer",
        metric_list=[_mean("acc"), _mean("acc_norm")],
        tag=[f"{prefix}_tag"],
    )
    _write(
        folder,
        f"{prefix}_rolling",
        [{"text": "abc def 0101 hgf " * count} for count in (1, 2, 4)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": name, "aggregation": "weighted_perplexity", "higher_is_better": False}
            for name in ("word_perplexity", "byte_perplexity")
        ],
    )
    _write(
        folder,
        f"{prefix}_text",
        [{"prompt": text, "target": "0"} for text in ("0101", "abc", "a b c")],
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{target}}",
        generation_kwargs={"until": [" "], "max_gen_toks": 4, "do_sample": False},
        metric_list=[_mean("exact_match")],
    )
    return folder


def _mean(metric: str) -> dict:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _write(folder: Path, name: str, documents: list[dict], **config) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
