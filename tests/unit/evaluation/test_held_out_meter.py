"""When held-out windows are measured, and what happens to losses that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from megatron.evaluation.held_out import HeldOutMeter
from tests.process_group import process_group_of_one


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group_of_one():
        yield


class Source:
    """Two domains with three windows; a batch is what it was asked for."""

    domains = ("web", "code")
    num_samples = (3, 3)

    def chosen(self, domains: np.ndarray, windows: np.ndarray, *, ids: np.ndarray) -> Any:
        return domains, windows, ids


class Runner:
    """Losses of 1 nat in domain 0 and of 2 in domain 1, in two tokens per window."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.measured: list[list[tuple[int, int]]] = []
        self.factor = 1.0

    def evaluate(self, batches: Any, recorder: Any) -> None:
        domains, windows, ids = batches
        self.measured.append(list(zip(domains.tolist(), windows.tolist(), strict=True)))
        losses = self.factor * torch.from_numpy(1.0 + domains)[:, None].expand(-1, 2)
        recorder.record(losses, torch.ones_like(losses), torch.from_numpy(ids))


def make_runner() -> Any:
    return Runner()


class Logger:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.warnings: list[str] = []

    def held_out(self, step: int, fields: Any, *, seconds: float, share_of_time: float) -> None:
        self.events.append((step, fields["mean_loss"], share_of_time))

    def warning(self, message: str, *, iteration: int | None = None) -> None:
        self.warnings.append(message)


def make_meter(logger: Logger, **options: Any) -> HeldOutMeter:
    source: Any = Source()
    writer: Any = logger
    return HeldOutMeter(source, writer, **{"interval": 5, "num_parts": 3, **options})


def test_a_part_is_measured_at_each_multiple_of_the_interval():
    logger, runner = Logger(), make_runner()
    meter = make_meter(logger)
    results = [meter.after_step(runner, step, 0.5) for step in range(1, 16)]
    measured = [step for step, result in enumerate(results, start=1) if result is not None]
    assert measured == [5, 10, 15]
    assert sorted(runner.measured[0]) == [(k, window) for k in range(2) for window in range(3)]
    assert runner.measured[1:] == [[(0, 1), (1, 1)], [(0, 2), (1, 2)]]
    assert [event[:2] for event in logger.events] == [
        (step, {"web": 1.0, "code": 2.0}) for step in measured
    ]
    assert all(0 < share < 0.5 for _, _, share in logger.events)


def test_a_part_with_a_loss_that_is_not_finite_is_measured_again():
    logger, runner = Logger(), make_runner()
    meter = make_meter(logger, interval=1)
    assert meter.after_step(runner, 1, 1.0) is not None
    runner.factor = math.inf
    assert meter.after_step(runner, 2, 1.0) is None
    runner.factor = 1.0
    assert meter.after_step(runner, 3, 1.0) is not None
    assert runner.measured[1] == runner.measured[2]
    assert "domain 0 at step 2 is inf" in logger.warnings[0]


def test_a_checkpoint_of_other_windows_is_reported():
    logger, runner = Logger(), make_runner()
    meter = make_meter(logger, interval=1)
    meter.after_step(runner, 1, 1.0)
    saved = {"held_out": meter.state_dict()}
    make_meter(logger).continue_from(saved)
    make_meter(logger).continue_from({})
    make_meter(logger).continue_from(None)
    assert logger.warnings == []
    other = make_meter(logger, num_parts=2)
    other.continue_from(saved)
    assert "data_sampling_heldout_parts changed" in logger.warnings[0]
    other.after_step(runner, 5, 1.0)
    assert len(runner.measured[-1]) == 6
