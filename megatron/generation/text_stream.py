"""Text out of tokens as they come, without half a character and without half a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "StoppableText", "TextStream"]

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, as `AbstractTokenizer.detokenize`."""

_REPLACEMENT = "\ufffd"
_MOST_PENDING = 3  # bytes of a UTF-8 character that still misses one
_WINDOW_TOKENS = 32
_KEPT_TOKENS = 8


class TextStream:
    """Turns tokens into text that never changes once it is given out.

    A character may lie across tokens; a decoder shows the bytes of a part as replacement
    characters. Up to three of these at the end are held back, since later bytes may complete them.
    Only the last tokens are decoded again, so that the cost of a token does not grow.

    Args:
        decode: Of the tokenizer.
        context: The tokens before the first one; some decoders drop a leading space.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()):
        self._decode = decode
        self._window = list(context[-_KEPT_TOKENS:])
        self._given = decode(self._window) if self._window else ""

    def add(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens and returns the text that is certain by now; it may be empty."""
        self._window.extend(tokens)
        text = self._decode(self._window)
        certain = text[: len(text) - _num_pending(text)]
        new = self._new_part(certain)
        if len(self._window) >= _WINDOW_TOKENS and certain == text:
            self._window = self._window[-_KEPT_TOKENS:]
            self._given = self._decode(self._window)
        return new

    def finish(self) -> str:
        """Returns what was held back: replacement characters, or nothing."""
        return self._new_part(self._decode(self._window)) if self._window else ""

    def _new_part(self, text: str) -> str:
        if len(text) <= len(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        return new


def _num_pending(text: str) -> int:
    """How many replacement characters at the end may be the start of a character."""
    trailing = len(text) - len(text.rstrip(_REPLACEMENT))
    return min(trailing, _MOST_PENDING)


class StoppableText:
    """Text that ends before the first stop string.

    Args:
        stream: Where the text comes from.
        stop_strings: Not empty strings; any of them ends the text.
    """

    def __init__(self, stream: TextStream, stop_strings: Sequence[str] = ()):
        self._stream = stream
        self._stop_strings = tuple(stop_strings)
        self._longest = max(map(len, stop_strings), default=0)
        self._num_shown = 0
        self.text = ""
        """All text so far, cut before a stop string once there is one."""
        self.stopped_by: str | None = None
        """The stop string that came first."""

    def add(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens and returns text that may be shown: no part of a stop string."""
        self._extend(self._stream.add(tokens))
        is_over = self.stopped_by is not None
        return self._show(len(self.text) - (0 if is_over else self._num_held_back()))

    def finish(self) -> str:
        """Ends the text and returns what may still be shown; a half character is in `text` only."""
        certain_end = len(self.text)
        if self.stopped_by is None:
            self._extend(self._stream.finish())
        return self._show(min(certain_end, len(self.text)))

    def _extend(self, new: str) -> None:
        """Appends ``new`` and cuts the text before the first stop string in it."""
        start = max(0, len(self.text) - self._longest + 1)
        self.text += new
        places = [(self.text.find(stop, start), stop) for stop in self._stop_strings]
        found = [(place, stop) for place, stop in places if place >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda pair: pair[0])
            self.text = self.text[:place]

    def _num_held_back(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop_strings):
                return length
        return 0

    def _show(self, end: int) -> str:
        shown = self.text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return shown
