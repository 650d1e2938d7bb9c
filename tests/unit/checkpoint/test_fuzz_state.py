"""Saved files that were changed at random are read, or refused in a line; never anything else.

`python -m tools.benchmark.fuzz` runs the same cases by the ten thousand.
"""

from __future__ import annotations

import json
import random

import pytest

from tools.benchmark.fuzz import __main__ as fuzz
from tools.benchmark.fuzz import data_kinds, hostile, neox_kinds, state_kinds
from tools.benchmark.fuzz.state import run_cases

KINDS = {**state_kinds.KINDS, **data_kinds.KINDS, **neox_kinds.KINDS}
CASES = {kind: 30 if kind.startswith("import") else 70 for kind in KINDS}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_changed_file_is_read_or_refused_in_a_line(tmp_path, kind):
    refused, unexpected = run_cases(KINDS[kind](tmp_path), cases=CASES[kind], seed=1)
    assert unexpected == []
    assert refused > 0 or kind == "latest"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_reads_its_file_as_it_was_made(tmp_path, kind, monkeypatch):
    def unchanged(value, rng):
        return value

    for module in ("state_kinds", "data_kinds"):
        for name in ("changed_json", "changed_bytes", "changed_safetensors"):
            monkeypatch.setattr(f"tools.benchmark.fuzz.{module}.{name}", unchanged)
        monkeypatch.setattr(
            f"tools.benchmark.fuzz.{module}.changed_document",
            lambda v, rng: hostile.json.dumps(v).encode(),
        )
    monkeypatch.setattr(random.Random, "random", lambda self: 0.99)  # no change of its own
    KINDS[kind](tmp_path)(random.Random(0))


def test_a_changed_document_follows_from_its_seed_alone():
    value = {"a": [1, {"b": 2}], "c": {}}
    once, again = (
        [json.dumps(hostile.changed_json(value, random.Random(seed))) for seed in range(3000)]
        for _ in range(2)
    )
    assert once == again


def test_the_command_tells_what_came_unexpectedly(capsys, monkeypatch):
    monkeypatch.setitem(fuzz.KINDS, "state", lambda cases, seed: [f"case {seed}: Traceback"])
    assert fuzz.main(["--kind", "state", "latest", "--cases", "2", "--seed", "3"]) == 1
    out = capsys.readouterr().out
    assert "state: case 3: Traceback\nstate: 2 cases, 1 unexpected" in out
    assert "latest: 2 cases, 0 unexpected" in out


def test_the_command_runs_every_kind_of_file(capsys):
    assert fuzz.main(["--cases", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(fuzz.KINDS)
    assert len(lines) == 24


def test_an_error_that_is_not_for_users_is_reported():
    def read(rng):
        raise KeyError("layout")

    refused, unexpected = run_cases(read, cases=2, seed=0)
    assert refused == 0
    assert [report.partition(":")[0] for report in unexpected] == ["case 0", "case 1"]
    assert "KeyError: 'layout'" in unexpected[0]
