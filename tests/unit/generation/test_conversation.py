"""Which prompts a person's lines make; the terminal itself is in test_interactive_terminal.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.generation import conversation
from megatron.generation.prompts import split_prompts
from megatron.mpu.tensor_parallel import SINGLE
from megatron.neox_arguments import ConfigError


@pytest.fixture
def converse(monkeypatch) -> Callable[..., list[str]]:
    """Types lines, raising those that are errors; returns the prompts that were answered."""

    def run(lines: list[str | Exception], prompt_end: str) -> list[str]:
        typed = iter(lines)
        answered: list[str] = []

        def type_line(_: str) -> str:
            for line in typed:
                if isinstance(line, Exception):
                    raise line
                return line
            raise EOFError

        def answer(*arguments: Any, **_: Any) -> list[dict[str, Any]]:
            answered.extend(arguments[3])
            return [{"message": None, "finish_reason": "length", "length": 1}]

        monkeypatch.setattr("builtins.input", type_line)
        monkeypatch.setattr(conversation, "generate_samples_from_prompt", answer)
        config: Any = SimpleNamespace(generation=SimpleNamespace(prompt_end=prompt_end))
        model: Any = SimpleNamespace(tp=SINGLE)
        tokenizer: Any = None
        count = conversation.generate_samples_interactive(config, model, tokenizer)
        assert count == len(answered)
        return answered

    return run


@pytest.mark.parametrize(
    ("prompt_end", "lines", "prompts"),
    [
        ("\n", ["one", "", "two"], ["one", "two"]),
        (";", ["one", "more;", "two"], ["one\nmore", "two"]),
        (";", ["one;", " "], ["one"]),
        ("END", ["def f(x END class A END", "END"], ["def f(x", "class A"]),
        (";", ["one; two", "more; three"], ["one", "two\nmore", "three"]),
        ("\nEND", ["one", "END", "END", "two", "END"], ["one", "two"]),
    ],
    ids=[
        "lines",
        "the input ends before the prompt does",
        "nothing but a space at the end",
        "two prompts in a line",
        "a prompt begins behind another",
        "an empty prompt",
    ],
)
def test_all_that_was_typed_is_answered(prompt_end, lines, prompts, converse):
    assert converse(lines, prompt_end) == prompts
    assert split_prompts("\n".join(lines), prompt_end) == prompts  # as from a file


NO_TEXT = [UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "invalid"), "caf\udce9"]
"""What `input` makes of Latin-1 in a UTF-8 locale, and in the C locale."""


@pytest.mark.parametrize("line", NO_TEXT)
def test_a_line_that_is_no_text_is_asked_for_again_at_a_terminal(
    line, converse, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert converse(["one", line, "more;"], ";") == ["one\nmore"]
    assert capsys.readouterr().out.count("[this line is not UTF-8 and was left out]\n") == 1


@pytest.mark.parametrize("line", NO_TEXT)
def test_input_that_is_no_text_is_one_line_where_nobody_types(line, converse, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(ConfigError, match=r"^text_gen_type: interactive: the standard input"):
        converse(["one", line], "\n")
