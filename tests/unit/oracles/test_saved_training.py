"""What a checkpoint holds, and what a run that continues from it does, against a plain loop.

A run that is resumed was compared with the one that was not: an error of both would not show.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron import checkpointing
from megatron.checkpoint.format import CheckpointReader
from megatron.engine.optimizers import moment_names
from megatron.engine.state import TrainState
from megatron.hooks.base import Hook
from megatron.hooks.checkpoint import CheckpointHook
from tests.process_group import engine_of_one
from tests.unit.oracles.plain_network import Network, losses
from tests.unit.oracles.plain_training import PlainTraining, Step
from tests.unit.oracles.training_runs import (
    RATES,
    configuration,
    load_runner,
    random_text,
    run_steps,
    samples,
    values,
)

NETWORK = {"pos_emb": "rotary", "rotary_pct": 1.0, "no_weight_tying": True}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with engine_of_one(configuration()):
        yield


def plain_steps(weights: dict[str, torch.Tensor]) -> list[Step]:
    def losses_of(weights: dict[str, torch.Tensor], step: int) -> Any:
        text = torch.from_numpy(samples(step))
        return losses(weights, Network(rotary_dim=8), text[:, :-1], text[:, 1:])

    settings: Any = {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2, "limit": 0.8}
    return PlainTraining(weights, losses_of, RATES[:7], **settings).run()


def make_hook(loaded: Any, config: Any, source: Any) -> CheckpointHook:
    logger: Any = SimpleNamespace(
        save=lambda step, folder: None,
        say=lambda text: None,
        warning=lambda text, **_: pytest.fail(text),
    )
    return CheckpointHook(
        loaded.runner, source, source.mixture, config, logger, moment_names=moment_names(config)
    )


def assert_state(got: dict[str, dict[str, torch.Tensor]], want: Step) -> None:
    sides = {"fp32": want.weights, **want.moments}
    assert {"fp32", "exp_avg", "exp_avg_sq"} == got.keys()
    for kind, tensors in got.items():
        assert tensors.keys() == want.weights.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                tensor,
                sides[kind][name].to(tensor.dtype),
                rtol=1e-3,
                atol=1e-4,
                msg=lambda text, kind=kind, name=name: f"{kind} of {name}: {text}",
            )


def held(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a checkpoint."""
    reader = CheckpointReader(folder)
    kinds = ("fp32", *reader.moment_names)
    return {kind: {n: reader.read_logical(n, kind) for n in reader.parameters} for kind in kinds}


def counters(folder: Path) -> dict[str, int]:
    return json.loads((folder / "state.json").read_text())["counters"]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_that_goes_on_takes_the_steps_of_a_plain_loop(stage, tmp_path, monkeypatch):
    settings = {
        **NETWORK,
        **{"save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 4},
        "zero_optimization": {"stage": stage},
    }
    first, config = load_runner(monkeypatch, **settings)
    plain = plain_steps(values(first.runner, ())["fp32"])
    source = random_text(config)
    hook = make_hook(first, config, source)
    run_steps(first.runner, config, hook, last_step=5, source=source)
    assert counters(tmp_path / "global_step4") == {
        **{"step": 4, "applied_steps": 4, "consecutive_skips": 0},
        **{"consumed_samples": 16, "consumed_tokens": 192},
    }
    assert_state(held(tmp_path / "global_step4"), plain[3])

    second, config = load_runner(monkeypatch, **settings)
    again = run_steps(second.runner, config, last_step=7, state=second.state)
    assert [step.report.draw.step for step in again] == [5, 6, 7]
    assert [step.report.learning_rate for step in again] == pytest.approx(RATES[4:7])
    for ours, want in zip(again, plain[4:], strict=True):
        assert_state(ours.values, want)


class Gate(Hook):
    """Lets a save in the background go on after a later step."""

    def __init__(self, step: int) -> None:
        self.step, self.opened = step, threading.Event()

    def after_step(self, state: TrainState, report: Any) -> None:
        if state.step == self.step:
            self.opened.set()


def test_a_save_in_the_background_is_of_its_own_step(tmp_path, monkeypatch):
    settings = {**NETWORK, "save": str(tmp_path), "checkpoint_factor": 4, "async_save": True}
    loaded, config = load_runner(monkeypatch, **settings)
    plain = plain_steps(values(loaded.runner, ())["fp32"])
    source = random_text(config, "smoothed_mean")
    hook, gate = make_hook(loaded, config, source), Gate(6)
    write, weights, states = checkpointing.write_snapshot, {}, {}

    def write_late(*arguments: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        assert gate.opened.wait(60)
        return write(*arguments)

    class Mixture(Hook):
        def after_step(self, state: TrainState, report: Any) -> None:
            weights[state.step] = source.mixture.weights.tolist()
            states[state.step] = source.mixture.cursors.tolist()

    monkeypatch.setattr(checkpointing, "write_snapshot", write_late)
    run_steps(loaded.runner, config, Mixture(), hook, gate, last_step=6, source=source)
    hook.wait()
    folder = tmp_path / "global_step4"
    assert_state(held(folder), plain[3])
    assert (counters(folder)["step"], counters(folder)["consumed_tokens"]) == (4, 192)
    mixture = json.loads((folder / "mixture.json").read_text())
    assert mixture["step"] == 4
    assert mixture["weights"] == weights[4] != weights[6]
    assert mixture["cursors"] == states[4] != states[6]
