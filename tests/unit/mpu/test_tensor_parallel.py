"""Layers cut over two ranks give the values and gradients of the whole layer, to 1e-5.

Shapes: b 2 samples, s 6 positions, h 8 hidden, f 12 inner. One start of two processes serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.model.init_functions import INIT_METHODS, initialize_parameters
from megatron.model.linear import ColumnParallelLinear, RowParallelLinear
from megatron.model.loss import VocabularyPart, chunked_cross_entropy, token_losses
from megatron.model.norms import LayerNorm
from megatron.model.parameters import cut_shard, spec_of
from megatron.model.word_embeddings import VocabularyTable
from megatron.mpu import SINGLE, TensorParallel
from megatron.sizing import loss_chunks as loss_module
from tests.distributed.spawn import run_ranks
from tests.unit.model.shapes import small_model

pytestmark = pytest.mark.distributed

BATCH, LENGTH, HIDDEN, INNER = 2, 6, 8, 12
TOLERANCE = 1e-5
SHARED, PADDED = "both hold tokens", "one holds padding only"
VOCABULARIES = {SHARED: (13, 16), PADDED: (5, 16)}
CASES = [
    f"{name}{suffix}"
    for name in ("mlp", "gated", "norm", "table", f"loss, {SHARED}")
    for suffix in ("", " sp")
]


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What each rank saw."""
    results = run_ranks("tests.unit.mpu.test_tensor_parallel:exercise", 2)
    return [result.value for result in results]


@pytest.fixture(scope="module")
def padded_ranks() -> list[dict[str, Any]]:
    """What each rank saw of losses where the second one holds nothing but padding."""
    results = run_ranks("tests.unit.mpu.test_tensor_parallel:exercise_padding", 2, timeout_s=30)
    return [result.value for result in results]


def assert_alike(ranks: list[dict[str, Any]], case: str) -> None:
    for rank in ranks:
        differences = rank["differences"][case]
        assert differences
        assert {name: d for name, d in differences.items() if not d < TOLERANCE} == {}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_one_process(ranks, case):
    assert_alike(ranks, case)


def test_losses_without_gradients_are_the_same(ranks):
    assert max(rank["evaluated"][SHARED] for rank in ranks) < TOLERANCE


def test_a_rank_may_hold_nothing_but_padding(padded_ranks):
    for suffix in ("", " sp"):
        assert_alike(padded_ranks, f"loss, {PADDED}{suffix}")
    assert max(rank["evaluated"][PADDED] for rank in padded_ranks) < TOLERANCE


def test_ranks_cut_the_tokens_into_the_same_chunks(ranks):
    """Each chunk is summed over the ranks: another number of chunks would be a deadlock."""
    assert ranks[0]["requests"] == ranks[1]["requests"]


def test_dropout_on_cut_tensors_differs_between_ranks(ranks):
    first, second = (rank["own_numbers"] for rank in ranks)
    assert len(set(first) & set(second)) == 0


def test_the_outer_random_state_stays_in_step(ranks):
    assert ranks[0]["numbers_before"] == ranks[1]["numbers_before"]
    assert ranks[0]["numbers_after"] == ranks[1]["numbers_after"]
    assert ranks[0]["numbers_after"] != ranks[0]["numbers_before"]


def test_recomputation_draws_the_same_numbers_again(ranks):
    for rank in ranks:
        assert rank["own_numbers"] == rank["own_numbers_again"]
        assert rank["own_numbers"] != rank["own_numbers_next"]


def test_the_residual_stream_is_dropped_alike_unless_it_is_cut(ranks):
    assert ranks[0]["residual"] == ranks[1]["residual"]
    assert ranks[0]["residual cut"] != ranks[1]["residual cut"]


def test_a_size_that_cannot_be_divided_is_our_mistake():
    with pytest.raises(AssertionError, match="heads 5 is not divisible by 2"):
        TensorParallel(size=2, rank=0).divide(5, "heads")


# what runs on the two ranks


