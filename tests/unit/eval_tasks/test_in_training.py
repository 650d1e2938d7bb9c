"""What ends lm-eval tasks in a training run, and what becomes of the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.engine.state import TrainState
from megatron.errors import EvaluationStopped
from megatron.eval_tasks import in_training
from megatron.eval_tasks.in_training import TaskEvaluationHook


class Said:
    """Stands in for the run's logger."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, message: str, *, iteration: int) -> None:
        self.lines.append(f"warning at {iteration}: {message}")

    def tasks(self, iteration: int, results: dict[str, Any], *, table: str) -> None:
        self.lines += [f"scores at {iteration}: {task} {own}" for task, own in results.items()]


@pytest.fixture
def broken_off(monkeypatch):
    """Evaluates after step 2 with tasks that raise; returns state, lines and a way to go on."""

    def run(outcome: Any) -> tuple[TrainState, list[str], TaskEvaluationHook]:
        def ask(adapter, config, tasks):
            torch.rand(3)  # as an evaluation that samples
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(in_training, "run_tasks", ask)
        monkeypatch.setattr(in_training, "results_table", lambda results: "")
        monkeypatch.setattr(in_training, "make_adapter", lambda *args, **options: None)
        said = Said()
        module = torch.nn.Linear(2, 2).train()
        runner: Any = SimpleNamespace(engine=SimpleNamespace(module=module), topology=None)
        config: Any = SimpleNamespace(
            evaluation=SimpleNamespace(tasks_interval=2),
            layout=SimpleNamespace(pipe_parallel_size=1, zero_stage=0, sequence_parallel=False),
            logging=SimpleNamespace(log_dir=None),
        )
        nothing: Any = None
        logger: Any = said
        hook = TaskEvaluationHook(runner, config, nothing, nothing, logger)
        state = TrainState()
        state.step = 2
        before = torch.random.get_rng_state()
        hook.after_step(state, nothing)
        assert module.training
        assert torch.equal(torch.random.get_rng_state(), before)
        return state, said.lines, hook

    return run


def test_broken_off_tasks_stop_the_run_and_leave_the_model_in_training(broken_off):
    state, said, hook = broken_off(EvaluationStopped())
    assert state.stop
    assert said == [" tasks at iteration 2 stopped: the run was asked to stop"]
    hook.at_end(state)  # not again
    assert len(said) == 1


@pytest.mark.parametrize("others", [{}, {"good": {"acc,none": 0.5}}])
def test_a_task_that_fails_is_a_warning_and_training_goes_on(broken_off, others):
    failed = {"long": "loglikelihood: an ending has 65 tokens"}
    state, said, hook = broken_off({"results": others, "failed_tasks": failed})
    assert not state.stop
    assert said == [
        "warning at 2: eval_tasks: long: loglikelihood: an ending has 65 tokens; training "
        "continues without its scores",
        *(f"scores at 2: {task} {{'acc': 0.5}}" for task in others),
    ]
    hook.at_end(state)  # the same iteration: not again
    assert len(said) == 1 + len(others)


@pytest.mark.parametrize(
    ("measured", "runs"),
    [({"piqa": {}, "arc": {}}, False), ({"piqa": {}}, True), ({}, True)],
)
def test_a_finished_run_asks_again_only_what_its_log_does_not_hold(monkeypatch, measured, runs):
    asked: list[int] = []
    monkeypatch.setattr(TaskEvaluationHook, "_make_reading_topology", lambda self: None)
    monkeypatch.setattr(TaskEvaluationHook, "_run", lambda self, state: asked.append(state.step))
    nothing: Any = None
    tasks: Any = {"tasks": {"piqa": None, "arc": None}}
    logger: Any = Said()
    log = {"tasks": {"iteration": 5, "results": measured}} if measured else {}
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(tasks_interval=2))
    hook = TaskEvaluationHook(nothing, config, nothing, tasks, logger, measured=log)
    hook.at_end(TrainState(step=5))
    assert asked == ([5] if runs else [])
    assert len(logger.lines) == (0 if runs else 1)
    hook.at_end(TrainState(step=6))  # what the log has is of iteration 5
    assert asked[-1] == 6


@pytest.mark.parametrize(
    ("step", "measured", "runs"),
    [
        (4, {}, True),
        (4, {"tasks": {"iteration": 4, "results": {"piqa": {}}}}, False),
        (4, {"tasks": {"iteration": 2, "results": {"piqa": {}}}}, True),
        (4, None, False),
        (5, {}, False),
        (0, {}, False),
    ],
)
def test_tasks_that_a_kill_lost_run_first(monkeypatch, step, measured, runs):
    asked: list[int] = []
    monkeypatch.setattr(TaskEvaluationHook, "_make_reading_topology", lambda self: None)
    monkeypatch.setattr(TaskEvaluationHook, "_run", lambda self, state: asked.append(state.step))
    nothing: Any = None
    tasks: Any = {"tasks": {"piqa": None}}
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(tasks_interval=2))
    hook = TaskEvaluationHook(nothing, config, nothing, tasks, nothing, measured=measured)
    hook.at_start(TrainState(step=step))
    assert asked == ([step] if runs else [])
