"""What every data-parallel rank has is saved by many of them, each element by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from megatron.checkpoint.fragments import iterate_fragments


def engine_of(sizes: list[int], *, stage: int, is_trained: bool) -> Any:
    """An engine without ZeRO, or one with ZeRO 1 whose parameters are not trained."""
    module = nn.ParameterList(
        nn.Parameter(torch.arange(float(size)), requires_grad=is_trained) for size in sizes
    )
    optimizer = SimpleNamespace(
        state={p: {"exp_avg": -p.detach()} for p in module} if is_trained else {},
        _lazy_init_hp_params_optimizer_state=lambda: None,
    )
    return SimpleNamespace(
        module=module, optimizer=optimizer, zero_optimization_stage=lambda: stage
    )


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    dp_size=st.integers(1, 100),
    is_trained=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_all_ranks_together_have_each_element_once(sizes, dp_size, is_trained):
    engine = engine_of(sizes, stage=0 if is_trained else 1, is_trained=is_trained)
    found: dict[str, list[float]] = {str(number): [] for number in range(len(sizes))}
    shares = []
    for dp_rank in range(dp_size):
        own = 0
        for fragment in iterate_fragments(engine, ("exp_avg",), dp_rank=dp_rank, dp_size=dp_size):
            values = fragment.values["fp32"].tolist()
            assert fragment.offset == values[0]
            if is_trained:
                assert (fragment.values["exp_avg"] == -fragment.values["fp32"]).all()
            found[fragment.name] += values
            own += len(values)
        shares.append(own)
    assert found == {
        str(number): [float(value) for value in range(size)] for number, size in enumerate(sizes)
    }
    num_writers = min(dp_size, 32)
    assert sum(share > 0 for share in shares) <= num_writers
    assert max(shares) <= -(-sum(sizes) // num_writers)


@pytest.mark.parametrize(
    ("dp_size", "writers"),
    [(4, [0, 1, 2, 3]), (64, list(range(0, 64, 2))), (512, range(0, 512, 16))],
)
def test_the_writers_are_spread_over_the_machines(dp_size, writers):
    engine = engine_of([3200], stage=0, is_trained=True)
    found = [
        rank
        for rank in range(dp_size)
        if list(iterate_fragments(engine, (), dp_rank=rank, dp_size=dp_size))
    ]
    assert found == list(writers)
