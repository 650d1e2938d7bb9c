"""Counts the files beside the text that are not read; messages report them at the end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron.tokenizer.file_kinds import READABLE, extension, printable
from odm.wording import counted

MOST_KINDS = 12
"""Kinds of files that are listed one by one."""

LINKS = (
    "links in archives, which are not followed (tar --dereference --hard-dereference packs files)"
)
HIDDEN = "hidden files and folders (names that begin with a dot, __MACOSX)"
NAMELESS = "members of archives without a usable name (empty, or with a NUL character)"
WITHOUT_FIELDS = "files of text or code, which have no fields to choose from"
SINGLE = "single documents beside the domains (put those of one domain into a subfolder)"


@dataclass
class LeftOutFiles:
    """How many files were not read, and why.

    Attributes:
        kinds: Extension to number, of kinds of files that are not read.
        others: Reason to number, of files that are left out for another reason.
        first: The first file that was left out for each reason; ``""``: because of its kind.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def count_kind(self, name: str, *, kind: str | None = None) -> None:
        """Counts a file whose kind is not read; ``kind`` says more than its extension."""
        kind = kind or extension(name)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.first.setdefault("", printable(name))

    def count(self, reason: str, name: str) -> None:
        """Counts a file that is left out for one of the reasons above."""
        self.others[reason] = self.others.get(reason, 0) + 1
        self.first.setdefault(reason, printable(name))

    def add(self, other: "LeftOutFiles") -> None:
        """Adds what was left out elsewhere."""
        self.kinds = _sum((self.kinds, other.kinds))
        self.others = _sum((self.others, other.others))
        self.first = other.first | self.first

    @property
    def total(self) -> int:
        """Number of files."""
        return sum(self.kinds.values()) + sum(self.others.values())

    def lines(self) -> list[str]:
        """One message per reason, for the end of the output; none if nothing was left out."""
        told = []
        if self.kinds:
            ranked = sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
            listed = [f"{count} {kind}" for kind, count in ranked[:MOST_KINDS]]
            rest = sum(count for _, count in ranked[MOST_KINDS:])
            listed += [f"{rest} of other kinds"] if rest else []
            told.append(
                f"left out {counted(sum(self.kinds.values()), 'file')} of unsupported kinds: "
                f"{', '.join(listed)} (the first: {self.first['']}); supported: {READABLE}"
            )
        for reason, count in self.others.items():
            told.append(f"left out {reason}: {count}; the first: {self.first[reason]}")
        return told


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
