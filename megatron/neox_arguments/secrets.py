"""Keeps passwords and keys of services out of what a run writes and out of command lines.

A value under a key that looks like a secret reaches the library that needs it and nothing else:
files hold `REDACTED` in its place. Better still, a file names an environment variable,
``api_key: ${COMET_API_KEY}``, which is read where the library is set up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

REDACTED = "<redacted>"
LEFT_OUT = object()
"""What replaces a secret that a copy is to be without."""

_SERVICES = "(?:wandb|comet|openai|anthropic|aws|azure|gcp|hf|hub|s3|ssh)"
_WORDS = (
    *("api_?key", "access_?key", "private_?key", "secret", "passw(?:or)?d", "pass(?:phrase|code)"),
    *("credentials?", "authorization", "bearer", "webhook", "cookie", "connection_?string"),
    *("(?:encryption|signing|account|storage|license)_?key", f"{_SERVICES}_?(?:key|token)"),
    *("(?:access|auth|session|refresh)_?token",),
)
_LAST_WORDS = "(?:auth|auth_?key|token|pwd)"
_SECRET = re.compile(rf"(?:{'|'.join(_WORDS)})|(?:^|_){_LAST_WORDS}$")
_IN_TEXT = re.compile(rf"(?:{'|'.join(_WORDS)})|{_LAST_WORDS}[\"'_]*[:=]")
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_HARMLESS_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:bool")
_IN_COMMENT = re.compile(r"([\w.-]+(?: [\w.-]+)?)[\"']?\s*[:=]\s*(?=\S)")
_SEPARATORS = re.compile(r"[\s.-]+")


def is_secret_key(key: object) -> bool:
    """Tells whether a key names a secret: ``api_key``, ``hub-token``, ``HFToken``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", str(key))
    return _SECRET.search(_SEPARATORS.sub("_", words).lower()) is not None


def with_secrets_as(
    value: Any, form: Callable[[Any, str], Any], name: str = "", *, is_secret: bool = False
) -> Any:
    """Returns a copy of plain data in which each secret is replaced.

    Args:
        value: Mappings, lists and scalars.
        form: From a scalar under a key that names a secret, and its place, to what replaces it,
            or `LEFT_OUT`.
        name: Place of ``value``; keys are put behind it as in ``comet.api_key``.
        is_secret: Whether ``value`` itself is under a key that names a secret.
    """
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            place, below = f"{name}.{key}" if name else str(key), is_secret or is_secret_key(key)
            result[key] = with_secrets_as(item, form, place, is_secret=below)
        return {key: item for key, item in result.items() if item is not LEFT_OUT}
    if isinstance(value, (list, tuple)):
        items = [with_secrets_as(item, form, name, is_secret=is_secret) for item in value]
        return [item for item in items if item is not LEFT_OUT]
    return form(value, name) if is_secret else value


def redacted(value: Any) -> Any:
    """Returns a copy of plain data with `REDACTED` in place of every secret."""
    return with_secrets_as(value, lambda item, _: REDACTED if _is_written_out(item) else item)


def redacted_text(text: str) -> str:
    """Returns the text of a YAML or JSON file with `REDACTED` in place of every secret.

    Everything else stays as it is, comments too, save what looks like a secret in them.
    """
    if not _IN_TEXT.search(_SEPARATORS.sub("_", text).lower()):
        return text  # nearly always, and parsing takes time
    for parsed in (text, text.replace("\t", " ")):  # JSON has tabs where YAML takes none
        try:
            node = yaml.compose(parsed, Loader=yaml.SafeLoader)
            comments = list(_comments(parsed))
            break
        except yaml.YAMLError:
            continue
    else:
        return text  # nothing can read it, and no run begins with it
    spans = {(n.start_mark.index, n.end_mark.index) for n in _secret_nodes(node, set())}
    for start, end in sorted({*spans, *comments}, reverse=True):
        written = text[start:end]
        if (start, end) in comments:
            text = f"{text[:start]}{_redacted_comment(written)}{text[end:]}"
            continue
        anchor = re.match(r"(?:!\S*\s+)?(&\S+\s+)?", written)
        kept = (anchor[1] or "") if anchor else ""
        rest = written[len(written.rstrip()) :]  # a block ends with its line
        text = f'{text[:start]}{kept}"{REDACTED}"{rest}{text[end:]}'
    return text


def plain_secrets(value: Any) -> list[str]:
    """Names the secrets that are written out in plain data, as ``comet.api_key``."""
    places: list[str] = []

    def note(item: Any, place: str) -> None:
        if item != REDACTED and _is_written_out(item):
            places.append(place)

    with_secrets_as(value, note)
    return places


def referenced_variable(value: Any) -> str | None:
    """Returns the environment variable that ``${NAME}`` or ``$NAME`` refers to."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else match[1] or match[2]


def _is_written_out(value: Any) -> bool:
    """Whether a value under a secret's name is one: not null, a switch or a reference."""
    is_empty = value is None or value == "" or isinstance(value, bool)
    return not is_empty and referenced_variable(value) is None


def _secret_nodes(node: Any, done: set[int], *, is_secret: bool = False) -> Iterator[Any]:
    """The scalars that hold secrets. Aliases repeat a node, so each is looked at once a meaning."""
    if node is None or id(node) * 2 + is_secret in done:
        return
    done.add(id(node) * 2 + is_secret)
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            below = is_secret or is_secret_key(key.value)
            yield from _secret_nodes(item, done, is_secret=below)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _secret_nodes(item, done, is_secret=is_secret)
    elif is_secret and node.tag not in _HARMLESS_TAGS and _is_written_out(node.value):
        yield node


def _comments(text: str) -> Iterator[tuple[int, int]]:
    """Where the comments of a YAML text begin and end: between its tokens."""
    end = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        for match in re.finditer("#.*", text[end : token.start_mark.index]):
            yield end + match.start(), end + match.end()
        end = max(end, token.end_mark.index)


def _redacted_comment(comment: str) -> str:
    """A comment up to the first secret that seems to be in it."""
    for match in _IN_COMMENT.finditer(comment):
        if is_secret_key(match[1]):
            return comment[: match.end()] + REDACTED
    return comment
