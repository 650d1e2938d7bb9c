"""From the text of a YAML or JSON file to keys, values and lines, within the bounds."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import yaml

from . import bounds
from .bounds import DEEPEST_NESTING, LONGEST_NUMBER, check_plain, key_names, shown_key
from .errors import ConfigError, shown

Entry = tuple[str, Any, int]
"""A key, its value and its line from 1."""

_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)
_TOO_DEEP = f"is nested more than {DEEPEST_NESTING} deep; make it flatter"
_DATE_TAG = "tag:yaml.org,2002:timestamp"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_OTHER_BASE = re.compile(r"[-+]?([0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|0[0-7_]*[1-7][0-7_]+)")
"""Numbers that YAML 1.1 does not read as decimals, and people do: 1:30 and 017."""
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
        problem = f"contains the character U+{ord(match.group()):04X}, which text cannot have"
        advice = "save the file as UTF-8, or remove the character"
        raise ConfigError(f"{where}: {problem}; {advice}")
    if text.count("\n") + text.count(",") > bounds.MOST_LINES:
        problem = f"contains more than {bounds.MOST_LINES} lines and commas"
        raise ConfigError(f"{source}:1: {problem}; is it a configuration?")
    loader = _BoundedLoader(text, source)
    try:
        node = loader.get_single_node()
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            got = "a list"
            if isinstance(node, yaml.ScalarNode):
                got = f"the text {shown(node.value)}; is a blank missing after a colon?"
            raise ConfigError(f"{source}:1: must be a section (key: value pairs), got {got}")
        loader.flatten_mapping(node)
        if len(node.value) > bounds.MOST_KEYS:
            words = f"has {len(node.value)} keys, must be at most {bounds.MOST_KEYS}"
            raise ConfigError(f"{source}:1: {words}; is this a configuration?")
        return [_entry(loader, key, value, source) for key, value in node.value]
    except yaml.MarkedYAMLError as error:
        if source.endswith(".json") and "\t" in text:
            # JSON has tabs between values alone, where YAML takes none
            entries = parse_text(text.replace("\t", " "), source)
            load_json(text, source)
            return entries
        if source.endswith(".json"):
            load_json(text, source)  # tells in the words of JSON what is wrong
        raise ConfigError(_describe_yaml_error(error, source)) from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError):  # an escape such as \U00110000
        problem = "malformed YAML: no such character or number; correct it there"
        raise loader.error(problem, loader.get_mark()) from None
    finally:
        loader.dispose()


def load_json(text: str, source: str) -> Any:
    """Parses JSON.

    Raises:
        ConfigError: With ``source`` and the line of what is wrong.
    """

    def number(word: str) -> int:
        problem = f"{word} is no finite number; write one"
        if len(word) > LONGEST_NUMBER:  # Python reads no whole number of thousands of digits
            problem = _long_number(len(word))
        elif word.lstrip("-").isdecimal():
            return int(word)
        raise ConfigError(f"{source}:{_line_at(text, text.find(word))}: {problem}")

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ConfigError(f"{source}: {shown_key(name)} is set twice; set it once")
        return values

    try:
        return json.loads(text, parse_int=number, parse_constant=number, object_pairs_hook=section)
    except json.JSONDecodeError as error:
        where = f"{source}:{error.lineno}:{error.colno}"
        problem = error.msg.removesuffix(" at")  # some of json's messages wait for the place
        raise ConfigError(f"{where}: malformed JSON: {problem}; correct it there") from None
    except RecursionError:
        raise ConfigError(f"{source}: {_TOO_DEEP}") from None


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes as ``SafeLoader`` does and stops at a bound, before anything is expanded."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self._source = source
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
                raise self.error(f"*{event.anchor} contains itself; remove it", event.start_mark)
            size, height = self._sizes[id(node)]
        else:
            self._check_node(node)
            size, height = self._measure(node)
            self._sizes[id(node)] = size, height
            size = 1  # its children are counted already
        self._require_depth(self._depth + height, event.start_mark)
        self._count += size
        if self._count > bounds.MOST_VALUES:
            problem = (
                f"contains more than {bounds.MOST_VALUES} values, aliases included; shorten it"
            )
            raise self.error(problem, event.start_mark)
        return node

    def error(self, problem: str, mark: Any) -> ConfigError:
        """Returns an error with the file, line and column of ``mark``."""
        return ConfigError(f"{self._source}:{mark.line + 1}:{mark.column + 1}: {problem}")

    def _measure(self, node: Any) -> tuple[int, int]:
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        measures = [self._sizes[id(child)] for child in children]
        return 1 + sum(size for size, _ in measures), 1 + max((h for _, h in measures), default=0)

    def _require_depth(self, depth: int, mark: Any) -> None:
        if depth > DEEPEST_NESTING:
            raise self.error(_TOO_DEEP, mark)

    def _check_node(self, node: Any) -> None:
        """Refuses other kinds of values, long numbers, keys that are set twice in a section.

        It joins the halves of characters.
        """
        if node.tag == _DATE_TAG:
            raise self.error("is read as a date; put it in quotes", node.start_mark)
        if node.tag not in _TAGS:
            problem = f"has the tag {shown(node.tag)}, which a configuration cannot contain; "
            raise self.error(f"{problem}remove it, or put the value in quotes", node.start_mark)
        if isinstance(node, yaml.MappingNode) and self._depth:  # the merge sees the outer keys
            self._refuse_duplicates(node)
        if not isinstance(node, yaml.ScalarNode):
            return
        if node.tag in _NUMBER_TAGS and len(node.value) > LONGEST_NUMBER:
            raise self.error(_long_number(len(node.value)), node.start_mark)
        if node.tag in _NUMBER_TAGS and _OTHER_BASE.fullmatch(node.value):
            base = 60 if ":" in node.value else 8
            problem = f"{node.value} is read as {self.construct_object(node)} (base {base})"
            raise self.error(f"{problem}; write that, or put it in quotes", node.start_mark)
        if not node.value.isascii():
            try:  # JSON writes an emoji as two escapes
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                problem = "contains half a character (a surrogate); write it whole"
                raise self.error(problem, node.start_mark) from None

    def _refuse_duplicates(self, node: Any, *, is_merged: bool = False) -> None:
        """Refuses two keys of a section that a reader takes for one, as 1, 1.0 and true are.

        After a merge (`<<`) the same text may be there twice: the section's own value wins.
        """
        found: dict[Any, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            try:
                names = key_names(self.construct_object(key))
            except (ValueError, LookupError, OverflowError):  # it does not fit its tag
                continue
            first = next((found[name] for name in names if name in found), key)
            found |= dict.fromkeys(names, key)
            if first is key or (is_merged and first.value == key.value):
                continue
            place = f"{self._source}:{first.start_mark.line + 1}"
            if first.value == key.value:
                problem = f"{shown(key.value)} is already set at {place}; set it once"
            else:
                both = f"{shown_key(key.value)} and {shown_key(first.value)} at {place}"
                problem = f"{both} are one key; set it once, or put both in quotes"
            raise ConfigError(f"{self._source}:{key.start_mark.line + 1}: {problem}")

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As `SafeLoader`, and refuses merged keys that only Python takes for the same."""
        self.flatten_mapping(node)
        self._refuse_duplicates(node, is_merged=True)
        return super().construct_mapping(node, deep=deep)


def _long_number(length: int) -> str:
    limit = f"write at most {LONGEST_NUMBER}, or put it in quotes"
    return f"a number of {length} characters is too long; {limit}"


def _entry(loader: Any, key_node: Any, value_node: Any, source: str) -> Entry:
    line = key_node.start_mark.line + 1
    where = f"{source}:{line}"
    try:
        key = loader.construct_object(key_node, deep=True)
        value = loader.construct_object(value_node, deep=True)
    except ConfigError:
        raise
    except (ValueError, LookupError, OverflowError):  # `!!int x`, `!!bool x`
        raise ConfigError(f"{where}: a value does not fit its tag; put it in quotes") from None
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key must be text, got {shown(key)}; put it in quotes")
    check_plain(key, f"{where}: a key")
    check_plain(value, f"{where}: {shown_key(key)}")
    return key, value, line


def _describe_yaml_error(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    problem = " ".join(str(error.problem or error.context or "cannot be parsed").split())
    problem = problem if len(problem) <= 200 else f"{problem[:197]}..."
    hint = "a comma, quote or bracket before this place may be missing"
    if "'\\t'" in problem:
        hint = "YAML is indented with spaces; replace the tab"
    return f"{where}: malformed YAML: {problem}; {hint}"


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
