"""Interactive generation: prompts from a terminal, text as it is made, Ctrl-C stops a sample.

With our launcher, Ctrl-C reaches the launcher, which passes it to the first rank; see
``pass_interrupts`` of `Supervisor`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch.distributed as dist

from megatron.generation.samples import generate_samples_from_prompt
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu.tensor_parallel import TensorParallel
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.tokenizer import AbstractTokenizer
from odm.wording import counted

__all__ = ["generate_samples_interactive"]

_PROMPT, _CONTINUATION = "prompt> ", "......> "


def generate_samples_interactive(
    config: RunConfig, model: GPT2Model, tokenizer: AbstractTokenizer
) -> int:
    """Answers prompts from the terminal until its input ends; returns how many.

    The first rank of a tensor-parallel group reads and prints; the others only compute.

    Raises:
        ConfigError: On the first rank, if input that is not from a terminal is not UTF-8.
    """
    is_first = model.tp.rank == 0
    with _interrupts(is_first) as interrupts:
        typed = _typed_prompts(interrupts, config.generation.prompt_end) if is_first else iter(())
        if is_first:
            _show("Ctrl-C stops a sample, Ctrl-D ends the program.\n")
        count = 0
        while (prompt := _shared(next(typed, None), model.tp)) is not None:
            (record,) = generate_samples_from_prompt(
                config,
                model,
                tokenizer,
                [prompt],
                first_sample=count,
                on_text=_show if is_first else None,
                is_interrupted=interrupts.take,
            )
            count += 1
            if is_first:
                _show(_ending(record))
    return count


class _Interrupts:
    """Ctrl-C at the prompt clears the line; during generation it asks to stop the sample."""

    def __init__(self) -> None:
        self._is_wished = False
        self._is_reading = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        if self._is_reading:
            raise KeyboardInterrupt
        self._is_wished = True

    def take(self) -> bool:
        """Returns whether the sample should stop, and forgets the request."""
        is_wished, self._is_wished = self._is_wished, False
        return is_wished

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While a line is read, an interrupt is raised."""
        self._is_wished = False
        self._is_reading = True
        try:
            yield
        finally:
            self._is_reading = False


@contextlib.contextmanager
def _interrupts(is_first: bool) -> Iterator[_Interrupts]:
    """Handles SIGINT on the first rank; the other ranks ignore it."""
    interrupts = _Interrupts()
    previous = signal.signal(signal.SIGINT, interrupts.note if is_first else signal.SIG_IGN)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def _typed_prompts(interrupts: _Interrupts, prompt_end: str) -> Iterator[str]:
    """Prompts that end with ``prompt_end`` or the input; empty ones are asked for again.

    The text after ``prompt_end`` begins the next prompt.
    """
    with contextlib.suppress(ImportError):  # gives input() arrow keys and history, where it exists
        import readline  # noqa: F401
    text, has_ended = "", False
    while not has_ended:
        while prompt_end not in text and not has_ended:
            try:
                with interrupts.reading():
                    text += _typed_line(_CONTINUATION if text.strip() else _PROMPT)
            except EOFError:
                _show("\n")
                has_ended = True
            except KeyboardInterrupt:
                _show("\n")
                text = ""
        prompt, _, text = text.partition(prompt_end)
        if prompt.strip():
            yield prompt.strip()


def _typed_line(question: str) -> str:
    """The next line with its end; a person is asked again if it is not UTF-8.

    Raises:
        ConfigError: If it is not UTF-8 and comes from a file or a program.
    """
    while True:
        try:
            line = input(question) + "\n"
            line.encode()  # some locales let bytes that are no text through
        except UnicodeError as error:
            if not sys.stdin.isatty():
                raise ConfigError(
                    "text_gen_type: interactive: the standard input is not UTF-8; convert it"
                ) from error
            _show("[this line is not UTF-8 and was left out]\n")
        else:
            return line


def _shared(prompt: str | None, tp: TensorParallel) -> str | None:
    """What the first rank read, on all ranks of the group; None where the input has ended."""
    if tp.size == 1:
        return prompt
    box = [prompt]
    dist.broadcast_object_list(box, src=dist.get_global_rank(tp.group, 0), group=tp.group)
    return box[0]


def _ending(record: dict[str, Any]) -> str:
    notes = [record["message"]]
    if record["finish_reason"] == "interrupted":
        notes.append(f"stopped after {counted(record['length'], 'token')}")
    return "\n" + "".join(f"[{note}]\n" for note in notes if note)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
