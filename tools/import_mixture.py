"""Makes a file for ``train_data_weights: {file: FILE}`` from what RegMix or Olmix wrote.

``python tools/import_mixture.py regmix.yaml -o weights.yml``. The file contains one weight per
domain, and where it comes from.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import yaml

from megatron.errors import UserError
from megatron.files import describe_error, is_same_path, write_text_atomic
from megatron.launcher.path_argument import not_empty
from megatron.neox_arguments.coerce import parse_number
from megatron.neox_arguments.errors import ConfigError, shown
from megatron.neox_arguments.parsing import load_json, parse_text
from megatron.neox_arguments.rules.by_domain import wrong_sum
from megatron.neox_arguments.schema import read_text
from megatron.tokenizer.command_line import exit_code
from odm.wording import counted

_TRAIN_PREFIX = "train_"
"""RegMix puts it before the name of each training domain."""
_DETAILS = frozenset(("weight", "repetition_factor"))
"""Keys of a source of Olmix that are no parts of it."""


class Mixture(NamedTuple):
    """Weights by domain, and the tool that found them."""

    tool: str
    weights: dict[str, float]
    row: int | None = None
    """Run of a table of mixtures."""


def read_mixture(source: str, *, row: int | None = None) -> Mixture:
    """Reads a mixture; the format is found from the content.

    Known are RegMix's configuration of a training run (``train: {train_<domain>: weight}``) and its
    table of mixtures (a CSV file with the columns ``index`` and ``train_<domain>``), and of Olmix
    the proposal ``*_optimal.json`` (a list of ``{"domain", "weight"}``) and the section ``mix`` of
    an experiment (weights of sources, their topics and quality buckets).

    Args:
        source: The file.
        row: Run of a table of mixtures, by its number in the column ``index``.

    Raises:
        ConfigError: If the file is of no known format, or a weight is no number of at least 0.
    """
    text = read_text(source)
    if source.endswith(".csv"):
        return _of_table(text, source, row)
    if row is not None:
        raise ConfigError(f"{source}: --row {row} is for a table of mixtures (.csv); remove it")
    is_list = text.lstrip().startswith("[")
    values = load_json(text, source) if is_list else _section(text, source)
    if is_list and values and all(_is_proposed(entry) for entry in values):
        pairs = [(entry["domain"], entry["weight"]) for entry in values]
        return Mixture("Olmix", _checked(pairs, source))
    if not is_list and isinstance(values.get("mix"), dict):
        return Mixture("Olmix", _checked(_leaves(values["mix"], source), source))
    if not is_list and isinstance(values.get("train"), dict) and "valid" in values:
        return Mixture("RegMix", _checked(_without_prefix(values["train"].items()), source))
    raise ConfigError(
        f"{source}: unknown format; known are of RegMix a configuration (train, valid) and a table "
        "of mixtures (.csv), of Olmix *_optimal.json and an experiment with mix"
    )


def renamed(weights: Mapping[str, float], names: Sequence[str], source: str) -> dict[str, float]:
    """Gives domains other names; weights of domains that get the same name are added.

    Args:
        weights: Weights by domain.
        names: Texts ``OLD=NEW``.
        source: The file, for messages.

    Raises:
        ConfigError: If a text has another form or names no domain of the file.
    """
    new_names: dict[str, str] = {}
    for text in names:
        old, is_pair, new = text.rpartition("=")
        if not is_pair or not new or not new.isprintable() or old not in weights:
            raise ConfigError(
                f"--rename: {shown(text)} must be OLD=NEW with a domain of {source}; the domains "
                f"are {', '.join(weights)}"
            )
        new_names[old] = new
    result: dict[str, float] = {}
    for name, weight in weights.items():
        name = new_names.get(name, name)
        result[name] = result.get(name, 0.0) + weight
    return result


def mixture_text(mixture: Mixture, source: str) -> str:
    """The file's text: YAML with ``weights`` and ``provenance``; equal input makes equal text."""
    provenance: dict[str, Any] = {
        "tool": mixture.tool,
        "file": Path(source).name,
        "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
    }
    if mixture.row is not None:
        provenance["row"] = mixture.row
    content = {"provenance": provenance, "weights": mixture.weights}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _section(text: str, source: str) -> dict[str, Any]:
    return {key: value for key, value, _ in parse_text(text, source)}


