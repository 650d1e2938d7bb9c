"""Encodings of tiktoken."""

import base64
import hashlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron.tokenizer.abstract import (
    AbstractTokenizer,
    existing_file,
    fingerprint_of,
    import_library,
)
from megatron.tokenizer.errors import TokenizerError


class TiktokenTokenizer(AbstractTokenizer):
    """An encoding of tiktoken by name, or its ranks from a local ``<encoding name>.tiktoken``.

    Special tokens written inside a text are tokenized as plain characters.
    """

    def __init__(self, vocab_file: str | None):
        name = str(vocab_file or "")
        if not name:
            raise TokenizerError(
                "vocab_file: TiktokenTokenizer needs the name of an encoding such as cl100k_base, "
                "or a file <encoding name>.tiktoken; set it"
            )
        library = import_library("tiktoken", "TiktokenTokenizer")
        if name.endswith(".tiktoken"):
            path = existing_file(name, "TiktokenTokenizer", wanted="an existing .tiktoken file")
            self.tokenizer = _encoding_of_file(library, path)
            fingerprint = fingerprint_of(path)
        else:
            self.tokenizer = _encoding_of_name(library, name)
            fingerprint = _fingerprint_of_ranks(self.tokenizer)
        super().__init__(
            "TiktokenTokenizer",
            vocab_size=self.tokenizer.n_vocab,
            eod=self.tokenizer.eot_token,
            pad=self.tokenizer.eot_token,
            fingerprint=fingerprint,
        )

    def _read_vocab(self) -> dict[str, int]:
        tokens = {index: self._token(index) for index in range(self.vocab_size)}
        return {token: index for index, token in tokens.items() if token is not None}

    def _token(self, index: int) -> str | None:
        try:
            return self.tokenizer.decode_single_token_bytes(index).decode("latin-1")
        except KeyError:  # tiktoken's encodings have gaps between the ranks and the special tokens
            return None

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer.encode_ordinary_batch(texts, num_threads=1)

    def _decode(self, token_ids: list[int]) -> str:
        try:
            return self.tokenizer.decode(token_ids)
        except KeyError:  # a model may choose an id of a gap, which no text produces
            pieces = (self._token(index) for index in token_ids)
            never_in_utf8 = "\xff"
            text = "".join(never_in_utf8 if piece is None else piece for piece in pieces)
            return text.encode("latin-1").decode(errors="replace")


def _fingerprint_of_ranks(encoding: Any) -> str:
    digest = hashlib.sha256()
    for token in encoding.token_byte_values():
        digest.update(token + b"\n")
    return digest.hexdigest()


def _encoding_of_name(library: Any, name: str) -> Any:
    if name not in library.list_encoding_names():
        raise _unknown_encoding(name, library.list_encoding_names())
    try:
        return library.get_encoding(name)
    except Exception as error:
        raise TokenizerError(
            f"vocab_file: the encoding {name!r} cannot be fetched ({type(error).__name__}); "
            f"give a local file {name}.tiktoken"
        ) from error


def _unknown_encoding(name: str, known: Iterable[str]) -> TokenizerError:
    return TokenizerError(
        f"vocab_file: {name!r} is not an encoding of tiktoken; choose one of {', '.join(known)}, "
        "or give a .tiktoken file"
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Reads lines of a base64 token and its rank.

    tiktoken's own reader keeps a copy by path in a cache, and would miss that a file has changed.
    """
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


def _encoding_of_file(library: Any, path: Path) -> Any:
    """Builds an encoding from local ranks."""
    return library.Encoding(**_definition_of_file(path))


def encoding_size(name: str) -> int | None:
    """Returns the number of ids of an encoding, by name or file, without building it.

    Returns:
        None for a name that another module than tiktoken's own may define.

    Raises:
        TokenizerError: If a file is not of tiktoken, or nothing defines the name.
    """
    import tiktoken_ext
    from tiktoken_ext import openai_public

    if name.endswith(".tiktoken"):
        definition = _definition_of_file(Path(name))
    elif name in openai_public.ENCODING_CONSTRUCTORS:
        definition = _definition(name, {})  # the ranks of a name may have to be fetched
    elif len(list(pkgutil.iter_modules(tiktoken_ext.__path__))) > 1:
        return None
    else:
        raise _unknown_encoding(name, openai_public.ENCODING_CONSTRUCTORS)
    ids = [*definition["mergeable_ranks"].values(), *definition["special_tokens"].values()]
    return max(max(ids) + 1, definition.get("explicit_n_vocab") or 0)


def _definition_of_file(path: Path) -> dict[str, Any]:
    from tiktoken_ext import openai_public

    if path.stem not in openai_public.ENCODING_CONSTRUCTORS:
        raise TokenizerError(
            f"vocab_file: {path} must be named after the encoding whose splitting it uses: "
            f"{', '.join(f'{name}.tiktoken' for name in openai_public.ENCODING_CONSTRUCTORS)}"
        )
    try:
        ranks = _read_ranks(path)
    except (ValueError, OSError) as error:
        raise TokenizerError(
            f"vocab_file: {path} is not a file of tiktoken ranks ({error})"
        ) from error
    used = set(ranks.values())
    if not used or len(used) < len(ranks) or not 0 <= min(used) <= max(used) < 2**32 - 1:
        raise TokenizerError(
            f"vocab_file: {path} is not a file of tiktoken ranks (they must be different numbers "
            "from 0, one per token); fetch it again"
        )
    definition = _definition(path.stem, ranks)
    definition.pop("explicit_n_vocab", None)  # a file may hold fewer
    return definition


def _definition(name: str, ranks: dict[bytes, int]) -> dict[str, Any]:
    """Arguments of ``tiktoken.Encoding``.

    A .tiktoken file contains ranks alone: how text is split before merging comes from the encoding
    of the same name, whose definition in tiktoken is code around the loading of the ranks.
    """
    from unittest import mock

    from tiktoken_ext import openai_public

    with (
        mock.patch.object(openai_public, "load_tiktoken_bpe", return_value=ranks),
        mock.patch.object(openai_public, "data_gym_to_mergeable_bpe_ranks", return_value=ranks),
    ):
        return openai_public.ENCODING_CONSTRUCTORS[name]()
