"""Checkpoints in figures and their differences, read a few rows at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from megatron.checkpoint.format import CheckpointReader, ParameterInfo, fragment_key
from megatron.checkpoint.schema import FORMAT_VERSION, RUN_FILES
from megatron.engine.state import TrainState
from megatron.files import write_json_atomic
from odm import MixtureController, MixtureSchedule
from tools.benchmark.fuzz.state_kinds import listed_again
from tools.checkpoints import tensor_sources
from tools.checkpoints.single_process import write_checkpoint
from tools.checkpoints.tensor_sources import open_source, row_blocks
from tools.inspect_checkpoint import main

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = {
    "2.dense.weight": torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]),
    "2.dense.bias": torch.tensor([2.0, 2.0, 1.0]),
}


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Tensors of six elements are read in several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_sources, "BLOCK_ELEMENTS", 2)
        yield


def write(folder: Path, weights=WEIGHTS, *, step: int = 5, news: float = 0.75, moment: float = 0.5):
    """A checkpoint of one process with a moment and a mixture of two domains."""

    def add_files(folder: Path) -> tuple[str, ...]:
        counters = TrainState(step, step, 0, 1000 * step).state_dict()
        write_json_atomic(folder / "state.json", {"loss_scaler": {}, "counters": counters})
        schedule = MixtureSchedule(0, 2)
        mixture = MixtureController(
            ["news", "code"], "static", schedule, initial_weights=[news, 1 - news]
        )
        write_json_atomic(folder / "mixture.json", mixture.state_dict())
        return "state.json", "mixture.json"

    return write_checkpoint(
        folder,
        f"global_step{step}",
        parameters={
            name: ParameterInfo(tuple(tensor.shape), None, tensor.shape[0])
            for name, tensor in weights.items()
        },
        read=lambda name, kind: weights[name] if kind == "fp32" else moment * weights[name],
        moment_names=("exp_avg",),
        add_files=add_files,
    )


def report(capsys, *arguments: object) -> dict:
    main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_save_folder_stands_for_its_latest_checkpoint_and_figures_are_exact(tmp_path, capsys):
    write(tmp_path, step=4, moment=9.0)
    write(tmp_path)
    found = report(capsys, tmp_path)
    assert found["folder"] == str(tmp_path / "global_step5")
    assert found["state"] == {
        "layout": {"dp": 1, "tp": 1, "pp": 1},
        "step": 5,
        "applied_steps": 5,
        "consumed_samples": 0,
        "consumed_tokens": 5000,
        "consecutive_skips": 0,
        "mixture": {"news": 0.75, "code": 0.25},
    }
    assert found["parameters"] == {
        "2.dense.weight": {
            "shape": [3, 2],
            "count": 6,
            "fp32": {"norm": 5.0, "max_abs": 4.0, "non_finite": 0},
            "exp_avg": {"norm": 2.5, "max_abs": 2.0, "non_finite": 0},
        },
        "2.dense.bias": {
            "shape": [3],
            "count": 3,
            "fp32": {"norm": 3.0, "max_abs": 2.0, "non_finite": 0},
            "exp_avg": {"norm": 1.5, "max_abs": 1.0, "non_finite": 0},
        },
    }
    assert found["total"]["count"] == 9
    assert found["total"]["norms"]["fp32"] == pytest.approx(math.sqrt(34))


def test_the_table_shows_each_parameter_and_the_state(tmp_path, capsys):
    assert main([str(write(tmp_path)), "--kinds", "fp32"]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'global_step5'}\n"
        "layout: {'dp': 1, 'tp': 1, 'pp': 1}\n"
        "step: 5\n"
        "applied_steps: 5\n"
        "consumed_samples: 0\n"
        "consumed_tokens: 5000\n"
        "consecutive_skips: 0\n"
        "mixture of the next iteration: news 0.7500, code 0.2500\n"
        "\n"
        "parameter       shape  count  |fp32|  max |fp32|\n"
        "2.dense.weight  3 x 2  6      5       4\n"
        "2.dense.bias    3      3      3       2\n"
        "all                    9      5.831\n"
    )


def test_what_is_not_finite_is_counted_and_the_json_stays_json(tmp_path, capsys):
    bad = torch.tensor([math.nan, math.inf, 1.0])
    write(tmp_path, {**WEIGHTS, "2.dense.bias": bad})
    entry = report(capsys, tmp_path)["parameters"]["2.dense.bias"]
    assert entry["fp32"] == {"norm": "nan", "max_abs": "nan", "non_finite": 2}
    main([str(tmp_path)])
    assert "4 not finite" in capsys.readouterr().out  # two of the weight, two of its moment


def test_equal_to_the_bit_ends_with_0_wherever_it_lies(tmp_path, capsys):
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert main([str(tmp_path / "one"), "--diff", str(tmp_path / "two")]) == 0
    assert capsys.readouterr().out == "4 of 4 tensors are equal to the bit\n"


def test_each_difference_is_shown_with_its_size_and_the_exit_code_is_1(tmp_path, capsys):
    write(tmp_path / "one")
    weights = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    weights["2.dense.weight"][1, 1] = -5.0
    write(tmp_path / "two", weights, step=6, news=0.5)
    arguments = [str(tmp_path / "one"), "--diff", str(tmp_path / "two")]
    assert main([*arguments, "--kinds", "fp32", "--all"]) == 1
    assert capsys.readouterr().out == (
        "step: 5 and 6\n"
        "applied_steps: 5 and 6\n"
        "consumed_tokens: 5000 and 6000\n"
        "mixture.news: 0.75 and 0.5\n"
        "mixture.code: 0.25 and 0.5\n"
        "parameter       kind  max |a - b|  relative  elements that differ\n"
        "2.dense.weight  fp32  1            0.2       1 of 6\n"
        "2.dense.bias    fp32  equal\n"
        "1 of 2 tensors are equal to the bit\n"
    )


def test_the_state_alone_makes_a_difference(tmp_path, capsys):
    write(tmp_path / "one")
    write(tmp_path / "two", news=0.5)
    assert main([str(tmp_path / "one"), "--diff", str(tmp_path / "two")]) == 1
    assert "4 of 4 tensors are equal to the bit" in capsys.readouterr().out


def test_bits_decide_so_that_zeros_differ_by_sign_and_nan_equals_itself(tmp_path, capsys):
    nan = {"a": torch.tensor([math.nan, 0.0])}
    write(tmp_path / "one", nan)
    write(tmp_path / "two", nan)
    write(tmp_path / "three", {"a": torch.tensor([math.nan, -0.0])})
    assert main([str(tmp_path / "one"), "--diff", str(tmp_path / "two")]) == 0
    capsys.readouterr()
    result = report(capsys, tmp_path / "one", "--diff", tmp_path / "three", "--kinds", "fp32")
    (tensor,) = result["tensors"]
    assert (tensor["different"], tensor["max_absolute"], tensor["max_relative"]) == (1, 0.0, 0.0)
    assert result["equal"] is False


def test_what_one_of_them_lacks_and_other_shapes_are_named(tmp_path, capsys):
    write(tmp_path / "one")
    other = {"2.dense.weight": torch.ones(2, 2), "3.dense.bias": torch.ones(2)}
    write(tmp_path / "two", other)
    result = report(capsys, tmp_path / "one", "--diff", tmp_path / "two", "--kinds", "fp32")
    assert {tensor["name"]: tensor["problem"] for tensor in result["tensors"]} == {
        "2.dense.weight": "shape [3, 2] and [2, 2]",
        "2.dense.bias": "only in the first",
        "3.dense.bias": "only in the second",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder; give the save folder of a run\n"),
        (
            ["run", "--diff", "nowhere"],
            "nowhere: there is no such folder; give the save folder of a run\n",
        ),
        (["run", "--kinds", "exp"], "--kinds: no 'exp' in run/global_step5; has fp32, exp_avg\n"),
    ],
)
def test_trouble_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    write(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    # the folder of a checkpoint is shown whole
    assert capsys.readouterr().err.replace(f"{tmp_path}/", "") == message


def test_a_torn_file_is_trouble(tmp_path, capsys):
    folder = write(tmp_path)
    file = folder / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_ends_with_the_code_of_diff(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", moment=0.25)
    command = [sys.executable, "tools/inspect_checkpoint.py", str(tmp_path / "one")]
    ended = subprocess.run(
        [*command, "--diff", str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.endswith("2 of 4 tensors are equal to the bit\n")


CUT = {
    "replicated": ParameterInfo((3, 2), None, 3),
    "rows": ParameterInfo((5, 3), 0, 8),  # the second rank holds padding only from row 5 on
    "empty": ParameterInfo((4, 2), 0, 8),  # and here nothing else
    "columns": ParameterInfo((3, 6), 1, 6),
    "vector": ParameterInfo((6,), 0, 6),
}


@pytest.fixture(scope="module")
def cut_in_two(tmp_path_factory) -> Path:
    """A checkpoint that two tensor-parallel ranks would have saved."""
    folder = tmp_path_factory.mktemp("cut") / "global_step1"
    folder.mkdir()
    files: dict[str, dict[str, torch.Tensor]] = {"rank_0": {}, "rank_1": {}}
    entries = {}
    for name, info in CUT.items():
        fragments = []
        for tp_rank in range(1 if info.tp_dim is None else 2):
            length = math.prod(info.shard_shape(tp_rank, 2))
            if length:
                tensor = torch.arange(length, dtype=torch.float32) + 100 * tp_rank
                files[f"rank_{tp_rank}"][fragment_key("fp32", name, tp_rank, 0)] = tensor
                fragments.append((f"rank_{tp_rank}", tp_rank, 0, length))
        entries[name] = {"shape": info.shape, "tp_dim": info.tp_dim, "extent": info.extent}
        entries[name]["fragments"] = fragments
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    index = {
        "version": FORMAT_VERSION,
        "layout": {"dp": 1, "tp": 2, "pp": 1},
        "moments": [],
        "parameters": entries,
    }
    write_json_atomic(folder / "index.json", index)
    for name in RUN_FILES:
        (folder / name).write_text("null")
    listed_again(folder)
    return folder


@given(name=st.sampled_from(sorted(CUT)), bounds=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_any_rows_of_a_tensor_cut_in_two_are_those_of_the_whole(name, bounds, cut_in_two):
    first, end = sorted(min(bound, CUT[name].shape[0]) for bound in bounds)
    whole = CheckpointReader(cut_in_two).read_logical(name)
    rows = open_source(cut_in_two).rows(name, "fp32", first, end)
    assert torch.equal(rows, whole[first:end])


def test_blocks_cover_every_row_once_and_stay_small(monkeypatch):
    monkeypatch.setattr(tensor_sources, "BLOCK_ELEMENTS", 10)
    assert list(row_blocks((7, 4))) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(row_blocks((2, 40))) == [(0, 1), (1, 2)]
    assert list(row_blocks((0, 3))) == []
    assert list(row_blocks((25,))) == [(0, 10), (10, 20), (20, 25)]