def exercise() -> dict[str, Any]:
    """Compares every layer with the whole one on this rank; plain JSON."""
    prepare()
    requests = record_chunk_requests()
    differences: dict[str, dict[str, float]] = {}
    for suffix, tp in groups().items():
        differences["mlp" + suffix] = compare(lambda tp: TwoLayers(tp, num_fused=1), tp)
        differences["gated" + suffix] = compare(lambda tp: TwoLayers(tp, num_fused=2), tp)
        differences["norm" + suffix] = compare(Normed, tp)
        differences["table" + suffix] = compare(Looked, tp, inputs=tokens(13))
    losses = compare_losses(SHARED)
    differences.update(losses["differences"])
    return {**losses, "differences": differences, "requests": requests, **random_numbers(tp)}


def exercise_padding() -> dict[str, Any]:
    """Compares the loss of a vocabulary that the first rank holds alone."""
    prepare()
    record_chunk_requests()
    return compare_losses(PADDED)


def prepare() -> None:
    """Makes the process group."""
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron

    settings = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "train_iters": 1,
        "train_micro_batch_size_per_gpu": 1,
    }
    initialize_megatron(resolve(NeoXArgs.from_dict(settings)), handle_signals=False)


def groups() -> dict[str, TensorParallel]:
    """Both ranks as a tensor-parallel group, without and with sequence parallelism."""
    common = {"size": 2, "rank": dist.get_rank(), "group": dist.group.WORLD}
    return {
        "": TensorParallel(**common),
        " sp": TensorParallel(**common, sequence_parallel=True),
    }


def compare_losses(name: str) -> dict[str, Any]:
    """The one-pass loss on a vocabulary, with gradients and without."""
    size, padded = VOCABULARIES[name]
    differences = {
        f"loss, {name}{suffix}": compare(lambda tp: Loss(tp, size, padded), tp)
        for suffix, tp in groups().items()
    }
    evaluated = evaluation_difference(groups()[""], size, padded)
    return {"differences": differences, "evaluated": {name: evaluated}}


def record_chunk_requests() -> list[int]:
    """Makes several small chunks, the last one shorter, and notes what their size is made of."""
    loss_module.MIN_CHUNK_TOKENS = 5
    loss_module.CHUNK_BYTES = 1
    requests: list[int] = []
    chunk_tokens = loss_module.chunk_tokens

    def recording(rows: int, *device: str) -> int:
        requests.append(rows)
        return chunk_tokens(rows, *device)  # 5, 5, 2 of 12

    loss_module.chunk_tokens = recording
    return requests


class TwoLayers(nn.Module):
    """The pair as a block uses it."""

    def __init__(self, tp: TensorParallel, *, num_fused: int):
        super().__init__()
        self.tp = tp
        self.num_fused = num_fused
        options = {"init_method": INIT_METHODS["normal"](1.0, 1, 1), "bias": True, "tp": tp}
        self.up = ColumnParallelLinear(HIDDEN, INNER * num_fused, num_fused=num_fused, **options)
        self.down = RowParallelLinear(INNER, HIDDEN, **options)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.up(self.tp.enter(hidden))
        if self.num_fused == 2:
            gate, inner = inner.chunk(2, dim=-1)
            inner = gate.sigmoid() * inner
        return self.down.finish(self.down(inner.tanh()))


