"""The profile of a few iterations: which ones, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.engine.state import TrainState
from megatron.hooks.profile import ProfileHook, profile_hooks
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.runtime import accelerator

MINIMAL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "train_iters": 9,
    "train_micro_batch_size_per_gpu": 2,
    "profile_step_start": 3,
    "profile_step_stop": 4,
}
NO_REPORT: Any = None


def hooks_of(folder: Path, said: list[str], *, rank: int = 0, **keys: Any) -> list[Any]:
    values = {**MINIMAL, "log_dir": str(folder), **keys}
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    return profile_hooks(config, rank, said.append)


def run(hook: Any, *, last_step: int, stop_at: int = 0) -> None:
    """Each iteration multiplies matrices whose size is its number."""
    state = TrainState()
    for step in range(1, last_step + 1):
        hook.before_step(step)
        state.step, state.stop = step, step == stop_at
        torch.mm(torch.ones(step, step), torch.ones(step, step))
        hook.after_step(state, NO_REPORT)
        if state.stop:
            break
    hook.at_end(state)


def multiplied(path: Path) -> list[int]:
    """Sizes of the matrices in a trace."""
    events = json.loads(path.read_text())["traceEvents"]
    own = [event for event in events if event.get("name") == "aten::mm"]
    return [event["args"]["Input Dims"][0][0] for event in own]


@pytest.mark.parametrize(
    ("last_step", "stop_at", "first", "last"), [(6, 0, 3, 4), (3, 0, 3, 3), (6, 3, 3, 3)]
)
def test_the_trace_has_the_iterations_that_were_asked_for(
    tmp_path, last_step, stop_at, first, last
):
    said: list[str] = []
    (hook,) = hooks_of(tmp_path, said, profile=True)
    run(hook, last_step=last_step, stop_at=stop_at)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == f"iterations_{first}_to_{last}.json"
    assert multiplied(path) == list(range(first, last + 1))
    assert said == [f"profile: wrote {path}"]


def test_the_trace_is_beside_the_curves_of_tensorboard(tmp_path):
    folder = tmp_path / "curves"
    (hook,) = hooks_of(tmp_path, [], profile=True, tensorboard_dir=str(folder))
    run(hook, last_step=4)
    assert len(list((folder / "profile").iterdir())) == 1


def test_a_run_that_continues_later_has_no_profile(tmp_path):
    (hook,) = hooks_of(tmp_path, [], profile=True)
    hook.before_step(7)
    hook.after_step(TrainState(step=7), NO_REPORT)
    assert not (tmp_path / "profile").exists()


def test_only_rank_0_profiles_and_only_if_asked(tmp_path):
    assert hooks_of(tmp_path, []) == []
    assert hooks_of(tmp_path, [], profile=True, rank=1) == []


def test_without_a_gpu_allocations_are_not_recorded(tmp_path):
    said: list[str] = []
    assert hooks_of(tmp_path, said, memory_profiling=True) == []
    assert said[0].startswith("memory_profiling: no effect")


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    run(ProfileHook((1, 1), tmp_path / "file/profile", None, said.append), last_step=2)
    assert "cannot be written" in said[0]
    assert "training continues" in said[0]


def test_allocations_of_a_gpu_are_recorded_and_written(tmp_path, monkeypatch):
    calls: list[Any] = []
    memory = SimpleNamespace(
        _record_memory_history=lambda **options: calls.append(options),
        _dump_snapshot=lambda path: Path(path).write_bytes(b"snapshot"),
    )
    monkeypatch.setattr(torch.cuda, "memory", memory)
    monkeypatch.setattr(accelerator, "name", lambda: "cuda")
    said: list[str] = []
    folder = tmp_path / "memory"
    keys = {"memory_profiling": True, "memory_profiling_path": str(folder)}
    (hook,) = hooks_of(tmp_path, said, **keys)
    run(hook, last_step=5)
    assert (folder / "memory_iterations_3_to_4.pickle").read_bytes() == b"snapshot"
    assert calls == [{"max_entries": 100_000}, {"enabled": None}]
