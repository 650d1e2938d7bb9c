"""Learning-rate schedules against numbers worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.engine.learning_rates import (
    LearningRateSchedule,
    continued_schedule,
    learning_rate_at,
    learning_rate_schedule,
)
from megatron.neox_arguments import NeoXArgs, RunConfig, resolve

SETTINGS: dict[str, Any] = {
    "peak": 8.0,
    "minimum": 2.0,
    "decay_style": "cosine",
    "warmup_steps": 4,
    "decay_steps": 12,
}


def rate(step: int, **changes: Any) -> float:
    return learning_rate_at(step, **{**SETTINGS, **changes})


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        # applied steps    0    1    2    3    4    8    12   99
        ("constant", [2.0, 2.0, 4.0, 6.0, 8.0, 8.0, 8.0, 8.0]),
        ("linear", [2.0, 2.0, 4.0, 6.0, 8.0, 4.0, 2.0, 2.0]),
        ("cosine", [2.0, 2.0, 4.0, 6.0, 8.0, 5.0, 2.0, 2.0]),
        # half-way and at the end of a decay by exp(-0.693)
        ("exponential", [2.0, 2.0, 4.0, 6.0, 8.0, 5.657270554, 4.000588766, 4.000588766]),
        # 8 sqrt(4 / 8), 8 sqrt(4 / 12)
        ("inverse_sqrt", [2.0, 2.0, 4.0, 6.0, 8.0, 5.656854249, 4.618802154, 4.618802154]),
    ],
)
def test_each_style_follows_its_formula(style, expected):
    rates = [rate(step, decay_style=style) for step in (0, 1, 2, 3, 4, 8, 12, 99)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # applied steps 2    4    8    9            10           11           12   99
        ("linear", [4.0, 8.0, 8.0, 6.5, 5.0, 3.5, 2.0, 2.0]),
        # 5 +- 3 / sqrt 2 at a quarter and three quarters
        ("cosine", [4.0, 8.0, 8.0, 7.1213203436, 5.0, 2.8786796564, 2.0, 2.0]),
        # 8 - 6 sqrt(1/4), sqrt(1/2), sqrt(3/4)
        ("minus_sqrt", [4.0, 8.0, 8.0, 5.0, 3.7573593129, 2.8038475773, 2.0, 2.0]),
        # 12 / 2 ** (1/4), (1/2), (3/4), less 4
        ("exponential", [4.0, 8.0, 8.0, 6.0907569790, 4.4852813742, 3.1352426900, 2.0, 2.0]),
    ],
)
def test_wsd_keeps_the_peak_and_falls_in_its_last_steps(shape, expected):
    style = {"decay_style": "wsd", "wsd_decay_style": shape, "wsd_decay_steps": 4}
    rates = [rate(step, **style) for step in (2, 4, 8, 9, 10, 11, 12, 99)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_without_warmup_the_first_step_has_the_peak():
    assert rate(0, warmup_steps=0) == 8.0


def test_a_warmup_of_a_fraction_of_a_step_never_exceeds_the_peak():
    assert rate(0, warmup_steps=0.5) == 8.0
    assert rate(1, warmup_steps=0.5) <= 8.0


def test_the_warmup_may_last_as_long_as_the_decay():
    assert [rate(step, warmup_steps=12) for step in (6, 12, 13)] == [4.0, 8.0, 2.0]


def test_without_warmup_the_inverse_square_root_begins_at_the_first_step():
    rates = [rate(n, decay_style="inverse_sqrt", warmup_steps=0, minimum=0) for n in (0, 1, 4, 9)]
    assert rates == pytest.approx([8.0, 8.0, 4.0, 8 / 3])


@given(st.integers(1, 50), st.integers(1, 1000))
def test_the_inverse_square_root_halves_in_four_times_the_steps(warmup, more):
    settings = {"decay_style": "inverse_sqrt", "warmup_steps": warmup, "minimum": 0.0}
    step = warmup + more
    first, later = (rate(n, **settings, decay_steps=10_000) for n in (step, 4 * step))
    assert later == pytest.approx(first / 2)


STYLES = st.one_of(
    st.sampled_from(["constant", "linear", "cosine", "exponential", "inverse_sqrt"]).map(
        lambda style: {"decay_style": style}
    ),
    st.builds(
        lambda shape, steps: {
            "decay_style": "wsd",
            "wsd_decay_style": shape,
            "wsd_decay_steps": steps,
        },
        st.sampled_from(["exponential", "linear", "cosine", "minus_sqrt"]),
        st.integers(1, 12),
    ),
)


@given(STYLES, st.floats(0, 50), st.integers(1, 200))
def test_the_rate_rises_to_the_peak_and_then_never_rises_again(style, warmup, decay):
    rates = [rate(step, **style, warmup_steps=warmup, decay_steps=decay) for step in range(260)]
    before, after = rates[: int(warmup) + 1], rates[int(warmup) + 1 :]
    assert all(first <= then for first, then in pairwise(before))
    assert all(first >= then for first, then in pairwise(after))
    assert max(rates) <= 8.0
    assert min(after) >= 2.0


@given(STYLES, st.integers(0, 10_000))
def test_after_the_decay_the_rate_stays(style, extra):
    assert rate(12 + extra, **style) == rate(12, **style)


# going on from a checkpoint


def config_of(**changes: Any) -> RunConfig:
    values = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "seq_length": 8,
        "max_position_embeddings": 8,
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 100,
        "lr_decay_style": "cosine",
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        **changes,
    }
    return resolve(NeoXArgs.from_dict(values), world_size=1)


def continued(saved: RunConfig | None, now: RunConfig) -> tuple[LearningRateSchedule, list[str]]:
    said: list[str] = []
    schedule = continued_schedule(now, None if saved is None else saved.to_dict(), said.append)
    return schedule, said


LONGER = {"train_iters": 200, "min_lr": 1e-5}


def test_a_changed_schedule_is_used_aloud_unless_it_is_meant():
    old, new = config_of(), config_of(**LONGER)
    schedule, (line,) = continued(old, new)
    assert schedule == learning_rate_schedule(new)
    assert "decay_steps 200, 100" in line
    assert "minimum 1e-05, 0.0" in line
    assert "peak" not in line
    meant = config_of(**LONGER, override_lr_scheduler=True)
    assert continued(old, meant) == (learning_rate_schedule(new), [])
    assert continued(old, config_of()) == (learning_rate_schedule(old), [])


def test_the_checkpoints_schedule_is_kept_when_asked_for():
    old, new = config_of(), config_of(**LONGER, use_checkpoint_lr_scheduler=True)
    assert continued(old, new) == (learning_rate_schedule(old), [])
    schedule, (line,) = continued(None, new)
    assert schedule == learning_rate_schedule(new)
    assert "does not contain its schedule" in line


def test_a_constant_rate_has_no_length_that_could_change():
    old = config_of(lr_decay_style="constant", warmup=0.0)
    new = config_of(lr_decay_style="constant", warmup=0.0, **LONGER)
    assert continued(old, new)[1] == []
    assert continued(None, new)[1] == []


def test_a_wsd_schedule_continues_from_its_checkpoint():
    wsd = {"lr_decay_style": "wsd", "lr_wsd_decay_fraction": 0.2, "lr_wsd_decay_style": "linear"}
    old = config_of(**wsd, warmup=0.1)
    assert learning_rate_schedule(old)(80) == pytest.approx(1e-3)
    assert learning_rate_schedule(old)(90) == pytest.approx(5e-4)
    assert continued(old, old) == (learning_rate_schedule(old), [])
    _, (line,) = continued(old, config_of(**{**wsd, "lr_wsd_decay_fraction": 0.4}, warmup=0.1))
    assert "wsd_decay_steps 40, 20" in line


def test_a_checkpoint_from_before_wsd_keeps_its_schedule():
    saved = config_of().to_dict()
    for name in ("wsd_decay_iters", "wsd_decay_style"):
        del saved["schedule"][name]
    said: list[str] = []
    assert continued_schedule(config_of(), saved, said.append) == learning_rate_schedule(
        config_of()
    )
    assert said == []
