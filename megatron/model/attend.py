"""Attention of queries to the keys that they may see.

A causal pass over whole rows is one call of ``scaled_dot_product_attention``, without a mask. All
else goes one of three ways, with the same result:

- on a CPU whole rows are computed document by document, and in blocks of queries where there is a
  mask or a bias, each with the keys that it sees: no (s, s) matrix exists;
- on another device they are one call of ``flex_attention``, which skips hidden keys;
- inference after other tokens or with a mask of its own (and dropout on other devices) computes
  blocks of queries with all keys.

Shapes: b batch, s queries, t keys, n query heads and g key-value heads of this rank, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron.model.attention_span import AttentionSpan, Documents
from megatron.model.cpu.causal_attention import causal_attention, is_faster
from megatron.model.flexible_attention import flexible_attention, is_flexible
from megatron.model.forward_context import ForwardContext
from megatron.model.relative_bias import LearnedBias, Reader

__all__ = ["attend"]

_BLOCK = 256
"""Queries at a time."""
_LARGEST_BIAS = 1 << 24
"""Elements of the bias of a block of queries with all keys."""

Product = Callable[..., Tensor]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: ForwardContext,
    span: AttentionSpan,
    *,
    dropout: float,
) -> Tensor:
    """Mixes the values of the keys that each query sees.

    Args:
        query: (b, n, s, d).
        key: (b, g, t, d); t is s unless earlier positions were cached.
        value: (b, g, t, d).
        context: Mask, documents and positions of this pass.
        span: What the queries of this layer see, and the bias of their scores.
        dropout: Chance that a weight is dropped.

    Returns:
        (b, n, s, d).
    """
    groups = query.shape[1] > key.shape[1]
    product = partial(_scaled_dot_product, dropout_p=dropout, enable_gqa=groups)
    if span.is_plain and context.documents is None:
        return product(query, key, value, attn_mask=context.bias, is_causal=context.is_causal)
    if context.is_whole and query.device.type == "cpu":
        run = _Pieces(span, product, context.bias_values)
        if context.documents is None:
            return run.attend_document(query, key, value)
        return run.attend_documents(query, key, value, context.documents)
    if context.is_whole and not dropout and is_flexible(query):
        values = context.bias_values
        return flexible_attention(query, key, value, context.documents, span, bias_values=values)
    return _attend_in_blocks(query, key, value, context, span, product)


def _scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float,
    enable_gqa: bool,
) -> Tensor:
    """Torch's function of this name, or what replaces it on some processors."""
    if is_causal and attn_mask is None and not dropout_p and is_faster(query, key):
        return causal_attention(query, key, value)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
        enable_gqa=enable_gqa,
    )


