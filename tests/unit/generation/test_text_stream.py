"""Text that is shown never changes: whole characters only, and no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.generation.text_stream import StoppableText, TextStream
from megatron.tokenizer.character_level import CharLevelTokenizer

decode = CharLevelTokenizer().detokenize
PAD = 1


def stream(content: bytes, context: bytes = b"") -> list[str]:
    """What is given out for each byte, and at the end."""
    text = TextStream(decode, list(context))
    return [*(text.add([byte]) for byte in content), text.finish()]


def test_a_character_of_several_bytes_comes_whole():
    assert stream("a\u00e9\u20ac\U0001f600".encode()) == [
        "a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001f600", "",
    ]  # fmt: skip


def test_the_start_of_a_character_that_never_ends_comes_last():
    assert stream("a\u20ac".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_bytes_that_start_no_character_do_not_hold_the_text_back_for_ever():
    given_out = stream(b"\xff" * 10)
    assert "".join(given_out[:-1]) == "\ufffd" * 7
    assert given_out[-1] == "\ufffd" * 3


@given(st.lists(st.integers(2, 255), max_size=120), st.lists(st.integers(2, 127), max_size=12))
def test_the_pieces_of_any_bytes_are_the_text_of_them_all(content, context):
    assert "".join(stream(bytes(content), bytes(context))) == decode(content)


@given(st.text(max_size=60), st.lists(st.integers(1, 9), max_size=30))
def test_text_in_groups_of_tokens_is_given_out_without_replacement(text, sizes):
    content = [byte for byte in text.encode() if byte > PAD]
    source, pieces = TextStream(decode), []
    while content:
        size = sizes.pop() if sizes else 1
        pieces.append(source.add(content[:size]))
        content = content[size:]
    wanted = decode([byte for byte in text.encode() if byte > PAD])
    assert "".join(pieces) == wanted
    assert source.finish() == ""


def test_only_the_last_tokens_are_decoded_again():
    longest = 0

    def spy(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens)

    text = TextStream(spy)
    assert "".join(text.add([97]) for _ in range(1000)) == "a" * 1000
    assert longest == 32


def test_a_decoder_that_drops_a_leading_space_keeps_the_one_behind_the_context():
    words = {1: " the", 2: " cat"}

    def strip(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    assert TextStream(strip, [1]).add([2]) == " cat"
    assert TextStream(strip).add([2]) == "cat"


# stop strings


def parts(text: str, *stops: str) -> tuple[list[str], str, str | None]:
    """What is shown for each character and at the end; the text; the stop string."""
    source = StoppableText(TextStream(decode), stops)
    shown = []
    for byte in text.encode():
        shown.append(source.add([byte]))
        if source.stopped_by is not None:
            break
    return [*shown, source.finish()], source.text, source.stopped_by


def test_what_may_become_a_stop_string_is_held_back_until_it_is_none():
    assert parts("a\nb\n\nc", "\n\n") == (["a", "", "\nb", "", "", ""], "a\nb", "\n\n")
    assert parts("a\n", "\n\n") == (["a", "", "\n"], "a\n", None)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("END", ("END",), ""),
        ("aaab", ("aab",), "a"),
        ("x stop y", ("op", "st"), "x "),
        ("price 5\u20ac and", ("\u20ac",), "price 5"),
        ("nothing", ("z",), "nothing"),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stops, expected):
    assert parts(text, *stops)[1] == expected


def test_a_stop_string_inside_one_addition_cuts_there_too():
    source = StoppableText(TextStream(decode), ("lo", "el"))
    assert source.add(list(b"hello")) == "h"
    assert source.stopped_by == "el"


ALPHABET = st.text("ab", max_size=20)


@given(ALPHABET, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop_string(text, stops):
    shown, kept, stopped_by = parts(text, *stops)
    # the first end at which a stop string is complete decides, as when characters are generated
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    if ends:
        wanted = min(text[: ends[0]].find(stop) % (len(text) + 1) for stop in stops)
        assert stopped_by in stops
    else:
        wanted = len(text)
        assert stopped_by is None
    assert kept == text[:wanted]
    assert "".join(shown) == kept


def test_half_a_character_comes_at_the_end():
    source = StoppableText(TextStream(decode))
    assert [source.add([97]), source.add([0xE2])] == ["a", ""]
    assert source.finish() == "\ufffd"
    assert source.text == "a\ufffd"


def test_what_comes_behind_a_stop_string_is_no_text():
    source = StoppableText(TextStream(decode), ["lo"])
    assert source.add(list(b"hello")) == "hel"
    assert source.add(list(b" world, hello")) + source.finish() == ""
    assert (source.text, source.stopped_by) == ("hel", "lo")
