"""Evaluation and generation give the numbers and the text of one process on every layout."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from megatron.launcher.rendezvous import reserve_port
from tests.distributed.cuts import some_cuts
from tests.distributed.many_runs import train_all
from tests.distributed.spawn import run_ranks
from tests.tiny import tiny_config, write_tiny_corpus

pytestmark = pytest.mark.distributed

CUTS = some_cuts("tp2", "tp2-sp", "pp2", "dp2-zero3")
PROMPTS = ["abc", "0101", "hgf ed"]


def read_model(file: str, folder: str, ports: list[int]) -> dict[str, Any]:
    """Runs on every rank: evaluates and generates twice.

    Each program meets at a port of its own: a rank that is ahead would find the old meeting.
    """
    import evaluate
    import generate

    Path(folder).mkdir(exist_ok=True)
    report = evaluate.main([file])
    os.environ["MASTER_PORT"] = str(ports[0])
    generate.main([file])
    os.environ["MASTER_PORT"] = str(ports[1])
    sampled = {"temperature": 1.0, "top_p": 0.95, "sample_output_file": f"{folder}/sampled.jsonl"}
    generate.main([file], overwrite_values=sampled)
    return {split: report[split]["domains"] for split in ("validation", "test")}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference")
    corpus = write_tiny_corpus(folder / "corpus")
    train_all(corpus, folder, 1, {"trained": {"train_iters": 30}})
    load = folder / "trained/run"
    return {
        name: (*read_run(corpus, folder / name, load=load, **cut), folder / name)
        for name, cut in {"single": {}, **CUTS}.items()
    }


def read_run(
    corpus: dict[str, list[str]], folder: Path, *, load: Path, **cut: Any
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Evaluates and generates: each rank's losses, and the texts by file; a cut is of two ranks."""
    size = 2 if cut.keys() - {"soft_prompt_tuning", "max_position_embeddings"} else 1
    folder.mkdir()
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    config = tiny_config(
        corpus,
        folder,
        load=str(load),
        save=None,
        global_num_gpus=size,
        sample_input_file=str(folder / "prompts.txt"),
        sample_output_file=str(folder / "samples.jsonl"),
        eval_results_prefix=str(folder / "results"),
        maximum_tokens=8,
        generation_batch_size=3,
        **cut,
    )
    (folder / "run.yml").write_text(json.dumps(config))
    with ExitStack() as holders:
        reserved = [reserve_port(None, print) for _ in range(2)]
        for holder, _ in reserved:
            holders.enter_context(holder)
        keywords = {"file": str(folder / "run.yml"), "folder": str(folder)}
        ranks = run_ranks(
            "tests.distributed.test_inference_layouts:read_model",
            size,
            keywords={**keywords, "ports": [port for _, port in reserved]},
            environ={"OMP_NUM_THREADS": "1"},
        )
    texts = {
        kind: [json.loads(line)["text"] for line in (folder / kind).open()]
        for kind in ("samples.jsonl", "sampled.jsonl")
    }
    return [rank.value for rank in ranks], texts


@pytest.mark.parametrize("name", CUTS)
def test_every_rank_has_the_losses_of_one_process(results, name):
    (want,) = results["single"][0]
    for got in results[name][0]:
        for split, domains in want.items():
            for domain, result in domains.items():
                assert got[split][domain]["loss"] == pytest.approx(result["loss"], rel=1e-5)
                assert got[split][domain]["num_samples"] == result["num_samples"]


@pytest.mark.parametrize("kind", ["samples.jsonl", "sampled.jsonl"])
@pytest.mark.parametrize("name", CUTS)
def test_text_is_that_of_one_process(results, name, kind):
    want = results["single"][1]
    assert len(want[kind]) == len(PROMPTS)
    assert results[name][1][kind] == want[kind]
    assert want["samples.jsonl"] != want["sampled.jsonl"]


@pytest.mark.parametrize("name", CUTS)
def test_the_results_are_written_once(results, name):
    assert len(list(results[name][2].glob("results_eval_results_*.json"))) == 1


SHAPE = {
    "vocab_size": 61,
    "padded_vocab_size": 64,
    "init_method_std": 0.3,
    "output_layer_init_method": "normal",
    "num_kv_heads": 2,
}
TEXTS = [[3, 41, 59, 26, 53], [7], [9, 9, 12], [1, 2, 3, 4, 5, 6, 7, 8]]


def read_in_every_way() -> dict[str, Any]:
    """Runs on every rank: text of ragged batches, and how far cached logits are from the whole."""
    import torch

    from megatron.generation.batch import StopRules, generate_batch
    from megatron.generation.sampling import SamplingParameters, sample_generator
    from megatron.model.gpt2_model import GPT2Model
    from megatron.mpu.initialize import make_tensor_parallel, make_topology
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron
    from tests.generation_runs import FIELDS
    from tests.unit.model.shapes import small_model

    size = int(os.environ["WORLD_SIZE"])
    values = {**FIELDS, "train_micro_batch_size_per_gpu": 1, "train_iters": 1}
    config = resolve(NeoXArgs.from_dict({**values, "model_parallel_size": size}), world_size=size)
    initialize_megatron(config, handle_signals=False)
    tp = make_tensor_parallel(make_topology(config, for_training=False), sequence_parallel=False)
    found: dict[str, Any] = {}
    for pos_emb in ("rotary", "learned", "sinusoidal", "none"):
        model = GPT2Model(small_model(**SHAPE, pos_emb=pos_emb), seed=5, tp=tp).eval()
        tokens = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole, caches = model(tokens), model.make_caches(2, 12)
            parts = [model(piece, caches=caches) for piece in tokens.split([5, 1, 6], dim=1)]
        error = (torch.cat(parts, dim=1) - whole).abs().max() / whole.abs().max()
        found[f"{pos_emb} error"] = float(error)
        options: dict[str, Any] = {"decode": lambda t: "".join(map(chr, t)), "maximum_tokens": 12}
        batches = {
            "greedy": options,
            "recomputed": {**options, "recompute": True},
            "penalized": {**options, "sampling": SamplingParameters(repetition_penalty=2.0)},
            "sampled": {
                **options,
                "sampling": SamplingParameters(temperature=1.5, top_k=30, min_p=0.01),
                "generators": [sample_generator(0, number) for number in range(len(TEXTS))],
            },
            "stopped": {**options, "stop": StopRules(tokens=frozenset(range(0, 61, 5)))},
        }
        for name, given in batches.items():
            results = generate_batch(model, TEXTS, **given)
            found[f"{pos_emb} {name}"] = [list(result.tokens) for result in results]
    # the first rank alone wishes to stop, and both do
    wishes = iter([False, False, tp.rank == 0, False, False])
    (result,) = generate_batch(model, [[7]], **options, is_interrupted=lambda: next(wishes))
    found["interrupted"] = [len(result.tokens), result.reason]
    return found


def test_two_ranks_read_and_generate_as_one():
    target = "tests.distributed.test_inference_layouts:read_in_every_way"
    (alone,), both = (run_ranks(target, size) for size in (1, 2))
    assert both[0].value == both[1].value | {
        key: value for key, value in both[0].value.items() if key.endswith("error")
    }
    for key, value in alone.value.items():
        if key.endswith("error"):
            assert both[0].value[key] < 1e-5
            assert value < 1e-5
        else:
            assert both[0].value[key] == value, key
    assert alone.value["interrupted"] == [3, "interrupted"]
    assert alone.value["rotary greedy"] != alone.value["rotary sampled"]
