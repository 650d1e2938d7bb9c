"""Kinds of data files, run logs and imported models for `fuzz`; see `state_kinds`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron.checkpoint.verification import verify
from megatron.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from megatron.data.metadata import (
    DatasetMetadata,
    TokenizerIdentity,
    metadata_path,
    read_metadata,
    write_metadata,
)
from megatron.errors import CheckpointError
from megatron.sizing.model_shape import ModelShape
from odm.json_data import SchemaError
from odm.replay import main as replay_main
from tools.compare_runs import report
from tools.hf.families import FAMILIES
from tools.hf.importing import convert_from_hf
from tools.hf.network import parameter_infos
from tools.hf.settings import RunSettings, resolve_model_fields
from tools.hf.weight_files import WeightFiles
from tools.learning_curves import fit_curves
from tools.plot_mixture import read_history
from tools.run_comparison import compare, read_curves

from .hostile import (
    HOSTILE,
    changed_bytes,
    changed_document,
    changed_json,
    changed_safetensors,
)
from .state_kinds import DOMAINS, Read, mixture

__all__ = ["KINDS", "model_folder"]

_LLAMA = {
    **{"norm": "rmsnorm", "activation": "swiglu", "mlp_inner_size": 12, "num_kv_heads": 1},
    **{"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "no_weight_tying": True},
}
_SCALED = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 4,
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_neox": {"rotary_pct": 0.5, "no_weight_tying": True, "gpt_j_residual": True},
    "llama": {**_LLAMA, "rope_scaling": _SCALED},
    "mistral": {**_LLAMA, "head_dim": 6},
    "qwen2": {
        **{**_LLAMA, "no_weight_tying": False},
        **{"use_bias_in_attn_linear": True, "use_bias_in_attn_output": False},
    },
    "qwen3": {**_LLAMA, "head_dim": 6, "qk_norm": "head"},
}
"""A tiny network of each family."""
_SIZES = {
    **{"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "pos_emb": "rotary"},
    **{"max_position_embeddings": 8, "seq_length": 8},
}


def _metadata(folder: Path) -> Read:
    prefix = folder / "data"
    identity = TokenizerIdentity("HFTokenizer", 8000, "ab" * 32)
    write_metadata(prefix, DatasetMetadata(2, 10, 37, 7999, identity))
    sound = json.loads(metadata_path(prefix).read_text())

    def read(rng: random.Random) -> None:
        metadata_path(prefix).write_bytes(changed_document(sound, rng))
        metadata = read_metadata(prefix)
        assert metadata is not None
        assert metadata.max_token_id < 2**63
        assert metadata.text_bytes / max(1, metadata.tokens) >= 0
        assert isinstance(metadata.tokenizer.type, str)

    return read


def _data(folder: Path) -> Read:
    data, index = folder / "data.bin", folder / "data.idx"
    builder = MMapIndexedDatasetBuilder(data, np.uint16)
    for size in (3, 0, 5, 1):
        builder.add_item(np.arange(size))
        builder.end_document()
    builder.finalize(index)
    sound = {path: path.read_bytes() for path in (data, index)}

    def read(rng: random.Random) -> None:
        for path, content in sound.items():
            path.write_bytes(content)
        path = rng.choice((index, index, index, data))
        content = changed_bytes(sound[path], rng)
        if path == index and rng.random() < 0.6:
            place = rng.choice((9, 17, 18, 26, *range(34, len(sound[path]) - 8, 4)))
            number = rng.choice((0, 1, 2, 5, 8, 255, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)))
            packed = struct.pack("<Q", number)[: rng.choice((1, 4, 8))]
            content = sound[path][:place] + packed + sound[path][place + len(packed) :]
        path.write_bytes(content)
        dataset = MMapIndexedDataset(folder / "data")
        assert sum(len(item) for item in dataset[:]) == len(dataset.tokens)
        assert dataset.doc_idx[-1] == len(dataset)

    return read


def _log_lines() -> list[dict[str, Any]]:
    controller = mixture()
    described = controller.describe()
    facts = {"train_iters": 6, "tokenizer": "ab" * 32, "settings": {"model": "0a", "mixing": "0b"}}
    sizes = {"samples_per_epoch": dict.fromkeys(DOMAINS, 10), "evaluation": {"validation": {}}}
    events: list[dict[str, Any]] = [
        {"event": "start", "iteration": 0, "mixture": described, **facts, **sizes}
    ]
    for step in range(1, 7):
        weights = dict(zip(DOMAINS, controller.weights.tolist(), strict=True))
        losses = dict(zip(DOMAINS, (3.0, 1.5, 2.0 + step), strict=True))
        controller.observe(step, list(losses.values()))
        shares = {"weights": weights, "losses": losses, "epochs": dict.fromkeys(DOMAINS, 0.5)}
        shares["tokens"] = dict.fromkeys(DOMAINS, 40)
        events.append(
            {"event": "train", "iteration": step, "consumed_tokens": 120 * step, **shares}
        )
        limits = {"floor": [DOMAINS[0]], "trust_region": 0.5}
        update = {"proposal": weights, "weights": weights, "limits": limits}
        events.append({"event": "update", "iteration": step, **update})
    found = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": None, "num_samples": 5}
    validation = {"event": "validation", "iteration": 4, "domains": dict.fromkeys(DOMAINS, found)}
    return [*events[:9], validation, {**events[0], "event": "resume", "iteration": 4}, *events[9:]]


def _run_log(folder: Path) -> Read:
    path, sound = folder / "metrics.jsonl", _log_lines()
    path.write_text("".join(f"{json.dumps(event)}\n" for event in sound))
    other = dataclasses.replace(read_curves(path), arm="other", name="other")

    def read(rng: random.Random) -> None:
        events = copy.deepcopy(sound)
        place = rng.randrange(len(events))
        if rng.random() < 0.7:
            events[place] = changed_json(events[place], rng)
        lines = [json.dumps(event).encode() for event in events]
        if rng.random() < 0.4:
            lines[place] = changed_bytes(lines[place], rng)
        path.write_bytes(b"\n".join(lines) + rng.choice((b"\n", b"", b'{"event": "tra')))
        with contextlib.redirect_stdout(io.StringIO()):
            code = replay_main([str(path)])
            code_of_other = replay_main([str(path), "--mixer", "exp3", "--json"])
        assert code in (0, 1, 2)
        assert code_of_other in (0, 2)
        try:
            history = read_history(path)
            json.dumps(fit_curves(history).to_dict(), allow_nan=False)
            curves = read_curves(path)
        except ValueError as error:
            if str(path) in str(error):
                raise SchemaError(str(error)) from error
            raise
        assert history.weights.shape == (len(history.iterations), len(history.domains))
        report(compare([other, curves]))

    return read


def model_folder(folder: Path, family: str = "gpt_neox") -> dict[str, torch.Tensor]:
    """Writes config.json of a tiny model of a family; returns its weights by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_configuration(family)))
    shape = _shape(family)
    infos = parameter_infos(shape)
    return {
        name: torch.full(weight.their_shape(part, infos[weight.ours].shape), 0.25)
        for weight in FAMILIES[family].weights_of(shape)
        if weight.ours in infos
        for part, name in enumerate(weight.theirs)
    }


