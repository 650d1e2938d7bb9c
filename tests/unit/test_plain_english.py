"""Documents, messages and docstrings use the words of the glossary in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DOCUMENTS = ("*.md", "docs", "configs", "odm/README.md", "requirements/*.md")
"""Where text is searched as a whole; in a folder, its .md and .yml files."""

NOT_SEARCHED = ("CONTRIBUTING.md", "configs/neox_arguments.md")
"""The glossary itself, and what is generated from docstrings."""

COUNTED = (
    "one|nats|bits|bytes|tokens|cursor|entry|object|record|requests|seconds|microseconds|"
    "dataset|generator|row|table|numbers|positions|slots|line|loss|domain"
)
UNITS = (
    "domain|rank|step|iteration|token|row|second|sample|micro-batch|document|question|line|layer|"
    "task|prompt|chunk|block|group|byte|stream|machine|shape|key|item|data ?set|epoch|node|family"
)
BANNED = {
    "per": rf"(?:\b(?:{COUNTED})|\d samples) an? (?:{UNITS})\b(?!-)",
    "again, or from scratch": r"\banew\b",
    "reports or warns": r"\baloud\b|\b(?:is|are|and) said\b|\b(?:says|said|say) so\b",
    "fix": r"\bmend(?:s|ed|ing)?\b",
    "does not support": r"\bthis version has not\b|\b(?:has|have) not (?:a|an|the)\b",
    "continues": r"\b(?:training|a run|the run|program) goes on\b",
    "contains": r"(?-i:(?:^|\}|:) *holds\b)|\b(?:file|folder|log|checkpoint) holds\b",
    "previous checkpoint stays valid": r"\bin force\b",
    "what the argument is": r"\w: (?-i:Of the \w+|See `\w+`)\.(?=\s|$)",
    "is or appears": r"\b(?:stands|lies) (?:at|on|behind|beside|there|ready)\b",
}
"""What the glossary asks for -> what it replaces, as far as a pattern can tell."""


def documents() -> Iterator[Path]:
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            found = [path] if path.is_file() else [*path.rglob("*.md"), *path.rglob("*.yml")]
            yield from (p for p in found if str(p.relative_to(ROOT)) not in NOT_SEARCHED)


def modules() -> Iterator[Path]:
    found = [
        *ROOT.glob("*.py"),
        *(
            p
            for d in ("megatron", "odm", "tools")
            for p in (ROOT / d).rglob("*.py")
            if "build" not in p.parts
        ),
    ]
    yield from sorted(found)


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string; the parts of an f-string are joined by a placeholder."""
    tree = ast.parse(source)
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            texts = (v.value if isinstance(v, ast.Constant) else " {} " for v in node.values)
            yield node.lineno, "".join(map(str, texts))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield node.lineno, node.value


def banned_forms(text: str) -> list[str]:
    flat = re.sub(r"[\s#]+", " ", text)
    return [
        f"{match[0]!r}; use {better}"
        for better, pattern in BANNED.items()
        for match in re.finditer(pattern, flat, flags=re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_in_plain_english(path):
    text = re.sub(
        r"^```text\n.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert banned_forms(text) == []


def test_strings_of_the_code_are_in_plain_english():
    found = {
        f"{path.relative_to(ROOT)}:{line}": forms
        for path in modules()
        for line, text in strings(path.read_text(encoding="utf-8"))
        if (forms := banned_forms(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "one cursor a domain",
        "480 samples a step",
        "loss, 3.2 nats a\ntoken",
        "one JSON object a line",
        "begins anew",
        "holds half a character",
        "{}: {} holds no weights",
        "the run log holds no validation",
        "is run as stage 1, and said",
        "RWKV layers, which this version has not; remove it",
        "the folder lies on a disk",
        "a warning, and training goes on without it",
        "the checkpoint before it remains in force",
        "Args:\n    tokenizer: Of the run.\n    seed: A number.",
    ],
)
def test_a_banned_form_is_found(text):
    assert len(banned_forms(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "one cursor per domain",
        "reads a domain, names a file, ends a run",
        "half a second; the samples a step sees",
        "ranks that have not ended",
        "one of a domain's samples",
        "a stand-in; between the lines",
        "a rank holds its part; what the file system holds",
        "forces a stop; see `update`; one of the run",
    ],
)
def test_other_sentences_are_left_alone(text):
    assert banned_forms(text) == []