@dataclass(frozen=True)
class _Pieces:
    """Whole rows in pieces, on a CPU."""

    span: AttentionSpan
    product: Product
    bias_values: Tensor | None

    def attend_documents(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Documents
    ) -> Tensor:
        """Piece by piece along the rows of the batch, one after the other."""
        sizes = [piece.end - piece.start for piece in documents.pieces]
        flat = (
            tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0).split(sizes, dim=2)
            for tensor in (query, key, value)
        )
        results = []
        for piece, own, keys, values in zip(documents.pieces, *flat, strict=True):
            if piece.is_one_document:
                result = self.attend_document(own, keys, values)
            else:
                bias = self._bias_of_short(documents, piece.start, piece.end, query)
                result = _with_bias(self.product, own, keys, values, bias)
            results.append(result.squeeze(0).transpose(0, 1))
        batch, _, length, _ = query.shape
        return torch.cat(results).unflatten(0, (batch, length)).transpose(1, 2)

    def attend_document(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Rows that are one document each, from its first token on."""
        reach = self.span.reach
        if self.span.is_plain:
            return self.product(query, key, value, is_causal=True)
        length = query.shape[2]
        unit = 1 if reach is None else reach.block_size
        size = -(-_BLOCK // unit) * unit  # of all blocks: they then have the same bias by distance
        starts = range(0, length, size)
        firsts = [0 if reach is None else max(0, reach.first(start)) for start in starts]
        most = max(start - first for start, first in zip(starts, firsts, strict=True))
        strip = self._strip(min(size, length) if self._is_learned else size, most, query)
        before = strip.shape[-1] - strip.shape[-2]
        results = []
        for start, first in zip(starts, firsts, strict=True):
            end = min(start + size, length)
            shift = before - (start - first)
            bias = strip[:, :, : end - start, shift : shift + end - first]
            keys = slice(first, end)
            block = query[:, :, start:end], key[:, :, keys], value[:, :, keys]
            results.append(_with_bias(self.product, *block, bias))
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)

    @property
    def _is_learned(self) -> bool:
        """Whether biases change with each step, so that none can be kept."""
        return isinstance(self.span.bias, LearnedBias)

    def _bias_of_short(self, documents: Documents, start: int, end: int, like: Tensor) -> Tensor:
        """Bias of several documents at once, (1, 1 or n, s, s); kept unless it is learned."""
        key = self.span, start, like.dtype
        found = documents.kept.get(key)
        if found is not None:
            return found
        depth = self.span.depth(documents.offsets.flatten()[start:end])
        places = torch.arange(end - start, device=like.device)
        reader = _reader(self.span, end - start, like, self.bias_values)
        bias = _bias(places, places, depth, reader, like)
        if not self._is_learned:
            documents.kept[key] = bias
        return bias

    def _strip(self, size: int, before: int, like: Tensor) -> Tensor:
        """Bias of ``size`` queries and the keys from ``before`` tokens before the first one on.

        Returns:
            (1, 1 or n, s, t), where t is at least ``before + size``; kept unless it is learned.
        """
        name = size, like.dtype, like.device
        found = self.span.kept.get(name)
        if found is not None and found.shape[-1] >= before + size:
            return found
        keys = torch.arange(before + size, device=like.device)
        queries = keys[before:]
        depth, reach = queries, self.span.reach
        if reach is not None:
            # counted from a block's beginning, as if no document began inside the strip
            inside = (queries - before) % reach.block_size
            depth = inside + reach.num_blocks * reach.block_size
        reader = _reader(self.span, before + size, like, self.bias_values)
        bias = _bias(queries, keys, depth, reader, like)
        if not self._is_learned:
            self.span.kept[name] = bias
        return bias


def _reader(
    span: AttentionSpan, longest: int, like: Tensor, values: Tensor | None
) -> Reader | None:
    return None if span.bias is None else span.bias.reader(longest, like.device, values)


def _bias(
    queries: Tensor, keys: Tensor, depth: Tensor, reader: Reader | None, like: Tensor
) -> Tensor:
    """Bias of queries that see ``depth`` earlier tokens and themselves.

    Args:
        queries: (s,) places.
        keys: (t,) places.
        depth: (s,).
        reader: Gives the bias of a distance; None: 0.
        like: A tensor of the dtype and device of the result.

    Returns:
        (1, 1 or n, s, t), -inf where a query does not see a key.
    """
    distances = queries[:, None] - keys
    is_hidden = (distances < 0) | (distances > depth[:, None])
    if reader is None:
        values = torch.zeros(distances.shape, dtype=like.dtype, device=like.device).unsqueeze(0)
    else:
        values = reader(distances).to(like.dtype)
    return values.masked_fill(is_hidden, float("-inf")).unsqueeze(0)


def _with_bias(product: Product, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """``product`` with a bias; with a learned one the weights are computed again for gradients.

    Torch computes the gradient of a bias from the matrix of all weights, which would be kept.
    """
    if not bias.requires_grad:
        return product(query, key, value, attn_mask=bias)
    return checkpoint(
        lambda *inputs: product(*inputs[:3], attn_mask=inputs[3]),
        *(query, key, value, bias),
        use_reentrant=False,
    )


def _attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: ForwardContext,
    span: AttentionSpan,
    product: Product,
) -> Tensor:
    """Blocks of queries with all keys, at any positions."""
    batch, heads, length, _ = query.shape
    total = key.shape[2]
    own, others = context.places(length, total, query.device)
    depth = span.depth(own if context.documents is None else context.documents.offsets)
    given = None if context.bias is None else context.bias.expand(_at_least(context.bias, length))
    reader = _reader(span, max(total, context.longest), query, context.bias_values)
    size = max(1, _LARGEST_BIAS // (batch * heads * total))
    results = []
    for start in range(0, length, size):
        rows = slice(start, start + size)
        distances = own[:, rows, None] - others[:, None]
        bias = None if reader is None else reader(distances).to(query.dtype)
        is_hidden = (distances > depth[:, rows, None]).unsqueeze(1)
        if context.is_causal:
            is_hidden = is_hidden | (distances < 0).unsqueeze(1)
        if bias is None:
            bias = torch.zeros(is_hidden.shape, dtype=query.dtype, device=query.device)
        if given is not None:
            bias = bias + given[..., rows, :]
        bias = bias.masked_fill(is_hidden, float("-inf"))
        results.append(_with_bias(product, query[:, :, rows], key, value, bias))
    return results[0] if len(results) == 1 else torch.cat(results, dim=2)


def _at_least(bias: Tensor, length: int) -> tuple[int, ...]:
    """Shape of a bias in four dimensions with a row for each of ``length`` queries."""
    shape = (1,) * (4 - bias.dim()) + tuple(bias.shape)
    return (*shape[:2], length, shape[3])
