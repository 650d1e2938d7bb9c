"""Compiled blocks and losses equal those that run operation by operation."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, Node

from megatron.engine import build
from megatron.model import compiling
from megatron.model.compiling import compile_model, compiler_problem
from megatron.model.gpt2_model import GPT2Model
from megatron.model.loss import VocabularyPart, chunk_terms, chunked_cross_entropy
from megatron.model.positional_embeddings import RotaryTable, rotate_, rotated
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.runtime import accelerator
from tests.unit.model.shapes import small_model

NETWORKS: dict[str, tuple[dict[str, Any], torch.dtype, float]] = {
    "gpt-neox, z-loss": ({"gpt_j_residual": True, "z_loss": 1e-3}, torch.float32, 1e-5),
    # both biases of a block have the same gradient, a sum that Inductor cannot write twice
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


def biased_model(dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2Model:
    """A small model in training, whose biases are not zero."""
    model = GPT2Model(small_model(**changes), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1, generator=numbers(2))
    return model.to(dtype).train()


def step(model: GPT2Model) -> list[Tensor]:
    tokens = torch.randint(0, 61, (2, 12), generator=numbers())
    labels = torch.randint(0, 61, (2, 12), generator=numbers(1))
    loss, nll = model(tokens, labels, torch.ones(2, 12))
    loss.backward()
    return [loss.detach(), nll.detach(), *(p.grad for p in model.parameters())]


BLOCKS: dict[str, dict[str, Any]] = {
    "parallel": {"gpt_j_residual": True},
    "parallel, one norm": {"gpt_j_residual": True, "gpt_j_tied": True},
    "parallel, dropout": {"gpt_j_residual": True, "hidden_dropout": 0.1},
    "parallel, one bias": {"gpt_j_residual": True, "use_bias_in_attn_output": False},
    "parallel, gated": {"gpt_j_residual": True, "activation": "swiglu", "is_gated_mlp": True},
    "sequential, norms of heads": {"qk_norm": "neox"},
}


@pytest.fixture
def graphs(monkeypatch) -> list[GraphModule]:
    """Lets blocks be compiled without a compiler, and collects their graphs."""
    found = list[GraphModule]()

    def collect(graph: GraphModule, _: Any) -> Any:
        found.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=collect, bw_compiler=collect)
    torch._dynamo.reset()
    compiled = torch.compile(compiling._block, backend=backend, dynamic=False, fullgraph=True)
    monkeypatch.setattr(compiling, "_compiled_block", lambda: compiled)
    return found


def reduced_inputs(graph: GraphModule) -> list[tuple[Any, ...]]:
    """What each sum of a graph adds up; equal sums have equal descriptions."""
    views = {"view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "alias"}
    known: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        operation = getattr(node.target, "overloadpacket", node.target)
        inputs = tuple(known[i] for i in node.all_input_nodes)
        if getattr(operation, "__name__", "") in views:
            known[node] = inputs[0]
        elif node.op == "call_function":
            others = [a for a in (*node.args, *node.kwargs.items()) if not isinstance(a, Node)]
            known[node] = (str(operation), inputs, str(others))
        else:
            known[node] = node.name
    sums = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.dim_IntList)
    return [(known[n.all_input_nodes[0]], n.meta["val"].numel()) for n in sums]


@pytest.mark.parametrize("name", BLOCKS)
def test_compiled_gradients_have_memory_of_their_own(name, graphs):
    eager, compiled = (biased_model(**BLOCKS[name]) for _ in "ab")
    compile_model(compiled)
    compiled.output_layer.compiled = None
    for _ in range(2):
        got = step(compiled)
    assert len(graphs) == 2
    results = [node for node in graphs[1].graph.output_node().args[0] if node is not None]
    # Inductor makes a tensor for each result, also for two of one memory
    assert len({node.meta["val"].untyped_storage()._cdata for node in results}) == len(results)
    sums = reduced_inputs(graphs[1])
    # two in one kernel are more than Inductor's C++ code in half precision can name
    assert sums
    assert len(sums) == len(set(sums))
    if name != "parallel, dropout":  # whose random numbers are others
        for _ in range(2):
            want = step(eager)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # a compiler runs for a minute
@pytest.mark.skipif(compiler_problem("cpu") is not None, reason=str(compiler_problem("cpu")))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compiled_model_computes_the_same(network):
    from torch._dynamo.utils import counters

    changes, dtype, tolerance = NETWORKS[network]
    torch._dynamo.reset()  # what another network has compiled is not counted
    eager, compiled = (biased_model(dtype, **changes) for _ in "ab")
    compile_model(compiled)
    counters.clear()
    for _ in range(2):  # the second step compiles nothing
        found = step(compiled)
        graphs = counters["stats"]["unique_graphs"]
        # one for all blocks, and one for the loss; recomputed blocks run without gradients first
        assert graphs == (3 if changes.get("checkpoint_num_layers") else 2)
    assert not counters["graph_break"]
    step(eager)  # gradients of two micro-batches, as the compiled ones
    for got, want in zip(found, step(eager), strict=True):
        assert (got - want).norm() <= tolerance * want.norm()
    assert len(found) == len(list(eager.parameters())) + 2
    owners = {p.grad.untyped_storage().data_ptr() for p in compiled.parameters()}
    assert len(owners) == len(list(compiled.parameters()))
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
