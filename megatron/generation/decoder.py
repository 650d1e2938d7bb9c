"""Inference on a batch of prompts of different lengths: prefill, then one token per row.

Shapes: b batch, s prompt length with padding, t all positions so far, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron.model.gpt2_model import GPT2Model

__all__ = ["BatchDecoder"]

_TOKENS_AT_ONCE = 8192
"""Positions of a prompt at a time; limits the (b, s, t) mask and the activations."""


class BatchDecoder:
    """The rows of a batch and what the model remembers of them.

    Shorter prompts are padded on the left, where no token attends; positions count from the first
    token of each prompt. Rows of one length need no mask.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids, at least one per row.
        capacity: Maximum number of positions of a row, padding included.
        recompute: Compute the whole text again for each token instead of keeping keys and values.
    """

    def __init__(
        self,
        model: GPT2Model,
        prompts: Sequence[Sequence[int]],
        *,
        capacity: int,
        recompute: bool = False,
    ):
        self._model = model
        self._longest = model.config.longest_text
        self._device = device = next(model.parameters()).device
        length = max(map(len, prompts))
        padded = [[0] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        self._pending = torch.tensor(padded, dtype=torch.int64, device=device)
        self._pad: Tensor | None = None
        if any(len(prompt) != length for prompt in prompts):
            self._pad = torch.tensor([[length - len(prompt)] for prompt in prompts], device=device)
            self._is_real = torch.arange(capacity, device=device) >= self._pad  # (b, capacity)
        self._caches = None if recompute else model.make_caches(len(prompts), capacity)

    def next_logits(self) -> Tensor:
        """Runs the model on new tokens; returns the logits after the last one, (b, v)."""
        start = 0
        if self._caches is not None:
            start = self._caches[0].length
            at_once = max(1, _TOKENS_AT_ONCE // self._pending.shape[0])
            *earlier, last = self._pending.split(at_once, dim=1)
            for piece in earlier:
                self._model.hidden_states(piece, **self._placed(start, piece.shape[1]))
                start += piece.shape[1]
        else:
            last = self._pending
        placed = self._placed(start, last.shape[1])
        return self._model(last, **placed, last_logits_only=True)[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Adds a token to each row, (b,) int64."""
        column = tokens.unsqueeze(1)
        self._pending = (
            torch.cat((self._pending, column), dim=1) if self._caches is None else column
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Continues with some of the rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._pending = self._pending[index]
        if self._pad is not None:
            self._pad, self._is_real = self._pad[index], self._is_real[index]
        if self._caches is not None:
            self._caches = [cache.select(index) for cache in self._caches]

    def _placed(self, start: int, length: int) -> dict[str, Any]:
        """Caches, positions and mask of ``length`` tokens after ``start`` others."""
        if self._pad is None:
            return {"caches": self._caches}
        end = start + length
        places = torch.arange(start, end, device=self._device)
        # a row that has ended is carried along for a while and may run past the last position
        positions = (places - self._pad).clamp_(0, self._longest - 1)
        mask = self._is_real[:, None, None, :end]
        if length > 1:
            keys = torch.arange(end, device=self._device)
            mask = mask & (keys <= places.unsqueeze(1))
        return {"caches": self._caches, "positions": positions, "attention_mask": mask}
