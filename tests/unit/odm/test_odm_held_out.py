"""Rotating held-out windows: which are measured, what is known afterwards, and restarts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odm.held_out import HeldOut, HeldOutRecord

TOKENS = 10.0


def measure(record: HeldOutRecord, step: int, losses: np.ndarray) -> HeldOut:
    """Measures the next windows, whose mean losses are ``losses[domain, window]``."""
    domains, windows = record.next_windows()
    tokens = np.full(len(domains), TOKENS)
    return record.update(step, losses[domains, windows] * tokens, tokens)


def pairs(record: HeldOutRecord) -> list[tuple[int, int]]:
    """(domain, window) of the next measurement."""
    choice = record.next_windows()
    return list(zip(choice.domains.tolist(), choice.windows.tolist(), strict=True))


def test_the_first_measurement_is_of_all_windows_and_then_parts_take_turns():
    record = HeldOutRecord([4, 2], num_parts=2)
    seen = []
    for step in range(1, 5):
        seen.append(pairs(record))
        measure(record, step, np.zeros((2, 4)))
    assert sorted(seen[0]) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert seen[1] == [(0, 1), (1, 1), (0, 3)]
    assert seen[2] == [(0, 0), (1, 0), (0, 2)]
    assert seen[3] == seen[1]


def test_a_domain_with_fewer_windows_than_parts_is_in_every_measurement():
    record = HeldOutRecord([6, 2, 1], num_parts=3)
    measure(record, 1, np.zeros((3, 6)))
    for step in range(2, 8):
        assert {domain for domain, _ in pairs(record)} == {0, 1, 2}
        measure(record, step, np.zeros((3, 6)))


def test_mean_and_standard_error_of_windows_with_different_tokens():
    record = HeldOutRecord([2, 1])
    held_out = record.update(8, [30.0, 12.0, 5.0], [10.0, 5.0, 20.0])  # window 1 of domain 0 last
    assert held_out.mean_loss.tolist() == [35.0 / 30.0, 12.0 / 5.0]
    mean = 35.0 / 30.0
    squares = (30.0 - mean * 10.0) ** 2 + (5.0 - mean * 20.0) ** 2
    assert held_out.standard_error[0] == pytest.approx(math.sqrt(2.0 * squares) / 30.0)
    assert math.isnan(held_out.standard_error[1])
    assert held_out.token_count.tolist() == [30.0, 5.0]
    assert held_out.log_step == pytest.approx(math.log(8.0))
    assert np.isnan(held_out.change).all()


def test_a_change_is_that_of_the_same_windows_since_their_last_measurement():
    record = HeldOutRecord([4], num_parts=2)
    measure(record, 10, np.array([[1.0, 2.0, 3.0, 4.0]]))
    held_out = measure(record, 20, np.array([[9.0, 1.5, 9.0, 3.9]]))  # windows 1 and 3
    assert held_out.change[0] == pytest.approx(-0.3)
    assert held_out.change_error[0] == pytest.approx(0.2)  # of -0.5 and -0.1
    assert held_out.change_log_step[0] == pytest.approx(math.log(2.0))
    assert held_out.mean_loss[0] == pytest.approx((1.0 + 1.5 + 3.0 + 3.9) / 4)
    assert held_out.log_step[0] == pytest.approx((math.log(10) + math.log(20)) / 2)


def test_a_domain_without_held_out_text_has_no_loss():
    record = HeldOutRecord([0, 2, 0])
    held_out = measure(record, 1, np.full((3, 2), 2.0))
    assert np.isnan(held_out.mean_loss).tolist() == [True, False, True]
    assert held_out.mean_loss[1] == 2.0
    assert held_out.token_count.tolist() == [0.0, 2 * TOKENS, 0.0]


def test_a_window_without_tokens_does_not_count():
    record = HeldOutRecord([2])
    first = record.update(1, [0.0, 6.0], [0.0, 3.0])
    second = record.update(2, [0.0, 3.0], [0.0, 3.0])
    assert first.mean_loss[0] == 2.0
    assert math.isnan(first.standard_error[0])
    assert second.change[0] == -1.0


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    num_parts=st.integers(1, 7),
    seed=st.integers(0, 100),
)
def test_windows_cancel_where_the_loss_is_linear_in_the_logarithm_of_the_step(
    counts: list[int], num_parts: int, seed: int
):
    random = np.random.default_rng(seed)
    level, slope = random.normal(5.0, 1.0, (len(counts), 6)), random.normal(0.3, 0.1, len(counts))
    record, has_text = HeldOutRecord(counts, num_parts), np.array(counts) > 0
    means, log_steps = [], []
    for step in range(3, 3 + 2 * num_parts):
        losses = level - slope[:, None] * math.log(step)
        held_out = measure(record, step, losses)
        means.append(held_out.mean_loss)
        log_steps.append(held_out.log_step)
    moved = np.diff(means, axis=0) + slope * np.diff(log_steps, axis=0)
    assert np.abs(moved[:, has_text]).max(initial=0.0) < 1e-12
    assert np.isnan(moved[:, ~has_text]).all()
    expected = -slope * held_out.change_log_step
    assert held_out.change[has_text] == pytest.approx(expected[has_text], abs=1e-12)


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    num_parts=st.integers(1, 7),
    stop=st.integers(0, 12),
)
def test_a_restart_from_json_continues_to_the_bit(counts: list[int], num_parts: int, stop: int):
    losses = np.random.default_rng(3).normal(5.0, 1.0, (13, len(counts), 6))
    whole, first, second = (HeldOutRecord(counts, num_parts) for _ in range(3))
    for step in range(stop):
        measure(first, step + 1, losses[step])
    assert second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(13):
        expected = measure(whole, step + 1, losses[step])
        if step >= stop:
            resumed = measure(second, step + 1, losses[step])
            for name, values in vars(expected).items():
                assert np.array_equal(values, getattr(resumed, name), equal_nan=True), name
    assert second.state_dict() == whole.state_dict()


def test_a_state_of_other_windows_is_not_used():
    old, new = HeldOutRecord([4, 2], 2), HeldOutRecord([4, 3], 2)
    measure(old, 1, np.ones((2, 4)))
    assert not new.load_state_dict(old.state_dict())
    assert len(pairs(new)) == 7


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("loss_sum", [1.0], "loss_sum"),
        ("token_count", [1.0, -1.0], r"token_count\[1\]"),
        ("log_step", [0.0, "x"], r"log_step\[1\]"),
        ("num_windows", [1.5], r"num_windows\[0\]"),
        ("visits", -1, "visits"),
    ],
)
def test_a_damaged_state_is_refused_with_its_place(field: str, value: object, place: str):
    record = HeldOutRecord([2])
    state = {**record.state_dict(), field: value}
    with pytest.raises(ValueError, match=place):
        record.load_state_dict(state)


def test_a_loss_that_is_not_finite_is_refused_and_changes_nothing():
    record = HeldOutRecord([1, 1])
    before = record.state_dict()
    with pytest.raises(ValueError, match="domain 1 at step 4 is inf"):
        record.update(4, [1.0, np.inf], [1.0, 1.0])
    assert record.state_dict() == before


def test_means_that_a_trainer_measured_itself():
    held_out = HeldOut.from_means([2.0, np.nan], step=4)
    assert held_out.log_step[0] == math.log(4.0)
    assert np.isnan(held_out.log_step[1])
    with pytest.raises(ValueError, match="domain 0 is inf"):
        HeldOut.from_means([np.inf], step=1)


@pytest.mark.parametrize(("counts", "parts"), [([0, 0], 1), ([-1, 2], 1), ([], 1), ([2], 0)])
def test_windows_and_parts_out_of_range_are_refused(counts: list[int], parts: int):
    with pytest.raises(ValueError, match="held_out: num_"):
        HeldOutRecord(counts, parts)


@pytest.mark.parametrize("log_step", [np.nan, -0.1, np.inf, 1000.0])
def test_a_loss_has_the_logarithm_of_a_step(log_step):
    unknown = np.full(2, np.nan)
    with pytest.raises(ValueError, match="log_step of domain 0 must be from 0 to 44"):
        HeldOut([3.0, np.nan], unknown, unknown, [log_step, np.nan], unknown, unknown, unknown)
