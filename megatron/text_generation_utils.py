"""Text generation with cached keys and values: prompts in, JSON lines out."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.files import atomic_writer
from megatron.model.attention import KeyValueCache
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import Topology
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.sampling import next_tokens
from megatron.tokenizer import AbstractTokenizer

__all__ = [
    "generate_samples",
    "generate_samples_from_prompt",
    "generate_tokens",
    "read_prompts",
]


@torch.no_grad()
def generate_tokens(
    model: GPT2Model,
    context: Sequence[int],
    *,
    maximum_tokens: int,
    stop_tokens: frozenset[int],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    recompute: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (token, logits (v,) it was chosen from) until a stop token, which is not yielded.

    Args:
        model: In evaluation mode.
        context: Prompt, at least one token.
        maximum_tokens: Most tokens to generate.
        stop_tokens: Ids that end the text.
        temperature: See `next_tokens`.
        top_k: See `next_tokens`.
        top_p: See `next_tokens`.
        recompute: Run the whole context again for every token instead of caching; same result.
        generator: Source of randomness; None uses torch's default.
    """
    device = next(model.parameters()).device
    longest = model.config.max_position_embeddings
    tokens = list(context)
    caches = None if recompute else [KeyValueCache() for _ in range(model.config.num_layers)]
    pending = tokens
    for _ in range(min(maximum_tokens, longest - len(tokens))):
        inputs = torch.tensor([pending], dtype=torch.int64, device=device)
        logits = model(inputs, caches=caches, last_logits_only=True)[:, -1]
        token = int(
            next_tokens(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
            )
        )
        if token in stop_tokens:
            return
        yield token, logits[0]
        tokens.append(token)
        pending = tokens if recompute else [token]


def generate_samples_from_prompt(
    config: RunConfig,
    model: GPT2Model,
    tokenizer: AbstractTokenizer,
    prompts: Sequence[str],
    *,
    generator: torch.Generator | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields one record a prompt: context, text, length, finished, message, duration_seconds.

    An empty prompt starts from the end-of-document token. A prompt that leaves no room for a new
    token gives ``text: null`` and says so in ``message``.
    """
    settings = config.text_generation
    longest = model.config.max_position_embeddings
    for prompt in prompts:
        start = time.perf_counter()
        context = tokenizer.tokenize(prompt) or [tokenizer.eod]
        record: dict[str, Any] = {"context": prompt, "text": None, "length": 0, "finished": False}
        message = None
        if len(context) >= longest:
            message = f"the prompt has {len(context)} tokens, the model reads {longest}: no room"
            pairs: Iterator[tuple[int, Tensor]] = iter(())
        else:
            pairs = generate_tokens(
                model,
                context,
                maximum_tokens=settings.maximum_tokens,
                stop_tokens=frozenset({tokenizer.eod}),
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                recompute=settings.recompute,
                generator=generator,
            )
        generated, logits = _split(pairs)
        if generated:
            record["text"] = tokenizer.detokenize(generated)
        room = min(settings.maximum_tokens, longest - len(context))
        record.update(length=len(generated), finished=len(generated) < room, message=message)
        record["duration_seconds"] = time.perf_counter() - start
        if settings.return_logits:
            record["logits"] = [row.float().tolist() for row in logits]
        yield record


def _split(pairs: Iterator[tuple[int, Tensor]]) -> tuple[list[int], list[Tensor]]:
    collected = list(pairs)
    return [token for token, _ in collected], [logits for _, logits in collected]


def read_prompts(path: Path, prompt_end: str) -> list[str]:
    """Splits a file at ``prompt_end``; empty prompts are dropped.

    Raises:
        ConfigError: If the file is missing or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"sample_input_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"sample_input_file: {path}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    if not prompt_end:
        raise ConfigError("prompt_end: empty; give the text that ends a prompt, such as '\\n'")
    prompts = [part.strip() for part in text.split(prompt_end)]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ConfigError(f"sample_input_file: {path} holds no prompt; one a line, not empty")
    return prompts


def generate_samples(
    config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer, topology: Topology
) -> int:
    """Generates as ``text_gen_type`` says; returns the number of samples.

    All ranks of a tensor-parallel group call it: they compute together, and the first one reads
    prompts and writes.

    ``unconditional`` and ``input-file`` write JSON lines to ``sample_output_file``, which is
    replaced when all are there; ``interactive`` reads prompts from the terminal and prints.

    Raises:
        ConfigError: If the prompts cannot be read or the output cannot be written.
    """
    settings = config.text_generation
    generator = torch.Generator(next(model.parameters()).device).manual_seed(config.other.seed)

    def sample(prompt: str) -> dict[str, Any]:
        (record,) = generate_samples_from_prompt(
            config, model, tokenizer, [prompt], generator=generator
        )
        return record

    if config.derived.text_gen_type == "interactive":
        return _converse(sample, topology)
    if config.derived.text_gen_type == "input-file":
        prompts = read_prompts(Path(settings.sample_input_file or ""), settings.prompt_end)
    else:
        prompts = [""] * settings.num_samples
    output = Path(settings.sample_output_file or "samples.txt")
    is_writer = topology.model_rank == 0
    try:
        with atomic_writer(output) if is_writer else nullcontext(io.BytesIO()) as stream:
            for prompt in prompts:
                line = json.dumps(sample(prompt), ensure_ascii=False) + "\n"
                stream.write(line.encode("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"sample_output_file: {output} cannot be written ({error.strerror}); name another"
        ) from error
    return len(prompts)


def _converse(sample: Callable[[str], dict[str, Any]], topology: Topology) -> int:
    """Answers prompts from the terminal until its end; returns how many."""
    count = 0
    for prompt in _shared_prompts(topology):
        record = sample(prompt)
        if topology.model_rank == 0:
            sys.stdout.write(_shown(record))
            sys.stdout.flush()
        count += 1
    return count


def _shared_prompts(topology: Topology) -> Iterator[str]:
    """Prompts that the first rank of the group reads, on all of its ranks."""
    typed = _prompts_from_terminal() if topology.model_rank == 0 else iter(())
    while True:
        shared = [next(typed, None)]
        if topology.model_group is not None:
            first = topology.rank - topology.model_rank
            dist.broadcast_object_list(shared, src=first, group=topology.model_group)
        if shared[0] is None:
            return
        yield shared[0]


def _shown(record: dict[str, Any]) -> str:
    note = f"[{record['message']}]\n" if record["message"] else ""
    return f"{note}{record['context']}{record['text'] or ''}\n"


def _prompts_from_terminal() -> Iterator[str]:
    while True:
        try:
            yield input("prompt> ")
        except EOFError:
            return
