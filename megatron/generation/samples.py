"""Prompts in, records out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron.generation.batch import Completion, StopRules, generate_batch
from megatron.generation.prompts import FittedPrompt, fit_prompt
from megatron.generation.sampling import SamplingParameters, sample_generator
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.tokenizer import AbstractTokenizer
from odm.wording import counted

__all__ = ["generate_samples_from_prompt", "sampling_of", "stop_rules_of"]


def generate_samples_from_prompt(
    config: RunConfig,
    model: GPT2Model,
    tokenizer: AbstractTokenizer,
    prompts: Sequence[str],
    *,
    first_sample: int = 0,
    on_text: Callable[[str], None] | None = None,
    is_interrupted: Callable[[], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields one record per prompt, in order; docs/generation.md describes the fields.

    Prompts are read ``generation_batch_size`` at a time. An empty prompt starts from the
    end-of-document token. All ranks of a tensor-parallel group call it together.

    Args:
        config: Defines how to sample and when to stop.
        model: The model, in evaluation mode.
        tokenizer: The tokenizer of the model.
        prompts: Texts.
        first_sample: Number of the first sample; with ``seed`` it seeds the random numbers.
        on_text: Called with new text when it is certain, for single prompts.
        is_interrupted: Called after every token; True ends the texts.
    """
    sampling, stop = sampling_of(config), stop_rules_of(config, tokenizer)
    longest = model.config.longest_text
    size = config.generation.batch_size
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        fitted = [
            fit_prompt(
                tokens or [tokenizer.eod],
                longest=longest,
                maximum_tokens=config.generation.maximum_tokens,
            )
            for tokens in tokenizer.tokenize_prompts(batch)
        ]
        numbers = range(first_sample + start, first_sample + start + len(batch))
        completions = generate_batch(
            model,
            [prompt.tokens for prompt in fitted],
            decode=tokenizer.detokenize,
            maximum_tokens=config.generation.maximum_tokens,
            stop=stop,
            sampling=sampling,
            generators=[]
            if sampling.is_greedy
            else [sample_generator(config.launch.seed, number) for number in numbers],
            recompute=config.generation.recompute,
            keep_logits=config.generation.return_logits,
            on_text=None if on_text is None else lambda _, text: on_text(text),
            is_interrupted=is_interrupted,
        )
        for text, prompt, completion in zip(batch, fitted, completions, strict=True):
            yield _record(text, prompt, completion, stop)


def sampling_of(config: RunConfig) -> SamplingParameters:
    """How the configuration chooses tokens."""
    return SamplingParameters(
        temperature=config.generation.temperature,
        top_k=config.generation.top_k,
        top_p=config.generation.top_p,
        min_p=config.generation.min_p,
        repetition_penalty=config.generation.repetition_penalty,
    )


def stop_rules_of(config: RunConfig, tokenizer: AbstractTokenizer) -> StopRules:
    """What ends a text: the end of a document, and what the configuration adds.

    Raises:
        ConfigError: If one of ``stop_tokens`` is not a token id.
    """
    for token in config.generation.stop_tokens or ():
        if token >= tokenizer.vocab_size:
            raise ConfigError(
                f"stop_tokens: {token} is not a token id, the tokenizer has "
                f"{tokenizer.vocab_size} ids; correct or remove it"
            )
    return StopRules(
        tokens=frozenset({tokenizer.eod, *(config.generation.stop_tokens or ())}),
        strings=tuple(config.generation.stop_strings or ()),
    )


def _record(
    context: str, prompt: FittedPrompt, completion: Completion, stop: StopRules
) -> dict[str, Any]:
    length = len(completion.tokens)
    is_finished = completion.reason in ("stop_token", "stop_string")
    messages = [prompt.message]
    if stop.strings and not is_finished:
        messages.append(f"no stop string was reached in {counted(length, 'token')}")
    record: dict[str, Any] = {
        "context": context,
        "text": completion.text if length else None,
        "length": length,
        "finished": is_finished,
        "message": "; ".join(filter(None, messages)) or None,
        "duration_seconds": completion.duration_seconds,
        "finish_reason": completion.reason,
        "stopped_by": completion.stopped_by,
        "prompt_tokens": len(prompt.tokens),
    }
    if completion.logits is not None:
        record["logits"] = completion.logits.tolist()
    return record
