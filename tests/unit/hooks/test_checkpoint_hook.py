"""What is not saved, and what a run may not replace."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.engine.continuing import refuse_to_replace
from megatron.engine.state import TrainState
from megatron.hooks.checkpoint import CheckpointHook
from megatron.neox_arguments import ConfigError


class Hook(CheckpointHook):
    """Saves into a list every second step."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.warnings: list[str] = []
        engine = SimpleNamespace(engine=None, loss_scaler_state=lambda: None)
        mixture = SimpleNamespace(state_dict=dict)
        source = SimpleNamespace(samples_by_domain={})
        config = SimpleNamespace(
            saving=SimpleNamespace(
                save_path=None, is_save_step=lambda step, last_step: step % 2 == 0
            ),
            schedule=SimpleNamespace(train_iters=99),
            files={},
            to_dict=dict,
        )
        logger = SimpleNamespace(warning=lambda text, iteration: self.warnings.append(text))
        parts: tuple[Any, ...] = (engine, source, mixture, config, logger)
        super().__init__(*parts, moment_names=())
        saver: Any = SimpleNamespace(
            save=lambda _, contents: self.saved.append(contents.state.step), wait=lambda: None
        )
        self._saver = saver


def test_a_model_whose_loss_is_not_finite_takes_no_sound_checkpoints_place():
    hook, state = Hook(), TrainState()
    for step, loss in enumerate([2.0, 2.0, 2.0, math.nan, math.inf, 2.0, math.nan], start=1):
        state.step = step
        report: Any = SimpleNamespace(lm_loss=loss)
        hook.after_step(state, report)
    hook.at_end(state)
    assert hook.saved == [2, 6]
    assert hook.warnings == ["not saved: the loss is nan"] * 2


def refuse(save: Path, *, load: Path | None = None, step: int = 0, finetune: bool = False) -> None:
    config: Any = SimpleNamespace(saving=SimpleNamespace(save_path=str(save), finetune=finetune))
    loaded: Any = SimpleNamespace(state=TrainState(step=step), folder=load)
    refuse_to_replace(config, loaded)


def test_a_run_that_begins_anew_does_not_replace_another(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    (other / "global_step0").mkdir(parents=True)
    refuse(mine)  # not there yet
    (mine / "global_step0").mkdir(parents=True)
    refuse(mine)  # imported weights
    (mine / "global_step12").mkdir()
    with pytest.raises(ConfigError, match=r"save: .*mine contains checkpoints up to iteration 12"):
        refuse(mine)
    with pytest.raises(ConfigError, match="set load to it and remove finetune to continue"):
        refuse(mine, load=other / "global_step0", finetune=True)
    with pytest.raises(ConfigError, match="or name another folder"):
        refuse(mine, load=other / "global_step0")
    refuse(mine, load=mine / "global_step12", step=12)
    refuse(mine, load=mine / "global_step0")  # went back to the start
