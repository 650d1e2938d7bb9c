"""lm-eval's numbers are those of one process on every layout, for checkpoints of any ZeRO stage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.model.loss import VocabularyPart
from megatron.model.scoring import score_targets
from megatron.mpu import TensorParallel
from tests.distributed.many_runs import train_all
from tests.distributed.spawn import run_ranks
from tests.interop.eval_runs import (
    OFFLINE,
    differences,
    evaluate_layouts,
    make_adapter,
    reading_config,
    write_local_tasks,
)
from tests.tiny import tiny_config, write_tiny_corpus

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm-eval is not installed (requirements-eval.txt)", allow_module_level=True)

pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "tp2": {"model_parallel_size": 2},
    "tp2-sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipe_parallel_size": 2},
}
MODEL_KEYS = (
    *("num_layers", "hidden_size", "num_attention_heads", "pos_emb", "rotary_pct"),
    *("gpt_j_residual", "no_weight_tying", "tokenizer_type"),
)
WINDOW = 96
VOCABULARIES = (8, 6, 3)


def read_on_all_layouts(fields: dict[str, Any], load: str, tasks: str) -> dict[str, Any]:
    """Runs on every rank: all tasks on all layouts, then requests that are hard to share out."""
    found = evaluate_layouts(fields, load, tasks, LAYOUTS)
    return {"tasks": found, "sharing": share_oddly(fields, load), "cut": score_cut_vocabularies()}


def score_cut_vocabularies() -> dict[str, Any]:
    """Scores with equal logits on one rank and on several; of 3 tokens the second rank has none."""
    import torch.distributed as dist

    tp = TensorParallel(size=2, rank=dist.get_rank(), group=dist.group.WORLD)
    found = {}
    for vocab_size in VOCABULARIES:
        hidden, weight, targets, counts = ties(vocab_size)
        rows = len(weight) // 2
        first = tp.rank * rows
        part = VocabularyPart(first, max(0, min(rows, vocab_size - first)), tp)
        own = weight[first : first + rows]
        scores = score_targets(hidden, own, targets, part=part, counts=counts)
        found[str(vocab_size)] = [values.tolist() for values in scores]
    return found


def ties(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Small whole numbers, so that many logits are equal; each token is a target of each row."""
    generator = torch.Generator().manual_seed(vocab_size)
    hidden = torch.randint(0, 2, (6, 3), generator=generator).float()
    weight = torch.randint(0, 2, (8, 3), generator=generator).float()
    return hidden, weight, torch.arange(vocab_size).repeat(6), [vocab_size] * 6


def share_oddly(fields: dict[str, Any], load: str) -> dict[str, Any]:
    import torch.distributed as dist
    from lm_eval.api.instance import Instance

    adapter = make_adapter(reading_config(fields, load))
    kept: list[Any] = []
    adapter.cache_hook.add_partial = lambda kind, arguments, result: kept.append(arguments)
    (one,) = adapter.loglikelihood([Instance("loglikelihood", {}, ("abc", "d"), 0)])
    mine = [Instance("loglikelihood", {}, ("abc", str(dist.get_rank())), 0)]
    try:
        adapter.loglikelihood(mine)
        message = ""
    except ValueError as error:
        message = str(error)
    settings = {"max_gen_toks": 8, "temperature": 1.0}
    texts = [Instance("generate_until", {}, (text, settings), 0) for text in ("a", "01", "h")]
    sampled = adapter.generate_until(texts)
    return {
        "one": one,
        "cached": kept[:1],
        "message": message,
        "sampled": sampled,
        "rank_and_size": [adapter.rank, adapter.world_size],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``zero3/run`` is a checkpoint of two ranks that each held a part of every parameter."""
    folder = tmp_path_factory.mktemp("eval_layouts")
    corpus = write_tiny_corpus(folder / "corpus")
    changes = {
        "train_iters": 20,
        "zero_optimization": {"stage": 3},
        "seq_length": WINDOW,
        "max_position_embeddings": WINDOW,
    }
    train_all(corpus, folder, 2, {"zero3": changes})
    write_local_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    """What one process and each of two ranks found."""
    config = tiny_config({"train": [], "valid": [], "test": []}, folder)
    fields = {key: config[key] for key in MODEL_KEYS}
    keywords = {
        "fields": {**fields, "max_position_embeddings": WINDOW},
        "load": str(folder / "zero3/run"),
        "tasks": str(folder / "tasks"),
    }
    this = "tests.distributed.test_eval_layouts"
    single = run_ranks(f"{this}:read_on_one", 1, keywords=keywords, environ=OFFLINE)
    both = run_ranks(f"{this}:read_on_all_layouts", 2, keywords=keywords, environ=OFFLINE)
    return single[0].value, [rank.value for rank in both]


def read_on_one(fields: dict[str, Any], load: str, tasks: str) -> dict[str, Any]:
    """The same on one process."""
    found = evaluate_layouts(fields, load, tasks, {"single": {}})
    return {"tasks": found["single"], "sharing": share_oddly(fields, load)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_has_the_answers_of_one_process(results, name):
    single, ranks = results
    for rank in ranks:
        assert differences(rank["tasks"][name], single["tasks"], tolerance=1e-4) == []


def test_one_request_for_two_replicas_is_answered_on_both(results):
    single, ranks = results
    for rank in ranks:
        assert rank["sharing"]["one"][0] == pytest.approx(single["sharing"]["one"][0], abs=1e-4)
        assert rank["sharing"]["cached"] == [["abc", "d"]]
        assert rank["sharing"]["rank_and_size"] == [0, 1]


def test_ranks_with_different_requests_are_refused_together(results):
    _, ranks = results
    for rank in ranks:
        assert "the ranks were given different requests" in rank["sharing"]["message"]


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_scores_of_a_cut_vocabulary_are_those_of_a_whole_one_ties_included(results, vocab_size):
    hidden, weight, targets, counts = ties(vocab_size)
    part = VocabularyPart(0, vocab_size)
    nll, is_greedy = score_targets(hidden, weight, targets, part=part, counts=counts)
    assert int(is_greedy.sum()) == 6
    for rank in results[1]:
        got_nll, got_greedy = rank["cut"][str(vocab_size)]
        assert got_nll == pytest.approx(nll.tolist(), abs=1e-5)
        assert got_greedy == is_greedy.tolist()


def test_sampled_texts_are_those_of_one_process(results):
    single, ranks = results
    for rank in ranks:
        assert rank["sharing"]["sampled"] == single["sharing"]["sampled"]