def _of_table(text: str, source: str, row: int | None) -> Mixture:
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        columns = [name for name in table.fieldnames or () if name.startswith(_TRAIN_PREFIX)]
        lines = list(table)
    except csv.Error as error:
        raise ConfigError(f"{source}: malformed CSV: {error}; correct it there") from None
    if not columns or "index" not in (table.fieldnames or ()):
        raise ConfigError(
            f"{source}: unknown format; a table of mixtures has columns index and train_<domain>"
        )
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        number = parse_number(line["index"])
        if type(number) is not int or number in rows:
            raise ConfigError(
                f"{source}: index {shown(line['index'])} must be a whole number that occurs once"
            )
        rows[number] = line
    if row is None or row not in rows:
        given = "it has no --row" if row is None else f"there is no row {row}"
        numbers = f"{min(rows)} to {max(rows)}" if rows else "none, since the table is empty"
        raise ConfigError(
            f"{source}: {given}; choose a mixture of the table by --row, its index: {numbers}"
        )
    pairs = ((name, rows[row][name]) for name in columns)
    return Mixture("RegMix", _checked(_without_prefix(pairs), source), row)


def _without_prefix(pairs: Any) -> list[tuple[str, Any]]:
    return [(str(name).removeprefix(_TRAIN_PREFIX), value) for name, value in pairs]


def _is_proposed(entry: Any) -> bool:
    return isinstance(entry, dict) and {"domain", "weight"} <= entry.keys()


def _leaves(section: Mapping[str, Any], source: str) -> list[tuple[str, Any]]:
    """Names ``source:topic:bucket`` with the product of the weights on the way there."""
    found: list[tuple[str, Any]] = []
    for name, value in section.items():
        if name in _DETAILS:
            continue
        value = value if isinstance(value, dict) else {"weight": value}
        weight = _number(value.get("weight"), str(name), source)
        parts = _leaves(value, source)
        if parts:
            found += [(f"{name}:{part}", weight * below) for part, below in parts]
        else:
            found.append((str(name), weight))
    return found


def _checked(pairs: Sequence[tuple[Any, Any]], source: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for name, value in pairs:
        if not isinstance(name, str) or not name or not name.isprintable() or name in weights:
            problem = "must be a name that occurs once, on one line"
            raise ConfigError(f"{source}: domain {shown(name)} {problem}")
        weights[name] = _number(value, name, source)
    if problem := wrong_sum(weights.values()):
        raise ConfigError(f"{source}: the weights {problem}")
    return weights


def _number(value: Any, name: str, source: str) -> float:
    number = parse_number(value)
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not (is_number and 0 <= number < math.inf):
        raise ConfigError(
            f"{source}: weight of {name} must be a number of at least 0, got {shown(value)}"
        )
    return float(number)


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        description="Make a file of weights for train_data_weights from an output of RegMix or "
        "Olmix.",
    )
    parser.add_argument("source", type=not_empty, help="a file that RegMix or Olmix wrote")
    parser.add_argument(
        "-o", "--output", type=not_empty, required=True, help="file to write (.yml or .json)"
    )
    parser.add_argument("--row", type=int, help="for a table of mixtures: index of the run")
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="give a domain another name; weights of domains with the same new name are added",
    )
    return parser


def main(input_args: Sequence[str] | None = None) -> None:
    """Runs the command; ends with exit code 2 and one line if the file cannot be read."""
    args = get_parser().parse_args(input_args)
    try:
        if is_same_path(args.source, args.output):
            raise UserError(f"{args.output}: is the file to read; name another one with -o")
        mixture = read_mixture(args.source, row=args.row)
        mixture = mixture._replace(weights=renamed(mixture.weights, args.rename, args.source))
        text = mixture_text(mixture, args.source)
        if args.output.endswith(".json"):
            text = json.dumps(yaml.safe_load(text), indent=2) + "\n"
        write_text_atomic(Path(args.output), text)
    except (UserError, OSError) as error:
        print(f"import_mixture: {describe_error(error)}", file=sys.stderr)
        sys.exit(2)
    print(
        f"{args.output}: {counted(len(mixture.weights), 'domain')} of {mixture.tool}; use it by "
        f"train_data_weights: {{file: {args.output}}}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
