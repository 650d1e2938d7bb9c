"""Packs each context with all its endings into rows, so that the context is computed once.

A row is a context followed by its endings of more than one token. The last token of each ending is
left out, because it is only predicted. The positions of every ending begin right after the context,
and a mask lets an ending see only the context and itself. The logits after the context's last token
score the first tokens of all endings, so endings of one token cost nothing. A row with fewer than
two longer endings needs no mask.

Shapes: b rows, s tokens of the longest row, u scored positions, n scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.errors import TaskError

__all__ = ["PackedRows", "Pair", "Row", "cut_batches", "fit_window", "make_rows", "pack_rows"]

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context and of its ending; each has at least one token."""

SHORT_ROW = 512
"""Rows may have up to this many tokens, or twice the tokens of their context if that is more."""

MASK_ROW = 1024
"""In a batch's budget, masked rows of this length count once, those of twice the length twice."""


@dataclass(frozen=True)
class Row:
    """A context and some of its endings."""

    context: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    owners: tuple[tuple[int, ...], ...]
    """For each ending, the numbers of the pairs that contain it."""

    @property
    def length(self) -> int:
        """Number of tokens that are fed to the model."""
        return len(self.context) + sum(len(ending) - 1 for ending in self.endings)

    @property
    def needs_mask(self) -> bool:
        """Whether one ending must be hidden from another."""
        return sum(len(ending) > 1 for ending in self.endings) > 1


@dataclass(frozen=True)
class PackedRows:
    """Rows of a batch as tensors, padded on the right."""

    tokens: Tensor
    """(b, s) int64."""
    positions: Tensor | None
    """(b, s) int64, position of each token; None: 0, 1, ..."""
    attention_mask: Tensor | None
    """(b, 1, s, s) bool, True where a token may attend; None is causal."""
    scored: Tensor
    """(u,) int64, places in the flattened (b * s) whose logits are needed."""
    counts: tuple[int, ...]
    """Number of targets at each of these places."""
    targets: Tensor
    """(n,) int64 tokens to score, in the order of the places."""
    endings: Tensor
    """(n,) int64, ending that a target belongs to, counted over all rows of the batch."""


def fit_window(context: Sequence[int], ending: Sequence[int], window: int) -> tuple[int, ...]:
    """The context, cut on the left so that at most ``window`` tokens are fed to the model.

    The last token of the ending is only predicted. As in lm-eval's own models, the last ``window +
    1`` tokens of both together are used, and all of these but the last are fed to the model.

    Raises:
        TaskError: If the ending is longer than the window.
    """
    assert context, "a context needs a token"
    assert ending, "an ending needs a token"
    if len(ending) > window:
        raise TaskError(
            f"loglikelihood: an ending has {len(ending)} tokens, the model's context {window}; "
            "shorten the answers of the task, or score it as a document (loglikelihood_rolling)"
        )
    return tuple(context[-(window + 1 - len(ending)) :])


def make_rows(pairs: Sequence[Pair], *, window: int) -> list[Row]:
    """Packs pairs into rows: equal contexts share rows, and equal pairs are scored once.

    A row is no longer than `SHORT_ROW` or twice its context, whichever is more, since its mask
    grows with the square of its length. Many endings of one context therefore take several rows.
    The context is computed again in each, but it is at most half of the row.

    Args:
        pairs: Contexts and endings; contexts that are equal after `fit_window` share rows.
        window: Length of the model's context in tokens.

    Raises:
        TaskError: If an ending is longer than ``window``.
    """
    by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for number, (context, ending) in enumerate(pairs):
        endings = by_context.setdefault(fit_window(context, ending, window), {})
        endings.setdefault(tuple(ending), []).append(number)
    rows = []
    for context, endings in by_context.items():
        longest = max(SHORT_ROW, 2 * len(context))
        for group in _split(list(endings), room=longest - len(context)):
            owners = tuple(tuple(endings[ending]) for ending in group)
            rows.append(Row(context, tuple(group), owners))
    return rows


