"""The number of tokens of a tokenizer, read from its files without building the tokenizer.

`deepy.py --check` has half a second; building a tokenizer may take several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron.tokenizer.abstract import END_OF_DOCUMENT, PADDING, existing_file
from megatron.tokenizer.byte_pair import end_of_document, end_of_text
from megatron.tokenizer.errors import TokenizerError
from megatron.tokenizer.tik_token import encoding_size

__all__ = ["tokenizer_file_size", "tokenizer_size"]

_LARGEST_FILE_BYTES = 64 * 1024 * 1024
_CHARACTER_LEVEL_SIZE = 512
_NO_END = (
    "to end a document; add it as a special token to the file, or for a tokenizer.json, name "
    "another as eos_token in a tokenizer_config.json beside it"
)


def tokenizer_file_size(
    tokenizer_type: str | None, vocab_file: str | None, merge_file: str | None = None
) -> int | None:
    """`tokenizer_size`, but None if something is wrong with the files."""
    try:
        return tokenizer_size(tokenizer_type, vocab_file, merge_file)
    except TokenizerError:
        return None


def tokenizer_size(
    tokenizer_type: str | None, vocab_file: str | None, merge_file: str | None = None
) -> int | None:
    """Returns the vocabulary size of the tokenizer that these keys name.

    Returns:
        None if no local file tells it: a name on a hub, a file of more than 64 MiB.

    Raises:
        TokenizerError: If building the tokenizer would fail, as far as its files show: a file is
            missing, is not a tokenizer, or has no end of a document.
    """
    kind = str(tokenizer_type).lower()
    if kind == "charleveltokenizer":
        return _CHARACTER_LEVEL_SIZE
    if kind not in _READERS:
        return None  # `tokenizer_type` is a choice
    try:
        return _READERS[kind](vocab_file, merge_file)
    except OSError as error:
        raise TokenizerError(
            f"vocab_file: {error.filename} cannot be read ({error.strerror})"
        ) from error


def _size_of_hf(vocab_file: str | None, _: str | None) -> int | None:
    path = existing_file(vocab_file, "HFTokenizer", wanted="the path of a tokenizer.json")
    content = _tokenizer_json(path)
    if content is None:
        return None
    ids = _ids(*content)
    return _size_with_end(ids, end_of_document(path, ids.__contains__), path)


def _size_of_gpt2(vocab_file: str | None, merge_file: str | None) -> int | None:
    path = existing_file(vocab_file, "GPT2BPETokenizer", wanted="the path of a vocab.json")
    existing_file(
        merge_file, "GPT2BPETokenizer", wanted="the path of a merges.txt", key="merge_file"
    )
    content = _vocab_json(path)
    return None if content is None else _size_with_end(_ids(*content), END_OF_DOCUMENT, path)


def _size_with_end(ids: Mapping[str, int], end: str, path: Path) -> int:
    if end not in ids:
        raise TokenizerError(f"{path}: the vocabulary has no token {end!r} {_NO_END}")
    return max(ids.values()) + 1


def _size_of_hf_gpt2(vocab_file: str | None, _: str | None) -> int | None:
    """Size of the tokenizer in a folder; end of document and padding are added if missing."""
    folder = Path(str(vocab_file or "gpt2"))
    if folder.is_file():
        raise TokenizerError(
            f"vocab_file: {folder} is a file, but HFGPT2Tokenizer needs a folder or a hub name; "
            "use tokenizer_type HFTokenizer for a tokenizer.json"
        )
    if not folder.is_dir():
        return None  # a name on the hub
    if (folder / "tokenizer.json").is_file():
        content = _tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        content = _vocab_json(folder / "vocab.json")
    else:
        raise TokenizerError(
            f"vocab_file: {folder} contains neither tokenizer.json nor vocab.json with merges.txt"
        )
    if content is None:
        return None
    vocabulary, added = content
    added += [end_of_text(folder / "tokenizer_config.json"), PADDING]
    return max(_ids(vocabulary, added).values()) + 1


def _size_of_sentencepiece(vocab_file: str | None, _: str | None) -> int | None:
    path = existing_file(vocab_file, "SPMTokenizer", wanted="the path of a sentencepiece .model")
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        return None
    count = _count_pieces(path.read_bytes())
    if not count:
        raise TokenizerError(
            f"vocab_file: {path} is not a sentencepiece model; give the .model file"
        )
    return count


def _size_of_tiktoken(vocab_file: str | None, _: str | None) -> int | None:
    is_file = not vocab_file or vocab_file.endswith(".tiktoken")
    if is_file:
        wanted = "the name of an encoding such as cl100k_base, or a file <encoding name>.tiktoken"
        existing_file(vocab_file, "TiktokenTokenizer", wanted=wanted)
    return None if find_spec("tiktoken") is None else encoding_size(str(vocab_file))


_READERS: Mapping[str, Callable[[str | None, str | None], int | None]] = {
    "hftokenizer": _size_of_hf,
    "gpt2bpetokenizer": _size_of_gpt2,
    "hfgpt2tokenizer": _size_of_hf_gpt2,
    "spmtokenizer": _size_of_sentencepiece,
    "tiktokentokenizer": _size_of_tiktoken,
}


def _json(path: Path, kind: str) -> Any:
    """Content of a file; None for one that takes too long to read."""
    if path.stat().st_size > _LARGEST_FILE_BYTES:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"vocab_file: {path} is not {kind} ({error})") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"vocab_file: {path} is not {kind} (it contains no object)")
    return content


Content = tuple[dict[str, int], list[str]]
"""Ids by token of a model, and tokens that a file adds to them."""


def _ids(vocabulary: Mapping[str, int], added: Iterable[str]) -> dict[str, int]:
    """Ids as the tokenizers library gives them: those written beside added tokens do not count."""
    ids, largest = dict(vocabulary), -1
    for token in added:
        ids.setdefault(token, max(len(vocabulary), largest + 1))
        largest = max(largest, ids[token])
    return ids


def _tokenizer_json(path: Path) -> Content | None:
    kind = "a tokenizer.json of the tokenizers library"
    content = _json(path, kind)
    if content is None:
        return None
    try:
        vocabulary = content["model"]["vocab"]
        # a unigram model lists its pieces, the others map them to ids
        if not isinstance(vocabulary, dict):
            vocabulary = {piece[0]: place for place, piece in enumerate(vocabulary)}
        # joined to text, anything else is a TypeError
        added = ["" + token["content"] for token in content.get("added_tokens") or []]
        return _checked_ids(vocabulary, path, kind), added
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"vocab_file: {path} is not {kind} (it lacks model, vocab or parts of them)"
        ) from error


def _vocab_json(path: Path) -> Content | None:
    kind = "a vocabulary of byte-level BPE"
    content = _json(path, kind)
    return None if content is None else (_checked_ids(content, path, kind), [])


def _checked_ids(ids: Any, path: Path, kind: str) -> dict[str, int]:
    is_good = isinstance(ids, dict) and bool(ids) and _are_ids(ids.values())
    if not is_good:
        raise TokenizerError(f"vocab_file: {path} is not {kind} (its tokens have no numbers)")
    return dict(ids)


def _are_ids(values: Collection[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**32 for value in values)


def _count_pieces(content: bytes) -> int | None:
    """Counts field 1 of sentencepiece's protocol buffer; None if it is not one.

    https://protobuf.dev/programming-guides/encoding: a tag is a field number and a wire type;
    pieces are length-delimited.
    """
    count, place = 0, 0
    try:
        while place < len(content):
            tag, place = _varint(content, place)
            field, wire = tag >> 3, tag & 7
            if wire == 0:
                _, place = _varint(content, place)
            elif wire == 2:
                length, place = _varint(content, place)
                place += length
            elif wire in (1, 5):
                place += 8 if wire == 1 else 4
            else:
                return None
            count += field == 1 and wire == 2
    except IndexError:
        return None
    return count if place == len(content) else None


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Decodes a number (7 bits per byte, lowest first); returns it and the next place."""
    value, shift = 0, 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError("too long for a number")
