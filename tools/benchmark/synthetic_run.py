"""A training run on random tokens, put together as `train.py` does it, for the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from megatron.data.data_utils import build_train_source
from megatron.data.indexed_dataset import data_file_path, index_file_path, make_builder
from megatron.data.mixed_batches import MixedBatches
from megatron.engine.build import build_runner
from megatron.engine.learning_rates import learning_rate_schedule
from megatron.engine.runners import StepRunner
from megatron.engine.state import TrainState
from megatron.mpu.initialize import make_topology
from megatron.neox_arguments import NeoXArgs, RunConfig, resolve
from megatron.tokenizer import AbstractTokenizer
from odm import MixtureController


@dataclass(frozen=True)
class RandomTokens:
    """Stands in for a tokenizer: the data are ids already."""

    vocab_size: int
    eod: int = 0


@dataclass
class SyntheticRun:
    """All that `megatron.training.train` needs."""

    config: RunConfig
    runner: StepRunner
    source: MixedBatches
    mixture: MixtureController
    state: TrainState

    def loop_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `train`, but for hooks and the last step."""
        return {
            "runner": self.runner,
            "source": self.source,
            "mixture": self.mixture,
            "run_length": self.config.mixing.run_length,
            "state": self.state,
            "learning_rate_of": learning_rate_schedule(self.config),
        }


def write_random_domains(
    folder: Path, *, num_domains: int, tokens_each: int, vocab_size: int, seed: int = 1
) -> list[str]:
    """Writes domains of Zipf-like random tokens and returns their prefixes."""
    generator = np.random.default_rng(seed)
    prefixes = []
    for k in range(num_domains):
        prefix = folder / f"domain_{k}" / "text_document"
        prefix.parent.mkdir(parents=True, exist_ok=True)
        builder = make_builder(str(data_file_path(str(prefix))), "mmap", vocab_size=vocab_size)
        ids = (generator.pareto(1.0, tokens_each) * 10).astype(np.int64) % vocab_size
        for document in np.array_split(ids, 20):
            builder.add_item(document)
            builder.end_document()
        builder.finalize(str(index_file_path(str(prefix))))
        prefixes.append(str(prefix))
    return prefixes


def make_run(folder: Path, *, vocab_size: int, num_domains: int, settings: dict) -> SyntheticRun:
    """Builds data, model and engine; the process group must exist.

    Args:
        folder: Folder for the data.
        vocab_size: Number of different random tokens, and of logits.
        num_domains: K.
        settings: Configuration, as in a YAML file; at least the model's shape and the batch.
    """
    paths = write_random_domains(
        folder, num_domains=num_domains, tokens_each=40_000, vocab_size=vocab_size
    )
    values = {
        "train_iters": 1_000_000,
        "lr_decay_style": "constant",
        "optimizer": {"type": "Adam", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
        "gradient_clipping": 1.0,
        "train_data_paths": paths,
        "valid_data_paths": paths,
        "test_data_paths": paths,
        "use_named_train_datasets": True,
        "use_named_eval_datasets": True,
        "mixed_minibatches": True,
        "data_sampling_method": "smoothed_mean",
        "data_sampling_update_frequency": 1,
        "data_cache_dir": str(folder / "cache"),
        **settings,
    }
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    tokens = RandomTokens(vocab_size)
    source, mixture = build_train_source(config, dp_rank=0, dp_size=1, tokenizer_info=tokens)
    loaded = build_runner(
        config,
        cast(AbstractTokenizer, tokens),  # nothing here turns text into tokens
        make_topology(config),
        num_domains=num_domains,
        say=lambda text: None,
    )
    return SyntheticRun(config, loaded.runner, source, mixture, loaded.state)