def _split(endings: Sequence[tuple[int, ...]], *, room: int) -> Iterator[list[tuple[int, ...]]]:
    """Groups of endings; a group of two or more feeds at most ``room`` tokens to the model."""
    group: list[tuple[int, ...]] = []
    used = 0
    for ending in endings:
        if group and used + len(ending) - 1 > room:
            yield group
            group, used = [], 0
        group.append(ending)
        used += len(ending) - 1
    yield group


def cut_batches(rows: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Batches of rows of similar length, longest first, so that a lack of memory shows at once.

    Args:
        rows: The rows, in any order.
        max_tokens: Maximum tokens per batch, padding included; a row with more is a batch of its
            own. The tokens of long masked rows count more than once, see `MASK_ROW`.
    """
    for needs_mask in (True, False):
        kind = [row for row in rows if row.needs_mask == needs_mask]
        kind.sort(key=lambda row: -row.length)
        start = 0
        while start < len(kind):
            longest = kind[start].length
            cost = longest * max(1.0, longest / MASK_ROW) if needs_mask else longest
            size = max(1, int(max_tokens / cost))
            yield kind[start : start + size]
            start += size


def pack_rows(rows: Sequence[Row], device: torch.device | str = "cpu") -> PackedRows:
    """Makes the tensors of a batch; rows with and without a mask may be mixed."""
    width = max(row.length for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    segments = torch.zeros(len(rows), width, dtype=torch.int64)
    scored: list[int] = []
    counts: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    first_ending = 0
    for index, row in enumerate(rows):
        line = _lay_out(row)
        length = len(line.tokens)
        tokens[index, :length] = torch.tensor(line.tokens)
        positions[index, :length] = torch.tensor(line.positions)
        segments[index, :length] = torch.tensor(line.segments)
        scored += [index * width + place for place in line.scored]
        counts += line.counts
        targets += line.targets
        owners += [first_ending + ending for ending in line.endings]
        first_ending += len(row.endings)
    is_masked = any(row.needs_mask for row in rows)
    return PackedRows(
        tokens=tokens.to(device),
        positions=positions.to(device) if is_masked else None,
        attention_mask=_mask(segments.to(device)) if is_masked else None,
        scored=torch.tensor(scored, device=device),
        counts=tuple(counts),
        targets=torch.tensor(targets, device=device),
        endings=torch.tensor(owners),
    )


@dataclass(frozen=True)
class _Line:
    """A row as lists; from ``scored`` on, the fields of `PackedRows` for this row alone."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    """Per token: 0 in the context, otherwise the number of its ending, counted from 1."""
    scored: list[int]
    counts: list[int]
    targets: list[int]
    endings: list[int]


def _lay_out(row: Row) -> _Line:
    size = len(row.context)
    line = _Line(
        tokens=list(row.context),
        positions=list(range(size)),
        segments=[0] * size,
        scored=[size - 1],
        counts=[len(row.endings)],
        targets=[ending[0] for ending in row.endings],
        endings=list(range(len(row.endings))),
    )
    for number, ending in enumerate(row.endings):
        read = len(ending) - 1
        start = len(line.tokens)
        line.tokens.extend(ending[:-1])
        line.positions.extend(range(size, size + read))
        line.segments.extend([number + 1] * read)
        line.scored.extend(range(start, start + read))
        line.counts.extend([1] * read)
        line.targets.extend(ending[1:])
        line.endings.extend([number] * read)
    return line


def _mask(segments: Tensor) -> Tensor:
    """(b, s) -> (b, 1, s, s): a token sees earlier tokens of the context and of its own segment.

    Padding counts as context. This is harmless, because padding comes last and only padding sees
    it.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril_()
    keys = segments[:, None, :]
    mask = causal & ((keys == 0) | (keys == segments[:, :, None]))
    return mask[:, None]
