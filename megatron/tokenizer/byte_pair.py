"""Tokenizers that run on the `tokenizers` library."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.tokenizer.abstract import (
    END_OF_DOCUMENT,
    PADDING,
    AbstractTokenizer,
    AddedTokens,
    existing_file,
    fingerprint_of,
    import_library,
    sha256_of,
)
from megatron.tokenizer.decoders import open_tokens
from megatron.tokenizer.errors import TokenizerError

_MOST_PROBES = 1000


class _TokenizersBackend(AbstractTokenizer):
    """Shared by the tokenizers that run on the `tokenizers` library."""

    def __init__(self, name: str, backend: Any, *, fingerprint: str, source: str, eod_token: str):
        backend.no_padding()  # a tokenizer.json may carry both; a dataset wants every token
        backend.no_truncation()
        eod = backend.token_to_id(eod_token)
        if eod is None:
            raise TokenizerError(
                f"{source}: the vocabulary has no token {eod_token!r} to end a document; "
                "add it as a special token to the file, or for a tokenizer.json, name another as "
                "eos_token in a tokenizer_config.json beside it"
            )
        pad = backend.token_to_id(PADDING)
        super().__init__(
            name,
            vocab_size=_largest_id(backend) + 1,
            eod=eod,
            pad=eod if pad is None else pad,
            fingerprint=fingerprint,
        )
        self.tokenizer = backend
        # The plain encode_batch also computes character offsets, which nobody reads here.
        self._encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
        self.own_added = _own_added(backend)

    def _read_vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encode(texts, add_special_tokens=False)]

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def _open_tokens(self) -> frozenset[int]:
        decoder = self.tokenizer.decoder
        state = None if decoder is None else json.loads(decoder.__getstate__())
        return open_tokens(state, self.vocab)


class HFTokenizer(_TokenizersBackend):
    """Any `tokenizer.json` of the `tokenizers` library; see `end_of_document`."""

    def __init__(self, vocab_file: str | None):
        path = existing_file(vocab_file, "HFTokenizer", wanted="the path of a tokenizer.json")
        backend = _backend_of_file(path, "HFTokenizer")
        eod_token = end_of_document(path, lambda token: backend.token_to_id(token) is not None)
        fingerprint = fingerprint_of(path)
        if eod_token != END_OF_DOCUMENT:  # the file alone does not define where documents end
            fingerprint = sha256_of(f"{fingerprint} ends with {eod_token}".encode())
        super().__init__(
            "HFTokenizer",
            backend,
            fingerprint=fingerprint,
            source=str(path),
            eod_token=eod_token,
        )


class GPT2BPETokenizer(_TokenizersBackend):
    """GPT-2's byte-level BPE from `vocab.json` and `merges.txt`.

    ``<|endoftext|>`` written inside a text is tokenized as plain characters: a document cannot end
    itself.
    """

    def __init__(self, vocab_file: str | None, merge_file: str | None):
        vocab_path = existing_file(
            vocab_file, "GPT2BPETokenizer", wanted="the path of a vocab.json"
        )
        merge_path = existing_file(
            merge_file, "GPT2BPETokenizer", wanted="the path of a merges.txt", key="merge_file"
        )
        super().__init__(
            "GPT2BPETokenizer",
            _byte_level_bpe(vocab_path, merge_path, "GPT2BPETokenizer"),
            fingerprint=fingerprint_of(vocab_path, merge_path),
            source=str(vocab_path),
            eod_token=END_OF_DOCUMENT,
        )


class HFGPT2Tokenizer(_TokenizersBackend):
    """A GPT-2 tokenizer by hub name (default ``gpt2``) or from a folder that holds its files."""

    def __init__(self, vocab_file: str | None = None):
        name = str(vocab_file or "gpt2")
        folder = Path(name)
        eod_token = END_OF_DOCUMENT
        if folder.is_dir():
            backend, eod_token = _backend_of_folder(folder)
        elif folder.exists():
            raise TokenizerError(
                f"vocab_file: {folder} is a file, but HFGPT2Tokenizer needs a folder or a hub name;"
                " use tokenizer_type HFTokenizer for a tokenizer.json"
            )
        else:
            backend = _backend_of_hub(name)
        backend.add_special_tokens([PADDING])
        super().__init__(
            "HFGPT2Tokenizer",
            backend,
            fingerprint=sha256_of(backend.to_str().encode()),
            source=name,
            eod_token=eod_token,
        )


def _backend_of_file(path: Path, tokenizer_type: str) -> Any:
    library = import_library("tokenizers", tokenizer_type)
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:
        raise TokenizerError(
            f"vocab_file: {path} is not a tokenizer.json of the tokenizers library ({error})"
        ) from error


def _own_added(backend: Any) -> AddedTokens:
    """What the post-processor adds around the tokens of a text."""
    if not backend.num_special_tokens_to_add(False):
        return AddedTokens()
    for text in ("a", "0", *itertools.islice(backend.get_vocab(), _MOST_PROBES)):
        own = backend.encode(text, add_special_tokens=False).ids
        whole = backend.encode(text, add_special_tokens=True).ids
        places = range(len(whole) - len(own) + 1)
        found = [place for place in places if whole[place : place + len(own)] == own]
        if own and len(found) == 1:  # otherwise it is made of what is added
            (first,) = found
            return AddedTokens(tuple(whole[:first]), tuple(whole[first + len(own) :]))
    return AddedTokens()


def _largest_id(backend: Any) -> int:
    # Ids may have gaps, then the number of tokens is too small a size for the embedding.
    return max(backend.get_vocab().values(), default=-1)


def _byte_level_bpe(vocab_path: Path, merge_path: Path, tokenizer_type: str) -> Any:
    library = import_library("tokenizers", tokenizer_type)
    from tokenizers import decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(vocab_path), str(merge_path))
    except Exception as error:
        raise TokenizerError(
            f"vocab_file, merge_file: {vocab_path} and {merge_path} are not a BPE vocabulary and "
            f"its merges ({error})"
        ) from error
    backend = library.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _backend_of_folder(folder: Path) -> tuple[Any, str]:
    """The tokenizer in a folder as `transformers` saves it, and its end-of-text token."""
    if (folder / "tokenizer.json").is_file():
        backend = _backend_of_file(folder / "tokenizer.json", "HFGPT2Tokenizer")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _byte_level_bpe(folder / "vocab.json", folder / "merges.txt", "HFGPT2Tokenizer")
    else:
        raise TokenizerError(
            f"vocab_file: {folder} contains neither tokenizer.json nor vocab.json with merges.txt"
        )
    eod_token = end_of_text(folder / "tokenizer_config.json")
    backend.add_special_tokens([eod_token])
    return backend, eod_token


def end_of_document(path: Path, is_known: Callable[[str], bool]) -> str:
    """The token that ends a document for the tokenizer.json at ``path``.

    It is ``<|endoftext|>``; for a vocabulary without it, such as Llama's, the end-of-text token of
    the settings beside the file.
    """
    if is_known(END_OF_DOCUMENT):
        return END_OF_DOCUMENT
    return end_of_text(path.with_name("tokenizer_config.json"))


def end_of_text(settings_path: Path) -> str:
    """The end-of-text token in the settings that `transformers` saves beside a tokenizer."""
    if not settings_path.is_file():
        return END_OF_DOCUMENT
    try:
        eos = json.loads(settings_path.read_text(encoding="utf-8")).get("eos_token")
        token = (eos["content"] if isinstance(eos, dict) else eos) or END_OF_DOCUMENT
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise TokenizerError(
            f"vocab_file: {settings_path} contains no settings of a tokenizer ({error!r}); fix "
            "or remove it"
        ) from error
    if not isinstance(token, str):
        raise TokenizerError(f"vocab_file: {settings_path}: eos_token {token!r} is not a text")
    return token


def _backend_of_hub(name: str) -> Any:
    library = import_library("tokenizers", "HFGPT2Tokenizer")
    try:
        return library.Tokenizer.from_pretrained(name)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
        raise TokenizerError(
            f"vocab_file: {name!r} is not a folder and cannot be downloaded from the hub "
            f"({first_line}); give a folder with tokenizer.json, or vocab.json and merges.txt"
        ) from error
