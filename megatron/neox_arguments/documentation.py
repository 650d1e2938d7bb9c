"""The reference of all keys, made from the strings under the fields."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

from .aliases import ALIASES
from .coerce import describe
from .fields import Field, field_table
from .presets import PRESETS
from .sections import SECTIONS
from .unsupported import UNSUPPORTED

HEADER = """# Configuration keys

Every key of the configuration files, by topic. Dashes and underscores in a key are the same.
A value that is not set, or null, is the default; "none" means that there is no value, and the text
says what happens then.

Written by `python configs/gen_docs.py` from `megatron/neox_arguments/sections/`; do not edit it.
"""


def field_docs(declared: type[Any]) -> dict[str, str]:
    """Returns the string under each field of a section, by field name.

    Raises:
        AssertionError: If a field has none; a mistake of ours.
    """
    module = importlib.import_module(declared.__module__)
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    docs: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != declared.__name__:
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            name = field.target.id
            assert isinstance(after, ast.Expr), f"{name} has no string under it"
            assert isinstance(after.value, ast.Constant), f"{name} has no string under it"
            docs[name] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def reference_markdown() -> str:
    """Returns the whole reference as Markdown."""
    parts = [HEADER]
    for name, section in SECTIONS.items():
        parts.append(f"\n## {section.answers.__name__}\n\n{inspect.getdoc(section.answers)}\n")
        docs = field_docs(section.answers)
        docs |= field_docs(section.keys) if section.keys else {}
        for field in field_table().values():
            if field.section == name:
                parts.append(_entry(field, docs[field.answer or field.name]))
    parts.append(
        "\n## Other names\n\nOld names, and keys outside a section that set one of its keys.\n"
    )
    parts += [
        f"\n- **{alias.old}**: {describe(alias.type)}. Default: {_default(alias.default)}."
        f" Read as `{alias.new}`.\n"
        for alias in ALIASES
    ]
    parts.append("\n## Keys that are not supported\n\nKeys of GPT-NeoX that change nothing here.\n")
    for row in UNSUPPORTED.values():
        verdict = "No effect in this version" if row.verdict == "no effect" else row.verdict
        parts.append(
            f"\n- **{row.key}**: {describe(row.type)}. Default: {_default(row.default)}."
            f" {verdict[0].upper()}{verdict[1:]}: {row.reason}.\n"
        )
    parts.append("\n## Presets\n\n`neox_compat` replaces these defaults:\n")
    for preset, values in PRESETS.items():
        listed = ", ".join(f"`{key}: {_default(value)}`" for key, value in values.items())
        parts.append(f"\n- `{preset}`: {listed}\n")
    return "".join(parts)


def _entry(field: Field, text: str) -> str:
    bounds = "".join(f", {bound.words}" for bound in field.bounds)
    return (
        f"\n- **{field.name}**: {describe(field.type)}{bounds}."
        f" Default: {_default(field.default)}.\n\n    {text}\n"
    )


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
