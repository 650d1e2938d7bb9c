"""An empty word in the place of a path: what an unset shell variable leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tools import (
    cloze_task,
    compare_runs,
    convert_from_hf,
    convert_to_hf,
    freeze_mixture,
    import_mixture,
    inspect_checkpoint,
    merge_datasets,
    plot_mixture,
    preprocess_data,
    reshard_checkpoint,
    upload,
)
from tools.checkpoints import import_neox
from tools.ckpts.doors import DOORS

PREPROCESS = ["--tokenizer-type", "CharLevelTokenizer"]

COMMANDS: list[tuple[Callable[[Sequence[str]], Any], list[str]]] = [
    (convert_from_hf.main, ["--input_dir", "", "--output_dir", "run"]),
    (convert_from_hf.main, ["--input_dir", "hf", "--output_dir", ""]),
    (convert_from_hf.main, ["--input_dir", "hf", "--output_dir", "run", "--config_out", ""]),
    (convert_to_hf.main, ["--input_dir", "", "--output_dir", "hf"]),
    (convert_to_hf.main, ["--input_dir", "run", "--output_dir", ""]),
    (convert_to_hf.main, ["--input_dir", "run", "--output_dir", "hf", "--config_file", ""]),
    (import_neox.main, ["", "-o", "run"]),
    (import_neox.main, ["neox", "-o", ""]),
    (import_neox.main, ["neox", "-o", "run", "--config", ""]),
    (inspect_checkpoint.main, [""]),
    (inspect_checkpoint.main, ["run", "--diff", ""]),
    (reshard_checkpoint.main, ["--input", "", "--output", "other"]),
    (reshard_checkpoint.main, ["--input", "run", "--output", ""]),
    (upload.main, ["", "--repo_id", "someone/model"]),
    (upload.main, ["hf", "--repo_id", "someone/model", "--run_dir", ""]),
    (upload.main, ["hf", "--repo_id", "someone/model", "--token_file", ""]),
    (cloze_task.main, ["", "-o", "tasks"]),
    (compare_runs.main, ["run", ""]),
    (freeze_mixture.main, [""]),
    (import_mixture.main, ["", "-o", "weights.yml"]),
    (import_mixture.main, ["mixture.json", "-o", ""]),
    (merge_datasets.main, ["--input", "", "--output-prefix", "all"]),
    (merge_datasets.main, ["--input", "part", "--output-prefix", ""]),
    (plot_mixture.main, [""]),
    (preprocess_data.main, [*PREPROCESS, "--input", "", "--output-prefix", "data"]),
    (preprocess_data.main, [*PREPROCESS, "--input", "a.txt", "--output-prefix", ""]),
    (
        preprocess_data.main,
        [*PREPROCESS, "--input", "a.txt", "--output-prefix", "data", "--vocab-file", ""],
    ),
    (DOORS["convert_hf_llama_to_neox.py"], ["--model", "hf", "--model_path", ""]),
    (DOORS["convert_hf_to_sequential.py"], ["--hf-model-name", ""]),
    (DOORS["inspect_checkpoints.py"], [""]),
    (DOORS["upload.py"], ["", "someone/model"]),
]


@pytest.mark.parametrize(("main", "words"), COMMANDS)
def test_an_empty_path_is_not_the_working_folder(main, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "is empty, as an unset variable leaves it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
