"""Kinds of files of a checkpoint for `fuzz`: each makes a sound one and reads changed ones.

A kind is a function of an empty folder. It returns a function of a random generator that changes
the file and reads it as the programs do, to the end.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron.checkpoint.format import (
    CheckpointReader,
    latest_step,
    logical_tensors,
    read_content,
)
from megatron.checkpoint.index import file_facts, index_checksum
from megatron.checkpoint.network_comparison import network_problem
from megatron.checkpoint.verification import verify
from megatron.checkpointing import undo_interrupted_replacement
from megatron.engine.state import TrainState
from megatron.runtime import accelerator
from odm import Floor, MixtureController, MixtureSchedule, TrustRegion, known_mixers, make_mixer
from odm.json_data import SchemaError
from odm.methods import METHODS
from tools.checkpoints.single_process import find_source
from tools.freeze_mixture import changed_settings, control_values
from tools.freeze_mixture import read_run as read_finished_run
from tools.hf.importing import write_model_checkpoint
from tools.hf.network import parameter_infos
from tools.hf.run_facts import read_run
from tools.hf.settings import RunSettings, resolve_model_fields, settings_of

from .hostile import (
    HOSTILE,
    changed_bytes,
    changed_document,
    changed_json,
    changed_safetensors,
)

__all__ = [
    "DOMAINS",
    "KINDS",
    "Read",
    "checkpoint",
    "listed_again",
    "mixture",
    "train",
    "write_index",
]

Read = Callable[[random.Random], None]

DOMAINS = ("web", "code", "books")
REQUIRED_OPTIONS: dict[str, Any] = {
    "reference_losses": (2.0, 1.0, 2.5),
    "target_losses": (2.0, 1.0, 2.5),
    "transfer_matrix": ((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (0.25, 0.0, 1.0)),
}
FIELDS: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "seq_length": 8,
    "max_position_embeddings": 8,
    "pos_emb": "rotary",
    "rotary_pct": 0.5,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}


def mixture(method: str = "smoothed_mean", *, constrained: bool = False) -> MixtureController:
    """A mixture of three domains before its first step."""
    limits = [Floor(0.05), TrustRegion(max_kl=0.05)] if constrained else []
    schedule = MixtureSchedule(7, len(DOMAINS))
    options = {name: REQUIRED_OPTIONS[name] for name in METHODS[method].required}
    mixer = make_mixer(method, **options)
    return MixtureController(DOMAINS, mixer, schedule, limits, warmup_steps=2)


def train(controller: MixtureController, first: int, last: int) -> None:
    """Plans ahead and learns as training does, from the step ``first`` on."""
    controller.draw(first, 4)
    for step in range(first, last + 1):
        controller.draw(step + 1, 4)
        controller.observe(step, np.array([3.0, 1.5, 2.0]) + 1.0 / step)


def checkpoint(folder: Path) -> Path:
    """Writes a sound checkpoint with mixture, moments and random state below ``folder``."""
    config = resolve_model_fields(FIELDS)
    shape = RunSettings(config.to_dict()).shape(16)
    infos = parameter_infos(shape)
    values = {name: torch.full(info.shape, 0.25) for name, info in infos.items()}
    step = write_model_checkpoint(
        folder, shape, run_config=config, read=values.__getitem__, files={"run.yml": "a: 1\n"}
    )
    controller = mixture()
    train(controller, 1, 5)
    state = controller.state_dict(completed_step=5)
    counters = {**TrainState(5, 4, 20, 160, 0).state_dict()}
    scale = {"cur_scale": 2.0**16, "cur_iter": 5, "last_overflow_iter": -1, "cur_hysteresis": 2}
    run = {"counters": counters, "loss_scaler": scale, "config_files": ["run.yml"]}
    run["samples_per_epoch"] = dict.fromkeys(DOMAINS, 50)
    (step / "mixture.json").write_text(json.dumps(state))
    (step / "state.json").write_text(json.dumps(run))
    save_file(accelerator.rng_state(), step / "rng_00000.safetensors")
    listed_again(step)
    return step


def listed_again(folder: Path) -> None:
    """Lists all files of a checkpoint with the sizes and checksums that they have now."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    names = (entry for entry in folder.rglob("*") if entry.is_file() and entry != path)
    index["files"] = {str(name.relative_to(folder)): file_facts(name) for name in names}
    write_index(folder, index)


def write_index(folder: Path, index: Any) -> None:
    """Writes an index, sound or not, with the checksum of what it says."""
    if isinstance(index, dict):
        with contextlib.suppress(ValueError, TypeError):  # NaN, which has no checksum
            index["crc32"] = index_checksum(index)
    (folder / "index.json").write_text(json.dumps(index))


def _read_checkpoint(folder: Path) -> None:
    """Everything that a program may take from a checkpoint that was found sound."""
    verify(folder)
    list(logical_tensors(folder))
    TrainState().load_state_dict(read_content(folder, "state.json")["counters"])
    saved = read_content(folder, "mixture.json")
    if saved is not None:
        mixture().load_state_dict(saved)
    settings = settings_of(folder)
    shape = settings.shape(16)
    network_problem(shape, folder)
    read_run(folder)


def _index(folder: Path) -> Read:
    step = checkpoint(folder)
    sound = json.loads((step / "index.json").read_text())

    def read(rng: random.Random) -> None:
        if rng.random() < 0.8:
            write_index(step, changed_json({k: v for k, v in sound.items() if k != "crc32"}, rng))
        else:
            (step / "index.json").write_bytes(changed_document(sound, rng))
        verify(step)
        list(logical_tensors(step))

    return read