def _shape(family: str) -> ModelShape:
    fields = resolve_model_fields({**_SIZES, **MODELS[family]})
    return RunSettings(fields.to_dict()).shape(16)


def _configuration(family: str) -> dict[str, Any]:
    """Content of config.json, with fields that files on the Hub have and that change nothing."""
    more = {"architectures": [FAMILIES[family].architecture], "quantization_config": None}
    return {"model_type": family, **more, **FAMILIES[family].write_config(_shape(family))}


def _import(source: Path, output: Path) -> None:
    """Imports a model folder; nothing is left behind where it is refused."""
    try:
        convert_from_hf(source, output, config_out=output / "model.yml", say=lambda line: None)
    except (CheckpointError, ValueError):
        left = [path.name for path in output.rglob("*") if path.is_file()]
        assert not left, left
        raise
    verify(output / "global_step0")
    for path in sorted(output.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _import_config(folder: Path) -> Read:
    sound = {family: _configuration(family) for family in MODELS}
    known = {key: value for content in sound.values() for key, value in content.items()}
    known["original_max_position_embeddings"] = 8
    for family in MODELS:
        source = folder / family
        save_file(model_folder(source, family), source / "model.safetensors")

    def read(rng: random.Random) -> None:
        family = rng.choice(list(MODELS))
        content = dict(sound[family])
        if rng.random() < 0.3:  # a field that another family has, of any kind
            key = rng.choice(list(known))
            content[key] = rng.choice((known[key], rng.choice(HOSTILE)))
        (folder / family / "config.json").write_bytes(changed_document(content, rng))
        _import(folder / family, folder / "run")

    return read


def _import_weights(name: str) -> Callable[[Path], Read]:
    """The only file of weights, in one of the two formats."""

    def make(folder: Path) -> Read:
        sound = {}
        for family in MODELS:
            path = folder / family / name
            weights = model_folder(path.parent, family)
            save_file(weights, path) if "safe" in name else torch.save(weights, path)
            sound[family] = path.read_bytes()

        def read(rng: random.Random) -> None:
            family = rng.choice(list(MODELS))
            change = changed_safetensors if "safe" in name else changed_bytes
            (folder / family / name).write_bytes(change(sound[family], rng))
            files = WeightFiles(folder / family)
            for tensor in files.names:
                files.shape(tensor)
            _import(folder / family, folder / "run")

        return read

    return make


def _import_index(folder: Path) -> Read:
    source = folder / "model"
    weights = model_folder(source)
    save_file(weights, source / "part-1.safetensors")
    sound = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part-1.safetensors")}

    def read(rng: random.Random) -> None:
        (source / "model.safetensors.index.json").write_bytes(changed_document(sound, rng))
        _import(source, folder / "run")

    return read


KINDS: dict[str, Callable[[Path], Read]] = {
    "metadata": _metadata,
    "data": _data,
    "run_log": _run_log,
    "import_config": _import_config,
    "import_safetensors": _import_weights("model.safetensors"),
    "import_bin": _import_weights("pytorch_model.bin"),
    "import_index": _import_index,
}
"""As in `state_kinds`."""
