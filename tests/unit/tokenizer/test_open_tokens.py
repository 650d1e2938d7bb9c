"""Which tokens a decoder may still change: by hand for each rule."""

from __future__ import annotations

import pytest

from megatron.tokenizer.decoders import open_tokens

VOCAB = {"a": 0, "ab": 1, "<0x41>": 2, "<0xFF>": 3}
ALL, BYTES, NONE = {0, 1, 2, 3}, {2, 3}, set()

FUSE, FALLBACK = {"type": "Fuse"}, {"type": "ByteFallback"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def replace(pattern: str, content: str = "x") -> dict:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "decoders": list(steps)}


RULES: dict[str, tuple[dict | None, set[int]]] = {
    "none": (None, NONE),
    "fuse": (FUSE, NONE),
    "bytes": (FALLBACK, BYTES),
    "bytes in a sequence": (sequence(FALLBACK, FUSE), BYTES),
    "a sequence in a sequence": (sequence(sequence(FALLBACK), sequence(FUSE, STRIP)), BYTES),
    # of one text, a pattern of one character is found where it is; of two, the second may come
    "one character of tokens": (replace("a"), NONE),
    "two characters of tokens": (replace("ab"), NONE),
    "one character of a text": (sequence(FUSE, replace("a")), NONE),
    "two characters of a text": (sequence(FUSE, replace("ab")), ALL),
    "two characters of a text of bytes": (sequence({"type": "ByteLevel"}, replace("ab")), ALL),
    "part of a character": (sequence(FUSE, replace("\ufffd")), ALL),
    "what a regular expression finds": (
        sequence(FUSE, {"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}),
        ALL,
    ),
    "a text that becomes a byte": (sequence(replace("ab", "<0x20>"), FALLBACK), {1, *BYTES}),
    "a byte that becomes a text": (sequence(replace("<0x41>", "a"), FALLBACK), {3}),
    "after the bytes": (sequence(FALLBACK, replace("ab", "<0x20>")), BYTES),
    "bytes of one text": (sequence(FUSE, FALLBACK), ALL),
    "words": ({"type": "WordPiece", "prefix": "##", "cleanup": True}, NONE),
    "words of one text": (sequence(FUSE, {"type": "WordPiece", "prefix": "##"}), ALL),
    "suffix": ({"type": "BPEDecoder", "suffix": "</w>"}, NONE),
    "no suffix": ({"type": "BPEDecoder", "suffix": ""}, ALL),
    "not known": ({"type": "CTC"}, ALL),
}


@pytest.mark.parametrize(("decoder", "expected"), RULES.values(), ids=RULES)
def test_tokens_are_open_where_what_follows_may_change_them(decoder, expected):
    assert open_tokens(decoder, VOCAB) == expected


@pytest.mark.parametrize(
    ("token", "is_byte"),
    [("<0x0>", True), ("<0xfF>", True), ("<0x+F>", True), ("<0xFFF>", False), ("<0xG0>", False)],
)
def test_what_the_tokenizers_library_takes_for_a_byte(token, is_byte):
    assert open_tokens(FALLBACK, {token: 5}) == ({5} if is_byte else set())
