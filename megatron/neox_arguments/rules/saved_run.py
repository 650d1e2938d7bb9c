"""What the run that is continued was configured with, for files that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odm.json_data import fields, read_json

from ..resolved import in_current_form
from .draft import Draft


def saved_sections(draft: Draft) -> Mapping[str, Any]:
    """Sections of the resolved configuration of the newest checkpoint in `load`.

    Empty if there is no such checkpoint; the values are not checked.
    """
    if not draft["load"]:
        return {}
    folder = Path(draft["load"])
    try:
        step = (folder / "latest").read_text(encoding="utf-8").strip()
        return in_current_form(read_json(folder / step / "configs" / "resolved.json", fields({})))
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
