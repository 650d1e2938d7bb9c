"""Continues a batch of prompts until each of them meets a rule that ends its text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.errors import NotFiniteError
from megatron.generation.decoder import BatchDecoder
from megatron.generation.sampling import GREEDY, SamplingParameters, next_tokens
from megatron.generation.text_stream import Decode, StoppableText, TextStream
from megatron.model.cpu.frozen_weights import frozen_weights
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu.tensor_parallel import TensorParallel

Each = TypeVar("Each")

_STEPS_WORTH_FREEZING = 16

__all__ = ["END_NOWHERE", "Completion", "StopRules", "generate_batch"]


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """What ends a text early; stop tokens and stop strings do not become part of it."""

    tokens: frozenset[int] = frozenset()
    """Token ids, such as the end of a document."""
    strings: tuple[str, ...] = ()
    """Texts; one may span several tokens."""


END_NOWHERE = StopRules()
"""Only the number of tokens ends a text."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The text generated for one prompt."""

    tokens: tuple[int, ...]
    """All generated ids, including those of a stop string, without a stop token."""
    text: str
    """The text of the ids, cut before the stop string."""
    reason: str
    """What ended the text: ``stop_token``, ``stop_string``, ``maximum_tokens``, ``context`` (the
    context is full) or ``interrupted``."""
    stopped_by: int | str | None
    """The stop token or string; None for other reasons."""
    duration_seconds: float
    """Time from the start of the batch to the end of this text."""
    logits: Tensor | None = None
    """(number of tokens, v) float32 on the CPU: logits of each choice; None unless kept."""


@torch.no_grad()
def generate_batch(
    model: GPT2Model,
    prompts: Sequence[Sequence[int]],
    *,
    decode: Decode,
    maximum_tokens: int | Sequence[int],
    stop: StopRules | Sequence[StopRules] = END_NOWHERE,
    sampling: SamplingParameters = GREEDY,
    generators: Sequence[torch.Generator] = (),
    recompute: bool = False,
    keep_logits: bool = False,
    decodes_alone: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    is_interrupted: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Generates text after each prompt; one result per prompt, in order.

    A result does not depend on the other prompts of the batch, except for the last bits of the
    logits. All ranks of a tensor-parallel group call it together; the first one chooses the tokens
    and decides when to stop.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids of each prompt, at least one and fewer than the context has.
        decode: The tokenizer's function from ids to text.
        maximum_tokens: Maximum number of new tokens, for all rows or one number per row.
        stop: What ends a text, for all rows or one per row.
        sampling: How a token is chosen.
        generators: One per row, from `sample_generator`; not needed when greedy.
        recompute: Compute the whole text for each token instead of keeping keys and values.
        keep_logits: Return the logits as well.
        decodes_alone: Decode as if there were no prompt; many decoders then drop a leading space.
        on_text: Called with (row, new text) when the text is certain: whole characters (except at
            the end of a text) and no part of a stop string.
        is_interrupted: Called after every token, on the first rank; True ends all texts.

    Raises:
        NotFiniteError: If logits are not finite, for example because of an overflow in fp16.
    """
    limits = _each(maximum_tokens, len(prompts))
    rules = _each(stop, len(prompts))
    texts = _each_text(decode, [() if decodes_alone else prompt for prompt in prompts], rules)
    longest = model.config.longest_text
    each = zip(prompts, limits, rules, texts, strict=True)
    rows = [_Row(n, *own, longest=longest, on_text=on_text) for n, own in enumerate(each)]
    began = time.perf_counter()
    active = [row for row in rows if not row.has_ended]
    if active:
        chooser = _Chooser(model, active, sampling, generators)
        is_long = max(row.room for row in active) >= _STEPS_WORTH_FREEZING
        with frozen_weights(model) if is_long else nullcontext():
            _generate(
                _decoder(model, active, recompute),
                active,
                chooser,
                keep_logits=keep_logits,
                is_interrupted=is_interrupted or _never,
            )
    return [row.completion(began) for row in rows]


def _each(value: Each | Sequence[Each], count: int) -> Sequence[Each]:
    return value if isinstance(value, Sequence) else [value] * count


def _each_text(
    decode: Decode, contexts: Sequence[Sequence[int]], rules: Sequence[StopRules]
) -> list[StoppableText]:
    return [
        StoppableText(TextStream(decode, context), rule.strings)
        for context, rule in zip(contexts, rules, strict=True)
    ]


def _decoder(model: GPT2Model, rows: Sequence[_Row], recompute: bool) -> BatchDecoder:
    prompts = [row.prompt for row in rows]
    capacity = max(map(len, prompts)) + max(row.room for row in rows)
    return BatchDecoder(model, prompts, capacity=capacity, recompute=recompute)


def _never() -> bool:
    return False


def _generate(
    decoder: BatchDecoder,
    slots: list[_Row],
    chooser: _Chooser,
    *,
    keep_logits: bool,
    is_interrupted: Callable[[], bool],
) -> None:
    """Runs until every row has ended; ``slots`` are the rows of the decoder."""
    while True:
        logits = decoder.next_logits()
        tokens, is_over = chooser.choose(logits, is_interrupted)
        kept = logits.float().cpu() if keep_logits else None
        for slot, (row, token) in enumerate(zip(slots, tokens.tolist(), strict=True)):
            if not row.has_ended:
                if token < 0:
                    raise NotFiniteError(
                        "generation: the model's logits are not finite, so no token can be chosen; "
                        "use fp32 or bfloat16 as precision, or another checkpoint"
                    )
                row.accept(token, None if kept is None else kept[slot])
                if is_over:
                    row.end("interrupted")
        going = [slot for slot, row in enumerate(slots) if not row.has_ended]
        if not going:
            return
        decoder.append(tokens.clamp(min=0))  # rows that have ended are carried along
        # taking rows out copies the caches: done when it halves the work
        if 2 * len(going) <= len(slots):
            slots = [slots[slot] for slot in going]
            decoder.keep(going)
            chooser.keep(going)


class _Row:
    """One prompt and the text generated so far."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        maximum_tokens: int,
        stop: StopRules,
        text: StoppableText,
        *,
        longest: int,
        on_text: Callable[[int, str], None] | None,
    ):
        assert 0 < len(prompt) < longest, f"a prompt of {len(prompt)} tokens of at most {longest}"
        self.index = index
        self.prompt = prompt
        self.room = min(maximum_tokens, longest - len(prompt))
        self.tokens: list[int] = []
        self.logits: list[Tensor] = []
        self._last_reason = "maximum_tokens" if maximum_tokens == self.room else "context"
        self._stop = stop
        self._text = text
        self._num_decoded = 0
        self._is_decoded_at_once = bool(stop.strings) or on_text is not None
        self._on_text = on_text
        self._reason: str | None = None
        self._stopped_by: int | str | None = None
        self._ended_at = 0.0
        if self.room == 0:
            self.end(self._last_reason)

    @property
    def has_ended(self) -> bool:
        return self._reason is not None

    def accept(self, token: int, logits: Tensor | None) -> None:
        """Takes the next token, which may end the text."""
        if token in self._stop.tokens:
            self.end("stop_token", token)
            return
        self.tokens.append(token)
        if logits is not None:
            self.logits.append(logits)
        if self._is_decoded_at_once:
            self._decode()
            if self._text.stopped_by is not None:
                self.end("stop_string", self._text.stopped_by)
                return
        if len(self.tokens) >= self.room:
            self.end(self._last_reason)

    def end(self, reason: str, stopped_by: int | str | None = None) -> None:
        """Records why the text ends, unless it has ended already."""
        if self._reason is None:
            self._reason, self._stopped_by = reason, stopped_by
            self._ended_at = time.perf_counter()
            self._decode()
            self._show(self._text.finish())

    def completion(self, began: float) -> Completion:
        """The result; ``began`` is when the batch started."""
        assert self._reason is not None
        return Completion(
            tokens=tuple(self.tokens),
            text=self._text.text,
            reason=self._reason,
            stopped_by=self._stopped_by,
            duration_seconds=max(0.0, self._ended_at - began),
            logits=torch.stack(self.logits) if self.logits else None,
        )

    def _decode(self) -> None:
        new = self.tokens[self._num_decoded :]
        if new:
            self._show(self._text.add(new))
            self._num_decoded = len(self.tokens)

    def _show(self, text: str) -> None:
        if text and self._on_text is not None:
            self._on_text(self.index, text)


