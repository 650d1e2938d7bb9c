"""Generates texts for tasks of the type ``generate_until``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron.eval_tasks.encoding import decode_text
from megatron.eval_tasks.generation_settings import (
    GenerationSettings,
    cut_at_stop,
    read_settings,
)
from megatron.generation.batch import StopRules, generate_batch
from megatron.generation.sampling import sample_generator
from megatron.model.gpt2_model import GPT2Model
from megatron.tokenizer import AbstractTokenizer

__all__ = ["generate_texts"]


def generate_texts(
    model: GPT2Model,
    tokenizer: AbstractTokenizer,
    requests: Mapping[int, tuple[str, Mapping[str, Any]]],
    *,
    max_batch_tokens: int,
    seed: int,
    on_text: Callable[[int, str], None],
    before_batch: Callable[[], None] | None = None,
) -> None:
    """Generates a text for each request.

    If a context leaves too little room for the new tokens, its beginning is cut off.

    Args:
        model: The model, in evaluation mode. The ranks of a tensor-parallel group call this
            function with the same requests.
        tokenizer: The tokenizer that the model was trained with.
        requests: Number of a request -> its context and ``generation_kwargs``.
        max_batch_tokens: Maximum positions per batch, including those of new tokens.
        seed: Sampled texts depend on it and on the number of the request.
        on_text: Called with the number of a request and its text as soon as the text is finished.
        before_batch: Called before each batch; an exception that it raises ends the computation.

    Raises:
        TaskError: If the settings of a request are wrong, or leave no room for a context; also what
            `generate_batch` raises.
    """
    prompts = _prompts(tokenizer, {number: context for number, (context, _) in requests.items()})
    groups: dict[GenerationSettings, list[int]] = {}
    for number, (_, given) in requests.items():
        groups.setdefault(read_settings(given), []).append(number)
    window = model.config.longest_text
    for settings, numbers in groups.items():
        longest = settings.longest_context(window)
        cut = {number: prompts[number][-longest:] for number in numbers}
        for batch in _batches(cut, settings.maximum_tokens, max_batch_tokens):
            if before_batch is not None:
                before_batch()
            generators = [sample_generator(seed, number) for number in batch]
            completions = generate_batch(
                model,
                [cut[number] for number in batch],
                decode=tokenizer.detokenize,
                maximum_tokens=settings.maximum_tokens,
                stop=StopRules(tokens=frozenset({tokenizer.eod}), strings=settings.stop_strings),
                sampling=settings.sampling,
                generators=() if settings.sampling.is_greedy else generators,
                decodes_alone=True,  # lm-eval's own models look for stop strings in this text
            )
            for number, completion in zip(batch, completions, strict=True):
                text = decode_text(tokenizer, completion.tokens)
                on_text(number, cut_at_stop(text, settings.stop_strings))


def _prompts(tokenizer: AbstractTokenizer, contexts: Mapping[int, str]) -> dict[int, list[int]]:
    """Tokens of contexts; an empty context becomes an end-of-document token, before a new text."""
    tokens = tokenizer.tokenize_prompts(list(contexts.values()))
    return {n: own or [tokenizer.eod] for n, own in zip(contexts, tokens, strict=True)}


def _batches(
    prompts: Mapping[int, Sequence[int]], new_tokens: int, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Numbers of prompts in batches of similar length, the longest first."""
    ordered = sorted(prompts, key=lambda number: -len(prompts[number]))
    start = 0
    while start < len(ordered):
        positions = len(prompts[ordered[start]]) + new_tokens
        size = max(1, max_batch_tokens // positions)
        yield ordered[start : start + size]
        start += size
