"""The loop with an engine that is made up: what it refuses to go on with, and what it stops for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.engine import runners
from megatron.engine.domain_sums import DomainSums
from megatron.engine.runners import StepResult
from megatron.engine.state import TrainState
from megatron.errors import EvaluationStopped
from megatron.evaluation.losses import evaluate_domains
from megatron.hooks.base import Hook, StepReport
from megatron.hooks.evaluation import EvaluationHook
from megatron.hooks.logging import LoggingHook, update_fields
from megatron.reporting.records import train_scalars
from megatron.training import MAX_CONSECUTIVE_SKIPS, train
from odm import Floor, MixtureController, MixtureSchedule, Signal, TrustRegion
from tests.process_group import process_group_of_one

DOMAINS = ("web", "code")


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group_of_one():
        yield


class Source:
    """Batches of eight samples, which are the plan itself."""

    seq_length = 4
    samples_per_epoch = 100

    def __init__(self, batch_size: int = 8) -> None:
        self.global_batch_size = batch_size

    def batches(self, draw: Any) -> Any:
        return draw


class Runner:
    """Losses of 2.0, and what a test puts in their place at a step."""

    loss_scale = None

    def __init__(self, **at_step: Any) -> None:
        self.at_step = at_step

    def set_learning_rate(self, learning_rate: float) -> None:
        pass

    def train_step(self, draw: Any) -> StepResult:
        odd = self.at_step if draw.step == self.at_step.get("step", 3) else {}
        counts = torch.tensor([float((draw.domains == k).sum()) for k in range(2)]).double()
        losses = torch.tensor([2.0, odd.get("loss", 2.0)], dtype=torch.float64)
        loss_sums = losses * counts
        return StepResult(
            sums=DomainSums(
                loss_sum=loss_sums,
                loss_sq_sum=losses * loss_sums,
                token_count=counts,
                sample_count=counts,
                total=torch.stack((loss_sums.sum(), counts.sum())),
            ),
            grad_norm=odd.get("grad_norm", 1.0),
            skipped=odd.get("skipped", False),
        )


class Seen(Hook):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def after_step(self, state: TrainState, report: Any) -> None:
        self.steps.append(state.step)


def run(runner: Any, *hooks: Hook, last_step: int = 5, **options: Any) -> TrainState:
    mixture = MixtureController(DOMAINS, "smoothed_mean", MixtureSchedule(1, 2))
    source: Any = Source()
    return train(
        runner,
        source,
        mixture,
        hooks,
        TrainState(),
        last_step=last_step,
        learning_rate_of=lambda step: 0.1,
        **options,
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(loss):
    seen = Seen()
    with pytest.raises(FloatingPointError, match=rf"iteration 3: the loss is {loss} .*: code\)"):
        run(Runner(loss=loss), seen)
    assert seen.steps == [1, 2]


@pytest.mark.parametrize("grad_norm", [math.nan, math.inf, -1.0, torch.tensor(math.nan)])
def test_so_do_gradients_that_are_not_finite(grad_norm):
    seen = Seen()
    with pytest.raises(FloatingPointError, match="iteration 3: the loss is 2, but its gradients"):
        run(Runner(grad_norm=grad_norm), seen)
    assert seen.steps == [1, 2]


def test_the_end_of_a_diverged_run_names_the_checkpoints_that_are_sound():
    with pytest.raises(FloatingPointError, match="up to iteration 1 are sound: continue from one"):
        run(Runner(loss=math.nan))  # step 2 still saw what step 1 had left
    with pytest.raises(FloatingPointError, match="up to iteration 2 are sound"):
        run(Runner(grad_norm=math.nan))
    with pytest.raises(FloatingPointError, match="diverged; start again with a lower"):
        run(Runner(step=2, loss=math.nan))
    with pytest.raises(FloatingPointError, match="no loss since this program started was finite"):
        run(Runner(step=1, loss=math.nan))


def test_a_run_whose_last_step_has_no_finite_loss_is_no_finished_run():
    with pytest.raises(FloatingPointError, match="iteration 3: the loss is nan"):
        run(Runner(skipped=True, loss=math.nan), last_step=3)
    assert run(Runner(skipped=True, grad_norm=math.inf), last_step=3).step == 3


def test_an_exit_interval_leaves_the_hooks_their_step_and_is_none_at_the_end():
    class Stops(Seen):
        def after_step(self, state: TrainState, report: Any) -> None:
            super().after_step(state, report)
            assert not state.stop

    seen = Stops()
    state = run(Runner(), seen, last_step=6, exit_interval=4)
    assert state.stop
    assert seen.steps == [1, 2, 3, 4]
    assert not run(Runner(), seen, last_step=6, exit_interval=6).stop


@pytest.mark.parametrize("odd", [{"loss": math.nan}, {"grad_norm": math.inf}])
def test_a_step_that_the_optimizer_skipped_spoils_nothing(odd):
    seen = Seen()
    state = run(Runner(skipped=True, **odd), seen)
    assert seen.steps == [1, 2, 3, 4, 5]
    assert state.applied_steps == 4


def test_a_run_whose_every_step_is_skipped_ends():
    runner = Runner()
    step = runner.train_step

    def skip(draw: Any) -> StepResult:
        return StepResult(step(draw).sums, math.inf, skipped=True)

    runner.train_step = skip  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=f"of {MAX_CONSECUTIVE_SKIPS} steps in a row"):
        run(runner, last_step=1000)


# evaluation


class EvaluationSource:
    domains = DOMAINS
    num_samples = (4, 4)
    text_bytes_per_token = (None, None)

    def num_batches(self, domain_id: int) -> int:
        return 4

    def batches(self, domain_id: int) -> Iterator[int]:
        return iter([domain_id] * 4)


class EvaluatingRunner(Runner):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.evaluated = 0

    def evaluate(self, batches: Any, recorder: Any) -> None:
        for _ in batches:
            self.evaluated += 1


def evaluation_hook(runner: Any, logged: list[tuple[str, int]]) -> EvaluationHook:
    logger: Any = SimpleNamespace(
        say=lambda text: None, evaluation=lambda name, step, *_: logged.append((name, step))
    )
    source: Any = EvaluationSource()
    return EvaluationHook(runner, logger, validation=source, test=source, interval=2)


def test_a_request_to_stop_ends_an_evaluation_between_two_batches(monkeypatch):
    runner, seen = EvaluatingRunner(), Seen()
    logged: list[tuple[str, int]] = []
    # asked to stop in the second validation, which begins after 8 batches
    monkeypatch.setattr(runners, "stop_requested", lambda: runner.evaluated >= 11)
    hook = evaluation_hook(runner, logged)
    state = run(runner, hook, seen)
    assert (runner.evaluated, logged) == (11, [("validation", 2)])
    assert state.stop
    assert seen.steps == [1, 2, 3, 4]
    hook.at_end(state)
    assert runner.evaluated == 11


def test_a_run_that_is_not_stopped_is_validated_and_tested(monkeypatch):
    runner = EvaluatingRunner()
    logged: list[tuple[str, int]] = []
    hook = evaluation_hook(runner, logged)
    hook.at_end(run(runner, hook))
    assert logged == [("validation", 2), ("validation", 4), ("validation", 5), ("test", 5)]


def test_an_evaluation_that_nobody_may_stop_asks_nobody():
    runner: Any = EvaluatingRunner()
    source: Any = EvaluationSource()
    assert set(evaluate_domains(runner, source)) == set(DOMAINS)
    with pytest.raises(EvaluationStopped):
        evaluate_domains(runner, source, should_stop=lambda: True)


# what is logged


def test_shares_of_batches_stay_true_when_the_batch_size_changes():
    mixture = MixtureController(DOMAINS, "static", MixtureSchedule(1, 2))
    records: list[Any] = []
    logger: Any = SimpleNamespace(train=records.append)
    state = TrainState()
    for batch_size, last_step in ((4, 10), (16, 12)):
        source: Any = Source(batch_size)
        hook = LoggingHook(logger, source, mixture, interval=1)
        runner: Any = Runner()
        train(
            runner,
            source,
            mixture,
            [hook],
            state,
            last_step=last_step,
            learning_rate_of=lambda step: 0.1,
        )
    assert [sum(record.iterations.values()) for record in records] == pytest.approx(range(1, 13))


def logged_records(
    interval: int, last_step: int, *, stop_at: int | None = None, hook_seconds: float = 0.0
) -> list[Any]:
    """Runs a training and returns its records."""
    mixture = MixtureController(DOMAINS, "static", MixtureSchedule(1, 2))
    records: list[Any] = []
    logger: Any = SimpleNamespace(train=records.append)
    source: Any = Source()
    runner: Any = Runner()
    hook = LoggingHook(logger, source, mixture, interval=interval)

    class Slow(Hook):
        def after_step(self, state, report):
            time.sleep(hook_seconds)

    state = train(
        runner,
        source,
        mixture,
        [hook, Slow()],
        TrainState(),
        last_step=last_step,
        learning_rate_of=lambda step: 0.1,
        exit_interval=stop_at,
    )
    hook.at_end(state)
    return records


@pytest.mark.parametrize(
    ("interval", "last_step", "stop_at", "logged"),
    [
        (4, 10, None, [4, 8, 10]),
        (5, 10, None, [5, 10]),
        (100, 3, None, [3]),
        (4, 10, 6, [4, 6]),
        (1, 2, None, [1, 2]),
    ],
)
def test_the_last_iteration_is_logged_whatever_the_interval(interval, last_step, stop_at, logged):
    records = logged_records(interval, last_step, stop_at=stop_at)
    assert [record.iteration for record in records] == logged


def logged_updates(
    method: str, *, interval: int, frequency: int = 1, last_step: int = 12, warmup: int = 0
) -> tuple[list[int], dict[int, dict[str, Any]]]:
    """Runs a training with two limits; returns the iterations logged and the updates logged."""
    limits = [Floor((0.6, 0.0)), TrustRegion(max_total_variation=0.05)]
    mixture = MixtureController(
        DOMAINS,
        method,
        MixtureSchedule(1, 2),
        limits,
        update_frequency=frequency,
        warmup_steps=warmup,
    )
    records: list[Any] = []
    updates: dict[int, dict[str, Any]] = {}
    logger: Any = SimpleNamespace(train=records.append, update=updates.__setitem__)
    source: Any = Source()
    runner: Any = Runner()
    train(
        runner,
        source,
        mixture,
        [LoggingHook(logger, source, mixture, interval=interval)],
        TrainState(),
        last_step=last_step,
        learning_rate_of=lambda step: 0.1,
    )
    return [record.iteration for record in records], updates


@pytest.mark.parametrize(
    ("interval", "frequency", "logged"),
    [
        (1, 1, [*range(1, 13)]),
        (1, 5, [5, 10]),
        (4, 1, [4, 8, 12]),
        (4, 6, [6, 12]),
        (5, 3, [6, 12]),
        (100, 3, []),
    ],
)
def test_updates_are_logged_as_often_as_iterations_at_most(interval, frequency, logged):
    assert list(logged_updates("ema", interval=interval, frequency=frequency)[1]) == logged


def test_an_update_is_logged_with_its_proposal_and_what_the_limits_did():
    _, updates = logged_updates("ema", interval=4, frequency=6)
    assert list(updates[6]) == ["losses", "tokens", "proposal", "weights", "limits"]
    for values in (updates[6]["proposal"], updates[6]["weights"]):
        assert list(values) == list(DOMAINS)
        assert sum(values.values()) == pytest.approx(1)
    assert list(updates[6]["limits"]) == ["floor", "trust_region"]
    assert updates[6]["limits"]["floor"] == [DOMAINS[0]]
    assert 0 < updates[6]["limits"]["trust_region"] <= 1
    assert list(updates[12]) == ["proposal", "weights", "limits"]  # iteration 12 has its own line


def test_there_is_no_update_in_the_warm_up_or_of_weights_that_never_move():
    assert list(logged_updates("ema", interval=1, warmup=10)[1]) == [11, 12]
    assert logged_updates("static", interval=1) == ([*range(1, 13)], {})


def test_the_effects_of_limits_name_domains():
    limits = {"order": ["floor"], "floor": [1], "groups": ["all code"], "guard": {"gain": 0.5}}
    decision = {"proposal": [0.5, 0.5], "weights_after": [0.5, 0.5], "constraints": limits}
    assert update_fields(decision, ["web", "code"], tokens=None) == {
        "proposal": {"web": 0.5, "code": 0.5},
        "limits": {"floor": ["code"], "groups": ["all code"], "guard": {"gain": 0.5}},
    }
    decision["constraints"] = {}
    assert list(update_fields(decision, ["web", "code"], tokens=None)) == ["proposal"]


def test_the_last_iteration_is_logged_before_other_hooks_save_and_evaluate():
    mixture = MixtureController(DOMAINS, "static", MixtureSchedule(1, 2))
    calls: list[Any] = []
    logger: Any = SimpleNamespace(train=lambda record: calls.append(f"log {record.iteration}"))
    source: Any = Source()
    runner: Any = Runner()

    class Save(Hook):
        def after_step(self, state, report):
            calls.append(f"save {state.step}")

    train(
        runner,
        source,
        mixture,
        [LoggingHook(logger, source, mixture, interval=2, last_step=3), Save()],
        TrainState(),
        last_step=3,
        learning_rate_of=lambda step: 0.1,
    )
    assert calls == ["save 1", "log 2", "save 2", "log 3", "save 3"]


def test_a_record_holds_the_last_losses_and_their_means_since_the_record_before():
    mixture = MixtureController(DOMAINS, "static", MixtureSchedule(1, 2))
    records: list[Any] = []
    logger: Any = SimpleNamespace(train=records.append)
    source: Any = Source()
    hook = LoggingHook(logger, source, mixture, interval=2)
    state = TrainState(consumed_samples=8)
    steps = (([5.0, 1.0], [4, 4]), ([3.0, 0.0], [12, 0]), ([2.0, 0.0], [4, 0]), ([4.0, 0], [4, 0]))
    for losses, counts in steps:
        state.step += 1
        report = StepReport(
            draw=mixture.draw(state.step, 8),
            weights=mixture.weights,
            signal=Signal.from_means(losses, counts),
            lm_loss=1.0,
            grad_norm=None,
            learning_rate=0.1,
            loss_scale=None,
            skipped=False,
            seconds=2.0,
            step_seconds=1.0,
        )
        mixture.observe(state.step, report.signal)
        hook.after_step(state, report)
    assert [record.losses for record in records] == [
        {"web": 3.0, "code": None},
        {"web": 4.0, "code": None},
    ]
    assert [record.mean_losses for record in records] == [
        {"web": 3.5, "code": 1.0},
        {"web": 3.0, "code": None},
    ]
    assert [(record.seconds, record.step_seconds) for record in records] == [(2.0, 1.0)] * 2


def test_the_time_of_a_step_leaves_out_what_hooks_do():
    record = logged_records(4, 4, hook_seconds=0.05)[0]
    assert record.seconds > 0.035  # three pauses in four iterations
    assert record.step_seconds < 0.02


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("smoothed_mean", "train/_estimated_reward"),
        ("odm_paper", "train/_estimated_reward"),
        ("exp3", "train/_cumulative_estimated_reward"),
        ("ema", "train/weights"),
        ("static", None),
    ],
)
def test_the_estimate_of_each_method_has_the_name_of_the_research_code(method, name):
    mixture = MixtureController(DOMAINS, method, MixtureSchedule(1, 2))
    records: list[Any] = []
    logger: Any = SimpleNamespace(train=records.append, update=lambda step, fields: None)
    source: Any = Source()
    runner: Any = Runner()
    train(
        runner,
        source,
        mixture,
        [LoggingHook(logger, source, mixture, interval=1)],
        TrainState(),
        last_step=1,
        learning_rate_of=lambda step: 0.1,
    )
    scalars = train_scalars(records[-1], flops_per_second=None)
    prefixes = {metric.rpartition("/")[0] for metric in scalars if metric.count("/") == 2}
    always = {f"train/{what}" for what in ("loss", "iterations", "epochs", "_probabilities")}
    assert prefixes - always - {"train/percent"} == ({name} if name else set())
