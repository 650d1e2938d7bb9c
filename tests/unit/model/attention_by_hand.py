"""Attention as its formulas say it, query by query: what tests compare the model with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Sees = Callable[[int, int], bool]
"""Tells from the places of query and key inside their document whether the query sees the key."""


def everything(query: int, key: int) -> bool:
    """All earlier tokens, and the query's own."""
    return True


def places_in_documents(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(document, place inside it) of each token of a row."""
    return [(d, place) for d, length in enumerate(lengths) for place in range(length)]


def attention_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    documents: Sequence[Sequence[int]],
    sees: Sees = everything,
    bias: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Softmax over the keys that each query sees.

    Args:
        query: (b, n, s, d).
        key: (b, n, s, d).
        value: (b, n, s, d).
        documents: Lengths of the documents of each row.
        sees: Which keys of its document, not later than itself, a query sees.
        bias: From the distance of query and key to what is added to the scores of n heads.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    rows = []
    for row, lengths in zip(scores, documents, strict=True):
        places = places_in_documents(lengths)
        hidden = [[not _is_seen(q, k, sees) for k in places] for q in places]
        if bias is not None:
            added = [[bias(max(i - j, 0)) for j in range(len(places))] for i in range(len(places))]
            row = row + torch.stack([torch.stack(line, dim=-1) for line in added], dim=-2)
        rows.append(row.masked_fill(torch.tensor(hidden), -math.inf))
    return torch.stack(rows).softmax(dim=-1) @ value


def _is_seen(query: tuple[int, int], key: tuple[int, int], sees: Sees) -> bool:
    same_document = query[0] == key[0]
    return same_document and key[1] <= query[1] and sees(query[1], key[1])