def _content(name: str) -> Callable[[Path], Read]:
    """A JSON file beside the index, listed with the checksum that it has after the change."""

    def make(folder: Path) -> Read:
        step = checkpoint(folder)
        sound = json.loads((step / name).read_text())
        index = json.loads((step / "index.json").read_text())

        def read(rng: random.Random) -> None:
            (step / name).write_bytes(changed_document(sound, rng))
            index["files"][name] = file_facts(step / name)
            write_index(step, index)
            _read_checkpoint(step)

        return read

    return make


def _tensors(name: str) -> Callable[[Path], Read]:
    """A safetensors file, listed with the checksum that it, or its header, has after the change."""

    def make(folder: Path) -> Read:
        step = checkpoint(folder)
        sound = (step / name).read_bytes()
        index = json.loads((step / "index.json").read_text())

        def read(rng: random.Random) -> None:
            content = changed_safetensors(sound, rng)
            (step / name).write_bytes(content)
            index["files"][name] = file_facts(step / name)
            if name.startswith("rank_") and rng.random() < 0.7:
                head = content[: 8 + int.from_bytes(content[:8], "little")]
                index["files"][name] = {"size": len(content), "header_crc32": zlib.crc32(head)}
            write_index(step, index)
            verify(step)
            if name.startswith("rng_"):
                before = accelerator.rng_state()
                accelerator.set_rng_state(CheckpointReader(step).random_state(0))
                accelerator.set_rng_state(before)
            list(logical_tensors(step))

        return read

    return make


def _latest(folder: Path) -> Read:
    checkpoint(folder)
    names = (b"global_step0", b"global_step5", b"global_step0.tmp", b"../x", b"9" * 5000)

    def read(rng: random.Random) -> None:
        name = rng.choice((*names, b"global_step" + b"9" * rng.choice((3, 18, 19, 300, 9000))))
        content = rng.choice(
            (name, changed_bytes(name, rng), str(rng.choice(HOSTILE)).encode("utf-8", "replace"))
        )
        (folder / "latest").write_bytes(content)
        latest_step(folder)
        undo_interrupted_replacement(folder)
        CheckpointReader(find_source(folder, None))

    return read


def _odm(folder: Path) -> Read:
    states = []
    for method in known_mixers():
        for constrained in (False, True):
            for steps in (0, 1, 9, 100):
                controller = mixture(method, constrained=constrained)
                if steps:
                    train(controller, 1, steps)
                state = controller.state_dict(completed_step=steps)
                states.append((method, constrained, json.loads(json.dumps(state))))

    def read(rng: random.Random) -> None:
        method, constrained, sound = rng.choice(states)
        state = changed_json(sound, rng)
        controller = mixture(method, constrained=constrained)
        before = controller.state_dict()
        try:
            controller.load_state_dict(copy.deepcopy(state))
        except SchemaError:
            assert controller.state_dict() == before
            raise
        except ValueError as error:  # limits that the saved weights cannot keep
            if str(error).startswith("constraints: "):
                raise SchemaError(str(error)) from error
            raise
        after = controller.state_dict()
        same = state["configuration"] == after["configuration"]
        for name in ("step", "cursors", "mixer", "weights", "proposal") if same else ("step",):
            assert after[name] == state[name], name
        first = state["step"] + 1
        train(controller, first, first + 2)
        assert np.isfinite(controller.weights).all()
        assert abs(controller.weights.sum() - 1.0) < 1e-9
        assert (controller.cursors >= 0).all()

    return read


def _control(folder: Path) -> Read:
    """What freeze_mixture reads of a checkpoint; the result is resolved, but not written."""
    step = checkpoint(folder)
    values: dict[str, Any] = {
        **FIELDS,
        "train_data_paths": [f"data/{name}/text" for name in DOMAINS],
        "split": "8, 1, 1",
        "data_sampling_method": "smoothed_mean",
        "data_sampling_max_weight": {"web": 0.9},
        "train_iters": 9,
        "train_batch_size": 4,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
        "tokenizer_type": "CharLevelTokenizer",
        "save": "run",
        "load": "run",
        "checkpoint_factor": 5,
    }
    (step / "configs" / "run.yml").write_text(json.dumps(values))
    names = ("state.json", "mixture.json", "configs/resolved.json", "configs/run.yml")
    sound = {name: json.loads((step / name).read_text()) for name in names}

    def read(rng: random.Random) -> None:
        for name, content in sound.items():
            (step / name).write_text(json.dumps(content))
        name = rng.choice(names)
        (step / name).write_bytes(changed_document(sound[name], rng))
        run = read_finished_run(step)
        changed_settings(run)
        for kind in ("uniform", "natural", "frozen"):
            control_values(run, kind, save=str(folder / "control"))

    return read


KINDS: dict[str, Callable[[Path], Read]] = {
    "index": _index,
    "latest": _latest,
    "state": _content("state.json"),
    "mixture": _content("mixture.json"),
    "resolved": _content("configs/resolved.json"),
    "control": _control,
    "rank": _tensors("rank_00000.safetensors"),
    "rng": _tensors("rng_00000.safetensors"),
    "odm": _odm,
}
"""Name of a kind -> makes the sound file in an empty folder and returns the case."""
