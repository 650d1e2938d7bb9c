"""The plan of a campaign: which texts, suites, arms and seeds, from one YAML file."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron.errors import UserError
from odm.json_data import (
    SchemaError,
    anything,
    boolean,
    fields,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    text,
)
from tools.benchmark.quality.texts import MAKERS

__all__ = ["Arm", "DomainText", "Plan", "PlanError", "Run", "Suite", "TextSet", "read_plan"]


class PlanError(UserError):
    """The plan, the corpus or a result cannot be used; one line for the user."""


@dataclass(frozen=True)
class DomainText:
    """Where the text of a domain comes from."""

    corpus: tuple[str, ...] = ()
    """Domains of the corpus, joined; empty if the text is made."""
    made: str | None = None
    """A kind of `quality.texts.MAKERS`."""
    documents: tuple[float, float] = (0.0, 1.0)
    """Which training documents of each corpus domain: from and up to this share of them."""
    part: tuple[int, int] = (0, 1)
    """``(i, n)``: of these documents and of the held-out ones, number i, i + n, i + 2 n, ..."""
    train_bytes: int | None = None
    """Training text stops after the document that reaches this size. Needed if the text is made."""
    noise: bool = False
    """Text that cannot be learned; the means of the report leave it out."""


@dataclass(frozen=True)
class TextSet:
    """The text of a suite."""

    seed: int
    """Of the text that is made."""
    domains: Mapping[str, DomainText]


@dataclass(frozen=True)
class Arm:
    """One way to mix."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of GPT-NeoX's YAML that differ from the plan's ``base``."""
    natural: bool = False
    """Whether `train_data_weights` are the numbers of training tokens."""
    average_of: str | None = None
    """The arm whose drawn samples, of the same suite and seed, give `train_data_weights`."""


@dataclass(frozen=True)
class Suite:
    """Runs on one text."""

    text: str
    seeds: Mapping[str, tuple[int, ...]]
    """By arm, in the order in which they are run."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_request: bool = False
    """Whether only ``--only`` selects its runs."""
    added: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Seeds by arm, of arms that came after the main runs; only ``--only`` selects them."""

    @property
    def arms(self) -> dict[str, tuple[int, ...]]:
        """Seeds of all arms: first those of the main runs."""
        return {**self.seeds, **self.added}


@dataclass(frozen=True, order=True)
class Run:
    """One training run."""

    suite: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """``suite/arm/seed``, which ``--only`` matches."""
        return f"{self.suite}/{self.arm}/{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole plan."""

    base: Mapping[str, Any]
    texts: Mapping[str, TextSet]
    suites: Mapping[str, Suite]
    arms: Mapping[str, Arm]

    def runs(self, patterns: Iterable[str] = ()) -> list[Run]:
        """The runs in order: suite by suite, seed by seed, so that pairs are complete early.

        Args:
            patterns: Of names; ``*`` stands for anything. None: the main runs, which are all runs
                but those of suites on request and of arms that were added.
        """
        patterns = list(patterns)
        found = []
        for name, suite in self.suites.items():
            main = {} if suite.on_request else suite.seeds
            arms = suite.arms if patterns else main
            for seed in sorted({seed for seeds in arms.values() for seed in seeds}):
                runs = [Run(name, arm, seed) for arm, seeds in arms.items() if seed in seeds]
                found += [
                    run
                    for run in runs
                    if not patterns
                    or any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)
                ]
        return found

    def settings(self, run: Run) -> dict[str, Any]:
        """The run's YAML keys without paths and weights."""
        suite, arm = self.suites[run.suite], self.arms[run.arm]
        # `odm.replay` and the results need every iteration
        fixed = {"seed": run.seed, "log_interval": 1}
        return {**self.base, **suite.settings, **arm.settings, **fixed}

    def digest(self, run: Run, text_digest: str) -> str:
        """Identifies everything that decides a run's result, code and machine apart."""
        arm = self.arms[run.arm]
        source = arm.average_of
        decides = {
            "settings": self.settings(run),
            "text": text_digest,
            "natural": arm.natural,
            "average_of": source and self.digest(Run(run.suite, source, run.seed), text_digest),
        }
        content = json.dumps(decides, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]


