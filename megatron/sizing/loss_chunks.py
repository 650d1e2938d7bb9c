"""How many tokens the one-pass loss takes at a time; shared with the memory estimate."""

from __future__ import annotations

__all__ = ["chunk_tokens"]

CHUNK_BYTES = 128 * 1024 * 1024
"""Size of a chunk of float32 logits; `tools/benchmark/loss_chunks.py` prints the alternatives."""

MIN_CHUNK_TOKENS = 64


def chunk_tokens(num_rows: int) -> int:
    """Tokens per chunk: float32 logits of at most `CHUNK_BYTES`, if these are `MIN_CHUNK_TOKENS`.

    A power of two: batches are multiples of one, and products of odd sizes run a tenth slower on a
    CPU. It depends on the rows of the matrix, padding included, which are as many on every rank of
    a tensor-parallel group: each chunk has all-reduces.
    """
    return max(MIN_CHUNK_TOKENS, 1 << (CHUNK_BYTES // (4 * num_rows)).bit_length() >> 1)
