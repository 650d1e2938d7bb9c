"""Compiled blocks and losses equal those that run operation by operation."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.engine import build
from megatron.model.compiling import compile_model, compiler_problem
from megatron.model.gpt2_model import GPT2Model
from megatron.model.loss import VocabularyPart, chunk_terms, chunked_cross_entropy
from megatron.model.positional_embeddings import RotaryTable, rotate_, rotated
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.runtime import accelerator
from tests.unit.model.shapes import small_model

NETWORKS: dict[str, tuple[dict[str, Any], torch.dtype, float]] = {
    "gpt-neox, z-loss": ({"gpt_j_residual": True, "z_loss": 1e-3}, torch.float32, 1e-5),
    # both biases of a block have one gradient, whose sum Inductor cannot write twice
    "gpt-neox, bf16": ({"gpt_j_residual": True}, torch.bfloat16, 3e-2),
    "llama, bf16, recomputed": (
        {
            **{"norm": "rmsnorm", "num_kv_heads": 2, "activation": "swiglu", "is_gated_mlp": True},
            "checkpoint_num_layers": 1,
        },
        torch.bfloat16,
        3e-2,
    ),
}
CPP_NAMES = pytest.mark.xfail(
    reason="Inductor of torch 2.13 gives both sums one name in C++ (conflicting declaration)"
)
MINIMAL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "train_iters": 2,
    "train_micro_batch_size_per_gpu": 2,
}


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_terms_of_a_chunk_are_those_of_the_loss_in_place(dtype, z_loss):
    hidden = torch.randn(150, 8, generator=numbers()).to(dtype).requires_grad_()
    weight = torch.randn(40, 8, generator=numbers(1)).to(dtype).requires_grad_()
    labels = torch.randint(0, 37, (150,), generator=numbers(2))
    token_weight = torch.rand(150, generator=numbers(3))

    def results(**options: Any) -> list[Tensor]:
        loss, nll = chunked_cross_entropy(
            *(hidden, weight, labels, token_weight),
            part=VocabularyPart(0, 37),
            z_loss=z_loss,
            **options,
        )
        return [loss, nll, *torch.autograd.grad(loss, (hidden, weight))]

    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for got, want in zip(results(terms=chunk_terms), results(), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_in_a_new_tensor_is_that_in_place(dtype):
    features = torch.randn(2, 5, 3, 4, 8, generator=numbers()).to(dtype)
    cos, sin = RotaryTable(4, 10000).get(5, like=features)
    angles = cos[None, :, None, None], sin[None, :, None, None]
    got = rotated(features, angles)
    torch.testing.assert_close(got, rotate_(features.clone(), angles), rtol=1e-6, atol=1e-6)
    assert torch.equal(got[..., -1, :], features[..., -1, :])


def step(model: GPT2Model) -> list[Tensor]:
    tokens = torch.randint(0, 61, (2, 12), generator=numbers())
    labels = torch.randint(0, 61, (2, 12), generator=numbers(1))
    loss, nll = model(tokens, labels, torch.ones(2, 12))
    loss.backward()
    return [loss.detach(), nll.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.slow  # a compiler runs for a minute
@pytest.mark.skipif(compiler_problem("cpu") is not None, reason=str(compiler_problem("cpu")))
@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=CPP_NAMES if name == "gpt-neox, bf16" else ()) for name in NETWORKS],
)
def test_a_compiled_model_computes_the_same(network):
    from torch._dynamo.utils import counters

    changes, dtype, tolerance = NETWORKS[network]
    torch._dynamo.reset()  # what another network has compiled is not counted
    eager, compiled = (GPT2Model(small_model(**changes), seed=1).to(dtype).train() for _ in "ab")
    compile_model(compiled)
    counters.clear()
    for _ in range(2):  # the second step compiles nothing
        found = step(compiled)
        graphs = counters["stats"]["unique_graphs"]
        # one for all blocks, and one for the loss; recomputed blocks run without gradients first
        assert graphs == (3 if changes.get("checkpoint_num_layers") else 2)
    assert not counters["graph_break"]
    compiled.zero_grad()
    for got, want in zip(step(compiled), step(eager), strict=True):
        assert (got - want).norm() <= tolerance * want.norm()
    assert len(found) == len(list(eager.parameters())) + 2
    tokens = torch.zeros(1, 7, dtype=torch.int64)
    with torch.no_grad():  # inference, in other shapes, compiles nothing either
        torch.testing.assert_close(compiled.eval()(tokens), eager.eval()(tokens))
    assert counters["stats"]["unique_graphs"] == graphs


def compiled_blocks(**changes: Any) -> tuple[bool, list[str]]:
    """Whether blocks and loss of a run are compiled, and what the user is told."""
    config = resolve(NeoXArgs.from_dict({**MINIMAL, **changes}), world_size=1)
    model, said = GPT2Model(small_model(), seed=1), list[str]()
    build.compile_if_wanted(model, config, said.append)
    found = {getattr(m, "compiled", None) is not None for m in (model.get_submodule("2"),)}
    return found.pop() and model.output_layer.compiled is not None, said


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setitem(os.environ, "CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as error:
        compiled_blocks(torch_compile=True)
    assert str(error.value).startswith("torch_compile: no C++ compiler (no-such-compiler); install")
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.setattr(accelerator, "is_cpu", lambda: False)  # auto continues without
    is_compiled, said = compiled_blocks()
    assert not is_compiled
    assert "no C++ compiler" in said[0]


def test_auto_compiles_on_gpus_alone(monkeypatch):
    assert compiled_blocks() == (False, [])
    assert compiled_blocks(torch_compile=False) == (False, [])
    monkeypatch.setattr(accelerator, "is_cpu", lambda: False)
    monkeypatch.setattr(build, "compiler_problem", lambda device: None)
    is_compiled, said = compiled_blocks()
    assert is_compiled
    assert "first iteration compiles" in said[0]
    is_compiled, said = compiled_blocks(zero_optimization={"stage": 3}, pos_emb="alibi")
    assert not is_compiled
    assert "zero_optimization.stage: 3, pos_emb: alibi" in said[0]
