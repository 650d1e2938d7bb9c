"""When a checkpoint is saved, counts and goes; and that the end is not measured twice."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.checkpoint.format import checkpoint_steps
from megatron.engine.state import TrainState
from tests.unit.checkpoint.test_checkpoint_saving import contents, make_saver, one_rank
from tests.unit.hooks.test_checkpoint_hook import Hook as SavingHook
from tests.unit.test_training_loop import EvaluatingRunner, evaluation_hook, run

pytestmark = pytest.mark.usefixtures(one_rank.__name__)


def test_latest_names_a_whole_checkpoint_at_every_moment(tmp_path, monkeypatch):
    make_saver(tmp_path).save(None, contents(10))
    rename, seen = os.replace, []

    def replace(source: Any, target: Any) -> None:
        rename(source, target)
        name = (tmp_path / "latest").read_text()
        seen.append((name, (tmp_path / name / "index.json").is_file()))

    monkeypatch.setattr(os, "replace", replace)
    make_saver(tmp_path).save(None, contents(20))
    assert all(is_whole for _, is_whole in seen)
    assert [name for name, _ in seen][-2:] == ["global_step10", "global_step20"]


@pytest.mark.parametrize(
    ("keep_last", "protected", "left"),
    [
        (None, [], [1, 2, 3, 4, 5]),
        (2, [], [4, 5]),
        (1, [2], [2, 5]),
        (2, [1, 4], [1, 3, 4, 5]),
        (9, [], [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_ones_stay_and_those_asked_for_by_name(keep_last, protected, left, tmp_path):
    saver = make_saver(tmp_path, keep_last=keep_last, protected_steps=frozenset(protected))
    for step in range(1, 6):
        saver.save(None, contents(step))
    assert checkpoint_steps(tmp_path) == left


def test_a_run_that_is_to_stop_is_saved_before_other_hooks_and_once():
    hook, report = SavingHook(), SimpleNamespace(lm_loss=2.0)
    hook.after_step(TrainState(step=3, stop=True), report)  # type: ignore[arg-type]
    assert hook.saved == [3]
    hook.at_end(TrainState(step=3, stop=True))
    assert hook.saved == [3]
    hook.at_end(TrainState(step=5))
    assert hook.saved == [3, 5]


def test_an_iteration_is_validated_once():
    logged: list[tuple[str, int]] = []
    runner = EvaluatingRunner()
    hook = evaluation_hook(runner, logged)
    hook.at_end(run(runner, hook, last_step=4))
    assert logged == [("validation", 2), ("validation", 4), ("test", 4)]
