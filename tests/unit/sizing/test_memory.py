"""The estimate against what a real model holds, and against sums done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.launcher.dry_run import describe_run
from megatron.model.positional_embeddings import make_rotary
from megatron.model.transformer import TransformerLayer
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.loss_chunks import chunk_tokens
from megatron.sizing.memory import (
    MemoryPlan,
    Vocabulary,
    activation_bytes,
    block_bytes,
    estimate_memory,
    loss_bytes,
    memory_plan,
    savings,
)
from megatron.sizing.model_shape import ModelShape
from tests.parts import allocated
from tests.unit.model.shapes import small_model
from tests.unit.sizing.test_stages import MODELS


def plan_of(config: ModelShape | None = None, **changes: Any) -> MemoryPlan:
    shape = config or small_model()
    settings: dict[str, Any] = {
        "pipe": 1,
        "data": 1,
        "model": 1,
        "partition_method": "type:transformer",
        "zero_stage": 0,
        "parameter_bytes": 4,
        "num_moments": 2,
        "bucket_elements": 0,
        "overlap_comm": False,
        "max_live_parameters": 1_000_000_000,
        "micro_batch_size": 2,
        "num_micro_batches": 4,
        "seq_length": 24,
        "sequence_parallel": False,
        "checkpoint_num_layers": 0,
        "hidden_dropout": False,
    }
    return MemoryPlan(shape=shape, vocabulary=Vocabulary(61, "given"), **{**settings, **changes})


def kept_bytes(config: ModelShape, batch: int, length: int) -> int:
    """Bytes that autograd keeps for a block's backward pass, each piece of memory once."""
    layer = allocated(TransformerLayer(config, make_rotary(config))).train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    excluded = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    hidden = torch.randn(batch, length, config.hidden_size, requires_grad=True)
    if layer.attention.rotary is not None:
        tables = layer.attention.rotary.get(length, like=hidden)
        excluded |= {table.untyped_storage().data_ptr() for table in tables}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(hidden)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in excluded)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("plain", 0.01),
        ("gated", 0.01),
        ("wide heads", 0.01),
        ("gpt-j", 0.01),
        ("gpt-neox's norm of queries and keys", 0.01),
        # on a CPU grouped keys and values are repeated, and an rmsnorm keeps its quotient too
        ("grouped", 0.07),
        ("llama", 0.13),
        ("qwen3", 0.18),
    ],
)
def test_a_block_keeps_what_the_formula_says(name, tolerance):
    changes = {**MODELS[name], "hidden_size": 256, "mlp_inner_size": 1024, "norm_epsilon": 1e-5}
    changes["head_dim"] = 2 * changes.get("head_dim", 32)
    if name == "gpt-j":
        changes["norm"] = "layernorm"
    config = small_model(**changes)
    plan = plan_of(config, micro_batch_size=2, seq_length=64)
    assert block_bytes(plan) == pytest.approx(kept_bytes(config, 2, 64), rel=tolerance)


def test_the_loss_holds_one_chunk_of_logits_and_both_gradients():
    plan = plan_of(small_model(vocab_size=50_000, padded_vocab_size=50_000), seq_length=2048)
    chunk = chunk_tokens(50_000, "gpu")
    gradients = 4 * 50_000 * 32 + 4 * 2 * 2048 * 32
    assert loss_bytes(plan) == 4 * 50_000 * chunk + gradients


@pytest.mark.parametrize(
    ("zero", "size", "expected"),
    [
        (0, 4, (4.0, 4.0, 8.0, 0.0)),
        (1, 4, (4.0, 4.0, 3.0, 0.0)),
        (1, 2, (2.0, 2.0, 3.0, 0.0)),
        (2, 2, (2.0, 0.5, 3.0, 0.0)),
        (3, 2, (0.5, 0.5, 3.0, 2.0)),
    ],
)
def test_bytes_a_parameter_by_precision_and_zero_stage(zero, size, expected):
    (memory,) = estimate_memory(plan_of(zero_stage=zero, parameter_bytes=size, data=4))
    count = memory.parameters
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.buffers)
    assert tuple(part / count for part in parts) == pytest.approx(expected, rel=1e-3)


def test_overlapping_doubles_the_bucket():
    plan = plan_of(zero_stage=1, bucket_elements=1000)
    assert estimate_memory(plan)[0].buffers == 4 * 1000
    assert estimate_memory(replace(plan, overlap_comm=True))[0].buffers == 4 * 2000
    assert estimate_memory(replace(plan, zero_stage=0))[0].buffers == 0


def test_earlier_stages_hold_more_micro_batches():
    plan = plan_of(small_model(num_layers=8), pipe=4)
    border = 2 * 24 * 32 * 4
    kept = [
        memory.activations - border * in_flight
        for memory, in_flight in zip(estimate_memory(plan), (4, 3, 2, 2), strict=True)
    ]
    assert kept == [2 * block_bytes(plan) * in_flight for in_flight in (4, 3, 2, 1)]
    few = replace(plan, num_micro_batches=1)
    assert estimate_memory(few)[0].activations == 2 * block_bytes(plan) + border


def test_recomputing_keeps_inputs_and_one_stretch():
    plan = plan_of(small_model(num_layers=4), checkpoint_num_layers=2)
    border = 2 * 24 * 32 * 4
    assert activation_bytes(plan, plan.layers, 0, plan.stages[0]) == (
        2 * border + 2 * block_bytes(plan) + 2 * border
    )


def test_sequence_parallelism_cuts_the_residual_stream():
    plan = plan_of(model=2)
    cut = replace(plan, sequence_parallel=True)
    assert block_bytes(plan) - block_bytes(cut) == 2 * 24 * 4 * (2 * 32 // 2)


SETTINGS: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "train_iters": 1,
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "tokenizer_type": "CharLevelTokenizer",
    "no_weight_tying": True,
    "model_parallel_size": 2,
    "pipe_parallel_size": 2,
}


def test_the_description_names_stages_ranks_and_vocabulary():
    lines = describe_run(resolve(NeoXArgs.from_dict(SETTINGS), world_size=8)).splitlines()
    assert lines[:4] == [
        "model: 273,792 parameters; vocabulary 512 (of CharLevelTokenizer) and 0 rows of padding",
        "stages:",
        "  stage 0 (ranks 0..3): Embedding, TransformerLayer 2..3 (2)",
        "  stage 1 (ranks 4..7): TransformerLayer 4..5 (2), FinalNorm, PipelineOutputLayer",
    ]
    assert len(lines) == 4 + 1 + 3 + 1 + 3


def test_the_changes_on_offer_lower_the_fullest_rank_and_are_valid():
    plan = memory_plan(resolve(NeoXArgs.from_dict(SETTINGS), world_size=8))
    now = max(memory.total for memory in estimate_memory(plan))
    found = savings(plan, limit=99)
    assert len(found) > 3
    assert [size for _, size in found] == sorted(size for _, size in found)
    assert found[-1][1] < now
    for text, _ in found:
        key, value = text.split(": ")
        section, _, inner = key.partition(".")
        typed = json.loads(value) if value != "bfloat16" else value
        changes = {section: {inner: typed}} if inner else {key: typed}
        resolve(NeoXArgs.from_dict({**SETTINGS, **changes}), world_size=8)
