"""A checkpoint of two ranks rewritten for one: the same tensors, and one process loads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.verification import verify
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus
from tools.reshard_checkpoint import find_source, main, parse_size, reshard

pytestmark = pytest.mark.distributed

KINDS = ("fp32", "exp_avg", "exp_avg_sq")
COMMON = {"num_kv_heads": 2, "activation": "swiglu", "no_weight_tying": False, "train_iters": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def saved(corpus, tmp_path_factory) -> Path:
    """Run folder of two tensor-parallel ranks."""
    folder = tmp_path_factory.mktemp("saved")
    train_all(corpus, folder, 2, {"tp2": {"model_parallel_size": 2, **COMMON}})
    return folder / "tp2/run"


def assert_same_tensors(got: CheckpointReader, want: CheckpointReader) -> None:
    assert got.parameters.keys() == want.parameters.keys()
    for name in want.parameters:
        for kind in KINDS:
            assert torch.equal(got.read_logical(name, kind), want.read_logical(name, kind)), name


def test_every_tensor_has_the_same_bits_in_the_layout_of_one_process(saved, tmp_path):
    folder = reshard(find_source(saved, None), tmp_path)
    verify(folder)
    reader = CheckpointReader(folder)
    assert reader.layout == {"dp": 1, "tp": 1, "pp": 1}
    assert [path.name for path in folder.glob("rank_*")] == ["rank_00000.safetensors"]
    assert_same_tensors(reader, CheckpointReader(saved / "global_step2"))


def test_files_are_limited_in_size_but_for_a_parameter_that_is_larger(saved, tmp_path):
    folder = reshard(saved / "global_step2", tmp_path, max_file_size=parse_size("100kB"))
    verify(folder)
    assert_same_tensors(CheckpointReader(folder), CheckpointReader(saved / "global_step2"))
    embedding = 3 * 4 * 512 * 32
    header = 8_000
    sizes = sorted(path.stat().st_size for path in folder.glob("rank_*"))
    assert len(sizes) > 2
    assert embedding < sizes[-1] < embedding + header
    assert sizes[-2] < 100_000 + header


def test_counters_mixture_and_configuration_come_along(saved, tmp_path):
    folder = reshard(saved / "global_step2", tmp_path / "run")
    for name in ("state.json", "mixture.json", "configs/run.yml", "configs/resolved.json"):
        assert (folder / name).read_bytes() == (saved / "global_step2" / name).read_bytes()
    assert (tmp_path / "run/latest").read_text() == "global_step2"
    assert CheckpointReader(folder).random_state(0) == {}  # two ranks saved theirs


def test_one_process_continues_from_either_alike(saved, corpus, tmp_path):
    reshard(saved / "global_step2", tmp_path / "one")
    runs = {
        name: {**COMMON, "train_iters": 4, "load": str(load)}
        for name, load in (("from one", tmp_path / "one"), ("from two", saved))
    }
    train_all(corpus, tmp_path, 1, runs)
    first, second = (CheckpointReader(tmp_path / name / "run/global_step4") for name in runs)
    assert_same_tensors(first, second)
    losses = [
        {step: event["lm_loss"] for step, event in train_events(tmp_path / n / "run.yml").items()}
        for n in runs
    ]
    assert losses[0] == losses[1]
    assert list(losses[0]) == [3, 4]


def test_the_command_says_what_it_wrote_and_what_is_wrong(saved, tmp_path, capsys):
    target = tmp_path / "global_step7"
    main(["--input", str(saved), "--iteration", "2", "--output", str(target)])
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert not (tmp_path / "latest").exists()
    for arguments, message in [
        (["--output", str(target)], f"{target}: exists already; choose another --output"),
        (["--output", "x", "--iteration", "9"], f"{saved}: no checkpoint of iteration 9; found: 2"),
        (
            ["--output", "x", "--max_file_size", "5XB"],
            "--max_file_size: must be a size such as 5GB, got '5XB'",
        ),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["--input", str(saved), *arguments])
        assert caught.value.code == 2
        assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("200kb", 200_000), ("7b", 7)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parse_size(text) == size


def test_a_damaged_checkpoint_is_refused_and_nothing_is_left(saved, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(saved / "global_step2", broken / "global_step2")
    path = broken / "global_step2/rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        main(["--input", str(broken), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().err == (
        f"{path}: random|torch: checksum differs; the file is damaged\n"
    )
    assert not (tmp_path / "out").exists()
