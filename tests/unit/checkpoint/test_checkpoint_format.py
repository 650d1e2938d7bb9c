"""Any cut of the parameters into fragments reads back as the parameters; damage is found."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron.checkpoint.format import (
    CheckpointReader,
    ParameterInfo,
    checkpoint_steps,
    fragment_key,
    latest_step,
    logical_tensors,
    step_folder,
)
from megatron.checkpoint.index import index_checksum
from megatron.checkpoint.schema import FORMAT_VERSION
from megatron.checkpoint.verification import verify
from megatron.checkpointing import undo_interrupted_replacement
from megatron.engine.state import TrainState
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file
from tools.benchmark.fuzz.state_kinds import checkpoint, listed_again, mixture, train
from tools.benchmark.fuzz.state_kinds import write_index as write_checksum

VERSION_TEXT = f'"version": {FORMAT_VERSION}'
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
    (folder / "state.json").write_text(json.dumps({"counters": TrainState(3).state_dict()}))
    (folder / "mixture.json").write_text("null")
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
@settings(max_examples=40)
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
@settings(max_examples=40)
def test_every_range_of_a_shard_can_be_read(tmp_path_factory, one, other):
    start, stop = sorted((one, other))
    folder = write_checkpoint(tmp_path_factory.mktemp("range") / "c", cuts=(0.2, 0.5, 0.9))
    reader = CheckpointReader(folder)
    read = reader.read_shard_range("layer.weight", "fp32", 0, start, stop - start)
    assert read.tolist() == list(range(start, stop))


@pytest.mark.parametrize(
    ("name", "kind", "tp_rank", "offset", "length", "message"),
    [
        ("layer.bias", "fp32", 0, 5, 3, "elements from 7 on"),
        ("layer.bias", "fp32", 1, 0, 1, "elements from 0 on"),
        ("other.bias", "fp32", 0, 0, 1, "elements from 0 on"),
        ("layer.bias", "exp_avg_sq", 0, 0, 1, "has no exp_avg_sq"),
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
        (lambda c: (c / "index.json").write_text("[]"), "must be an object"),
        (lambda c: (c / "index.json").write_text("[" * 100_000), "more than 64 levels"),
        (lambda c: change_index(c, '"dp": 2', '"dp": NaN'), "contains NaN"),
        (lambda c: change_index(c, VERSION_TEXT, '"version": ' + "9" * 5000), "is not JSON"),
        (
            lambda c: change_index(c, '"version"', '"version": 2, "version"'),
            "contains 'version' twice",
        ),
        (lambda c: change_index(c, '"dp"', '"dp": 1, "dp"'), "contains 'dp' twice"),
        (lambda c: change_index(c, VERSION_TEXT, '"version": true'), "format version True"),
        (lambda c: (c / "index.json").write_text('{"version": 1}'), "its own checksum"),
        (lambda c: change_index(c, "[7, 5]", "[5, 7]"), "does not match its own checksum"),
        (lambda c: change_index(c, VERSION_TEXT, '"version": 9'), "format version 9"),
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
    for part in range(3):
        try:
            verify(folder, part=part, num_parts=3)
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
    (tmp_path / "global_step007").mkdir()
    (tmp_path / f"global_step{'9' * 100}").mkdir()
    assert checkpoint_steps(tmp_path) == [3, 20, 100]
    assert checkpoint_steps(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ("global_step20\n", 20),
        ("global_step0", 0),
        ("global_step" + "9" * 5000, None),
        ("global_step" + "9" * 19, None),
        ("global_step007", None),
        ("global_step\u0663", None),
        ("../global_step3", None),
        ("", None),
        ("\0", None),
    ],
)
def test_latest_names_a_step_as_we_write_it_or_none(tmp_path, content, step):
    (tmp_path / "latest").write_text(content)
    assert latest_step(tmp_path) == step
    undo_interrupted_replacement(tmp_path)


def put(*keys: Any) -> Any:
    """A change of an index: the last of ``keys`` is the new value, or ``...`` to take it away."""

    def change(index: dict[str, Any]) -> None:
        *path, last, value = keys
        for key in path:
            index = index[key]
        if value is ...:
            del index[last]
        else:
            index[last] = value

    return change


WEIGHT = ("parameters", "layer.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("layout", ...), "lacks layout"),
        (put("layout", None), "layout: must be an object, got None"),
        (put("layout", "tp", 0), r"layout\.tp: .* from 1 .*got 0"),
        (put("layout", "dp", "2"), r"layout\.dp: .*got '2'"),
        (put("layout", "pp", ...), r"lacks layout\.pp"),
        (put("layout", "tp", True), r"layout\.tp: .*got True"),
        (put("moments", [1]), r"moments\[0\]: .*got 1"),
        (put("moments", "exp_avg"), "moments: must be a list"),
        (put("moments", ["fp32"]), r"moments\[0\]: must be the name of a moment"),
        (put("files", []), "files: must be an object"),
        (put("files", "state.json", ...), r"files: does not list state.json"),
        (put("files", "state.json", "size", -1), r"files\.state\.json\.size: .*got -1"),
        (put("files", "state.json", "crc32", None), r"state\.json\.crc32: .*got None"),
        (put("files", "../x", {"size": 0, "crc32": 0}), r"files: a key: .*got '\.\./x'"),
        (put("files", "/etc/passwd", {"size": 0, "crc32": 0}), "files: a key: .*passwd"),
        (put("files", "configs/..", {"size": 0, "crc32": 0}), "files: a key: .*configs"),
        (put("files", "a\0b", {"size": 0, "crc32": 0}), "files: a key: must be the name"),
        (put("files", "rank_00000.safetensors", "size", 9), r"rank_00000.*size: is too small"),
        (put("parameters", {"a": 1}), r"parameters\.a: must be an object, got 1"),
        (put(*WEIGHT, "shape", [7, -5]), r"layer\.weight\.shape\[1\]: .*got -5"),
        (put(*WEIGHT, "shape", [2**39, 2**39]), r"layer\.weight\.shape: .*product"),
        (put(*WEIGHT, "shape", []), r"layer\.weight\.shape: must be 1 to 8"),
        (put(*WEIGHT, "tp_dim", 2), r"layer\.weight\.tp_dim: .*2 dimensions, got 2"),
        (put(*WEIGHT, "tp_dim", 0.0), r"layer\.weight\.tp_dim: .*got 0\.0"),
        (put(*WEIGHT, "extent", 1), r"layer\.weight\.extent: .*got 1"),
        (put(*WEIGHT, "fragments", []), r"layer\.weight\.fragments: must be 35 elements"),
        (put(*WEIGHT, "fragments", ...), r"lacks parameters\.layer\.weight\.fragments"),
        (put(*WEIGHT, "fragments", 0, [1]), r"fragments\[0\]: must be \[file, tensor rank"),
        (put(*WEIGHT, "fragments", 0, 0, "x"), r"fragments\[0\]\[0\]: .*got 'x'"),
        (put(*WEIGHT, "fragments", 0, 1, 1), r"fragments\[0\]\[1\]: .*got 1"),
        (put(*WEIGHT, "fragments", 0, 2, 3), "fragments: tensor rank 0: elements are missing"),
        (put(*WEIGHT, "fragments", 0, 3, 30), "tensor rank 0: elements overlap"),
        (put(*WEIGHT, "fragments", 1, 3, 2**62), r"fragments\[1\]\[3\]: must be a whole"),
    ],
)
def test_an_index_with_a_right_checksum_and_a_wrong_field_is_refused_by_its_place(
    tmp_path, change, message
):
    folder = write_checkpoint(tmp_path / "c", cuts=(0.5,))
    index = json.loads((folder / "index.json").read_text())
    change(index)
    write_checksum(folder, index)
    with pytest.raises(CheckpointError, match=rf"index\.json: .*{message}"):
        CheckpointReader(folder)


def test_a_file_has_room_for_the_four_bytes_of_each_element(tmp_path):
    folder = checkpoint(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    elements = sum(math.prod(facts["shape"]) for facts in index["parameters"].values())
    facts = index["files"]["rank_00000.safetensors"]
    facts["size"] = 4 * elements
    write_checksum(folder, index)
    CheckpointReader(folder)
    facts["size"] -= 1
    write_checksum(folder, index)
    with pytest.raises(CheckpointError, match=f"too small for {elements} float32 numbers"):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("state.json", put("counters", ...), "lacks counters"),
        ("state.json", put("counters", "step", -1), r"counters\.step: .*got -1"),
        ("state.json", put("counters", "applied_steps", 6), "applied_steps: .*at most the step, 5"),
        ("state.json", put("loss_scaler", "cur_scale", None), r"loss_scaler\.cur_scale"),
        ("state.json", put("loss_scaler", "raise_error", 1), r"loss_scaler\.'raise_error'"),
        ("state.json", put("samples_per_epoch", "web", "x"), r"samples_per_epoch\.web"),
        ("state.json", put("counters", "consecutive_skips", 6), "at most the step, 5"),
        ("mixture.json", put("mixer", "eps", 2.0**63), r"mixer\.eps"),
        ("mixture.json", put("planned", -1), "planned"),
        ("configs/resolved.json", put("model", ...), "lacks model"),
        ("configs/resolved.json", put("model", {}), "lacks model"),
        ("configs/resolved.json", put("version", 3), "version: .*got 3"),
        ("configs/resolved.json", put("model", "norm", 5), r"model\.norm: .*got 5"),
        ("configs/resolved.json", put("optimizer", "learning_rate", "x"), "learning_rate"),
        ("configs/resolved.json", put("logging", {"log_dir": 3}), r"logging\.log_dir: .*got 3"),
        ("configs/resolved.json", put("data", {"vocab_file": []}), r"data\.vocab_file: .*got \[\]"),
        ("configs/resolved.json", put("a\nb", 2), r"a\\nb: must be an object, got 2"),
    ],
)
def test_a_file_with_a_right_checksum_and_a_wrong_field_is_refused_by_its_place(
    tmp_path, name, change, message
):
    folder = checkpoint(tmp_path)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    listed_again(folder)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
        verify(folder)


@pytest.mark.parametrize("step", [6, 9])
def test_the_mixture_of_a_later_checkpoint_is_refused(tmp_path, step):
    folder = checkpoint(tmp_path)
    controller = mixture()
    train(controller, 1, step)
    (folder / "mixture.json").write_text(json.dumps(controller.state_dict(completed_step=step)))
    listed_again(folder)
    with pytest.raises(
        CheckpointError, match=rf"mixture\.json: is of step {step}, state\.json of step 5"
    ):
        verify(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_configuration_without_a_network_is_damage_with_a_checksum_or_as_old_ones_without(
    tmp_path, content, is_listed
):
    folder = checkpoint(tmp_path)
    if not is_listed:  # as the version before wrote it
        index = json.loads((folder / "index.json").read_text())
        index["files"] = {k: v for k, v in index["files"].items() if not k.startswith("configs")}
        write_checksum(folder, index)
        verify(folder)
    (folder / "configs/resolved.json").write_text(content)
    if is_listed:
        listed_again(folder)
    with pytest.raises(CheckpointError, match=r"configs/resolved\.json: "):
        verify(folder)


@pytest.mark.parametrize("name", ["configs/run.yml", "configs/resolved.json", "mixture.json"])
def test_every_file_of_a_checkpoint_is_under_its_checksums(tmp_path, name):
    folder = checkpoint(tmp_path)
    flip(folder / name, 0)
    with pytest.raises(CheckpointError, match=rf"{name}: checksum differs"):
        verify(folder)


def test_weights_that_are_not_what_the_index_says_are_found_before_they_are_read(tmp_path):
    folder = checkpoint(tmp_path)
    path = folder / "rank_00000.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    for changed, message in (
        (tensors[first].half().repeat(2), "is F16 of shape"),
        (tensors[first][1:].clone(), "is F32 of shape"),
        (None, "cannot be read"),
    ):
        kept = {k: v for k, v in tensors.items() if k != first}
        save_file(kept if changed is None else {**kept, first: changed, "x": tensors[first]}, path)
        listed_again(folder)
        with pytest.raises(CheckpointError, match=rf"rank_00000\.safetensors: .*{message}"):
            verify(folder)


def test_a_damaged_header_is_told_in_one_line(tmp_path):
    folder = checkpoint(tmp_path)
    header = json.dumps({"a\nb": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode()
    path = folder / "rank_00000.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8192))
    listed_again(folder)
    with pytest.raises(CheckpointError, match="cannot be read") as refused:
        verify(folder)
    assert "\n" not in str(refused.value)
