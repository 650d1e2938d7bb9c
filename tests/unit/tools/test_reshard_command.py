"""Resharding and looking into checkpoints, in this process, on files written by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.index import file_facts, index_checksum
from megatron.engine.state import TrainState
from megatron.runtime import accelerator
from tests.interop.conversions import refusal
from tools.benchmark.fuzz.state_kinds import listed_again
from tools.checkpoints.single_process import (
    find_source,
    groups_by_size,
    parse_size,
    step_folder_to_make,
)
from tools.hf.settings import resolve_model_fields
from tools.inspect_checkpoint import main as inspect_main
from tools.reshard_checkpoint import main as reshard_main

# a checkpoint of two tensor-parallel ranks: five tokens and one row of padding cut by rows, a
# matrix cut by columns, and a bias of which each rank of ZeRO wrote a part

WHOLE = {
    "0.word_embeddings.weight": torch.arange(10.0).view(5, 2),
    "2.dense.weight": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
    "2.norm.bias": torch.tensor([0.5, -0.5, 0.25]),
}
MOMENTS = {"exp_avg": 0.1, "exp_avg_sq": 0.01}
"""Moments are the weights times these."""
PIECES = {
    0: {
        ("0.word_embeddings.weight", 0, 0): [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        ("2.dense.weight", 0, 0): [1.0, 2.0, 5.0, 6.0],
        ("2.norm.bias", 0, 0): [0.5, -0.5],
    },
    1: {
        ("0.word_embeddings.weight", 1, 0): [6.0, 7.0, 8.0, 9.0],
        ("2.dense.weight", 1, 0): [3.0, 4.0, 7.0, 8.0],
        ("2.norm.bias", 0, 2): [0.25],
    },
}
CUTS = {"0.word_embeddings.weight": (0, 6), "2.dense.weight": (1, 4), "2.norm.bias": (None, 3)}


def write_two_ranks(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    parameters: dict[str, Any] = {
        name: {"shape": list(WHOLE[name].shape), "tp_dim": dim, "extent": extent, "fragments": []}
        for name, (dim, extent) in CUTS.items()
    }
    for rank, pieces in PIECES.items():
        file, tensors = f"rank_{rank:05d}.safetensors", {}
        for (name, part, offset), numbers in pieces.items():
            fragment = [file, part, offset, len(numbers)]
            parameters[name]["fragments"].append(fragment)
            for kind, factor in {"fp32": 1.0, **MOMENTS}.items():
                tensors[f"{kind}|{name}|{part}|{offset}"] = torch.tensor(numbers) * factor
        save_file(tensors, folder / file)
        save_file(accelerator.rng_state(), folder / f"rng_{rank:05d}.safetensors")
    network = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    resolved = resolve_model_fields({**network, "max_position_embeddings": 8})
    (folder / "configs/resolved.json").write_text(json.dumps(resolved.to_dict()))
    (folder / "configs/run.yml").write_text("num_layers: 1\n")
    state = {"counters": TrainState(step=7, applied_steps=7).state_dict(), "loss_scaler": {}}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "mixture.json").write_text("null")
    return write_index(folder, parameters, {"dp": 1, "tp": 2, "pp": 1})


def write_index(folder: Path, parameters: dict[str, Any], layout: dict[str, int]) -> Path:
    files = {p.name: file_facts(p) for p in folder.iterdir() if p.is_file()}
    index = {
        **{"version": 1, "layout": layout, "moments": list(MOMENTS)},
        **{"parameters": parameters, "files": files},
    }
    (folder / "index.json").write_text(json.dumps({**index, "crc32": index_checksum(index)}))
    return folder


@pytest.fixture
def saved(tmp_path) -> Path:
    write_two_ranks(tmp_path / "run/global_step7")
    (tmp_path / "run/latest").write_text("global_step7")
    return tmp_path / "run"


# reshard


def test_resharding_joins_the_parts_of_weights_and_moments(saved, tmp_path, capsys):
    reshard_main(["--input", str(saved), "--output", str(tmp_path / "one")])
    folder = tmp_path / "one/global_step7"
    assert capsys.readouterr().out == f"wrote {folder}\n"
    assert (tmp_path / "one/latest").read_text() == "global_step7"
    tensors = load_file(folder / "rank_00000.safetensors")
    assert len(tensors) == 9
    for name, whole in WHOLE.items():
        for kind, factor in {"fp32": 1.0, **MOMENTS}.items():
            expected = (whole * factor).flatten()
            torch.testing.assert_close(tensors[f"{kind}|{name}|0|0"], expected, rtol=0, atol=0)
    reader = CheckpointReader(folder)
    assert reader.layout == {"dp": 1, "tp": 1, "pp": 1}
    assert reader.moment_names == ("exp_avg", "exp_avg_sq")
    for name in ("state.json", "mixture.json", "configs/resolved.json", "configs/run.yml"):
        assert (folder / name).read_bytes() == (saved / "global_step7" / name).read_bytes()
    # random states of two ranks do not belong to one; those of one do
    assert reader.random_state(0) == {}
    shutil.copy(saved / "global_step7/rng_00000.safetensors", folder)
    listed_again(folder)
    reshard_main(["--input", str(folder), "--output", str(tmp_path / "again")])
    again = CheckpointReader(tmp_path / "again/global_step7").random_state(0)
    expected = load_file(folder / "rng_00000.safetensors")
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], state) for name, state in expected.items())


def test_files_of_a_resharded_checkpoint_are_limited_in_size(saved, tmp_path):
    arguments = ["--input", str(saved), "--output", str(tmp_path / "global_step3")]
    reshard_main([*arguments, "--max_file_size", "120"])  # 4 bytes * 3 kinds * 10 elements
    names = [set(load_file(p)) for p in sorted((tmp_path / "global_step3").glob("rank_*"))]
    assert [{key.split("|")[1] for key in keys} for keys in names] == [
        {"0.word_embeddings.weight"},
        {"2.dense.weight"},
        {"2.norm.bias"},
    ]
    assert not (tmp_path / "latest").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "RUN"], "RUN/global_step7: exists already; choose another --output"),
        (["--output", "x", "--iteration", "9"], "RUN: no checkpoint of iteration 9; found: 7"),
        (["--output", "x", "--max_file_size", "0"], "--max_file_size: must be a size such as 5GB"),
    ],
)
def test_what_cannot_be_resharded_is_one_line(more, message, saved, capsys):
    arguments = [text.replace("RUN", str(saved)) for text in ["--input", "RUN", *more]]
    error = refusal(reshard_main, arguments, capsys)
    assert error.startswith(message.replace("RUN", str(saved)))
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_is_not_resharded(saved, tmp_path, capsys):
    path = saved / "global_step7/rank_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    arguments = ["--input", str(saved), "--output", str(tmp_path / "one")]
    assert str(path) in refusal(reshard_main, arguments, capsys)
    assert not (tmp_path / "one").exists()


# which checkpoint, and how large


def test_a_run_folder_stands_for_its_latest_checkpoint(saved):
    for step in (3, 9, 10):
        shutil.copytree(saved / "global_step7", saved / f"global_step{step}")
    assert find_source(saved, None).name == "global_step7"  # 9 and 10: before it went back
    assert find_source(saved, 9).name == "global_step9"
    (saved / "latest").unlink()
    assert find_source(saved, None).name == "global_step10"
    assert find_source(saved / "global_step3", None).name == "global_step3"
    assert find_source(saved / "global_step3", 3).name == "global_step3"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1000", 1000), ("7b", 7), ("1k", 1000), ("2KiB", 2048), ("3 MB", 3_000_000)),
        *(("1MiB", 1_048_576), ("5GB", 5 * 10**9), ("1.5gib", 1_610_612_736)),
    ],
)
def test_sizes_have_units_of_1000_and_of_1024(text, size):
    assert parse_size(text) == size


def test_groups_are_filled_up_to_the_limit():
    sizes = {"a": 4, "b": 6, "c": 1, "d": 20, "e": 1}
    assert list(groups_by_size(sizes, 10)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(groups_by_size(sizes, None)) == [["a", "b", "c", "d", "e"]]
    assert list(groups_by_size({}, 10)) == []


def test_a_folder_that_is_named_as_a_checkpoint_is_the_checkpoint():
    assert step_folder_to_make(Path("a/global_step5"), "global_step7") == Path("a/global_step5")
    assert step_folder_to_make(Path("a"), "global_step7") == Path("a/global_step7")
    assert step_folder_to_make(Path("global_stepx"), "b") == Path("global_stepx/b")


# inspect


def test_figures_of_parts_are_those_of_the_whole(saved, capsys):
    assert inspect_main([str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["parameters"]["2.dense.weight"]
    assert (figures["shape"], figures["count"]) == ([2, 4], 8)
    assert figures["fp32"] == {**{"norm": pytest.approx(204**0.5), "max_abs": 8.0, "non_finite": 0}}
    assert figures["exp_avg"]["norm"] == pytest.approx(0.1 * 204**0.5)
    assert report["total"]["count"] == 21
    # 285 of the embedding, 204 of the matrix, 0.5625 of the bias
    assert report["total"]["norms"]["fp32"] == pytest.approx(489.5625**0.5)


def test_differences_are_relative_to_the_larger_number(saved, tmp_path, capsys):
    other = tmp_path / "other/global_step7"
    shutil.copytree(saved / "global_step7", other)
    path = other / "rank_00001.safetensors"
    tensors = load_file(path)
    tensors["fp32|2.dense.weight|1|0"][0] = 1.5  # was 3
    path.unlink()
    save_file(tensors, path)
    parameters = json.loads((other / "index.json").read_text())["parameters"]
    (other / "index.json").unlink()
    write_index(other, parameters, {"dp": 1, "tp": 2, "pp": 1})
    for one, two in ((saved, other), (other, saved)):
        assert inspect_main([str(one), "--diff", str(two), "--json"]) == 1
        tensors = json.loads(capsys.readouterr().out)["tensors"]
        (found,) = [t for t in tensors if not t["equal"]]
        assert (found["name"], found["kind"]) == ("2.dense.weight", "fp32")
        assert (found["max_absolute"], found["max_relative"]) == (1.5, 0.5)
        assert (found["different"], found["count"]) == (1, 8)
