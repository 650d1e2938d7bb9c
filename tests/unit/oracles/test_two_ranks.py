"""What an iteration's one sum over ranks is good for, with a second rank that is made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron import training
from megatron.engine import domain_sums
from megatron.training import reduce_step
from odm import MixtureController, MixtureSchedule
from tests.process_group import process_group_of_one
from tests.unit.test_training_loop import Runner


@pytest.fixture(autouse=True)
def one_rank():
    with process_group_of_one():
        yield


def make_mixture(weights=(1.0, 1.0), drawn: int = 1) -> MixtureController:
    mixture = MixtureController(
        ("web", "code"), "static", MixtureSchedule(1, 2), initial_weights=weights
    )
    for step in range(1, drawn + 1):
        mixture.draw(step, 8)
    return mixture


def step_result(loss: float = 2.0) -> Any:
    """Of eight samples of seed 1, the first domain's at a loss of 2."""
    runner: Any = Runner(step=1, loss=loss)
    draw = MixtureController(("web", "code"), "static", MixtureSchedule(1, 2)).draw(1, 8)
    return runner.train_step(draw)


def reduced(monkeypatch, mine, theirs, *, they_stop: bool = False, loss: float = 2.0) -> Any:
    """`reduce_step` on the first of two ranks."""
    sent: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_requested", lambda: they_stop)
        patch.setattr(domain_sums, "all_reduce_sum", lambda packed: sent.append(packed) or packed)
        reduce_step(step_result(loss), theirs)
    with monkeypatch.context() as patch:
        patch.setattr(domain_sums, "all_reduce_sum", lambda packed: packed + sent[0])
        patch.setattr(training.dist, "get_world_size", lambda: 2)
        return reduce_step(step_result(), mine)


@pytest.mark.parametrize(
    ("theirs", "is_alike"),
    [
        ({}, True),
        ({"weights": (1.0, 1.0 + 1e-15)}, False),
        ({"weights": (3.0, 1.0)}, False),
        ({"drawn": 2}, False),
        ({"drawn": 0}, False),
    ],
)
def test_ranks_whose_mixtures_differ_end_the_run(theirs, is_alike, monkeypatch):
    if is_alike:
        reduced(monkeypatch, make_mixture(), make_mixture(**theirs))
        return
    with pytest.raises(RuntimeError, match="weights or cursors of the mixture differ"):
        reduced(monkeypatch, make_mixture(), make_mixture(**theirs))


def test_a_rank_that_differs_is_noticed_however_many_others_agree(monkeypatch):
    mine, other = make_mixture(), make_mixture(drawn=2)
    prints = {mine.fingerprint(), other.fingerprint()}
    assert len(prints) == 2
    assert all(0 <= number < 2**32 for number in prints)  # sums of 2^20 ranks are exact


def test_losses_and_tokens_of_the_ranks_add_up(monkeypatch):
    signal, loss, _, stop = reduced(monkeypatch, make_mixture(), make_mixture(), loss=4.0)
    counts = make_mixture(drawn=0).draw(1, 8).counts(2)
    assert signal.token_count.tolist() == (2 * counts).tolist()
    assert signal.mean_loss().tolist() == pytest.approx([2.0, 3.0])
    assert loss == pytest.approx((2 * counts[0] + 3 * counts[1]) / 8)
    assert not stop


def test_one_rank_that_was_asked_to_stop_stops_all(monkeypatch):
    *_, stop = reduced(monkeypatch, make_mixture(), make_mixture(), they_stop=True)
    assert stop is True
