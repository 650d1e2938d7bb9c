"""Which prompts a person's lines make; the terminal itself is in test_interactive_terminal.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megatron.generation import conversation
from megatron.mpu.tensor_parallel import SINGLE


@pytest.mark.parametrize(
    ("prompt_end", "lines", "prompts"),
    [
        ("\n", ["one", "", "two"], ["one", "two"]),
        (";", ["one", "more;", "two"], ["one\nmore", "two"]),
        (";", ["one;", " "], ["one"]),
    ],
    ids=["lines", "the input ends before the prompt does", "nothing but a space at the end"],
)
def test_all_that_was_typed_is_answered(prompt_end, lines, prompts, monkeypatch):
    typed, answered = iter(lines), []

    def type_line(_: str) -> str:
        for line in typed:
            return line
        raise EOFError

    def answer(*arguments: Any, **_: Any) -> list[dict[str, Any]]:
        answered.extend(arguments[3])
        return [{"message": None, "finish_reason": "length", "length": 1}]

    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr(conversation, "generate_samples_from_prompt", answer)
    config: Any = SimpleNamespace(text_generation=SimpleNamespace(prompt_end=prompt_end))
    model: Any = SimpleNamespace(tp=SINGLE)
    tokenizer: Any = None
    assert conversation.generate_samples_interactive(config, model, tokenizer) == len(prompts)
    assert answered == prompts
