"""A corpus and a configuration small enough that a training run takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from megatron.data.indexed_dataset import data_file_path, index_file_path, make_builder

VOCAB_SIZE = 512
"""Of CharLevelTokenizer, which needs no file."""

DOMAINS = ("letters", "digits", "noise")


def write_dataset(prefix: Path, *, num_tokens: int = 64) -> str:
    """Writes a data set of one document for the tokenizer of bytes; returns its prefix."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = make_builder(str(data_file_path(str(prefix))), "mmap", vocab_size=VOCAB_SIZE)
    builder.add_item(np.arange(num_tokens) % 250 + 2)
    builder.end_document()
    builder.finalize(str(index_file_path(str(prefix))))
    return str(prefix)


def write_tiny_corpus(folder: Path, *, documents: int = 40, seed: int = 3) -> dict[str, list[str]]:
    """Writes three domains of different difficulty, split train, valid and test.

    Returns:
        {"train": [prefix, ...], "valid": ..., "test": ...}, domains in the order of `DOMAINS`.
    """
    generator = np.random.default_rng(seed)
    alphabets = {
        "letters": np.frombuffer(b"abcdefgh ", dtype=np.uint8),
        "digits": np.frombuffer(b"01", dtype=np.uint8),
        "noise": np.arange(2, 256, dtype=np.uint8),
    }
    paths: dict[str, list[str]] = {}
    for split, share in (("train", documents), ("valid", 6), ("test", 6)):
        for domain in DOMAINS:
            prefix = folder / split / domain / f"{domain}_text_document"
            prefix.parent.mkdir(parents=True, exist_ok=True)
            builder = make_builder(str(data_file_path(str(prefix))), "mmap", vocab_size=VOCAB_SIZE)
            for _ in range(share):
                length = int(generator.integers(20, 120))
                builder.add_item(generator.choice(alphabets[domain], length).astype(np.int64))
                builder.end_document()
            builder.finalize(str(index_file_path(str(prefix))))
            paths.setdefault(split, []).append(str(prefix))
    return paths


def tiny_config(paths: dict[str, list[str]], folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of 2 layers, width 32, context 16, with online data mixing; ``changes`` win."""
    config: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": 16,
        "max_position_embeddings": 16,
        "pos_emb": "rotary",
        "rotary_pct": 0.5,
        "gpt_j_residual": True,
        "no_weight_tying": True,
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "train_iters": 8,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8}},
        "gradient_clipping": 1.0,
        "weight_decay": 0.1,
        "lr_decay_style": "cosine",
        "zero_optimization": {"stage": 0},
        "train_data_paths": paths["train"],
        "valid_data_paths": paths["valid"],
        "test_data_paths": paths["test"],
        "use_named_train_datasets": True,
        "use_named_eval_datasets": True,
        "mixed_minibatches": True,
        "data_sampling_method": "smoothed_mean",
        "data_sampling_update_frequency": 1,
        "data_sampling_smoothing_factor": 0.5,
        "tokenizer_type": "CharLevelTokenizer",
        "eval_interval": 1000,
        # evaluation at the end would take longer than the training; an odd number is a rest
        "max_validation_samples_per_dataset": 5,
        "max_test_samples_per_dataset": 5,
        "log_interval": 1,
        "seed": 7,
        "save": str(folder / "run"),
        "load": str(folder / "run"),
        "checkpoint_factor": 1000,
        "data_cache_dir": str(folder / "cache"),
    }
    config.update(changes)
    return config
