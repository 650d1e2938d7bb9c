"""Tiny networks, one or more of each family, with weights far from their first values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer.train_tokenizer import train_byte_level_bpe
from tools.hf.importing import write_model_checkpoint
from tools.hf.network import parameter_infos
from tools.hf.settings import RunSettings, resolve_model_fields
from tools.hf.verification import real_text

__all__ = [
    "NETWORKS",
    "VOCAB_SIZE",
    "Network",
    "far_from_start",
    "fields_of",
    "network_shape",
    "write_network",
    "write_tokenizer",
]

VOCAB_SIZE = 300
"""Of the tokenizer; the padded size is another, and no multiple of 128."""


@dataclass(frozen=True)
class Network:
    """A network, and the family that expresses it."""

    family: str
    """A key of `tools.hf.families.FAMILIES`."""
    fields: dict[str, Any]
    """Keys of a YAML file beside `_SIZES`."""


_SIZES: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 16,
    "max_position_embeddings": 48,
    "make_vocab_size_divisible_by": 96,
    "pos_emb": "rotary",
}
_LLAMA: dict[str, Any] = {
    "num_kv_heads": 2,
    "mlp_inner_size": 80,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-5,
    "activation": "swiglu",
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
    "no_weight_tying": True,
}
NETWORKS: dict[str, Network] = {
    "gpt_neox": Network(
        "gpt_neox", {"rotary_pct": 0.25, "gpt_j_residual": True, "no_weight_tying": True}
    ),
    "gpt_neox, tied": Network("gpt_neox", {"rotary_pct": 0.5}),
    "llama": Network("llama", _LLAMA),
    "llama, tied, with biases": Network(
        "llama",
        {
            **_LLAMA,
            "no_weight_tying": False,
            "use_bias_in_attn_linear": True,
            "use_bias_in_mlp": True,
        },
    ),
    "llama 3.x": Network(
        "llama",
        {
            **_LLAMA,
            # the four frequencies: kept, between, and two that are divided
            "rotary_emb_base": 100,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            },
        },
    ),
    "mistral": Network("mistral", {**_LLAMA, "head_dim": 12, "rotary_emb_base": 7777.25}),
    "mistral, windows": Network("mistral", {**_LLAMA, "sliding_window_width": 6}),
    "qwen2": Network(
        "qwen2",
        {
            **_LLAMA,
            "no_weight_tying": False,
            "use_bias_in_attn_linear": True,
            "use_bias_in_attn_output": False,
            "rotary_emb_base": 1000000,
        },
    ),
    "qwen2, yarn": Network(
        "qwen2",
        {
            **_LLAMA,
            "use_bias_in_attn_linear": True,
            "use_bias_in_attn_output": False,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 12,
            },
        },
    ),
    "qwen3, some windows": Network(
        "qwen3",
        {
            **_LLAMA,
            "qk_norm": "head",
            "sliding_window_width": 6,
            "attention_config": [[["global", "flash"], 1]],
        },
    ),
    "qwen3": Network(
        "qwen3",
        {
            **_LLAMA,
            "no_weight_tying": False,
            "head_dim": 16,
            "qk_norm": "head",
            "rms_norm_epsilon": 1e-6,
            "rotary_emb_base": 1000000,
        },
    ),
}
"""By a name for the table."""


def write_tokenizer(path: Path) -> None:
    """Writes a byte-level tokenizer.json of `VOCAB_SIZE` tokens."""
    tokenizer = train_byte_level_bpe(iter([real_text()]), VOCAB_SIZE, show_progress=False)
    tokenizer.save(str(path))


def network_shape(fields: dict[str, Any], vocab_size: int = VOCAB_SIZE) -> ModelShape:
    """Shape of a network of which ``fields`` of a YAML file are given."""
    return RunSettings(resolve_model_fields(fields).to_dict()).shape(vocab_size)


def far_from_start(shape: ModelShape) -> dict[str, Tensor]:
    """Weights of which no two could be swapped unseen: matrices of 0.3, the rest spread by 0.5."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, info in parameter_infos(shape).items():
        values = torch.randn(info.shape, generator=generator)
        if name.endswith("bias"):
            weights[name] = 0.5 * values
        else:
            weights[name] = 1.0 + 0.5 * values if "norm" in name else 0.3 * values
    return weights


def fields_of(network: Network, tokenizer_file: Path) -> dict[str, Any]:
    """Keys of a YAML file of the network."""
    tokenizer = {"tokenizer_type": "HFTokenizer", "vocab_file": str(tokenizer_file)}
    return {**_SIZES, **network.fields, **tokenizer}


def write_network(folder: Path, fields: dict[str, Any]) -> Path:
    """Writes a run whose checkpoint contains `far_from_start`; returns the checkpoint."""
    shape = network_shape(fields)
    weights = far_from_start(shape)
    return write_model_checkpoint(
        folder,
        shape,
        run_config=resolve_model_fields(fields),
        read=weights.__getitem__,
        files={},
    )
