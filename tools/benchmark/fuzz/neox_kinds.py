"""Damaged checkpoints of GPT-NeoX for `fuzz`; see `state_kinds`."""

from __future__ import annotations

import copy
import io
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.neox.run_state import network_of_args_problem
from megatron.checkpoint.opening import load_run_state, saved_configuration, verify_files
from megatron.engine.state import TrainState
from megatron.sizing.model_shape import ModelShape
from tools.checkpoints.single_process import find_source
from tools.hf.network import check_parameters, parameter_infos
from tools.hf.settings import RunSettings, resolve_model_fields

from .hostile import HOSTILE, changed_bytes
from .state_kinds import FIELDS, Read

__all__ = ["KINDS"]

PARTS = 2
VOCAB_SIZE = 16


def _tensor_changes(tensor: Tensor, rng: random.Random) -> Any:
    """A tensor of another shape, kind or content, or no tensor."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: tensor.flatten(),
        lambda: tensor[:1].clone(),
        lambda: tensor.new_zeros(()),
        lambda: tensor.new_zeros((0, 3)),
        lambda: tensor[:1].expand(1 << 20, *tensor.shape[1:]),  # large, but small in the file
        lambda: tensor.half(),
        lambda: tensor.double(),
        lambda: tensor.to(torch.int64),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to_sparse(),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: torch.full_like(tensor, float("nan")),
        lambda: tensor.t() if tensor.dim() == 2 else tensor,
        lambda: torch.nn.Parameter(tensor.clone()),
        lambda: rng.choice(HOSTILE),
    )
    return rng.choice(makers)()


def _changed(value: Any, rng: random.Random) -> Any:
    """Copies nested data with a change at a random place."""
    if isinstance(value, Tensor):
        return _tensor_changes(value, rng)
    if not isinstance(value, (dict, list, tuple)) or not value or rng.random() < 0.05:
        return rng.choice(HOSTILE)
    result: Any = list(value) if isinstance(value, (list, tuple)) else copy.copy(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    action = rng.random()
    if action < 0.8:
        result[key] = _changed(value[key], rng)
    elif action < 0.9:
        del result[key]
    elif isinstance(value, dict):
        result[rng.choice(("0.x", "sequential.0.x", 7, None, "x" * 500, "\ud800"))] = value[key]
    else:
        result.insert(0, value[key])
    return result


def _saved(value: Any, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=rng.random() < 0.8)
    return stream.getvalue()


def _files(shape: ModelShape, *, stages: bool) -> dict[str, Any]:
    """Name -> content of the files of a sound checkpoint with optimizer states of ZeRO 1."""
    files: dict[str, Any] = {}
    for part in range(PARTS):
        layers: dict[int, dict[str, Tensor]] = {}
        for name, info in parameter_infos(shape).items():
            number, _, local = name.partition(".")
            whole = torch.full(info.shape, 0.25)
            own = whole if info.tp_dim is None else whole.chunk(PARTS, info.tp_dim)[part]
            layers.setdefault(int(number), OrderedDict())[local] = own.clone()
        module = OrderedDict(
            (f"sequential.{number}.{name}", tensor)
            for number, layer in layers.items()
            for name, tensor in layer.items()
        )
        flat = torch.cat([tensor.flatten() for tensor in module.values()])
        files[f"mp_rank_{part:02d}_model_states.pt"] = {
            "module": None if stages else module,
            "iteration": 5,
            "skipped_steps": 1,
            "global_samples": 20,
            "args": {"num_layers": shape.num_layers, "hidden_size": shape.hidden_size},
            "lr_scheduler": {
                **{"start_lr": 0.1, "min_lr": 0.0, "warmup_iter": 1.0},
                **{"end_iter": 9, "decay_style": "cosine"},
            },
            "param_shapes": [OrderedDict((n, t.shape) for n, t in module.items())],
        }
        moments = {"exp_avg": flat.clone(), "exp_avg_sq": flat.clone(), "step": 4}
        states = {
            "base_optimizer_state": {"state": {0: moments}, "param_groups": [{"params": [0]}]},
            "single_partition_of_fp32_groups": [flat],
            "partition_count": [1],
        }
        name = f"zero_pp_rank_0_mp_rank_{part:02d}_optim_states.pt"
        files[name] = {"optimizer_state_dict": states}
        for number, layer in layers.items() if stages else ():
            files[f"layer_{number:02d}-model_{part:02d}-model_states.pt"] = layer
    return files


def _read_all(step: Path, shape: ModelShape) -> None:
    """Everything that a program may take from such a folder."""
    verify_files(find_source(step.parent, None, reads_neox=True))
    network_of_args_problem(step, shape)
    reader = NeoxReader(step, shape, with_optimizer=True)
    check_parameters(step, reader.shapes, parameter_infos(shape))
    for name in reader.shapes:
        for kind in ("fp32", *reader.moment_names):
            tensor = reader.read_logical(name, kind)
            assert tensor.dtype == torch.float32
            assert tuple(tensor.shape) == reader.shapes[name]
    state, _ = load_run_state(step, seq_length=8)
    TrainState().load_state_dict(state["counters"])
    saved_configuration(step)


def _neox_checkpoint(folder: Path) -> Read:
    shape = RunSettings(resolve_model_fields({**FIELDS, "no_weight_tying": True}).to_dict())
    network = shape.shape(VOCAB_SIZE)
    forms = [_files(network, stages=stages) for stages in (True, False)]
    step = folder / "global_step5"

    def read(rng: random.Random) -> None:
        shutil.rmtree(step, ignore_errors=True)
        step.mkdir()
        files = rng.choice(forms)
        for name, content in files.items():
            torch.save(content, step / name)
        name, other = rng.choice(list(files)), rng.choice(list(files))
        action = rng.random()
        if action < 0.6:
            (step / name).write_bytes(_saved(_changed(files[name], rng), rng))
        elif action < 0.85:
            (step / name).write_bytes(changed_bytes((step / name).read_bytes(), rng))
        elif action < 0.9:
            (step / name).unlink()
        elif action < 0.95:
            shutil.copyfile(step / name, step / other) if name != other else None
        elif action < 0.98:
            (step / name).rename(step / rng.choice((f"x{name}", other, name.replace("0", "7"))))
        _read_all(step, network)

    return read


KINDS: dict[str, Callable[[Path], Read]] = {"neox_checkpoint": _neox_checkpoint}
"""As in `state_kinds`."""
