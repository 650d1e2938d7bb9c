"""Turns tokens into text as they come, without half characters or half stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "StoppableText", "TextStream"]

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, as `AbstractTokenizer.detokenize`, whose `open_tokens` are read too."""

_REPLACEMENT = "\ufffd"
_MOST_PENDING = 3  # bytes of a UTF-8 character that still misses one
_WINDOW_TOKENS = 32
_KEPT_TOKENS = 8


class TextStream:
    """Turns tokens into text that never changes once it is returned.

    All pieces together are the text of all tokens decoded at once. A character may take several
    tokens; a decoder shows the bytes of a part as replacement characters. Up to three of these at
    the end are held back, since later bytes may complete them, and so is a run of open tokens, see
    `Detokenizer`. Only the last tokens are decoded again, so that the cost of a token does not
    grow.

    Args:
        decode: The tokenizer's function from ids to text.
        context: The tokens before the first one; some decoders drop a leading space.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()):
        self._decode = decode
        self._open_tokens: frozenset[int] = getattr(decode, "open_tokens", frozenset())
        self._window: list[int] = []
        self._num_closed = 0  # tokens of the window before the last run of open ones
        self._take(context)
        self._shorten()
        self._given = self._decode(self._window) if self._window else ""
        self._is_all_given = True

    def add(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens and returns the text that is certain by now; it may be empty."""
        num_closed = self._num_closed
        self._take(tokens)
        if self._num_closed == num_closed:
            self._is_all_given = self._is_all_given and not tokens
            return ""
        text = self._decode(self._window[: self._num_closed])
        certain = text[: len(text) - _num_pending(text)]
        new = self._new_part(certain)
        self._is_all_given = certain == text and self._num_closed == len(self._window)
        if len(self._window) >= self._longest and self._is_all_given:
            self._shorten()
            self._given = self._decode(self._window)
        return new

    def rest(self) -> str:
        """What `finish` would return now; more tokens may change it."""
        if self._is_all_given:
            return ""
        text = self._decode(self._window)
        return text[_num_shared(self._given, text) :]

    def finish(self) -> str:
        """Returns what was held back: the last run of open tokens, half a character, or nothing."""
        rest = self.rest()
        self._is_all_given = True
        return rest

    def _take(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._window.append(token)
            if token not in self._open_tokens:
                self._num_closed = len(self._window)

    def _shorten(self) -> None:
        """Drops the first tokens if that does not change the text of later ones.

        A run of open tokens stays whole, and the kept tokens have a visible character: a decoder
        treats the start of a text specially only up to there.
        """
        num_kept = _KEPT_TOKENS
        while num_kept < len(self._window):
            start = len(self._window) - num_kept
            while start > 0 and self._window[start] in self._open_tokens:
                start -= 1
            if _has_visible(self._decode(self._window[start:])):
                del self._window[:start]
                self._num_closed -= start
                break
            num_kept *= 2
        self._longest = max(_WINDOW_TOKENS, 2 * len(self._window))

    def _new_part(self, certain: str) -> str:
        num_shared = _num_shared(self._given, certain)
        if num_shared == len(certain):
            return ""
        self._given = certain
        return certain[num_shared:]


def _num_shared(one: str, other: str) -> int:
    """Characters of the longest beginning that two texts share."""
    return (
        len(one)
        if other.startswith(one)
        else next(
            (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
            len(other),
        )
    )


def _num_pending(text: str) -> int:
    """How many replacement characters at the end may be the start of a character."""
    trailing = len(text) - len(text.rstrip(_REPLACEMENT))
    return min(trailing, _MOST_PENDING)


def _has_visible(text: str) -> bool:
    return bool(text.replace(_REPLACEMENT, "").strip())


class StoppableText:
    """Text that ends before the first stop string.

    The text ends with the first token after which the text so far contains a stop string, however
    many tokens are added at a time. Tokens after that are ignored.

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
        """All text so far, cut before the stop string if there is one."""
        self.stopped_by: str | None = None
        """The stop string that came first."""

    def add(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens and returns text that may be shown: no part of a stop string."""
        if not self._stop_strings:
            self.text += self._stream.add(tokens)
            return self._show(len(self.text))
        for token in tokens:
            if self.stopped_by is None:
                num_searched = len(self.text)
                self.text += self._stream.add([token])
                # were this the end, a stop string might be in what is held back
                rest = self._stream.rest().rstrip(_REPLACEMENT)
                self._cut(self.text + rest, num_searched)
        is_over = self.stopped_by is not None
        return self._show(len(self.text) - (0 if is_over else self._num_held_back()))

    def finish(self) -> str:
        """Ends the text and returns the rest of it, half a character included."""
        if self.stopped_by is None:
            num_searched = len(self.text)
            self.text += self._stream.finish()
            self._cut(self.text, num_searched)
        return self._show(len(self.text))

    def _cut(self, text: str, num_searched: int) -> None:
        """Ends the text before the first stop string in ``text``, if there is one."""
        start = max(0, num_searched - self._longest + 1)
        places = [(text.find(stop, start), stop) for stop in self._stop_strings]
        found = [(place, stop) for place, stop in places if place >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda pair: pair[0])
            self.text = text[:place]

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
