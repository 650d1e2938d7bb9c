"""A run that is killed and restarted is the run that was never killed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.many_runs import train_all
from tests.distributed.runs import assert_same_state, curve, kill_at, train, write_config
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def assert_killed_run_is_exact(
    corpus, folder: Path, *, kills: list[int], iterations: int, **options
):
    straight = write_config(corpus, folder / "straight", train_iters=iterations, **options)
    killed = write_config(
        corpus, folder / "killed", train_iters=iterations, checkpoint_factor=10, **options
    )
    train(straight)
    for iteration in kills:
        kill_at(killed, iteration)
    train(killed)
    assert curve(killed) == curve(straight)
    assert [step for step, *_ in curve(killed)] == list(range(1, iterations + 1))
    assert_same_state(
        folder / f"killed/run/global_step{iterations}",
        folder / f"straight/run/global_step{iterations}",
    )


def test_a_killed_run_resumes_bit_for_bit(corpus, tmp_path):
    assert_killed_run_is_exact(
        corpus, tmp_path, kills=[13, 27], iterations=40, processes=2, zero_optimization={"stage": 1}
    )


def test_a_killed_run_with_dropout_resumes_bit_for_bit(corpus, tmp_path):
    assert_killed_run_is_exact(
        corpus, tmp_path, kills=[15], iterations=30, hidden_dropout=0.1, attention_dropout=0.1
    )


@pytest.mark.slow
def test_a_kill_during_a_save_in_the_background_leaves_the_one_before(corpus, tmp_path):
    assert_killed_run_is_exact(
        corpus,
        tmp_path,
        kills=[11, 22, 31],
        iterations=40,
        processes=2,
        async_save=True,
        zero_optimization={"stage": 1},
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_three_kills_in_200_iterations_change_nothing(corpus, tmp_path, processes, stage):
    kills = sorted(random.Random(100 * stage + processes).sample(range(5, 195), 3))
    assert_killed_run_is_exact(
        corpus,
        tmp_path,
        kills=kills,
        iterations=200,
        processes=processes,
        zero_optimization={"stage": stage},
    )


# from one layout to another


@pytest.fixture(scope="module")
def moved(corpus, tmp_path_factory) -> Path:
    """Runs in as few processes as layouts allow; those named ``x-y`` go on with the run x as y."""
    folder = tmp_path_factory.mktemp("moved")

    def stage(number: int) -> dict[str, Any]:
        return {"zero_optimization": {"stage": number}, "lr_decay_iters": 26}

    def load(name: str) -> dict[str, str]:
        return {"load": str(folder / name / "run")}

    train_all(
        corpus,
        folder,
        1,
        {
            "straight": {**stage(0), "train_iters": 26},
            "single": {**stage(0), "train_iters": 6},
        },
    )
    train_all(
        corpus,
        folder,
        2,
        {
            "zero2": {**stage(2), "train_iters": 6},
            "zero3": {**stage(3), "train_iters": 6},
            "single-zero3": {**stage(3), "train_iters": 26, **load("single")},
            "zero3-zero2": {**stage(2), "train_iters": 26, **load("zero3")},
            # nothing but load and save again
            "zero2-resaved-zero1": {**stage(1), "train_iters": 6, **load("zero2")},
            "zero2-resaved-zero3": {**stage(3), "train_iters": 6, **load("zero2")},
        },
    )
    train_all(
        corpus,
        folder,
        1,
        {
            "zero2-single": {**stage(0), "train_iters": 26, **load("zero2")},
            "zero2-resaved-single": {**stage(0), "train_iters": 6, **load("zero2")},
        },
    )
    return folder


@pytest.mark.parametrize("name", ["zero2-single", "single-zero3", "zero3-zero2"])
def test_a_checkpoint_continues_on_another_layout(moved, name):
    got, want = curve(moved / name / "run.yml"), curve(moved / "straight/run.yml")
    assert [step for step, *_ in got] == list(range(7, 27))
    for (step, loss, *_), (_, expected, *_) in zip(got, want[6:], strict=True):
        assert loss == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize("target", ["single", "zero1", "zero3"])
def test_loading_on_another_layout_keeps_every_bit(moved, target):
    resaved = moved / f"zero2-resaved-{target}/run/global_step6"
    assert_same_state(moved / "zero2/run/global_step6", resaved)
