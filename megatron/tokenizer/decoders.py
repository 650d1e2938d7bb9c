"""Which tokens of a `tokenizer.json` change their text when other tokens follow."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_BYTE = re.compile(r"<0x\+?[0-9A-Fa-f]{1,2}>")
_NO_STEP: dict[str, Any] = {"type": "Fuse"}
_PART_OF_A_CHARACTER = "\ufffd"


def open_tokens(decoder: Mapping[str, Any] | None, vocab: Mapping[str, int]) -> frozenset[int]:
    """Finds the tokens whose text is not final as long as only such tokens follow.

    ByteFallback makes text of a run of byte tokens only if all of them are UTF-8 together, so that
    one byte changes the whole run. Of a decoder that is not known to append text, all tokens are
    open: then the text is final at its end.

    Args:
        decoder: The field of this name of a `tokenizer.json`.
        vocab: Token string to id.
    """
    has_bytes = is_one_text = False
    texts = {token: token for token in vocab}  # as the steps before ByteFallback leave them
    for step in _steps(decoder or _NO_STEP):
        kind = step["type"]
        if not _appends(step, is_one_text=is_one_text):
            return frozenset(vocab.values())
        if kind == "Replace" and not has_bytes:
            texts = {token: _replaced(text, step) for token, text in texts.items()}
        has_bytes = has_bytes or kind == "ByteFallback"
        is_one_text = is_one_text or kind in ("Fuse", "ByteLevel")
    if not has_bytes:
        return frozenset()
    return frozenset(vocab[token] for token, text in texts.items() if _BYTE.search(text))


def _replaced(text: str, step: Mapping[str, Any]) -> str:
    """A token's text after a Replace; what a regular expression finds may become any byte."""
    pattern = step["pattern"].get("String")
    return "<0x00>" if pattern is None else text.replace(pattern, step["content"])


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _steps(inner)
    else:
        yield decoder


def _appends(step: Mapping[str, Any], *, is_one_text: bool) -> bool:
    """Whether more tokens only add to the text that a step gives.

    Args:
        step: Step of a decoder.
        is_one_text: Whether an earlier step has joined the tokens; the step then sees all of them.
    """
    kind = step["type"]
    if kind in ("Fuse", "Strip", "Metaspace"):
        return True
    if kind == "Replace":
        pattern = step["pattern"].get("String", "")
        return not is_one_text or (len(pattern) == 1 and pattern != _PART_OF_A_CHARACTER)
    if kind == "BPEDecoder":  # an empty suffix is found between all letters
        return not is_one_text and bool(step["suffix"])
    return not is_one_text and kind in ("ByteFallback", "ByteLevel", "WordPiece")