class Normed(nn.Module):
    """A replicated layer on the cut stream, then the pair."""

    def __init__(self, tp: TensorParallel):
        super().__init__()
        self.norm = LayerNorm(HIDDEN, epsilon=1e-5, tp=tp)
        self.pair = TwoLayers(tp, num_fused=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.pair(self.norm(hidden))


class Looked(nn.Module):
    """A lookup of tokens."""

    def __init__(self, tp: TensorParallel):
        super().__init__()
        self.tp = tp
        self.table = VocabularyTable(vocabulary(13, 16), tp)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tp.leave(self.table(ids))


class Loss(nn.Module):
    """Hidden states -> the one-pass loss and the losses of the tokens."""

    def __init__(self, tp: TensorParallel, size: int, padded: int):
        super().__init__()
        self.tp = tp
        self.size = size
        self.table = VocabularyTable(vocabulary(size, padded), tp)

    def forward(self, hidden: Tensor) -> Tensor:
        flat = self.tp.enter(hidden).flatten(0, 1)
        loss, nll = chunked_cross_entropy(
            flat,
            self.table.weight,
            tokens(self.size).flatten(),
            token_weight(),
            part=self.table.part,
            z_loss=0.01,
        )
        return loss * 3.0 + nll.detach()


def vocabulary(size: int, padded: int):
    return small_model(hidden_size=HIDDEN, vocab_size=size, padded_vocab_size=padded)


def tokens(size: int) -> Tensor:
    return torch.randint(size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def token_weight() -> Tensor:
    weight = torch.rand(BATCH * LENGTH, generator=torch.Generator().manual_seed(3))
    return weight * (weight > 0.3)


def compare(
    build: Callable[[TensorParallel], nn.Module], tp: TensorParallel, inputs: Tensor | None = None
) -> dict[str, float]:
    """Largest differences of the result and of all gradients to the whole layer's, relative."""
    whole_module, whole_result, whole_input = run(build, SINGLE, inputs)
    module, result, given = run(build, tp, inputs)
    cut = tp.own_part if tp.sequence_parallel else (lambda tensor: tensor)
    expected = whole_result if isinstance(module, Loss) else cut(whole_result)
    found = {"result": difference(result, expected)}
    if whole_input.grad is not None and given.grad is not None:
        found["input"] = difference(given.grad, cut(whole_input.grad))
    wholes = dict(whole_module.named_parameters())
    for name, parameter in module.named_parameters():
        spec, whole = spec_of(parameter), wholes[name]
        assert whole.grad is not None
        assert parameter.grad is not None
        rows = slice(0, spec.logical_shape[0])
        expected = cut_shard(whole.grad[rows], spec, tp.rank)
        found[name] = difference(parameter.grad, expected)
    return found


def run(
    build: Callable[[TensorParallel], nn.Module], tp: TensorParallel, inputs: Tensor | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """Forward and backward pass on the same values; returns module, result and input."""
    module = build(tp)
    initialize_parameters(module, 11, tp_rank=tp.rank)
    generator = torch.Generator().manual_seed(5)
    if inputs is None:
        hidden = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
        given = hidden if not tp.sequence_parallel else tp.own_part(hidden).contiguous()
        given = given.clone().requires_grad_()
    else:
        given = inputs
    result = module(given)
    if isinstance(module, Loss):
        result.sum().backward()
        return module, result.detach(), given
    upstream = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
    result.backward(upstream if not tp.sequence_parallel else tp.own_part(upstream))
    return module, result.detach(), given


def difference(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    if got.numel() == 0 or expected.abs().max() == 0:
        return float(got.abs().max()) if got.numel() else 0.0
    return float((got - expected).abs().max() / expected.abs().max())


def evaluation_difference(tp: TensorParallel, size: int, padded: int) -> float:
    hidden = torch.randn(BATCH * LENGTH, HIDDEN, generator=torch.Generator().manual_seed(6))
    losses = []
    for group in (SINGLE, tp):
        table = VocabularyTable(vocabulary(size, padded), group)
        initialize_parameters(table, 11, tp_rank=group.rank)
        part: VocabularyPart = table.part
        losses.append(token_losses(hidden, table.weight.detach(), tokens(size).flatten(), part))
    return difference(losses[1], losses[0])


def random_numbers(tp: TensorParallel) -> dict[str, Any]:
    """Draws inside and outside of `own_random_state`, and once more as recomputation does."""

    def draw() -> list[float]:
        return torch.rand(4).tolist()

    def draw_own() -> list[float]:
        with tp.own_random_state():
            return draw()

    torch.manual_seed(9)
    found: dict[str, Any] = {"numbers_before": draw()}
    state = torch.get_rng_state()
    found["own_numbers"] = draw_own()
    found["own_numbers_next"] = draw_own()
    found["numbers_after"] = draw()
    torch.set_rng_state(state)
    found["own_numbers_again"] = draw_own()
    for key, is_cut in (("residual", False), ("residual cut", True)):
        member = TensorParallel(tp.size, tp.rank, tp.group, sequence_parallel=is_cut)
        torch.manual_seed(10)
        with member.residual_random_state():
            found[key] = draw()
    return found
