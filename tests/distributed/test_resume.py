"""A run that is killed and restarted is the run that was never killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from megatron.checkpoint_format import CheckpointReader
from tests.distributed.runs import curve, kill_at, train, write_config
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
    for kind in ("fp32", "exp_avg", "exp_avg_sq"):
        assert_same_tensors(
            folder / f"killed/run/global_step{iterations}",
            folder / f"straight/run/global_step{iterations}",
            kind,
        )


def assert_same_tensors(one: Path, other: Path, kind: str) -> None:
    first, second = CheckpointReader(one), CheckpointReader(other)
    assert first.parameters.keys() == second.parameters.keys()
    for name in first.parameters:
        assert torch.equal(first.read_logical(name, kind), second.read_logical(name, kind)), name


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


LAYOUTS = {"single": (1, 0), "dp2-zero2": (2, 2), "dp2-zero3": (2, 3), "dp2-zero1": (2, 1)}


def continue_elsewhere(corpus, folder: Path, source: str, target: str, *, first: int, last: int):
    """Trains ``first`` iterations on one layout and goes on to ``last`` on another."""
    for name, stop in ((source, first), (target, last)):
        processes, stage = LAYOUTS[name]
        config = write_config(
            corpus,
            folder,
            processes=processes,
            zero_optimization={"stage": stage},
            train_iters=stop,
            lr_decay_iters=last,
            extra_save_iters=[stop, first],
        )
        train(config)
    return config


@pytest.mark.parametrize(
    ("source", "target"),
    [("dp2-zero2", "single"), ("single", "dp2-zero3"), ("dp2-zero3", "dp2-zero2")],
)
def test_a_checkpoint_continues_on_another_layout(corpus, tmp_path, source, target):
    straight = write_config(corpus, tmp_path / "straight", train_iters=26)
    train(straight)
    moved = continue_elsewhere(corpus, tmp_path / "moved", source, target, first=6, last=26)
    for (step, loss, *_), (_, expected, *_) in zip(curve(moved), curve(straight), strict=True):
        assert loss == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize("target", ["single", "dp2-zero1", "dp2-zero3"])
def test_loading_on_another_layout_keeps_every_bit(corpus, tmp_path, target):
    """The second run does nothing but load and save again."""
    processes, stage = LAYOUTS["dp2-zero2"]
    first = write_config(
        corpus,
        tmp_path / "a",
        processes=processes,
        zero_optimization={"stage": stage},
        train_iters=3,
    )
    train(first)
    processes, stage = LAYOUTS[target]
    second = write_config(
        corpus,
        tmp_path / "b",
        processes=processes,
        zero_optimization={"stage": stage},
        train_iters=3,
        load=str(tmp_path / "a/run"),
    )
    train(second)
    for kind in ("fp32", "exp_avg", "exp_avg_sq"):
        assert_same_tensors(tmp_path / "a/run/global_step3", tmp_path / "b/run/global_step3", kind)
