"""Prompts from a file, and how they fit into the context of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.neox_arguments import ConfigError

__all__ = ["FittedPrompt", "fit_prompt", "read_prompts", "split_prompts"]


def read_prompts(path: Path, prompt_end: str) -> list[str]:
    """Splits a file at ``prompt_end``; empty prompts are dropped.

    The last prompt needs no end; a byte order mark is left out.

    Raises:
        ConfigError: If the file is missing, not UTF-8, or contains no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"sample_input_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"sample_input_file: {path}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    prompts = split_prompts(text, prompt_end)
    if not prompts:
        raise ConfigError(f"sample_input_file: {path} contains no prompt; write one per line")
    return prompts


def split_prompts(text: str, prompt_end: str) -> list[str]:
    """The prompts in a text, without the white space around them."""
    prompts = [part.strip() for part in text.split(prompt_end)]
    return [prompt for prompt in prompts if prompt]


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that leaves room for at least one token."""

    tokens: Sequence[int]
    message: str | None
    """A message for the user: what was left out, or how little room there is."""


def fit_prompt(tokens: Sequence[int], *, longest: int, maximum_tokens: int) -> FittedPrompt:
    """Leaves out the beginning of a prompt that is too long for the model.

    A prompt that fits stays whole, even where fewer than ``maximum_tokens`` can follow. One that
    does not fit leaves room for ``maximum_tokens``, but keeps at least half of the context.

    Args:
        tokens: At least one.
        longest: Positions of the context of the model, at least 2.
        maximum_tokens: Tokens that should follow.
    """
    room = longest - len(tokens)
    if room >= maximum_tokens:
        return FittedPrompt(tokens, None)
    if room >= 1:
        return FittedPrompt(
            tokens,
            f"the prompt has {len(tokens)} tokens and the context {longest}: there is room for "
            f"{room} of {maximum_tokens} new tokens",
        )
    num_kept = min(longest - 1, max(longest - maximum_tokens, longest // 2))
    return FittedPrompt(
        tokens[-num_kept:],
        f"the prompt has {len(tokens)} tokens and the context only {longest}: its first "
        f"{len(tokens) - num_kept} were left out",
    )
