"""Saved files that were changed at random are read, or refused in a line; never anything else.

`tools/checks/fuzz_state.py` runs the same cases by the ten thousand.
"""

from __future__ import annotations

import random

import pytest

from tools.checks import hostile
from tools.checks.fuzz_state import KINDS, main, run_cases

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
            monkeypatch.setattr(f"tools.checks.{module}.{name}", unchanged)
        monkeypatch.setattr(
            f"tools.checks.{module}.changed_document", lambda v, rng: hostile.json.dumps(v).encode()
        )
    monkeypatch.setattr(random.Random, "random", lambda self: 0.99)  # no change of its own
    KINDS[kind](tmp_path)(random.Random(0))


def test_the_command_tells_what_came_unexpectedly(capsys, monkeypatch):
    def broken(folder):
        def read(rng):
            raise KeyError("layout")

        return read

    monkeypatch.setitem(KINDS, "state", broken)
    assert main(["--kind", "state", "latest", "--cases", "2"]) == 1
    out = capsys.readouterr().out
    assert "state: 2 cases, 0 refused, 2 unexpected" in out
    assert "case 0: Traceback" in out
    assert "latest: 2 cases, 0 refused, 0 unexpected" in out
