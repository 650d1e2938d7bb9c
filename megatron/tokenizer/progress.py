"""A progress bar for long passes over text: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from odm.wording import counted

SECONDS_BETWEEN_LINES = 10.0


class TextProgress:
    """Shows how much of the input is done, the documents and the speed in MB of text per second."""

    def __init__(self, label: str, *, total_bytes: int, log_interval: int = 1):
        """Starts the clock.

        Args:
            label: What is being done, in front of the bar.
            total_bytes: Size of the input on disk.
            log_interval: Least number of documents between two updates.
        """
        self.documents = 0
        self.text_bytes = 0
        self._label = label
        self._total_bytes = total_bytes
        self._log_interval = max(1, log_interval)
        self._shown_documents = 0
        self._start_s = self._shown_s = time.monotonic()
        self._bar = _bar(label, total_bytes)

    def __enter__(self) -> "TextProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            if kind is None:
                self._show_bar(self._total_bytes)
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    @property
    def megabytes_per_second(self) -> float:
        """Speed so far, in 10^6 bytes of UTF-8 text per second."""
        return self.text_bytes / 1e6 / max(self.seconds, 1e-9)

    def update(self, documents: int, *, text_bytes: int, bytes_read: int) -> None:
        """Adds finished documents and text; `bytes_read` is the position in the input on disk."""
        self.documents += documents
        self.text_bytes += text_bytes
        if self.documents - self._shown_documents < self._log_interval:
            return
        self._shown_documents = self.documents
        if self._bar is not None:
            self._show_bar(bytes_read)
        elif time.monotonic() - self._shown_s >= SECONDS_BETWEEN_LINES:
            self._shown_s = time.monotonic()
            share = 100 * bytes_read / max(self._total_bytes, 1)
            sys.stderr.write(f"{self._label}: {share:.0f} %, {self._state()}\n")
            sys.stderr.flush()

    def _state(self) -> str:
        return (
            f"{counted(self.documents, 'document')}, {self.megabytes_per_second:.1f} MB/s of text"
        )

    def _show_bar(self, bytes_read: int) -> None:
        self._bar.set_postfix_str(self._state(), refresh=False)
        self._bar.update(bytes_read - self._bar.n)


def _bar(label: str, total_bytes: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=total_bytes,
        desc=label,
        unit="B",
        unit_scale=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}",
    )
