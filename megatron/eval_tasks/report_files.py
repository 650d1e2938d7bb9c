"""Files of an evaluation: results as JSON, and the samples of each task as JSON Lines."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.files import write_json_atomic, write_text_atomic
from megatron.neox_arguments import ConfigError
from megatron.reporting.run_log import plain_json

__all__ = ["check_results_place", "results_path", "unused_path", "write_report"]


def check_results_place(prefix: str) -> None:
    """Checks, before results are computed, that they can be written.

    Args:
        prefix: ``eval_results_prefix``; missing folders will be created.

    Raises:
        ConfigError: If its nearest existing folder is a file, or may not be written.
    """
    folder = results_path(prefix, "", num_fewshot=None).parent
    nearest = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    if not nearest.is_dir():
        problem = "is a file; name a folder"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problem = "may not be written; choose another place"
    else:
        return
    raise ConfigError(f"eval_results_prefix: {prefix!r}: {nearest.absolute()} {problem}")


def results_path(prefix: str, moment: str, *, num_fewshot: int | None) -> Path:
    """Names the result file: ``[<prefix>_]eval_results_[<n>shot_]<moment>.json``."""
    shots = f"{num_fewshot}shot" if num_fewshot else ""
    return Path("_".join(filter(None, (prefix, "eval_results", shots, moment))) + ".json")


def unused_path(path: Path) -> Path:
    """``path``, or the first of ``<name>_2.json``, ``_3`` ... that does not exist yet."""
    candidates = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return path if not path.exists() else next(c for c in candidates if not c.exists())


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes ``path``, and the report's ``samples`` beside it; missing folders are created.

    The samples of ``x_eval_results_y.json`` are in ``x_samples_<task>_y.jsonl``, one line per
    question in lm-eval's format, so that lm-eval's tools can read them. A number that is not finite
    is written as text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for task, lines in report.get("samples", {}).items():
        safe_name = "".join(c if c.isalnum() or c in "-_." else "_" for c in task)
        name = path.stem.replace("eval_results", f"samples_{safe_name}", 1)
        texts = (json.dumps(_sample(line), ensure_ascii=False) + "\n" for line in lines)
        write_text_atomic(path.with_name(f"{name}.jsonl"), "".join(texts))
    content = {key: value for key, value in report.items() if key != "samples"}
    write_json_atomic(path, plain_json(content))


def _sample(line: Mapping[str, Any]) -> dict[str, Any]:
    """A logged question; its arguments get the names that lm-eval uses in its files."""
    arguments: Sequence[Sequence[Any]] = line["arguments"]
    named = {
        f"gen_args_{request}": {f"arg_{place}": value for place, value in enumerate(values)}
        for request, values in enumerate(arguments)
    }
    return plain_json({**line, "arguments": named})