@dataclass
class _Chooser:
    """Chooses the tokens of all slots, the same on every rank of a tensor-parallel group."""

    model: GPT2Model
    rows: Sequence[_Row]
    sampling: SamplingParameters
    generators: Sequence[torch.Generator]
    _seen: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.generators:
            self.generators = [self.generators[row.index] for row in self.rows]
        if self.sampling.repetition_penalty != 1.0:
            weight = next(self.model.parameters())
            shape = (len(self.rows), self.model.config.vocab_size)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=weight.device)
            for seen, row in zip(self._seen, self.rows, strict=True):
                seen[torch.tensor(row.prompt, device=weight.device)] = True

    def choose(self, logits: Tensor, is_interrupted: Callable[[], bool]) -> tuple[Tensor, bool]:
        """Next tokens (b,), and whether an interrupt should end the texts."""
        tp = self.model.tp
        if tp.rank == 0:
            tokens = next_tokens(logits, self.sampling, generators=self.generators, seen=self._seen)
            is_over = is_interrupted()
        else:
            tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
            is_over = False
        if tp.size > 1:
            tokens, is_over = _from_first_rank(tokens, is_over, tp)
        if self._seen is not None:
            self._seen.scatter_(1, tokens.clamp(min=0).unsqueeze(1), True)
        return tokens, is_over

    def keep(self, slots: Sequence[int]) -> None:
        """Continues with some of the slots."""
        if self.generators:
            self.generators = [self.generators[slot] for slot in slots]
        if self._seen is not None:
            self._seen = self._seen[torch.tensor(slots, device=self._seen.device)]


def _from_first_rank(tokens: Tensor, is_over: bool, tp: TensorParallel) -> tuple[Tensor, bool]:
    """What the first rank of the group chose: rounding must not make ranks disagree and hang."""
    message = torch.cat((tokens, tokens.new_tensor([is_over])))
    dist.broadcast(message, src=dist.get_global_rank(tp.group, 0), group=tp.group)
    return message[:-1], bool(message[-1])