_NAME = text("[A-Za-z0-9_]+", must="letters, digits and underscores")
_SETTINGS = mapping_of(anything)
_PLAN = fields(
    {
        "base": _SETTINGS,
        "texts": mapping_of(
            fields(
                {
                    "seed": integer(0),
                    "domains": mapping_of(
                        fields(
                            {},
                            {
                                "corpus": list_of(text()),
                                "made": one_of(*MAKERS),
                                "documents": list_of(number(0, 1), 2),
                                "part": list_of(integer(0), 2),
                                "train_bytes": integer(1),
                                "noise": boolean,
                            },
                            closed=True,
                        ),
                        _NAME,
                    ),
                },
                closed=True,
            ),
            _NAME,
        ),
        "arms": mapping_of(
            fields(
                {},
                {"settings": _SETTINGS, "natural": boolean, "average_of": optional(_NAME)},
                closed=True,
            ),
            _NAME,
        ),
        "suites": mapping_of(
            fields(
                {"text": _NAME, "seeds": mapping_of(list_of(integer(1)), _NAME)},
                {
                    "settings": _SETTINGS,
                    "on_request": boolean,
                    "added": mapping_of(list_of(integer(1)), _NAME),
                },
                closed=True,
            ),
            _NAME,
        ),
    },
    closed=True,
)


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan.

    Raises:
        PlanError: One line with file, field and value.
    """
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        _PLAN(record, "")
    except (OSError, yaml.YAMLError, SchemaError) as error:
        raise PlanError(f"{path}: {' '.join(str(error).split())}") from error
    plan = Plan(
        base=record["base"],
        texts={name: _text_set(values) for name, values in record["texts"].items()},
        arms={name: Arm(**values) for name, values in record["arms"].items()},
        suites={
            name: Suite(
                **{
                    **values,
                    "seeds": _tuples(values["seeds"]),
                    "added": _tuples(values.get("added", {})),
                }
            )
            for name, values in record["suites"].items()
        },
    )
    _check(plan, path)
    return plan


def _text_set(values: Mapping[str, Any]) -> TextSet:
    domains = {name: DomainText(**_tuples(spec)) for name, spec in values["domains"].items()}
    return TextSet(seed=values["seed"], domains=domains)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def _check(plan: Plan, path: Path) -> None:
    """Refuses names that are not defined, and text that is no text."""
    for name, texts in plan.texts.items():
        for domain, spec in texts.domains.items():
            where = f"{path}: texts.{name}.domains.{domain}"
            if bool(spec.corpus) == (spec.made is not None):
                raise PlanError(f"{where}: needs either corpus or made")
            if spec.made and spec.train_bytes is None:
                raise PlanError(f"{where}: text that is made needs train_bytes")
            if spec.part[0] >= spec.part[1]:
                raise PlanError(f"{where}: part {list(spec.part)}: the first must be smaller")
    for name, suite in plan.suites.items():
        if suite.text not in plan.texts:
            raise PlanError(f"{path}: suites.{name}.text: {suite.text} is not in texts")
        for arm, seeds in suite.arms.items():
            key = "added" if arm in suite.added else "seeds"
            where = f"{path}: suites.{name}.{key}.{arm}"
            if arm not in plan.arms:
                raise PlanError(f"{where}: is not in arms")
            if arm in suite.added and arm in suite.seeds:
                raise PlanError(f"{where}: is in seeds too; an arm that was added is in one")
            source = plan.arms[arm].average_of
            missing = sorted(set(seeds) - set(suite.arms.get(source, ()))) if source else []
            if missing:
                raise PlanError(f"{where}: needs {source} of the same suite with seeds {missing}")
