"""Any cut of the parameters into fragments reads back as the parameters; damage is found."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from megatron.checkpoint_format import (
    FORMAT_VERSION,
    CheckpointReader,
    ParameterInfo,
    checkpoint_steps,
    fragment_key,
    index_checksum,
    logical_tensors,
    step_folder,
    verify,
)
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file

KINDS = ("fp32", "exp_avg")
TENSORS = {
    "layer.weight": torch.arange(35, dtype=torch.float32).view(7, 5),
    "layer.bias": torch.arange(100, 107, dtype=torch.float32),
    "out.weight": torch.arange(200, 212, dtype=torch.float32).view(3, 4),
}
TP_DIMS = {"layer.weight": 0, "layer.bias": None, "out.weight": 1}


def value_of(name: str, kind: str) -> torch.Tensor:
    """A moment is told apart from the weights by its sign."""
    return TENSORS[name] if kind == "fp32" else -TENSORS[name]


def write_checkpoint(
    folder: Path,
    *,
    tp: int = 1,
    ranks: int = 1,
    cuts: tuple[float, ...] = (),
    padding: int = 0,
) -> Path:
    """Writes ``TENSORS``, each shard cut at the shares ``cuts`` and dealt out to the ranks.

    ``padding`` rows a shard follow the logical ones; they are never written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_rank: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    parameters: dict[str, Any] = {}
    dealt = 0
    for name, tensor in TENSORS.items():
        dim = TP_DIMS[name]
        shards = 1 if dim is None else tp
        extent = (-(-tensor.shape[dim or 0] // shards) + padding) * shards
        facts = {"shape": tuple(tensor.shape), "tp_dim": dim, "extent": extent, "fragments": []}
        for tp_rank in range(shards):
            flat = {
                kind: shard_of(value_of(name, kind), dim, tp_rank, extent // shards)
                for kind in KINDS
            }
            length = flat["fp32"].numel()
            places = sorted({0, length, *(int(share * length) for share in cuts)})
            for start, stop in pairwise(places):
                rank, dealt = dealt % ranks, dealt + 1
                file = f"rank_{rank:05d}.safetensors"
                facts["fragments"].append((file, tp_rank, start, stop - start))
                for kind in KINDS:
                    key = fragment_key(kind, name, tp_rank, start)
                    by_rank[rank][key] = flat[kind][start:stop].clone()
        parameters[name] = facts
    for rank, tensors in enumerate(by_rank):
        save_file(tensors, folder / f"rank_{rank:05d}.safetensors")
    (folder / "state.json").write_text('{"counters": {"step": 3}}\n')
    write_index(folder, layout={"dp": ranks, "tp": tp, "pp": 1}, parameters=parameters)
    return folder


def shard_of(tensor: torch.Tensor, dim: int | None, tp_rank: int, size: int) -> torch.Tensor:
    """The last shards are short, or empty, where they lie in the padding."""
    if dim is None:
        return tensor.flatten()
    start = min(tensor.shape[dim], size * tp_rank)
    stop = min(tensor.shape[dim], start + size)
    return tensor.narrow(dim, start, stop - start).flatten()


def write_index(folder: Path, **content: Any) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "index.json")
    index = {
        "version": FORMAT_VERSION,
        "moments": ["exp_avg"],
        "files": {
            name: {"size": (folder / name).stat().st_size, "crc32": crc32_of_file(folder / name)}
            for name in names
        },
        **content,
    }
    index["crc32"] = index_checksum(index)
    (folder / "index.json").write_text(json.dumps(index))


@given(
    tp=st.integers(1, 4),
    ranks=st.integers(1, 3),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    padding=st.integers(0, 3),
)
@settings(deadline=None, max_examples=40)
def test_every_cut_reads_back_as_the_parameters(tmp_path_factory, tp, ranks, cuts, padding):
    folder = write_checkpoint(
        tmp_path_factory.mktemp("cut") / "c",
        tp=tp,
        ranks=ranks,
        cuts=tuple(cuts),
        padding=padding,
    )
    verify(folder)
    for kind in KINDS:
        read = dict(logical_tensors(folder, kind))
        assert list(read) == list(TENSORS)
        for name in TENSORS:
            assert torch.equal(read[name], value_of(name, kind))


@given(st.integers(0, 35), st.integers(0, 35))
@settings(deadline=None, max_examples=40)
def test_every_range_of_a_shard_can_be_read(tmp_path_factory, one, other):
    start, stop = sorted((one, other))
    folder = write_checkpoint(tmp_path_factory.mktemp("range") / "c", cuts=(0.2, 0.5, 0.9))
    reader = CheckpointReader(folder)
    read = reader.read_shard_range("layer.weight", "fp32", 0, start, stop - start)
    assert read.tolist() == list(range(start, stop))


@pytest.mark.parametrize(
    ("name", "kind", "tp_rank", "offset", "length", "message"),
    [
        ("layer.bias", "fp32", 0, 5, 3, "lacks elements from 7 on"),
        ("layer.bias", "fp32", 1, 0, 1, "lacks elements from 0 on"),
        ("other.bias", "fp32", 0, 0, 1, "lacks elements from 0 on"),
        ("layer.bias", "exp_avg_sq", 0, 0, 1, "holds no exp_avg_sq"),
    ],
)
def test_what_the_checkpoint_does_not_hold_is_an_error(
    tmp_path, name, kind, tp_rank, offset, length, message
):
    reader = CheckpointReader(write_checkpoint(tmp_path / "c", cuts=(0.5,)))
    with pytest.raises(CheckpointError, match=message):
        reader.read_shard_range(name, kind, tp_rank, offset, length)


def test_an_unknown_parameter_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no parameter 'other\.bias'"):
        CheckpointReader(write_checkpoint(tmp_path / "c")).read_logical("other.bias")


@pytest.mark.parametrize(
    ("tp_dim", "extent", "expected"),
    [
        (None, 7, [(7, 5), (7, 5)]),
        (0, 8, [(4, 5), (3, 5)]),
        (0, 12, [(6, 5), (1, 5)]),
        (0, 16, [(7, 5), (0, 5)]),
        (1, 6, [(7, 3), (7, 2)]),
    ],
)
def test_a_shard_is_a_cut_of_the_padded_dimension_without_the_padding(tp_dim, extent, expected):
    info = ParameterInfo((7, 5), tp_dim, extent)
    assert [info.shard_shape(tp_rank, 2) for tp_rank in range(2)] == expected


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_index(folder: Path, old: str, new: str) -> None:
    path = folder / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: flip(c / "rank_00001.safetensors"), "rank_00001.* checksum differs"),
        (lambda c: cut(c / "rank_00000.safetensors"), r"rank_00000.* bytes, index\.json says"),
        (lambda c: (c / "state.json").unlink(), r"state\.json: listed in index.json but missing"),
        (lambda c: (c / "index.json").unlink(), r"index\.json: not a readable checkpoint index"),
        (lambda c: cut(c / "index.json"), r"index\.json: not a readable checkpoint index"),
        (lambda c: flip(c / "index.json", 0), r"index\.json: not a readable checkpoint index"),
        (lambda c: (c / "index.json").write_bytes(b"\0" * 99), "not a readable checkpoint index"),
        (lambda c: (c / "index.json").write_bytes(b"\xff{}"), "not a readable checkpoint index"),
        (lambda c: (c / "index.json").write_text("[]"), "not a checkpoint index"),
        (lambda c: (c / "index.json").write_text('{"version": 1}'), "its own checksum"),
        (lambda c: change_index(c, "[7, 5]", "[5, 7]"), "does not match its own checksum"),
        (lambda c: change_index(c, '"version": 1', '"version": 9'), "format version 9"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, message):
    folder = write_checkpoint(tmp_path / "c", ranks=2, cuts=(0.5,))
    verify(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "rank_00001.safetensors", "state.json"])
def test_ranks_that_share_the_reading_find_what_one_would(tmp_path, name):
    folder = write_checkpoint(tmp_path / "c", ranks=2, cuts=(0.5,))
    flip(folder / name)
    found = 0
    for part in range(2):
        try:
            verify(folder, part=part, num_parts=2)
        except CheckpointError:
            found += 1
    assert found == 1


def test_the_checksum_of_an_index_does_not_depend_on_its_layout():
    index = {"version": 1, "files": {"b": {"size": 2}, "a": {"size": 1}}}
    read = json.loads(json.dumps({**index, "crc32": 5}, indent=3, sort_keys=True))
    assert index_checksum(read) == index_checksum(index)
    assert index_checksum({**index, "version": 2}) != index_checksum(index)


def test_steps_are_whole_folders_in_the_order_of_numbers(tmp_path):
    for step in (100, 20, 3):
        step_folder(tmp_path, step).mkdir()
    for name in ("global_step7.tmp", "global_step8.old.tmp", "global_step", "global_stepx", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "global_step9").write_text("a file")
    assert checkpoint_steps(tmp_path) == [3, 20, 100]
    assert checkpoint_steps(tmp_path / "missing") == []
