"""Choosing the next token from logits: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["filter_logits", "next_tokens"]


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Sets logits outside the top-k, and outside the nucleus of mass ``top_p``, to -inf.

    Args:
        logits: (b, v).
        top_k: Keep this many largest; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probabilities reach this mass (Holtzman et al.
            2019, arXiv:1904.09751); 0 or 1 keeps all. The likeliest token always stays.
    """
    if top_k > 0:
        largest, index = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter_(-1, index, largest)
    if 0.0 < top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        ordered = ordered.masked_fill(mass_before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits


def next_tokens(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Next token of each row, (b, v) -> (b,) int64.

    Temperature, top_k and top_p all 0 is greedy, as in GPT-NeoX; temperature 0 with a filter
    samples from the filtered logits as they are.
    """
    if temperature == 0.0 and top_k == 0 and top_p == 0.0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / temperature if temperature > 0.0 else logits.float()
    probabilities = filter_logits(scaled, top_k=top_k, top_p=top_p).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
