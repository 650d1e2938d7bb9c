"""A model on disk that talks ASCII, for the tests of generate.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.interop.conversions import random_weights, shape_of
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import resolve_model_fields

LONGEST = 1200
FIELDS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
    "seq_length": LONGEST,
    "pos_emb": "rotary",
    "rotary_pct": 0.5,
    "no_weight_tying": True,
    "tokenizer_type": "CharLevelTokenizer",
}


def write_talking_model(folder: Path) -> None:
    """Writes a checkpoint whose likeliest tokens are printable characters."""
    shape = shape_of(FIELDS, 512)
    weights = random_weights(shape)
    for rows in (slice(0, 32), slice(127, None)):
        weights["6.final_linear.weight"][rows] = 0.0  # the likeliest logit is above 0
    write_model_checkpoint(
        folder,
        shape,
        run_config=resolve_model_fields(FIELDS),
        read=weights.__getitem__,
        files={},
    )


def write_run(folder: Path, model: Path, *, processes: int = 1, **changes: Any) -> Path:
    """Writes ``folder/run.yml``, which reads the model, and returns it."""
    values = {
        **FIELDS,
        "train_micro_batch_size_per_gpu": 1,
        "train_iters": 1,
        "load": str(model),
        "global_num_gpus": processes,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yml").write_text(json.dumps(values))
    return folder / "run.yml"
