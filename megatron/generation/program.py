"""Text generation with a trained model, under the names that GPT-NeoX has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.files import is_same_path
from megatron.generation.batch import Completion, StopRules, generate_batch
from megatron.generation.conversation import generate_samples_interactive
from megatron.generation.prompts import read_prompts
from megatron.generation.sample_file import check_output, open_sample_file, part_path
from megatron.generation.samples import generate_samples_from_prompt, stop_rules_of
from megatron.generation.sampling import SamplingParameters, sample_generator
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.tokenizer import AbstractTokenizer
from odm.wording import counted

__all__ = [
    "Completion",
    "SamplingParameters",
    "StopRules",
    "check_generation_files",
    "generate_batch",
    "generate_samples",
    "generate_samples_from_prompt",
    "generate_samples_input_from_file",
    "generate_samples_interactive",
    "generate_samples_unconditional",
    "generation_notes",
    "read_prompts",
    "sample_generator",
]


def check_generation_files(config: RunConfig) -> None:
    """Checks the prompts and the output, before a model is loaded.

    Raises:
        ConfigError: If the prompts cannot be read or the samples cannot be written.
    """
    kind = config.generation.kind
    if kind == "input-file":
        _prompts_of(config)
    if kind == "interactive":
        return
    output = _output_of(config)
    check_output(output)
    prompts = config.generation.input_file if kind == "input-file" else None
    if prompts and output is not None:
        if any(is_same_path(prompts, path) for path in (output, part_path(output))):
            raise ConfigError(
                f"sample_output_file: {output} would replace the prompts, {prompts}; name another "
                "file"
            )


def generation_notes(config: RunConfig) -> list[str]:
    """Messages about settings that have no effect."""
    kind = config.generation.kind
    notes = []
    filters = {
        key: value
        for key in ("top_k", "top_p", "min_p")
        if (value := getattr(config.generation, key))
    }
    if filters and config.generation.temperature == 0.0:
        shown = ", ".join(f"{key} {value}" for key, value in filters.items())
        notes.append(
            f"temperature 0 always takes the likeliest token, so {shown} has no effect; "
            "GPT-NeoX would sample as with temperature 1"
        )
    if kind != "input-file" and config.generation.input_file:
        notes.append(
            f"text_gen_type is {kind}: the prompts in {config.generation.input_file} are not read"
        )
    part = None if kind == "interactive" else _output_of(config)
    if part is not None and part_path(part).exists():
        notes.append(f"{part_path(part)}, left by a run that did not finish, is replaced")
    return notes


def generate_samples(config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer) -> str:
    """Generates as ``text_gen_type`` says; returns a message about what was done.

    All ranks of a tensor-parallel group call it: they compute together, and the first one reads the
    terminal and writes.

    Raises:
        ConfigError: If the prompts cannot be read, the output cannot be written, or one of
            ``stop_tokens`` is not a token id.
    """
    stop_rules_of(config, tokenizer)  # raises before the output is begun
    kinds: dict[str, Callable[[RunConfig, GPT2Model, AbstractTokenizer], int]] = {
        "interactive": generate_samples_interactive,
        "input-file": generate_samples_input_from_file,
        "unconditional": generate_samples_unconditional,
    }
    kind = config.generation.kind
    count = kinds[kind](config, model, tokenizer)
    output = None if kind == "interactive" else _output_of(config)
    return counted(count, "sample") + ("" if output is None else f" in {output}")


def generate_samples_input_from_file(
    config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer
) -> int:
    """Continues each prompt of ``sample_input_file``; returns how many there are.

    Raises:
        ConfigError: If the prompts cannot be read or the output cannot be written.
    """
    return _write_samples(config, model, tokenizer, _prompts_of(config))


def generate_samples_unconditional(
    config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer
) -> int:
    """Writes ``num_samples`` texts that follow the end of a document; returns how many.

    Raises:
        ConfigError: If the output cannot be written.
    """
    return _write_samples(config, model, tokenizer, [""] * config.generation.num_samples)


def _write_samples(
    config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer, prompts: Sequence[str]
) -> int:
    is_writer = model.tp.rank == 0
    with open_sample_file(_output_of(config)) if is_writer else _nowhere() as write:
        for record in generate_samples_from_prompt(config, model, tokenizer, prompts):
            write(record)
    return len(prompts)


@contextlib.contextmanager
def _nowhere() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Used on ranks whose records another rank of the group writes."""
    yield lambda record: None


def _prompts_of(config: RunConfig) -> list[str]:
    return read_prompts(Path(config.generation.input_file or ""), config.generation.prompt_end)


def _output_of(config: RunConfig) -> Path | None:
    name = config.generation.output_file
    return Path(name) if name else None
