"""Chooses the data of an evaluation: all or some configured domains, or any tokenized data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.data.domain_files import domain_name
from megatron.data.splits import SplitName
from megatron.errors import nearest
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.neox_arguments.rules.evaluation import nothing_to_evaluate_problem
from megatron.tokenizer.inputs import files_below

__all__ = ["EvaluationPart", "evaluation_parts", "nothing_to_evaluate"]

SPLITS: tuple[tuple[str, SplitName], ...] = (("validation", "valid"), ("test", "test"))
"""Names of the parts in reports and metrics, and the split of the data that each measures."""

Dataset = tuple[str, str]
"""Name of a domain, and prefix of its files."""


@dataclass(frozen=True)
class EvaluationPart:
    """Domains that are evaluated and averaged together."""

    name: str
    """``validation``, ``test``, or ``datasets`` for data that the configuration does not have."""
    config: RunConfig
    """The configuration with the data of this part under ``split``."""
    split: SplitName

    @property
    def is_configured(self) -> bool:
        """Whether this part is held-out data of the run itself."""
        return self.name != "datasets"


def evaluation_parts(config: RunConfig) -> list[EvaluationPart]:
    """The parts that ``eval_domains`` asks for.

    Without it, all configured domains are evaluated, or none if ``eval_tasks`` is set.

    Raises:
        ConfigError: If a name is unknown, a path has no data, or there is nothing to do.
    """
    entries = config.evaluation.domains
    if not entries and config.evaluation.tasks:
        return []
    if not entries:
        if not (config.data.valid_paths or config.data.test_paths):
            raise nothing_to_evaluate(config)
        return [EvaluationPart(name, config, split) for name, split in SPLITS]
    known = {split: _datasets_of(config, split) for _, split in SPLITS}
    names = list(dict.fromkeys(name for datasets in known.values() for name, _ in datasets))
    chosen, others = _choose(entries, names)
    parts = []
    for name, split in SPLITS:
        picked = [number for number, (domain, _) in enumerate(known[split]) if domain in chosen]
        if picked:
            parts.append(EvaluationPart(name, _with_domains(config, split, picked), split))
    if others:
        parts.append(EvaluationPart("datasets", _with_datasets(config, others), "test"))
    return parts


def nothing_to_evaluate(config: RunConfig) -> ConfigError:
    """The error for a configuration without held-out data."""
    return ConfigError(nothing_to_evaluate_problem(config.evaluation.iters))


def find_datasets(entry: str) -> list[Dataset]:
    """Finds the data sets that ``name=path`` or ``path`` means: a prefix, or a folder of prefixes.

    If a folder has one data set, it gets the name; several are named ``<name>/<their folder>``.
    Without a name, each is named after its folder.

    Raises:
        ConfigError: If there are no data.
    """
    name, equals, path = entry.partition("=")
    if not equals or Path(entry).exists() or Path(f"{entry}.idx").is_file():
        name, path = "", entry  # if it exists as written, it is a path
    prefix = path.removesuffix(".idx").removesuffix(".bin")
    if Path(f"{prefix}.idx").is_file():
        return [(name or domain_name(prefix), prefix)]
    files = files_below(Path(path)) if Path(path).is_dir() else []
    prefixes = [str(file.with_suffix("")) for file in files if file.suffix == ".idx"]
    if not prefixes:
        raise ConfigError(
            f"eval_domains: {entry}: no tokenized data at {path} (.idx and .bin), nor in a folder "
            "of this name; create them with tools/preprocess_data.py"
        )
    if len(prefixes) == 1:
        return [(name or domain_name(prefixes[0]), prefixes[0])]
    return [("/".join(filter(None, (name, domain_name(p)))), p) for p in prefixes]


def _choose(entries: Sequence[str], names: Sequence[str]) -> tuple[set[str], list[Dataset]]:
    """Splits entries into those among the configured ``names``, and other data sets."""
    chosen: set[str] = set()
    others: list[Dataset] = []
    for entry in entries:
        if entry in names:
            chosen.add(entry)
        elif "=" in entry or Path(entry).exists() or Path(f"{entry}.idx").is_file():
            others.extend(find_datasets(entry))
        else:
            near = nearest(entry, names)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"eval_domains: there is no domain {entry!r}; {meant}known: "
                f"{', '.join(names) or 'none'}; for other data write name=path"
            )
    _check_names(others)
    return chosen, others


def _check_names(datasets: Sequence[Dataset]) -> None:
    first: dict[str, str] = {}
    for name, prefix in datasets:
        if first.setdefault(name, prefix) != prefix:
            raise ConfigError(
                f"eval_domains: {name!r} names two data sets: {first[name]} and {prefix}; give "
                "each its own name"
            )


def _datasets_of(config: RunConfig, split: SplitName) -> list[Dataset]:
    """Configured domains of a split; unnamed data are named after their folders."""
    prefixes = getattr(config.data, f"{split}_paths")
    names = getattr(config.data, f"{split}_domains") or map(domain_name, prefixes)
    return list(zip(names, prefixes, strict=True))


def _with_domains(config: RunConfig, split: SplitName, picked: Sequence[int]) -> RunConfig:
    """The configuration with only the ``picked`` entries of a split."""
    changes: dict[str, Any] = {}
    for key in (f"{split}_paths", f"{split}_weights", f"{split}_domains"):
        values = getattr(config.data, key)
        changes[key] = tuple(values[number] for number in picked) if values else ()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def _with_datasets(config: RunConfig, datasets: Sequence[Dataset]) -> RunConfig:
    """The configuration with ``datasets`` in place of the test data, each evaluated as a whole."""
    names, prefixes = zip(*datasets, strict=True)
    data = dataclasses.replace(
        config.data,
        test_paths=prefixes,
        test_domains=names,
        test_weights=(1.0,) * len(names),
        split=None,
        use_named_eval_datasets=True,
    )
    evaluation = dataclasses.replace(config.evaluation, named_iters=None)
    return dataclasses.replace(config, data=data, evaluation=evaluation)
