"""Whole rows by torch's ``flex_attention``: hidden keys are skipped, and no (s, s) matrix exists.

Shapes: b batch, s sequence, n query heads and g key-value heads of this rank, d head size.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from megatron.model.attention_span import AttentionSpan, Documents, Reach

__all__ = ["flexible_attention", "is_flexible"]

_SMALLEST_HEAD = 16
"""The compiled kernels accept no smaller head."""


def is_flexible(query: Tensor) -> bool:
    """Whether the compiled kernels accept queries of this head size."""
    return query.shape[-1] >= _SMALLEST_HEAD


def flexible_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents | None,
    span: AttentionSpan,
    *,
    bias_values: Tensor | None = None,
    compiled: bool = True,
) -> Tensor:
    """Attention inside documents, or inside whole rows if there are none.

    Args:
        query: (b, n, s, d).
        key: (b, g, s, d).
        value: (b, g, s, d).
        documents: The documents of the rows; None: each row is one.
        span: What the queries of this layer see, and the bias of their scores.
        bias_values: Learned biases of all distances, which the model has computed for this pass;
            None: they are computed here.
        compiled: False computes all scores, slowly: for tests.

    Returns:
        (b, n, s, d).
    """
    length = query.shape[2]
    mask = _block_mask(documents, span.reach, length, query.device, compiled)
    biases = None
    if span.bias is not None:
        distances = torch.arange(length, device=query.device)[None]
        biases = span.bias.reader(length, query.device, bias_values)(distances)[:, 0]  # (n, s)

    def add_bias(score: Tensor, b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert biases is not None
        return score + biases[head, torch.where(q >= k, q - k, 0)]

    run = _compiled(flex_attention) if compiled else flex_attention
    result = run(
        query,
        key,
        value,
        score_mod=None if biases is None else add_bias,
        block_mask=mask,
        enable_gqa=query.shape[1] > key.shape[1],
    )
    assert isinstance(result, Tensor)
    return result


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)


_WHOLE: dict[Any, Any] = {}
"""Masks of rows that are one document, by reach, length and device."""
_MOST_MASKS = 64


def _block_mask(
    documents: Documents | None,
    reach: Reach | None,
    length: int,
    device: torch.device,
    compiled: bool,
) -> Any:
    kept = _WHOLE if documents is None else documents.kept
    name = "block mask", reach, length, device, compiled
    if name not in kept:
        if len(kept) >= _MOST_MASKS:  # rows of many lengths, in evaluation
            kept.clear()
        make = _compiled(create_block_mask) if compiled else create_block_mask
        rows, is_seen = _visibility(documents, reach, length, device)
        kept[name] = make(is_seen, rows, None, length, length, device=device)
    return kept[name]


def _visibility(
    documents: Documents | None, reach: Reach | None, length: int, device: torch.device
) -> tuple[int | None, Any]:
    """The number of rows that differ, or None, and the rule for (row, head, query, key)."""
    span = AttentionSpan(reach)
    if documents is None:
        depth = span.depth(torch.arange(length, device=device)).contiguous()

        def in_row(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (q - k <= depth[q])

        return None, in_row
    depths = span.depth(documents.offsets).contiguous()

    def in_document(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k <= depths[b, q])

    return depths.shape[0], in_document
