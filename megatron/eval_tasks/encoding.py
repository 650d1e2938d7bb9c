"""Converts the texts of requests to tokens and back, by lm-eval's rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.errors import TaskError
from megatron.eval_tasks.packing import Pair
from megatron.tokenizer import AbstractTokenizer

__all__ = ["decode_text", "encode_pairs"]


def encode_pairs(
    texts: Sequence[tuple[str, str]], tokenizer: AbstractTokenizer, *, prefix: int
) -> list[Pair]:
    """Tokenizes contexts and endings as `lm_eval.api.model.TemplateLM` does, all at once.

    White space at the end of a context is moved to the ending. The context and both together are
    tokenized; if the context alone has n tokens, the ending is all tokens of both after the first
    n. An empty context becomes one ``prefix`` token; if the ending begins with that token, this
    token is the context instead. If the tokenizer adds tokens before a text, every context begins
    with them.

    Args:
        texts: Pairs of a context and its ending.
        tokenizer: Called once for equal texts.
        prefix: Token that replaces an empty context.

    Raises:
        TaskError: If no token of an ending is left to score; lm-eval's own models cannot score it
            either.
    """
    moved = [_move_spaces(context, ending) for context, ending in texts]
    strings = dict.fromkeys(
        text for context, ending in moved for text in (context, context + ending)
    )
    tokens = dict(zip(strings, tokenizer.tokenize_prompts(list(strings)), strict=True))
    pairs: list[Pair] = []
    for context, ending in moved:
        first = tokens[context]
        both = tokens[context + ending]
        rest = both[len(first) :]
        if not first:
            first, rest = (rest[:1], rest[1:]) if rest[:1] == [prefix] else ([prefix], rest)
        if not rest:
            raise TaskError(_why_nothing_is_left(context, ending, tokenizer))
        pairs.append((first, rest))
    return pairs


def _why_nothing_is_left(context: str, ending: str, tokenizer: AbstractTokenizer) -> str:
    pair = f"the ending {ending!r} and its context, which ends with {context[-60:]!r},"
    if not tokenizer.tokenize(ending):
        return (
            f"loglikelihood: {pair} have no more tokens than the context alone, since the ending "
            "has no tokens; correct doc_to_text or doc_to_choice of the task"
        )
    return (
        f"loglikelihood: the tokenizer joins {pair} to no more tokens than the context alone, so "
        "no token is left to score (lm-eval's own models cannot score it either); leave the task "
        "out, or end its doc_to_text with a character that the tokenizer does not join"
    )


def _move_spaces(context: str, ending: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + ending


def decode_text(tokenizer: AbstractTokenizer, tokens: Sequence[int]) -> str:
    """Text of generated tokens, without the tokens that have no text: end of document, padding."""
    backend: Any = getattr(tokenizer, "tokenizer", None)
    if hasattr(backend, "token_to_id"):  # a tokenizer of the tokenizers library
        text: str = backend.decode(list(tokens), skip_special_tokens=True)
        return text
    return tokenizer.detokenize([t for t in tokens if t not in (tokenizer.eod, tokenizer.pad)])
