"""How many tokens losses and scores take at a time; shared with the memory estimate."""

from __future__ import annotations

__all__ = ["chunk_tokens"]

CHUNK_BYTES = 128 * 1024 * 1024
"""Size of a chunk of float32 logits on a CPU; `tools/benchmark/loss_chunks.py` prints others."""

GPU_CHUNK_BYTES = 512 * 1024 * 1024
"""On a GPU: each chunk reads and writes the whole gradient of the unembedding. With chunks of
128 MiB these are more bytes than all logits, and the loss of a 160M model takes a third longer
(``python -m tools.benchmark.gpu_plan``)."""

MIN_CHUNK_TOKENS = 64


def chunk_tokens(num_rows: int, device_type: str) -> int:
    """Tokens per chunk, at least `MIN_CHUNK_TOKENS`.

    Their float32 logits have at most `CHUNK_BYTES`, or `GPU_CHUNK_BYTES` on another device than
    ``"cpu"``.

    A power of two: batches are multiples of one, and products of odd sizes run a tenth slower on a
    CPU. It depends on the rows of the matrix, padding included, which are as many on every rank of
    a tensor-parallel group: each chunk has all-reduces.
    """
    limit = CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES
    return max(MIN_CHUNK_TOKENS, 1 << (limit // (4 * num_rows)).bit_length() >> 1)
