"""fp16: steps that an overflow skips, the scale of the loss, and the rate that follows the others.

A CPU computes fp16 slowly and well; only DeepSpeed's question whether it can is answered for it.
"""

from __future__ import annotations

import json
from typing import Any

import deepspeed.accelerator
import pytest
import torch

from megatron.engine.state import TrainState
from tests.process_group import engine_of_one
from tests.unit.oracles.plain_network import Network, losses
from tests.unit.oracles.plain_training import PlainTraining
from tests.unit.oracles.test_saved_training import make_hook
from tests.unit.oracles.training_runs import (
    RATES,
    configuration,
    load_runner,
    random_text,
    run_steps,
    samples,
    values,
)

FP16: dict[str, Any] = {
    **{"pos_emb": "rotary", "rotary_pct": 1.0, "no_weight_tying": True},
    **{"precision": "fp16", "zero_optimization": {"stage": 1}},
    # gradients overflow at 2^17 and more; DeepSpeed doubles the scale three steps behind a good one
    "fp16": {"enabled": True, "initial_scale_power": 19, "hysteresis": 1, "loss_scale_window": 3},
}
IS_SKIPPED = [True, True, True, False, False, False, False, True, False, False]


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with engine_of_one(configuration()):
        yield


@pytest.fixture(autouse=True)
def half_precision(monkeypatch):
    kind = type(deepspeed.accelerator.get_accelerator())
    monkeypatch.setattr(kind, "is_fp16_supported", lambda self: True)


def test_skipped_steps_change_no_weight_and_no_rate(monkeypatch):
    loaded, config = load_runner(monkeypatch, **FP16)
    weights, state = values(loaded.runner, ())["fp32"], TrainState()
    steps = run_steps(loaded.runner, config, state=state)
    reports = [step.report for step in steps]
    assert [report.skipped for report in reports] == IS_SKIPPED
    applied = [sum(not skipped for skipped in IS_SKIPPED[:n]) for n in range(10)]
    assert [report.learning_rate for report in reports] == pytest.approx(
        [RATES[count] for count in applied]
    )
    assert (state.step, state.applied_steps, state.consecutive_skips) == (10, 6, 0)
    assert state.consumed_samples == 40

    seen = [number for number, skipped in enumerate(IS_SKIPPED, start=1) if not skipped]

    def losses_of(weights: dict[str, torch.Tensor], step: int) -> Any:
        text = torch.from_numpy(samples(seen[step - 1]))
        return losses(weights, Network(rotary_dim=8), text[:, :-1], text[:, 1:])

    settings: Any = {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2, "limit": 0.8}
    plain = PlainTraining(weights, losses_of, RATES[:6], **settings).run()
    held = [weights, *(step.values["fp32"] for step in steps)]
    for before, after, skipped in zip(held, held[1:], IS_SKIPPED, strict=False):
        unchanged = [torch.equal(before[name], after[name]) for name in weights]
        assert all(unchanged) == any(unchanged) == skipped
    # the gradients of fp16 have 11 bits, and Adam makes much of small ones
    for step, count in zip(steps, applied[1:], strict=False):
        want = weights if count == 0 else plain[count - 1].weights
        for name, tensor in step.values["fp32"].items():
            assert (tensor - want[name]).abs().mean() < 5e-3, name


def test_the_scale_halves_with_each_overflow_and_doubles_after_a_calm(monkeypatch):
    loaded, config = load_runner(monkeypatch, **FP16)
    assert loaded.runner.loss_scale == 2.0**19
    reports = [step.report for step in run_steps(loaded.runner, config)]
    powers = [18, 17, 16, 16, 16, 16, 17, 16, 16, 16]
    assert [report.loss_scale for report in reports] == [2.0**power for power in powers]


def test_the_scale_goes_on_after_a_resume(monkeypatch, tmp_path):
    settings = {**FP16, "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 4}
    loaded, config = load_runner(monkeypatch, **settings)
    source = random_text(config)
    run_steps(loaded.runner, config, make_hook(loaded, config, source), last_step=4, source=source)
    saved = json.loads((tmp_path / "global_step4/state.json").read_text())
    assert saved["loss_scaler"]["cur_scale"] == 2.0**16
    assert (saved["counters"]["step"], saved["counters"]["applied_steps"]) == (4, 1)
    again, config = load_runner(monkeypatch, **settings)
    assert again.runner.loss_scale == 2.0**16
    reports = [s.report for s in run_steps(again.runner, config, state=again.state)]
    assert [report.skipped for report in reports] == IS_SKIPPED[4:]
    assert [report.loss_scale for report in reports][:3] == [2.0**16, 2.0**16, 2.0**17]
    assert [report.learning_rate for report in reports][:3] == pytest.approx(
        [RATES[1], RATES[2], RATES[3]]
    )
