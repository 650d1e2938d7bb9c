"""Evaluation and generation give the numbers and the text of one process on every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.many_runs import train_all
from tests.distributed.spawn import run_ranks
from tests.tiny import tiny_config, write_tiny_corpus

pytestmark = pytest.mark.distributed

CUTS: dict[str, dict[str, Any]] = {
    "tp2": {"model_parallel_size": 2},
    "tp2-sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipe_parallel_size": 2},
    "dp2-zero3": {"zero_optimization": {"stage": 3}},
}
PROMPTS = ["abc", "0101", "hgf ed"]


def read_model(file: str, folder: str) -> dict[str, Any]:
    """Runs on every rank: evaluates and generates."""
    import evaluate
    import generate

    Path(folder).mkdir(exist_ok=True)
    report = evaluate.main([file])
    generate.main([file])
    return {split: report[split]["domains"] for split in ("validation", "test")}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference")
    corpus = write_tiny_corpus(folder / "corpus")
    train_all(corpus, folder, 1, {"trained": {"train_iters": 30}})
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    found = {}
    for name, cut in {"single": {}, **CUTS}.items():
        size = 2 if cut else 1
        config = tiny_config(
            corpus,
            folder / name,
            load=str(folder / "trained/run"),
            save=None,
            global_num_gpus=size,
            sample_input_file=str(folder / "prompts.txt"),
            sample_output_file=str(folder / name / "samples.jsonl"),
            eval_results_prefix=str(folder / name / "results"),
            maximum_tokens=8,
            **cut,
        )
        (folder / name).mkdir()
        (folder / name / "run.yml").write_text(json.dumps(config))
        ranks = run_ranks(
            "tests.distributed.test_inference_layouts:read_model",
            size,
            keywords={"file": str(folder / name / "run.yml"), "folder": str(folder / name)},
            environ={"OMP_NUM_THREADS": "1"},
        )
        lines = (folder / name / "samples.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        found[name] = ([rank.value for rank in ranks], texts, folder / name)
    return found


@pytest.mark.parametrize("name", CUTS)
def test_every_rank_has_the_losses_of_one_process(results, name):
    (want,) = results["single"][0]
    for got in results[name][0]:
        for split, domains in want.items():
            for domain, result in domains.items():
                assert got[split][domain]["loss"] == pytest.approx(result["loss"], rel=1e-5)
                assert got[split][domain]["num_samples"] == result["num_samples"]


@pytest.mark.parametrize("name", CUTS)
def test_greedy_text_is_that_of_one_process(results, name):
    assert len(results["single"][1]) == len(PROMPTS)
    assert results[name][1] == results["single"][1]


@pytest.mark.parametrize("name", CUTS)
def test_the_results_are_written_once(results, name):
    assert len(list(results[name][2].glob("results_eval_results_*.json"))) == 1
