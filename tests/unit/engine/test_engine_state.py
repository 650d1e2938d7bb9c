"""Master weights and moments of an engine by name: complete, once each, and loaded bit for bit.

One test per cell of precision and ZeRO stage; one start of two processes serves all of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.distributed

RANKS = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
CELLS = [("fp32", stage) for stage in (0, 1, 2, 3)] + [("bfloat16", stage) for stage in (1, 2, 3)]
NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]
SIZES = {"0.weight": 35, "0.bias": 7, "1.weight": 21, "1.bias": 3}


@pytest.fixture(scope="module")
def cells() -> dict[str, list[dict[str, Any]]]:
    """{cell: [what rank 0 saw, what rank 1 saw]}."""
    results = run_ranks("tests.unit.engine.test_engine_state:exercise_all_cells", RANKS)
    return {cell: [result.value[cell] for result in results] for cell in results[0].value}


@pytest.fixture(params=CELLS, ids=[f"{precision}-zero{stage}" for precision, stage in CELLS])
def ranks(cells, request) -> list[dict[str, Any]]:
    precision, stage = request.param
    return cells[f"{precision}-{stage}"]


def test_every_element_belongs_to_exactly_one_rank(ranks):
    for kind in ("fp32", *MOMENTS):
        for name in NAMES:
            assert sorted(element for rank in ranks for element in rank["owned"][kind][name]) == (
                list(range(SIZES[name]))
            ), (kind, name)


def test_before_the_first_step_there_are_weights_and_no_moments(ranks):
    assert {kind for rank in ranks for kind in rank["kinds_at_first"]} == {"fp32"}


def test_the_values_are_those_of_plain_torch(ranks):
    assert max(rank["difference_to_torch"] for rank in ranks) < ranks[0]["tolerance"]


def test_a_new_engine_that_loads_the_values_holds_the_same_bits(ranks):
    assert [rank["loaded_differs"] for rank in ranks] == [[]] * len(ranks)


def test_a_new_engine_that_loads_the_values_takes_the_same_step(ranks):
    assert [rank["next_step_differs"] for rank in ranks] == [[]] * len(ranks)


def test_a_new_engine_without_the_moments_takes_another_step(ranks):
    """Else the test above could not see whether moments were loaded."""
    assert any(rank["differs_without_moments"] for rank in ranks)


# what runs on the two ranks


def exercise_all_cells() -> dict[str, Any]:
    """Returns what this rank saw, plain JSON."""
    import torch.distributed as dist

    from megatron.runtime.initialize import initialize_megatron

    initialize_megatron(_settings(), handle_signals=False)
    rank = dist.get_rank()
    return {f"{precision}-{stage}": exercise(precision, stage, rank) for precision, stage in CELLS}


def exercise(precision: str, stage: int, rank: int) -> dict[str, Any]:
    """Trains three steps, loads them into new engines and takes one step more on each."""
    engine = build_engine(precision, stage)
    kinds_at_first = sorted({kind for kind, *_ in snapshot(engine, rank)})
    for step in range(3):
        train_step(engine, step, rank)
    saved = snapshot(engine, rank)
    everything = gather(saved)
    train_step(engine, 3, rank)
    after = snapshot(engine, rank)

    loaded = load_into_new_engine(precision, stage, MOMENTS, everything)
    reloaded = snapshot(loaded, rank)
    train_step(loaded, 3, rank)
    without = load_into_new_engine(precision, stage, (), everything)
    train_step(without, 3, rank)
    owned: dict[str, dict[str, list[int]]] = {
        kind: {name: [] for name in NAMES} for kind in ("fp32", *MOMENTS)
    }
    for (kind, name, offset), values in saved.items():
        owned[kind][name] += range(offset, offset + len(values))
    return {
        "owned": owned,
        "kinds_at_first": kinds_at_first,
        "difference_to_torch": difference_to_torch(everything, precision),
        # bf16 gradients have 8 bits; Adam turns any gradient into a step of about lr = 0.1
        "tolerance": 1e-5 if precision == "fp32" else 0.1,
        "loaded_differs": differing(saved, reloaded),
        "next_step_differs": differing(after, snapshot(loaded, rank)),
        "differs_without_moments": differing(after, snapshot(without, rank)),
    }


def _settings() -> Any:
    from types import SimpleNamespace

    other = SimpleNamespace(seed=1, distributed_backend=None, distributed_timeout_minutes=1.0)
    return SimpleNamespace(launch=other)


def build_module() -> Any:
    import torch

    torch.manual_seed(11)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))


def parameter_groups(module: Any) -> list[dict[str, Any]]:
    """Two groups, as training has: biases are not decayed."""
    weights = [p for p in module.parameters() if p.dim() == 2]
    biases = [p for p in module.parameters() if p.dim() == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def build_engine(precision: str, stage: int, module: Any = None) -> Any:
    import deepspeed
    import torch

    module = module or build_module()
    config: dict[str, Any] = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 30,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": precision == "bfloat16"},
    }
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=0.1)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def batch(step: int, rank: int) -> Any:
    import torch

    return torch.randn(2, 5, generator=torch.Generator().manual_seed(10 * step + rank))


def train_step(engine: Any, step: int, rank: int) -> None:
    inputs = batch(step, rank).to(next(engine.module.parameters()).dtype)
    engine.backward(engine(inputs).float().square().mean())
    engine.step()


def snapshot(engine: Any, rank: int) -> dict[tuple[str, str, int], list[float]]:
    """{(kind, parameter, offset): values} of what this rank owns."""
    from megatron.checkpoint.fragments import iterate_fragments

    return {
        (kind, fragment.name, fragment.offset): values.float().tolist()
        for fragment in iterate_fragments(engine, MOMENTS, dp_rank=rank, dp_size=RANKS)
        for kind, values in fragment.values.items()
    }


def gather(saved: dict[tuple[str, str, int], list[float]]) -> dict[tuple[str, str], Any]:
    """{(kind, parameter): flat tensor} of all ranks together."""
    import torch
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, saved)
    whole: dict[tuple[str, str], Any] = {}
    for part in parts:
        for (kind, name, offset), values in part.items():
            flat = whole.setdefault((kind, name), torch.full((SIZES[name],), float("nan")))
            flat[offset : offset + len(values)] = torch.tensor(values)
    return whole


def load_into_new_engine(
    precision: str, stage: int, moments: tuple[str, ...], everything: dict[tuple[str, str], Any]
) -> Any:
    """As the project loads: the module first, then masters and moments."""
    import torch

    from megatron.checkpoint.fragments import load_fragments, prepare_moments

    module = build_module()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(everything["fp32", name].view_as(parameter))
    engine = build_engine(precision, stage, module)
    if moments:
        prepare_moments(engine, moments, 3)

    def read(name: str, kind: str, offset: int, length: int) -> Any:
        return everything[kind, name][offset : offset + length]

    load_fragments(engine, moments, read)
    return engine


def differing(one: dict[Any, list[float]], other: dict[Any, list[float]]) -> list[str]:
    """Keys under which two snapshots differ in any bit, or that only one has."""
    return sorted(str(key) for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def difference_to_torch(everything: dict[tuple[str, str], Any], precision: str) -> float:
    """Largest difference of weights and moments to three steps on the whole batch."""
    import torch

    module = build_module()
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        module(torch.cat([batch(step, rank) for rank in range(2)])).square().mean().backward()
        optimizer.step()
    expected = {("fp32", name): p.detach() for name, p in module.named_parameters()}
    expected |= {
        (kind, name): optimizer.state[p][kind]
        for name, p in module.named_parameters()
        for kind in MOMENTS
    }
    return max(float((everything[key] - expected[key].flatten()).abs().max()) for key in expected)
