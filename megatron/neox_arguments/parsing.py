"""From the text of a YAML or JSON file to keys, values and lines, within the bounds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml

from .bounds import (
    DEEPEST_NESTING,
    LONGEST_NUMBER,
    MOST_KEYS,
    MOST_LINES,
    MOST_VALUES,
    check_plain,
    shown_key,
)
from .errors import ConfigError, shown

Entry = tuple[str, Any, int]
"""A key, its value and its line from 1."""

_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)
_DATE_TAG = "tag:yaml.org,2002:timestamp"
_NOT_TEXT = yaml.reader.Reader.NON_PRINTABLE


def parse_text(text: str, source: str) -> list[Entry]:
    """Parses one YAML or JSON text; keys stay as they are written.

    Raises:
        ConfigError: With file and line for malformed text; if the text is no mapping, is beyond a
            bound, or holds values that are neither text, numbers, true, false, null, lists nor
            sections.
    """
    if match := _NOT_TEXT.search(text):
        where = f"{source}:{_line_at(text, match.start())}"
        raise ConfigError(
            f"{where}: contains the character U+{ord(match.group()):04X}, which text cannot have; "
            "save the file as UTF-8, or remove the character"
        )
    if text.count("\n") + text.count(",") > MOST_LINES:
        raise ConfigError(
            f"{source}:1: contains more than {MOST_LINES} lines and commas; is it a configuration?"
        )
    loader = _BoundedLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{source}:1: must be a section (key: value pairs), got {type(node).__name__}"
            )
        _refuse_nested_duplicates(node, source, top=True)
        loader.flatten_mapping(node)
        _refuse_many_keys(len(node.value), source)
        return [_entry(loader, key, value, source) for key, value in node.value]
    except _BeyondBound as error:
        mark = error.place
        raise ConfigError(f"{source}:{mark.line + 1}:{mark.column + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        if source.endswith(".json"):
            return _parse_json(text, source)
        raise ConfigError(_describe_yaml_error(error, source)) from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError):  # an escape such as \U00110000
        mark = loader.get_mark()
        raise ConfigError(
            f"{source}:{mark.line + 1}:{mark.column + 1}: malformed YAML: no such character or "
            "number; correct it there"
        ) from None
    finally:
        loader.dispose()


def load_json(text: str, source: str, **hooks: Any) -> Any:
    """Parses JSON within the bounds.

    Raises:
        ConfigError: With ``source`` and the line of what is wrong.
    """

    def number(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            where = f"{source}:{_line_at(text, text.find(digits))}"
            raise ConfigError(f"{where}: {_long_number(len(digits))}")
        return int(digits)

    deep = _position_beyond_depth(text)
    if deep is not None:
        where = f"{source}:{_line_at(text, deep)}"
        raise ConfigError(f"{where}: is nested more than {DEEPEST_NESTING} deep; make it flatter")
    try:
        return json.loads(text, parse_int=number, **hooks)
    except json.JSONDecodeError as error:
        where = f"{source}:{error.lineno}:{error.colno}"
        problem = error.msg.removesuffix(" at")  # some of json's messages wait for the place
        raise ConfigError(f"{where}: malformed JSON: {problem}; correct it there") from None


class _BeyondBound(yaml.MarkedYAMLError):
    """A place where a text goes beyond a bound, or holds what a configuration cannot hold."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)
        self.place = mark


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes as ``SafeLoader`` does and stops at a bound, before anything is expanded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """Values and depth of each finished node, with what its aliases repeat."""

    def fetch_flow_collection_start(self, *arguments: Any) -> None:
        # the scanner looks ahead of the composer, and many open brackets make it slow
        self._require_depth(self.flow_level, self.get_mark())
        super().fetch_flow_collection_start(*arguments)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._require_depth(self._depth, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _BeyondBound(f"*{event.anchor} holds itself; remove it", event.start_mark)
            size, height = self._sizes[id(node)]
        else:
            _check_node(node)
            size, height = self._measure(node)
            self._sizes[id(node)] = size, height
            size = 1  # its children are counted already
        self._require_depth(self._depth + height, event.start_mark)
        self._count += size
        if self._count > MOST_VALUES:
            problem = f"contains more than {MOST_VALUES} values, aliases included; shorten it"
            raise _BeyondBound(problem, event.start_mark)
        return node

    def _measure(self, node: Any) -> tuple[int, int]:
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        measures = [self._sizes[id(child)] for child in children]
        return 1 + sum(size for size, _ in measures), 1 + max((h for _, h in measures), default=0)

    def _require_depth(self, depth: int, mark: Any) -> None:
        if depth > DEEPEST_NESTING:
            raise _BeyondBound(f"is nested more than {DEEPEST_NESTING} deep; make it flatter", mark)


def _check_node(node: Any) -> None:
    """Refuses tags of other kinds of values, and long numbers; joins the halves of characters."""
    if node.tag == _DATE_TAG:
        raise _BeyondBound("is read as a date; put it in quotes", node.start_mark)
    if node.tag not in _TAGS:
        problem = f"has the tag {shown(node.tag)}, which a configuration cannot hold; "
        raise _BeyondBound(f"{problem}remove it, or put the value in quotes", node.start_mark)
    if not isinstance(node, yaml.ScalarNode):
        return
    if node.tag in _NUMBER_TAGS and len(node.value) > LONGEST_NUMBER:
        raise _BeyondBound(_long_number(len(node.value)), node.start_mark)
    if not node.value.isascii():
        try:  # JSON writes an emoji as two escapes
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "holds half a character (a surrogate); write it whole"
            raise _BeyondBound(problem, node.start_mark) from None


def _long_number(length: int) -> str:
    return (
        f"a number of {length} characters is too long; write at most {LONGEST_NUMBER}, or put it "
        "in quotes"
    )


def _refuse_many_keys(count: int, source: str) -> None:
    if count > MOST_KEYS:
        raise ConfigError(
            f"{source}:1: has {count} keys, must be at most {MOST_KEYS}; is this a configuration?"
        )


def _entry(loader: Any, key_node: Any, value_node: Any, source: str) -> Entry:
    line = key_node.start_mark.line + 1
    where = f"{source}:{line}"
    try:
        key = loader.construct_object(key_node, deep=True)
        value = loader.construct_object(value_node, deep=True)
    except (ValueError, LookupError, OverflowError):  # `!!int x`, `!!bool x`
        raise ConfigError(f"{where}: a value does not fit its tag; put it in quotes") from None
    return _checked_entry(key, value, source, line)


def _checked_entry(key: Any, value: Any, source: str, line: int) -> Entry:
    where = f"{source}:{line}"
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key must be text, got {shown(key)}; put it in quotes")
    check_plain(key, f"{where}: a key")
    check_plain(value, f"{where}: {shown_key(key)}")
    return key, value, line


def _refuse_nested_duplicates(
    node: Any, source: str, *, top: bool = False, done: set[int] | None = None
) -> None:
    """Refuses a key that is set twice in a nested section; the merge sees the outer keys."""
    done = set() if done is None else done
    if id(node) in done:  # aliases repeat a node
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_nested_duplicates(item, source, done=done)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[Hashable, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not top and isinstance(key_node, yaml.ScalarNode):
            if key_node.value in seen:
                first = f"{source}:{seen[key_node.value]}"
                key = shown(key_node.value)
                raise ConfigError(f"{source}:{line}: {key} is already set at {first}; set it once")
            seen[key_node.value] = line
        _refuse_nested_duplicates(value_node, source, done=done)


def _describe_yaml_error(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = " ".join(str(error.problem or error.context or "cannot be parsed").split())
    problem = problem if len(problem) <= 200 else f"{problem[:197]}..."
    hint = "a comma, quote or bracket before this place may be missing"
    if "'\\t'" in problem:
        hint = "YAML is indented with spaces; replace the tab"
    return f"{where}: malformed YAML: {problem}; {hint}"


def _parse_json(text: str, source: str) -> list[Entry]:
    """Parses JSON that YAML does not take (tabs); finds lines by searching for the key."""
    sections: list[list[tuple[str, Any]]] = []

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        sections.append(pairs)
        return dict(pairs)

    values = load_json(text, source, object_pairs_hook=section)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}:1: must be a section (key: value pairs)")
    *inner, outer = sections  # the outermost one ends last
    for pairs in inner:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ConfigError(
                    f"{source}: {shown(key)} is set twice in one section; set it once"
                )
    _refuse_many_keys(len(outer), source)
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        for match in re.finditer(r'"((?:[^"\\]|\\.)*)"\s*:', line):
            lines.setdefault(match.group(1), number)
    return [
        _checked_entry(key, value, source, lines.get(json.dumps(key)[1:-1], 1))
        for key, value in outer
    ]


def _position_beyond_depth(text: str) -> int | None:
    """Position of the bracket that opens one level too many, outside quoted text; or None."""
    depth = 0
    # a quote that does not end reaches to the end: no place is looked at twice
    for match in re.finditer(r'"(?:[^"\\]|\\.)*(?:"|\Z)|[\[\]{}]', text, re.DOTALL):
        if match.group() in "[{":
            depth += 1
            if depth > DEEPEST_NESTING:
                return match.start()
        elif match.group() in "]}":
            depth -= 1
    return None


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, max(position, 0)) + 1
