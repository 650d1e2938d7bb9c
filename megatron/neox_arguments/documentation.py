"""The reference of all keys, made from the strings under the fields."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

from .coerce import describe
from .fields import field_table
from .groups import GROUPS
from .presets import PRESETS
from .unsupported import UNSUPPORTED

HEADER = """# Configuration keys

Every key of the configuration files, by topic. Dashes and underscores in a key are the same.
A value that is not set, or null, is the default; "none" means that there is no value, and the text
says what happens then.

Written by `python configs/gen_docs.py` from `megatron/neox_arguments/groups/`; do not edit it.
"""


def field_docs(group_class: type[Any]) -> dict[str, str]:
    """Returns the string under each field of a group, by field name.

    Raises:
        AssertionError: If a field has none; a mistake of ours.
    """
    module = importlib.import_module(group_class.__module__)
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    docs: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != group_class.__name__:
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
    table = field_table()
    parts = [HEADER]
    for group, group_class in GROUPS.items():
        parts.append(f"\n## {group_class.__name__}\n\n{inspect.getdoc(group_class)}\n")
        for name, text in field_docs(group_class).items():
            field = table[name]
            parts.append(
                f"\n- **{name}**: {describe(field.type)}. Default: {_default(field.default)}.\n"
                f"\n    {text}\n"
            )
        assert {f.name for f in table.values() if f.group == group} == set(field_docs(group_class))
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


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)
