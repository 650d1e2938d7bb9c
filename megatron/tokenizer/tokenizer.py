"""The tokenizers under the names that GPT-NeoX configurations use, and how to build one."""

from collections.abc import Callable
from typing import Any

from megatron.tokenizer.abstract import AbstractTokenizer
from megatron.tokenizer.byte_pair import GPT2BPETokenizer, HFGPT2Tokenizer, HFTokenizer
from megatron.tokenizer.character_level import CharLevelTokenizer
from megatron.tokenizer.errors import TokenizerError
from megatron.tokenizer.sentence_piece import SPMTokenizer
from megatron.tokenizer.tik_token import TiktokenTokenizer

__all__ = [
    "AbstractTokenizer",
    "CharLevelTokenizer",
    "GPT2BPETokenizer",
    "HFGPT2Tokenizer",
    "HFTokenizer",
    "SPMTokenizer",
    "TiktokenTokenizer",
    "TOKENIZER_TYPES",
    "build_tokenizer",
    "padded_vocab_size",
]

BUILDERS: dict[str, Callable[[Any, Any], AbstractTokenizer]] = {
    "GPT2BPETokenizer": GPT2BPETokenizer,
    "SPMTokenizer": lambda vocab_file, _: SPMTokenizer(vocab_file),
    "HFTokenizer": lambda vocab_file, _: HFTokenizer(vocab_file),
    "HFGPT2Tokenizer": lambda vocab_file, _: HFGPT2Tokenizer(vocab_file),
    "CharLevelTokenizer": lambda _, __: CharLevelTokenizer(),
    "TiktokenTokenizer": lambda vocab_file, _: TiktokenTokenizer(vocab_file),
}
TOKENIZER_TYPES = tuple(BUILDERS)


def build_tokenizer(settings: Any) -> AbstractTokenizer:
    """Builds the tokenizer that an object names.

    Args:
        settings: Anything with `tokenizer_type`, `vocab_file` and, if they matter, `merge_file`
            and `tokenizer_adds_special_tokens`: parsed arguments, a flat configuration, or one with
            a section `data` (`settings.data.tokenizer_type`, `settings.data.vocab_file` ...).

    Raises:
        TokenizerError: Unknown type, missing package, missing or foreign file, or special tokens
            are to be added and there are none.
    """
    given = _field(settings, "tokenizer_type")
    by_lower_case = {name.lower(): name for name in BUILDERS}
    name = by_lower_case.get(str(given).lower())
    if name is None:
        raise TokenizerError(
            f"tokenizer_type: unknown tokenizer {given!r}; choose one of {', '.join(BUILDERS)}"
        )
    tokenizer = BUILDERS[name](_field(settings, "vocab_file"), _field(settings, "merge_file"))
    if _field(settings, "tokenizer_adds_special_tokens"):
        tokenizer.add_own_tokens()
    return tokenizer


def padded_vocab_size(vocab_size: int, divisible_by: int) -> int:
    """Rounds the vocabulary up to a multiple that suits matrix products.

    The result does not depend on the tensor-parallel size, so that a checkpoint fits any layout:
    the 50277 tokens of the 20B tokenizer become 50304 at 128.

    Raises:
        TokenizerError: A size below 1.
    """
    if vocab_size < 1 or divisible_by < 1:
        raise TokenizerError(
            f"make_vocab_size_divisible_by: got {divisible_by} for a vocabulary of {vocab_size}; "
            "both must be at least 1"
        )
    return -(-vocab_size // divisible_by) * divisible_by


def _field(settings: Any, name: str) -> Any:
    if hasattr(settings, name):
        return getattr(settings, name)
    return getattr(getattr(settings, "data", None), name, None)
