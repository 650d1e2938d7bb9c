"""What an import takes from files of others is checked: config.json, .bin and safetensors files."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.errors import CheckpointError
from tools.benchmark.fuzz.data_kinds import model_folder
from tools.convert_from_hf import main
from tools.hf.weight_files import WeightFiles


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "model"
    save_file(model_folder(folder), folder / "model.safetensors")
    return folder


def refusal(source: Path, capsys) -> str:
    """The message of an import that leaves nothing behind."""
    output = source.parent / "run"
    with pytest.raises(SystemExit) as caught:
        main(["--input_dir", str(source), "--output_dir", str(output)])
    assert caught.value.code == 2
    assert not [path for path in output.rglob("*") if path.is_file()]
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "vocab_size: must be a whole number from 1 to 2147483648, got None"),
        ({"vocab_size": "16"}, "vocab_size: .*got '16'"),
        ({"hidden_size": 8.0}, r"hidden_size: .*got 8\.0"),
        ({"hidden_size": -8}, "hidden_size: .*got -8"),
        ({"hidden_size": 2**40}, "hidden_size: must be a whole number from 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers: .*got True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: .*got 1000000000"),
        ({"num_hidden_layers": 9_000}, "num_hidden_layers: is 9000, but there are 16 tensors"),
        ({"rotary_pct": 1e308}, "rotary_pct: must be a number from 0 to 1"),
        ({"rope_parameters": [1]}, "rope_parameters: must be an object"),
        ({"rope_parameters": {"rope_theta": None}}, r"rope_parameters\.rope_theta: .*got None"),
        ({"rope_parameters": {"rope_type": ["x"]}}, r"rope_parameters\.rope_type: .*got \['x'\]"),
        ({"hidden_act": ["gelu"]}, "hidden_act: must be text"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: must be true or false, got 'no'"),
        ({"model_type": {}}, "model_type: {} is not supported"),
        ({"model_type": ["gpt_neox"]}, r"model_type: \['gpt_neox'\] is not supported"),
    ],
)
def test_a_wrong_field_of_config_json_is_named_with_its_value(source, capsys, changes, message):
    sound = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**sound, **changes}))
    said = refusal(source, capsys)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("[" * 100_000, "64 levels"),
        ('{"vocab_size": NaN}', "contains NaN"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "is not JSON"),
        ("[]", "must be an object"),
        ("{}", "model_type: None is not supported"),
    ],
)
def test_a_config_json_that_is_none_is_refused(source, capsys, content, place):
    (source / "config.json").write_text(content)
    assert place in refusal(source, capsys)


def pickled(source: Path, content: Any) -> None:
    (source / "model.safetensors").unlink()
    torch.save(content, source / "pytorch_model.bin")


class Runs:
    """A pickle that makes a folder where it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("the pickle ran",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: [1, 2], "contains a list, not tensors by name"),
        (lambda w: {"state_dict": w}, "'state_dict': is no tensor"),
        (lambda w: {**w, 5: w["embed_out.weight"]}, "5: is no tensor"),
        (lambda w: {**w, "x": torch.zeros(1).expand(2**40)}, "'x': is no tensor with a number for"),
        (lambda w: {**w, "x": torch.eye(3).to_sparse()}, "'x': is no tensor"),
        (lambda w: {**w, "x": torch.zeros(3, device="meta")}, "'x': is no tensor"),
        (lambda w: {**w, "x": Runs()}, r"pytorch_model\.bin: cannot be read"),
        (
            lambda w: {**w, "embed_out.weight": w["embed_out.weight"].int()},
            "the type torch.int32",
        ),
    ],
)
def test_a_pickle_holds_tensors_by_name_and_nothing_else(
    source, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(source)
    pickled(source, change(load_file(source / "model.safetensors")))
    said = refusal(source, capsys)
    assert re.search(message, said), said
    assert not Path("the pickle ran").exists()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (5, "weight_map: must be an object, got 5"),
        ({"a": 5}, r"weight_map\.a: must be the name of a file beside it, got 5"),
        ({"a": "../model.safetensors"}, r"weight_map\.a: must be the name of a file beside it"),
        ({"a": "x" * 5000}, "named by the index of weights but missing"),
    ],
)
def test_an_index_of_weights_names_files_beside_it(source, weight_map, message):
    (source / "model.safetensors").unlink()
    index = {"weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        WeightFiles(source).shape("a")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 7 + b"\0", b"\2" + b"\0" * 7 + b"{}"]
)
def test_a_broken_header_of_safetensors_is_one_line(source, capsys, content):
    (source / "model.safetensors").write_bytes(content)
    assert "model" in refusal(source, capsys)


def test_a_pointer_of_git_lfs_in_the_place_of_the_weights_is_named(source, capsys):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (source / "model.safetensors").write_text(pointer)
    assert "model.safetensors: is a pointer of Git LFS, not the file" in refusal(source, capsys)


def test_an_import_has_the_modes_that_umask_gives(source, tmp_path):
    main(["--input_dir", str(source), "--output_dir", str(tmp_path / "run")])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*.*")}
    (tmp_path / "probe").touch()
    assert modes == {stat.S_IMODE((tmp_path / "probe").stat().st_mode)}


def test_tensors_of_a_bin_file_that_share_memory_are_written_apart(source, tmp_path):
    weights = model_folder(source)
    norm = "gpt_neox.final_layer_norm"
    weights[f"{norm}.bias"] = weights[f"{norm}.weight"] = torch.arange(8.0)
    pickled(source, weights)
    main(["--input_dir", str(source), "--output_dir", str(tmp_path / "run")])
    (file,) = (tmp_path / "run").rglob("*.safetensors")
    saved = {name.split("|")[1]: tensor for name, tensor in load_file(file).items()}
    ends = [value for name, value in saved.items() if value.tolist() == list(range(8))]
    assert len(ends) == 2
