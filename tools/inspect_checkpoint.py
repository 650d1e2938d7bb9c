#!/usr/bin/env python
"""Shows the content of a checkpoint, or the differences of two.

    python tools/inspect_checkpoint.py checkpoints/first
    python tools/inspect_checkpoint.py checkpoints/first/global_step100 --diff checkpoints/second

Names, logical shapes, norms and counts of the parameters and of the optimizer's moments; counters,
layout and mixture. A save folder means its latest checkpoint. A folder that tools/convert_to_hf.py
wrote can be read too, and compared with a checkpoint under our names. Any layout, one process,
without deepspeed; 16 MiB of a tensor, or one row, are in memory at a time.

The exit code is that of `diff`: 0 if two are equal bit for bit, 1 if they differ, 2 for trouble.
Layout and folders do not count as a difference: the same weights saved by another layout are equal.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from safetensors import SafetensorError

from megatron.errors import UserError
from megatron.files import describe_error
from megatron.launcher.path_argument import path_argument
from tools.checkpoints.inspection import (
    TensorDifference,
    compare_facts,
    compare_tensors,
    tensor_figures,
)
from tools.checkpoints.tensor_sources import ModelFolderSource, TensorSource, open_source

NO_DIFFERENCE = ("layout", "architectures", "dtype")
"""Facts that two checkpoints of the same state need not share."""


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Show a checkpoint, or compare two.")
    parser.add_argument(
        "folder",
        type=path_argument,
        help="folder of a run, a global_step<N> in it, or an exported model",
    )
    parser.add_argument("--diff", type=path_argument, metavar="OTHER", help="compare with this one")
    parser.add_argument(
        "--kinds",
        nargs="+",
        action="extend",
        metavar="KIND",
        help="fp32 (the weights) and moments such as exp_avg to read (default: all there are)",
    )
    parser.add_argument("--all", action="store_true", help="with --diff: list equal tensors too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = get_parser().parse_args(input_args)
    try:
        if args.diff is not None:
            return _diff(args.folder, args.diff, args)
        source = open_source(args.folder)
        report = inspect(source, _kinds([source], args.kinds))
        print(_json(report) if args.json else _inspection_text(report))
    except (UserError, SafetensorError, OSError) as error:
        sys.stderr.write(f"{describe_error(error)}\n")
        return 2
    return 0


def inspect(source: TensorSource, kinds: Sequence[str]) -> dict[str, Any]:
    """Reads every tensor once; returns names, shapes, counts, norms and facts as plain data."""
    parameters: dict[str, Any] = {}
    for name, shape in source.shapes.items():
        figures = {kind: asdict(tensor_figures(source, name, kind)) for kind in kinds}
        parameters[name] = {"shape": list(shape), "count": math.prod(shape), **figures}
    norms = {
        kind: math.sqrt(sum(entry[kind]["norm"] ** 2 for entry in parameters.values()))
        for kind in kinds
    }
    return {
        "folder": str(source.folder),
        "state": source.facts(),
        "kinds": list(kinds),
        "parameters": parameters,
        "total": {"count": sum(entry["count"] for entry in parameters.values()), "norms": norms},
    }


def _diff(one: Path, other: Path, args: argparse.Namespace) -> int:
    is_model = [(path / "config.json").is_file() for path in (one, other)]
    mixed = any(is_model) and not all(is_model)
    first, second = (open_source(path, our_names=mixed) for path in (one, other))
    kinds = args.kinds or (["fp32"] if mixed else None)
    tensors = compare_tensors(first, second, _kinds([first, second], kinds))
    facts = [] if mixed else compare_facts(first.facts(), second.facts(), NO_DIFFERENCE)
    if mixed:
        stored = first if isinstance(first, ModelFolderSource) else second
        facts = _rounding_note(stored)
    is_equal = not any(not tensor.is_equal for tensor in tensors) and (mixed or not facts)
    if args.json:
        report = {
            "folders": [str(first.folder), str(second.folder)],
            "equal": is_equal,
            "state": facts,
            "tensors": [{**asdict(tensor), "equal": tensor.is_equal} for tensor in tensors],
        }
        print(_json(report))
    else:
        print(_difference_text(tensors, facts, shows_equal=args.all))
    return 0 if is_equal else 1


def _rounding_note(folder: TensorSource) -> list[str]:
    dtype = folder.facts().get("dtype", "float32")
    return [] if dtype == "float32" else [f"{folder.folder}: contains {dtype}, compared in float32"]


def _kinds(sources: Sequence[TensorSource], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds to read, in order: those asked for, or all that any source has."""
    known = tuple(dict.fromkeys(kind for source in sources for kind in source.kinds))
    for kind in wanted or ():
        if kind not in known:
            raise UserError(f"--kinds: no {kind!r} in {sources[0].folder}; has {', '.join(known)}")
    return tuple(wanted) if wanted else known


def _inspection_text(report: dict[str, Any]) -> str:
    kinds = report["kinds"]
    header = ("parameter", "shape", "count", *(f"|{kind}|" for kind in kinds), "max |fp32|")
    rows = []
    for name, entry in report["parameters"].items():
        cells = [_number(entry[kind]["norm"]) for kind in kinds]
        largest = _number(entry[kinds[0]]["max_abs"])
        bad = sum(entry[kind]["non_finite"] for kind in kinds)
        note = f"  {bad} not finite" if bad else ""
        shape = " x ".join(map(str, entry["shape"]))
        rows.append((name, shape, f"{entry['count']:,}", *cells, largest + note))
    total = report["total"]
    norms = [_number(total["norms"][kind]) for kind in kinds]
    rows.append(("all", "", f"{total['count']:,}", *norms, ""))
    header = (*header[:-1], f"max |{kinds[0]}|")
    lines = [report["folder"], *_facts_text(report["state"]), "", *_columns([header, *rows])]
    return "\n".join(lines)


def _facts_text(facts: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in facts.items():
        if key == "mixture":
            pairs = ", ".join(f"{name} {weight:.4f}" for name, weight in value.items())
            lines.append(f"mixture of the next iteration: {pairs}")
        else:
            lines.append(f"{key}: {value}")
    return lines


def _difference_text(
    tensors: Sequence[TensorDifference], facts: Sequence[str], *, shows_equal: bool
) -> str:
    rows = [("parameter", "kind", "max |a - b|", "relative", "elements that differ")]
    for tensor in tensors:
        if tensor.problem:
            rows.append((tensor.name, tensor.kind, tensor.problem, "", ""))
        elif not tensor.is_equal:
            share = f"{tensor.different:,} of {tensor.count:,}"
            distances = (_number(tensor.max_absolute), _number(tensor.max_relative))
            rows.append((tensor.name, tensor.kind, *distances, share))
        elif shows_equal:
            rows.append((tensor.name, tensor.kind, "equal", "", ""))
    equal = sum(tensor.is_equal for tensor in tensors)
    lines = [*facts, *(_columns(rows) if len(rows) > 1 else ())]
    lines.append(f"{equal} of {len(tensors)} tensors are equal to the bit")
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _json(report: Any) -> str:
    """JSON has no NaN: as in the run log, ``"nan"`` and ``"inf"`` are strings."""
    return json.dumps(_finite(report), allow_nan=False, indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
