"""docs/migration.md says what the program does with the keys of GPT-NeoX and the research code."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.schema import read_files
from tools.benchmark.configuration_files import completed, configuration_files
from tools.benchmark.migration import TARGET, main, page, refused_values, verdicts

SHARED = Path(__file__).resolve().parents[4] / "shared/data"
FOLDERS = (SHARED / "neox_configs", SHARED / "odm_research_configs")

needs_published_files = pytest.mark.skipif(
    not all(folder.is_dir() for folder in FOLDERS),
    reason="shared/data has no configuration files here",
)


def test_the_page_is_what_the_command_prints():
    assert TARGET.read_text(encoding="utf-8") == page()
    assert main(["--check"]) == 0


def test_an_old_page_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.benchmark.migration.TARGET", tmp_path / "migration.md")
    assert main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main([]) == 0
    assert (tmp_path / "migration.md").read_text(encoding="utf-8") == page()


def test_each_kind_of_verdict_has_its_keys():
    found = verdicts()
    assert found["hidden_size"] == ("works", "")
    assert found["gas"] == ("works", "read as `gradient_accumulation_steps`")
    assert found["train_impl"][0] == "refused"
    assert found["curriculum_learning"][0] == "refused when enabled"
    assert found["num_workers"][0] == "no effect"
    assert all(reason for verdict, reason in found.values() if verdict != "works")


def test_values_that_are_not_built_are_listed_with_the_reason():
    reasons = {(key, value): text for key, value, text in refused_values()}
    assert "RWKV layers are not part of this version" in reasons["attention_config", "rwkv"]
    assert "SM3 is not part of this version" in reasons["optimizer.type", "sm3"]
    assert ("optimizer.type", "lion") not in reasons
    assert ("attention_config", "flash") not in reasons


@needs_published_files
@pytest.mark.parametrize(
    "path",
    [path for folder in FOLDERS for path in configuration_files(folder)],
    ids=lambda path: str(path.relative_to(SHARED)),
)
def test_every_published_file_loads(path):
    written = dict(read_files([path]).values)
    args = NeoXArgs.from_ymls([path], overwrite_values=completed(written))
    assert {key: getattr(args, key) for key in written} == written
    assert written.keys() <= verdicts().keys()
