"""What a rank reads at a start is what it keeps, and it touches a handful of files."""

from __future__ import annotations

import os

import pytest

from tools.benchmark import scale_simulation
from tools.benchmark.scale_simulation import ROWS, main, measure
from tools.benchmark.sparse_checkpoint import KINDS, own_range


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(scale_simulation, "MODELS", {"tiny": (2, 64, 4)})
    monkeypatch.setattr(scale_simulation, "_VOCABULARY", 512)


def elements(ranks: int) -> int:
    model = scale_simulation.GPT2Model(scale_simulation._shape("tiny"), seed=None)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(own_range(size, ranks, ranks // 2)[1] for size in sizes)


@pytest.mark.parametrize(("count", "ranks"), [(20, 6), (3, 8), (64, 8), (1, 1)])
def test_the_ranges_of_all_ranks_tile_a_parameter(count, ranks):
    position = 0
    for rank in range(ranks):
        offset, length = own_range(count, ranks, rank)
        assert length == 0 or offset == position
        position += length
    assert position == count


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("row", ["load", "reload"])
def test_a_rank_reads_its_own_bytes_and_touches_few_files(row, ranks):
    cost = ROWS[row]("tiny", ranks)
    own = len(KINDS) * 4 * elements(ranks)
    index = 100_000  # the index itself, and what describes the network
    assert own <= cost.read <= 1.1 * own + index
    assert 0 < cost.operations <= 20
    assert cost.memory >= own


def test_a_rank_looks_at_its_own_file_alone():
    few, many = (ROWS["check"]("tiny", ranks) for ranks in (8, 64))
    assert few.operations == many.operations <= 20


def test_a_start_reads_a_checkpoint_once():
    own = len(KINDS) * 4 * elements(8)
    read = sum(ROWS[row]("tiny", 8).read for row in ("check", "load"))
    assert own <= read <= 1.2 * own + 100_000


def test_a_rank_of_many_writes_its_share_of_what_all_have():
    alone, few, many, more = (ROWS["save"]("tiny", ranks).written for ranks in (1, 8, 32, 64))
    assert few == pytest.approx(alone / 8, rel=0.2)
    assert many == more < few


def test_a_rank_deletes_its_own_file_alone():
    assert ROWS["delete"]("tiny", 64).operations <= 2


def test_what_is_done_to_files_is_counted(tmp_path):
    (tmp_path / "x").write_bytes(b"0" * 5000)
    with measure() as cost:
        os.stat(tmp_path / "x")
        with open(tmp_path / "x", "rb") as file:
            file.read()
    assert cost.operations == 2
    assert cost.read >= 5000
    assert cost.seconds >= 0


def test_the_table_has_a_line_for_every_case(capsys):
    main(["--row", "values", "index", "--ranks", "8", "64", "--model", "tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| values", "tiny", "8"],
        ["| values", "tiny", "64"],
        ["| index", "tiny", "8"],
        ["| index", "tiny", "64"],
    ]


def test_data_sets_open_again_without_new_orders(capsys):
    main(["--row", "data", "--domains", "3", "--documents", "3000"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| data, first start",
        "| data, next start",
    ]
