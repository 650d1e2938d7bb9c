"""Whether the parameters of a checkpoint are those of a model: names and shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from megatron.checkpoint.format import read_resolved_config
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.opening import ParameterReader
from megatron.model.soft_prompt import SOFT_PROMPT_NAME
from megatron.sizing.model_shape import ModelShape

__all__ = ["misfit_of", "warn_of_what_is_not_compared"]

logger = logging.getLogger(__name__)


def warn_of_what_is_not_compared(reader: ParameterReader, network: ModelShape) -> None:
    """Warns if a checkpoint does not tell its network, or has more tokens than padding explains."""
    if read_resolved_config(reader.folder) is None:
        logger.warning(
            "%s: has no configs/resolved.json, so only names and shapes were compared with "
            "this network",
            reader.folder,
        )
    if isinstance(reader, NeoxReader):
        rows, padding = reader.num_vocabulary_rows, network.make_vocab_size_divisible_by
        if rows - network.vocab_size >= padding * reader.num_parts:
            logger.warning(
                "%s: the word embedding has %d rows, the tokenizer %d tokens, which is more than "
                "padding; use the tokenizer that the model was trained with",
                reader.folder,
                rows,
                network.vocab_size,
            )


def misfit_of(
    reader: ParameterReader, shapes: Mapping[str, tuple[int, ...]], *, holds_whole_model: bool
) -> str | None:
    """The first parameter that is unknown, missing or of another shape; None if all fit."""
    unknown = sorted(reader.shapes.keys() - shapes.keys())
    if SOFT_PROMPT_NAME in unknown and holds_whole_model:
        length = reader.shapes[SOFT_PROMPT_NAME][0]
        return f"has a soft prompt; set soft_prompt_tuning: {{num_tokens: {length}}}"
    if SOFT_PROMPT_NAME in shapes and SOFT_PROMPT_NAME not in reader.shapes:
        return "has no soft prompt; set finetune: true to begin one on this model"
    if unknown and holds_whole_model:
        return f"has {unknown[0]!r}, which this model lacks; the configuration differs"
    for name, shape in shapes.items():
        if name not in reader.shapes:
            return f"no parameter {name!r}; the checkpoint belongs to another model"
        saved = reader.shapes[name]
        if saved != shape and name.endswith("word_embeddings.weight") and saved[1:] == shape[1:]:
            return (
                f"the model has {saved[0]} tokens, the tokenizer of this run has {shape[0]}; use "
                "the tokenizer that the model was trained with (tokenizer_type, vocab_file)"
            )
        if saved != shape:
            return f"{name} has shape {saved}, this model needs {shape}; the configuration differs"
    return None
