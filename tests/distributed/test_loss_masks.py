"""With masks that leave tokens out unevenly, every layout and accumulation computes one mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron.data.data_utils import build_train_source
from megatron.engine.build import build_model_config
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.tokenizer import build_tokenizer
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import DOMAINS, write_tiny_corpus

pytestmark = pytest.mark.distributed

EOD = 0
SHARES_OF_EOD = {"letters": 0.02, "digits": 0.9, "noise": 0.4}
MASKED = {
    "eod_mask_loss": True,
    "mixed_minibatches": False,
    "mixed_batches": True,  # which samples an iteration reads does not depend on the layout
    "train_iters": 3,
    "gradient_clipping": 0.0,
    # Adam hides errors of scale
    "optimizer": {"type": "SGD", "params": {"lr": 0.5, "momentum": 0.9}},
    "weight_decay": 0.0,
}
BF16 = {"precision": "bfloat16"}
WHOLE = {"train_micro_batch_size_per_gpu": 8}
ONE_PROCESS: dict[str, dict[str, Any]] = {
    "whole": WHOLE,
    "accumulated": {"train_micro_batch_size_per_gpu": 2},
    "row by row": {"train_micro_batch_size_per_gpu": 1},
    "bf16 whole": {**WHOLE, **BF16},
}
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "dp2": {"train_micro_batch_size_per_gpu": 4},
    "dp2 accumulated": {},
    "dp2 zero1": {"zero_optimization": {"stage": 1}},
    "dp2 zero3": {"zero_optimization": {"stage": 3}},
    "tp2 sequence": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipe_parallel_size": 2},
    "pp2 row by row": {"pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1},
    "bf16 dp2 zero1": {**BF16, "zero_optimization": {"stage": 1}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    corpus = write_tiny_corpus(folder / "corpus")
    generator = np.random.default_rng(4)
    for prefix, domain in zip(corpus["train"], DOMAINS, strict=True):
        tokens = np.memmap(f"{prefix}.bin", dtype=np.uint16, mode="r+")
        tokens[generator.random(len(tokens)) < SHARES_OF_EOD[domain]] = EOD
        tokens.flush()
    for world_size, cases in ((1, ONE_PROCESS), (2, TWO_PROCESSES)):
        train_all(corpus, folder, world_size, {name: MASKED | case for name, case in cases.items()})
    return folder


def curve_of(folder: Path, key: str) -> list[float]:
    return [event[key] for event in train_events(folder / "run.yml").values()]


@pytest.mark.parametrize("name", [*ONE_PROCESS, *TWO_PROCESSES])
def test_losses_and_gradients_are_those_of_one_micro_batch(runs, name):
    is_bf16 = name.startswith("bf16")
    reference = runs / ("bf16 whole" if is_bf16 else "whole")
    for key in ("lm_loss", "grad_norm"):
        got, want = curve_of(runs / name, key), curve_of(reference, key)
        assert len(want) == 3
        assert got == pytest.approx(want, rel=2e-2 if is_bf16 else 1e-4), key


def test_the_first_iteration_is_what_plain_torch_computes(runs):
    config = resolve(NeoXArgs.from_ymls([str(runs / "whole/run.yml")]), world_size=1)
    tokenizer = build_tokenizer(config)
    model = GPT2Model(build_model_config(config, tokenizer), seed=config.launch.seed)
    source, mixture = build_train_source(config, dp_rank=0, dp_size=1, tokenizer_info=tokenizer)
    draw = mixture.draw(1, source.global_batch_size, config.mixing.run_length)
    (batch,) = source.batches(draw)
    counts = batch.tokens != EOD
    assert sorted(counts.sum(dim=1).tolist()) != [16] * 8  # the rows differ
    loss = cross_entropy(model(batch.tokens)[counts], batch.labels[counts])
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    for name in (*ONE_PROCESS, *TWO_PROCESSES):
        rel = 2e-2 if name.startswith("bf16") else 1e-4
        assert curve_of(runs / name, "lm_loss")[0] == pytest.approx(loss.item(), rel=rel), name
        assert curve_of(runs / name, "grad_norm")[0] == pytest.approx(norm.item(), rel=rel), name


def test_losses_of_domains_add_up_to_the_loss_of_the_iteration(runs):
    for event in train_events(runs / "dp2 accumulated/run.yml").values():
        tokens = event["tokens"]
        assert 0 < sum(tokens.values()) < 8 * 16
        total = sum(event["losses"][domain] * tokens[domain] for domain in tokens if tokens[domain])
        assert event["lm_loss"] == pytest.approx(total / sum(tokens.values()), rel=1e-9)
