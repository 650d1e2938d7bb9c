"""What a run logs and prints about itself before its first iteration."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

from megatron.data.mixed_batches import MixedBatches
from megatron.engine.build import LoadedRun
from megatron.engine.runners import count_parameters
from megatron.hooks.measured import evaluation_settings
from megatron.neox_arguments import RunConfig
from megatron.reporting.run_logger import RunLogger
from megatron.tokenizer import AbstractTokenizer
from odm.wording import counted

__all__ = ["announce", "setting_digests"]

_SECTIONS = ("model", "precision", "optimizer", "schedule", "mixing")
_DATA = ("train_domains", "train_paths", "split", "seq_length", "eod_mask_loss")
_WEIGHTS = ("train_weights", "weight_by_num_documents", "weighted_sampler_alpha")


def announce(
    logger: RunLogger,
    config: RunConfig,
    source: MixedBatches,
    mixture: Mapping[str, Any],
    loaded: LoadedRun,
    *,
    tokenizer: AbstractTokenizer,
) -> None:
    """Logs what the run is, and prints the notes of the configuration."""
    parameters, values = count_parameters(loaded.runner), config.to_dict()
    info = {
        "parameters": parameters,
        "layout": dataclasses.asdict(loaded.runner.topology.grid),
        "zero_stage": config.layout.zero_stage,
        "precision": config.precision.dtype,
        "mixture": mixture,
        "samples_per_epoch": source.samples_by_domain,
        "evaluation": evaluation_settings(values),
        "train_iters": config.schedule.train_iters,
        "tokenizer": tokenizer.fingerprint,
        "settings": setting_digests(values),
    }
    for note in config.notes:
        logger.say(f"note: {note}")
    logger.say(
        f"{parameters:,} parameters, {counted(len(source.domains), 'domain')}, "
        f"{counted(config.batch.train_batch_size, 'sample')} of {source.seq_length} tokens per "
        "iteration"
    )
    if loaded.state.step:
        logger.resume(loaded.state.step, info)
    else:
        logger.start(info)
    if loaded.state.step >= config.schedule.train_iters:
        logger.say(
            f"nothing left to do: the checkpoint is of iteration {loaded.state.step}, train_iters "
            f"is {config.schedule.train_iters}; to continue training, raise train_iters"
        )


def setting_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the settings that decide what a run learns, besides its seed.

    Layout, folders and logging are left out, since they do not change the result.

    Args:
        config: The resolved configuration, as plain data.

    Returns:
        Name -> CRC-32 in hex, for the model, precision, optimizer, schedule, batch, data and
        mixing. ``mixing`` includes the weights of the training data.
    """
    parts = {name: config[name] for name in _SECTIONS}
    data = config["data"]
    parts["batch"] = config["batch"]["train_batch_size"]
    parts["data"] = {name: data[name] for name in _DATA}
    parts["mixing"] = [parts["mixing"], {name: data[name] for name in _WEIGHTS}]
    return {
        name: f"{zlib.crc32(json.dumps(part, default=str).encode()):08x}"
        for name, part in parts.items()
    }
