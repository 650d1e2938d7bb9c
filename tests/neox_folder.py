"""Writes checkpoints as GPT-NeoX does, from the weights of one of our models.

The facts: the modules of GPT-NeoX name and cut the tensors (megatron/model/transformer.py and
megatron/mpu/layers.py there), DeepSpeed names the files
(runtime/pipe/module.py, runtime/engine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.sizing.model_shape import ModelShape

__all__ = ["neox_counters", "write_neox_folder"]

Layers = dict[int, dict[str, Tensor]]


def write_neox_folder(
    run: Path,
    weights: Mapping[str, Tensor],
    shape: ModelShape,
    *,
    parts: int = 1,
    step: int = 100,
    renamed: bool = True,
    stages: bool = True,
    divisor: int = 128,
    latest: bool = True,
    counters: bool = True,
    dtype: torch.dtype = torch.float32,
    legacy: bool = False,
) -> Path:
    """Writes ``run/global_step<step>`` and returns it.

    Args:
        weights: Our logical parameters by name.
        shape: Their network.
        parts: GPT-NeoX's model_parallel_size.
        renamed: Names of tensors as from September 2024 on.
        stages: False writes the form of pipe_parallel_size 0.
        divisor: make_vocab_size_divisible_by, which decides the padding there.
        latest: Whether to write the file of this name.
        counters: Whether to write the files with counters; without stages they are needed.
        dtype: Number format of the weights.
        legacy: Files as before torch 1.6.
    """
    folder = run / f"global_step{step}"
    folder.mkdir(parents=True)
    split = [
        _part(weights, shape, part, parts, renamed=renamed, divisor=divisor)
        for part in range(parts)
    ]
    for layers in split:
        for layer in layers.values():
            for name, tensor in layer.items():
                layer[name] = tensor.to(dtype).contiguous().clone()

    def save(value: Any, name: str) -> None:
        torch.save(value, folder / name, _use_new_zipfile_serialization=not legacy)

    for part, layers in enumerate(split):
        module = None
        if stages:
            for number, layer in layers.items():
                save(OrderedDict(layer), f"layer_{number:02d}-model_{part:02d}-model_states.pt")
        else:
            module = OrderedDict()
            for number, layer in layers.items():
                module.update({f"sequential.{number}.{name}": t for name, t in layer.items()})
        if counters or not stages:
            state = neox_counters(shape, step=step, parts=parts, divisor=divisor)
            save({**state, "module": module}, f"mp_rank_{part:02d}_model_states.pt")
    if latest:
        (run / "latest").write_text(folder.name)
    return folder


def neox_counters(shape: ModelShape, *, step: int, parts: int, divisor: int) -> dict[str, Any]:
    """What an ``mp_rank`` file has beside the weights, with things that torch does not trust."""
    return {
        "optimizer": None,
        "lr_scheduler": {
            "start_lr": 0.01,
            "warmup_iter": 0.08,
            "num_iters": step - 1,
            "decay_style": "cosine",
            "end_iter": 8,
            "min_lr": 0.0,
        },
        "sparse_tensor_module_names": set(),
        "skipped_steps": 1,
        "global_steps": step,
        "global_samples": step * 8,
        "dp_world_size": 1,
        "mp_world_size": parts,
        "iteration": step,
        "args": {
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "max_position_embeddings": shape.max_position_embeddings,
            "make_vocab_size_divisible_by": divisor,
            "padded_vocab_size": _padded(shape.vocab_size, divisor * parts),
            "tokenizer_type": "HFTokenizer",
            "model_parallel_size": parts,
        },
        "np_rng_state": np.random.RandomState(1).get_state(),
        "torch_rng_state": torch.Generator().manual_seed(1).get_state(),
    }


def _padded(size: int, divisor: int) -> int:
    return -(-size // divisor) * divisor


def _part(
    weights: Mapping[str, Tensor],
    shape: ModelShape,
    part: int,
    parts: int,
    *,
    renamed: bool,
    divisor: int,
) -> Layers:
    layers: Layers = {}
    for name, tensor in weights.items():
        if name == "rpe.weight":  # every block has it
            for number in range(2, shape.num_layers + 2):
                own = tensor.chunk(parts, dim=1)[part]
                layers.setdefault(number, {})["attention.rpe.weight"] = own
            continue
        number, _, local = name.replace("tied_modules.embed.", "0.").partition(".")
        layer = layers.setdefault(int(number), {})
        layer.update(_cut(local, tensor, shape, part, parts, renamed=renamed, divisor=divisor))
    for number in range(2, shape.num_layers + 2):  # GPT-NeoX keeps this buffer beside the weights
        if shape.pos_emb == "rotary":
            layers[number]["attention.rotary_emb.inv_freq"] = torch.ones(shape.rotary_dim // 2)
        if shape.gpt_j_tied and shape.gpt_j_residual:
            layers[number]["post_attention_layernorm.weight"] = torch.ones(shape.hidden_size)
    return layers


def _cut(
    local: str,
    tensor: Tensor,
    shape: ModelShape,
    part: int,
    parts: int,
    *,
    renamed: bool,
    divisor: int,
) -> dict[str, Tensor]:
    first, second = (
        ("mlp.linear1", "mlp.linear2")
        if renamed
        else (
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        )
    )
    kind = local.rpartition(".")[2]
    if local in ("word_embeddings.weight", "final_linear.weight"):
        rows = _padded(shape.vocab_size, divisor * parts)
        padding = torch.full((rows - shape.vocab_size, tensor.shape[1]), 7.0)
        return {local: torch.cat([tensor[: shape.vocab_size], padding]).chunk(parts)[part]}
    if local.startswith("attention.query_key_value."):
        return {local: _projection(tensor, shape, part, parts)}
    if local.startswith("mlp.dense_h_to_4h.") and shape.is_gated_mlp:
        gate, plain = (half.chunk(parts)[part] for half in tensor)
        if renamed or shape.activation == "geglu":
            return {f"{first}.{kind}": torch.cat([plain, gate])}
        return {"mlp.w1.weight": gate, "mlp.w3.weight": plain}
    if local.startswith("mlp.dense_h_to_4h."):
        return {f"{first}.{kind}": tensor.chunk(parts)[part]}
    if local.startswith("attention.qk_layernorm."):
        return {local: tensor.chunk(parts)[part]}
    old_second = "mlp.w2" if shape.activation == "swiglu" and not renamed else second
    if local in ("attention.dense.weight", "mlp.dense_4h_to_h.weight"):
        name = local if local.startswith("attention") else f"{old_second}.weight"
        return {name: tensor.chunk(parts, dim=1)[part]}
    if local in ("attention.dense.bias", "mlp.dense_4h_to_h.bias"):
        name = local if local.startswith("attention") else f"{old_second}.bias"
        if not shape.gpt_j_residual:  # the bias is added once, after the sum over the parts
            return {name: tensor}
        pieces = [tensor * 0.25 * (k + 1) for k in range(parts - 1)]  # each part adds its own
        return {name: [*pieces, tensor - sum(pieces)][part]}
    return {local: tensor}


def _projection(tensor: Tensor, shape: ModelShape, part: int, parts: int) -> Tensor:
    heads, groups, size = shape.num_attention_heads, shape.num_kv_heads, shape.head_dim
    by_group = tensor.view(groups, heads // groups + 2, size, -1)
    own = by_group.chunk(parts)[part]
    if groups != heads:  # a part is [queries, keys, values]
        pieces = (own[:, :-2], own[:, -2], own[:, -1])
        own = torch.cat([piece.reshape(-1, *tensor.shape[1:]) for piece in pieces])
    return own.reshape(-1, *tensor.shape[1:])
