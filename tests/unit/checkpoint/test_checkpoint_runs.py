"""Many alike fragments are one entry of an index, and mean what they mean one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from megatron.checkpoint.format import CheckpointReader, fragment_key
from megatron.checkpoint.index import index_checksum, index_entry, write_index
from megatron.checkpoint.runs import grouped, rank_file, rank_number, run_of
from megatron.checkpoint.schema import ParameterInfo
from megatron.checkpoint.verification import verify
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file

RANKS, SIZE = 6, 20


def expanded(entries):
    for run in map(run_of, entries):
        for place in range(run.count):
            yield (run.file_of(place), run.tp_rank, run.offset + place * run.length, run.length)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(1, 3)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_grouping_loses_nothing(pieces, random):
    fragments, ends = [], {0: 0, 1: 0}
    for number, tp_rank, length in pieces:
        fragments.append((rank_file(number), tp_rank, ends[tp_rank], length))
        ends[tp_rank] += length
    mixed = fragments.copy()
    random.shuffle(mixed)
    expected = sorted(fragments, key=lambda fragment: fragment[1:3])
    assert list(expanded(grouped(mixed))) == expected
    cut = random.randint(0, len(mixed))
    parts = [grouped(mixed[:cut]), grouped(mixed[cut:])]
    assert list(expanded(grouped([*parts[0], *parts[1]]))) == expected


def test_pieces_of_512_ranks_are_two_entries():
    pieces = [(rank_file(rank), 0, rank * 8, 8 if rank < 511 else 3) for rank in range(512)]
    assert grouped(pieces) == [[0, 1, 0, 0, 8, 511], [rank_file(511), 0, 511 * 8, 3]]


def test_tensor_ranks_between_them_make_steps():
    pieces = [(rank_file(2 * data + tp), tp, data * 4, 4) for data in range(3) for tp in range(2)]
    assert grouped(pieces) == [[0, 2, 0, 0, 4, 3], [1, 2, 1, 0, 4, 3]]


@pytest.mark.parametrize("num_tensor_ranks", [1, 2])
def test_runs_that_meet_in_a_tree_are_as_few_as_those_of_all_at_once(num_tensor_ranks):
    pieces = [
        (rank_file(num_tensor_ranks * data + tp), tp, data * 4, 4)
        for data in range(12)
        for tp in range(num_tensor_ranks)
    ]
    level = [[piece] for piece in pieces]
    while len(level) > 1:
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [grouped(entry for entries in pair for entry in entries) for pair in pairs]
    assert level[0] == grouped(pieces)
    assert len(level[0]) == num_tensor_ranks


@pytest.mark.parametrize("name", ["model.safetensors", "rank_000001.safetensors", "rank_1.x"])
def test_files_of_other_names_stay_single(name):
    assert rank_number(name) == -1
    assert grouped([(name, 0, 0, 4), (rank_file(1), 0, 4, 4)]) == [
        [name, 0, 0, 4],
        [rank_file(1), 0, 4, 4],
    ]


def write_cut_checkpoint(folder: Path) -> Path:
    """A vector of 20 numbers cut over six ranks, as ZeRO 3 does."""
    folder.mkdir()
    values, size = torch.arange(float(SIZE)), -(-SIZE // RANKS)
    entry, files = index_entry(ParameterInfo((SIZE,), None, SIZE)), {}
    for rank in range(RANKS):
        piece = values[rank * size : (rank + 1) * size]
        path = folder / rank_file(rank)
        save_file({fragment_key("fp32", "a.bias", 0, rank * size): piece.clone()}, path)
        files[path.name] = {"size": path.stat().st_size, "crc32": crc32_of_file(path)}
        if len(piece):  # the last rank has none
            entry["fragments"].append((path.name, 0, rank * size, len(piece)))
    (folder / "state.json").write_text(json.dumps({"counters": TrainState(3).state_dict()}))
    (folder / "mixture.json").write_text("null")
    write_index(
        folder,
        layout={"dp": RANKS, "tp": 1, "pp": 1},
        moments=(),
        parameters={"a.bias": entry},
        files=files,
        others=("state.json", "mixture.json"),
    )
    return folder


def test_a_grouped_index_reads_back_every_range(tmp_path):
    folder = write_cut_checkpoint(tmp_path / "c")
    entries = json.loads((folder / "index.json").read_text())["parameters"]["a.bias"]["fragments"]
    assert entries == [[0, 1, 0, 0, 4, 5]]
    verify(folder)
    reader = CheckpointReader(folder)
    for first in range(SIZE):
        for end in range(first, SIZE + 1):
            read = reader.read_shard_range("a.bias", "fp32", 0, first, end - first)
            assert read.tolist() == list(range(first, end))


def test_no_more_files_are_open_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.checkpoint.format._MAX_OPEN_FILES", 2)
    reader = CheckpointReader(write_cut_checkpoint(tmp_path / "c"))
    for _ in range(2):
        assert reader.read_logical("a.bias").tolist() == list(range(SIZE))
    open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert len([name for name in open_files if name.startswith(str(tmp_path))]) == 2


def test_each_file_is_looked_at_by_one_rank_alone_its_own(tmp_path, monkeypatch):
    folder = write_cut_checkpoint(tmp_path / "c")
    looked_at: list[list[str]] = []
    monkeypatch.setattr(
        "megatron.checkpoint.verification._check_file",
        lambda reader, name, **_: looked_at[-1].append(name),
    )
    for part in range(RANKS):
        looked_at.append([])
        verify(folder, part=part, num_parts=RANKS)
    assert sorted(name for names in looked_at for name in names) == sorted(
        CheckpointReader(folder).files
    )
    for rank, names in enumerate(looked_at[: RANKS - 1]):
        assert [name for name in names if rank_number(name) >= 0] in ([], [rank_file(rank)])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([[0, 1, 0, 0, 4, 6]], "elements overlap"),
        ([[2, 1, 0, 0, 4, 5]], "must be fragments in files that the index lists"),
        ([[0, 2, 0, 0, 4, 5]], "must be fragments in files that the index lists"),
        ([[0, 1, 0, 0, 4, 4]], "elements are missing"),
        ([[0, 1, 0, 0, 4, 5], ["rank_00000.safetensors", 0, 19, 1]], "elements overlap"),
        ([[0, 1, 0, 0, 4, 1]], r"fragments\[0\]\[5\]"),
        ([[0, 0, 0, 0, 4, 5]], r"fragments\[0\]\[1\]"),
        ([[0, 1, 1, 0, 4, 5]], r"fragments\[0\]\[2\]"),
        ([[0, 1, 0, 0, 4]], "six numbers"),
    ],
)
def test_wrong_runs_are_named(tmp_path, entries, message):
    folder = write_cut_checkpoint(tmp_path / "c")
    index = json.loads((folder / "index.json").read_text())
    index["parameters"]["a.bias"]["fragments"] = entries
    index["crc32"] = index_checksum(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(folder)


def test_a_changed_index_is_read_again(tmp_path):
    folder = write_cut_checkpoint(tmp_path / "c")
    assert CheckpointReader(folder).layout["dp"] == RANKS
    text = (folder / "index.json").read_text()
    index = json.loads(text)
    index["layout"]["dp"] = 7
    index["crc32"] = index_checksum(index)
    (folder / "index.json").write_text(json.dumps(index))
    assert CheckpointReader(folder).layout["dp"] == 7
