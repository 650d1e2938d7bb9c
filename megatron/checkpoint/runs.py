"""Fragments of a parameter as an index lists them: one by one, or many alike as one run.

Under ZeRO 3 each of 512 ranks has a piece of every parameter. The pieces have one length and the
files consecutive numbers, so six numbers list them all:
``[first file, step, tensor rank, first offset, length, count]``. A single fragment is
``[file, tensor rank, offset, length]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Run", "grouped", "rank_file", "rank_number", "run_of"]

_RANK_FILE = re.compile(r"rank_(\d{5,8})\.safetensors")


@dataclass(frozen=True)
class Run:
    """Neighbouring fragments of one length in files whose numbers have one distance."""

    file: str
    """Name of the first file."""
    number: int
    """Its number; -1 if there is only one fragment, whose file may have any name."""
    step: int
    tp_rank: int
    offset: int
    """First element of the first fragment in its flattened shard."""
    length: int
    """Elements of each fragment."""
    count: int

    @property
    def end(self) -> int:
        """The element after the last fragment."""
        return self.offset + self.length * self.count

    def file_of(self, place: int) -> str:
        """Name of the file of fragment ``place``, from 0."""
        return rank_file(self.number + self.step * place) if place else self.file

    def places_in(self, files: Iterable[tuple[str, int]]) -> Iterator[int]:
        """Fragments in one of these files, given as (name, number or -1)."""
        for name, number in files:
            if self.count == 1:
                if name == self.file:
                    yield 0
                continue
            place, rest = divmod(number - self.number, self.step)
            if number >= 0 and rest == 0 and 0 <= place < self.count:
                yield place


def rank_file(number: int) -> str:
    """Name of the file with what a rank owns."""
    return f"rank_{number:05d}.safetensors"


def rank_number(name: str) -> int:
    """Number of the rank whose file this is; -1 for other files."""
    match = _RANK_FILE.fullmatch(name)
    number = int(match[1]) if match else -1
    return number if number >= 0 and rank_file(number) == name else -1


def run_of(entry: Sequence[Any]) -> Run:
    """A checked entry of an index as a run."""
    if len(entry) == 4:
        file, tp_rank, offset, length = entry
        return Run(file, -1, 1, tp_rank, offset, length, 1)
    number, step, tp_rank, offset, length, count = entry
    return Run(rank_file(number), number, step, tp_rank, offset, length, count)


def grouped(entries: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Joins entries of an index, fragments or runs in any order, to as few as possible."""
    found: list[list[Any]] = []
    for entry in sorted(entries, key=_place):
        joined = _joined(found[-1], entry) if found else None
        if joined is None:
            found.append(list(entry))
        else:
            found[-1] = joined
    return found


def _place(entry: Sequence[Any]) -> tuple[Any, ...]:
    """Tensor rank and offset."""
    return tuple(entry[1:3] if len(entry) == 4 else entry[2:4])


def _joined(one: Sequence[Any], other: Sequence[Any]) -> list[Any] | None:
    """An entry and the next one as one run; None if they are none."""
    first, step, tp_rank, offset, length, count = _six_numbers(one)
    number, other_step, *place, other_count = _six_numbers(other)
    distance = number - (first + step * (count - 1))
    if first < 0 or number < 0 or distance < 1:
        return None
    if place != [tp_rank, offset + length * count, length]:
        return None
    if (count > 1 and step != distance) or (other_count > 1 and other_step != distance):
        return None
    return [first, distance, tp_rank, offset, length, count + other_count]


def _six_numbers(entry: Sequence[Any]) -> Sequence[Any]:
    """An entry as a run, which has step 0 if it is a single fragment."""
    if len(entry) == 6:
        return entry
    file, tp_rank, offset, length = entry
    return rank_number(file), 0, tp_rank, offset, length, 1
