"""Each rank reads what its model needs, and no more where it was saved as it is wanted."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megatron.checkpoint import format as checkpoint_format
from megatron.checkpoint.format import CheckpointReader, random_state_key
from megatron.checkpoint.index import index_checksum
from megatron.checkpoint.loading import (
    SavedWeights,
    find_checkpoint,
    load_engine_state,
    load_module_weights,
    restore_random_state,
)
from megatron.checkpoint.rectangles import copy_from_fragment
from megatron.checkpoint.schema import check_random_state
from megatron.engine.chosen_checkpoint import checkpoint_to_load
from megatron.errors import CheckpointError
from megatron.model.gpt2_model import GPT2Model
from megatron.model.init_functions import zeros
from megatron.model.parameters import ParameterSpec, cut_shard, make_parameter, spec_of
from megatron.model.shard_blocks import Rectangle
from megatron.mpu import RankGrid
from megatron.runtime import accelerator
from odm.json_data import SchemaError
from tests.process_group import process_group_of_one
from tests.unit.checkpoint.test_checkpoint_format import (
    TENSORS,
    TP_DIMS,
    value_of,
    write_checkpoint,
)
from tools.benchmark.fuzz.state_kinds import FIELDS, checkpoint, listed_again, write_index
from tools.hf.settings import RunSettings, resolve_model_fields


def topology_of(tp: int, tp_rank: int = 0) -> Any:
    return SimpleNamespace(
        rank=tp_rank, model_rank=tp_rank, grid=RankGrid(pipe=1, data=1, model=tp)
    )


def make_module(tp: int, padding: int = 0) -> nn.Module:
    """Empty parameters of one tensor-parallel rank, named and cut as in `TENSORS`."""
    module = nn.Module()
    for name, tensor in TENSORS.items():
        shape, dim = list(tensor.shape), TP_DIMS[name]
        if dim is not None:
            shape[dim] = -(-shape[dim] // tp) + padding
        parameter = make_parameter(
            *shape, init_method=zeros, logical_shape=tuple(tensor.shape), tp_dim=dim
        )
        owner, _, leaf = name.partition(".")
        if not hasattr(module, owner):
            module.add_module(owner, nn.Module())
        getattr(module, owner).register_parameter(leaf, parameter)
    return module


def expected_shard(name: str, kind: str, spec: ParameterSpec, tp_rank: int) -> Tensor:
    return cut_shard(value_of(name, kind), spec, tp_rank)


@given(
    saved_tp=st.integers(1, 3),
    saved_padding=st.integers(0, 2),
    tp=st.integers(1, 3),
    padding=st.integers(0, 2),
    cuts=st.lists(st.floats(0, 1), max_size=2),
)
@settings(max_examples=40)
def test_any_layout_loads_on_any_other(
    tmp_path_factory, saved_tp, saved_padding, tp, padding, cuts
):
    folder = write_checkpoint(
        tmp_path_factory.mktemp("load") / "c", tp=saved_tp, padding=saved_padding, cuts=tuple(cuts)
    )
    for tp_rank in range(tp):
        module = make_module(tp, padding)
        load_module_weights(module, folder, topology_of(tp, tp_rank))
        for name, parameter in module.named_parameters():
            wanted = expected_shard(name, "fp32", spec_of(parameter), tp_rank)
            assert torch.equal(parameter, wanted), name


class CountedReads:
    """Notes the keys of the fragments that are opened, and counts what is copied from them."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.elements = 0

    def copy(self, read: Any, start: int, length: int, part: Rectangle, out: Tensor) -> None:
        found = torch.full(out.shape, float("nan"))
        copy_from_fragment(read, start, length, part, found)
        is_there = ~found.isnan()
        self.elements += int(is_there.sum())
        out[is_there] = found[is_there]


@pytest.fixture
def counted(monkeypatch) -> CountedReads:
    reads, fragment = CountedReads(), CheckpointReader._fragment

    def noted(reader: CheckpointReader, file: str, key: str, length: int) -> Any:
        reads.keys.append(key)
        return fragment(reader, file, key, length)

    monkeypatch.setattr(CheckpointReader, "_fragment", noted)
    monkeypatch.setattr(checkpoint_format, "copy_from_fragment", reads.copy)
    return reads


def partitioned_engine(module: nn.Module, ranges: dict[str, tuple[int, int]]) -> Any:
    """Stands in for an engine with ZeRO 1 whose rank owns ``{name: (offset, length)}``."""
    for name, parameter in module.named_parameters():
        mapping = None
        if name in ranges:
            offset, length = ranges[name]
            mapping = SimpleNamespace(
                hp_fragment=torch.full((length,), float("nan")),
                lp_fragment_address=SimpleNamespace(start=offset),
                optim_fragment={"exp_avg": torch.full((length,), float("nan"))},
            )
        parameter._hp_mapping = mapping  # type: ignore[attr-defined]
    optimizer = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[], state={}),
        _lazy_init_hp_params_optimizer_state=lambda: None,
        update_lp_params=lambda: None,
    )
    return SimpleNamespace(module=module, optimizer=optimizer, zero_optimization_stage=lambda: 1)


def saved_in(folder: Path, topology: Any) -> SavedWeights:
    return SavedWeights(CheckpointReader(folder), topology, frozenset())


RANGES = {"layer.weight": (3, 14), "layer.bias": (2, 4)}


def load_ranges(folder: Path, *, tp: int, tp_rank: int, padding: int = 0) -> dict[str, Tensor]:
    """Loads `RANGES` of a rank; returns them as {"kind name": values} after comparing them."""
    module = make_module(tp, padding)
    engine = partitioned_engine(module, RANGES)
    saved = saved_in(folder, topology_of(tp, tp_rank))
    load_engine_state(engine, saved, moment_names=("exp_avg",), applied_steps=3)
    loaded = {}
    for name, parameter in module.named_parameters():
        if name not in RANGES:
            continue
        mapping, (offset, length) = parameter._hp_mapping, RANGES[name]  # type: ignore[attr-defined]
        for kind, values in (
            ("fp32", mapping.hp_fragment),
            ("exp_avg", mapping.optim_fragment["exp_avg"]),
        ):
            whole = expected_shard(name, kind, spec_of(parameter), tp_rank).flatten()
            assert torch.equal(values, whole[offset : offset + length]), (name, kind)
            loaded[f"{kind} {name}"] = values
    return loaded


@pytest.mark.parametrize("tp_rank", [0, 1])
def test_a_rank_reads_its_own_range_alone_where_shards_are_alike(tmp_path, counted, tp_rank):
    folder = write_checkpoint(tmp_path / "c", tp=2, ranks=2, cuts=(0.3, 0.8))
    load_ranges(folder, tp=2, tp_rank=tp_rank)
    # rank 1 holds 3 of its 4 rows: of its 15 elements 3 to 15 are there, two are padding
    weight = 14 if tp_rank == 0 else 12
    assert counted.elements == 2 * (weight + 4)
    assert {key.split("|")[2] for key in counted.keys if "weight" in key} == {str(tp_rank)}


@pytest.mark.parametrize(
    ("saved_tp", "tp", "tp_rank"), [(2, 1, 0), (1, 2, 0), (3, 2, 1), (3, 1, 0)]
)
def test_a_rank_reads_its_own_range_alone_where_shards_differ(
    tmp_path, counted, saved_tp, tp, tp_rank
):
    folder = write_checkpoint(tmp_path / "c", tp=saved_tp, cuts=(0.4,))
    load_ranges(folder, tp=tp, tp_rank=tp_rank)
    offset, length = RANGES["layer.weight"]
    rows = TENSORS["layer.weight"].shape[0]
    first = tp_rank * -(-rows // tp)
    own = max(0, min(rows - first, -(-rows // tp))) * 5
    weight = max(0, min(offset + length, own) - offset)
    assert counted.elements == 2 * (weight + RANGES["layer.bias"][1])


def test_a_rank_reads_its_own_columns_alone(tmp_path, counted):
    folder = write_checkpoint(tmp_path / "c", tp=1, cuts=(0.3,))
    load_module_weights(make_module(2), folder, topology_of(2, 1))
    # 3 of 7 rows of 5, the bias, 3 rows of 2 of 4
    assert counted.elements == 15 + 7 + 6


def test_both_ways_of_reading_give_the_same_bits(tmp_path):
    alike = write_checkpoint(tmp_path / "alike", tp=2, padding=1)
    other = write_checkpoint(tmp_path / "other", tp=3, cuts=(0.4,))
    one = load_ranges(alike, tp=2, tp_rank=1, padding=1)
    two = load_ranges(other, tp=2, tp_rank=1, padding=1)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_weights_are_read_by_shards_too(tmp_path, counted):
    folder = write_checkpoint(tmp_path / "c", tp=2)
    load_module_weights(make_module(2), folder, topology_of(2, 0))
    # 4 of 7 rows of 5, the bias, 3 rows of 2 of 4
    assert counted.elements == 20 + 7 + 6


def test_without_zero_the_weights_are_read_once(tmp_path, counted):
    folder = write_checkpoint(tmp_path / "c")
    module = make_module(1)
    load_module_weights(module, folder, topology_of(1))
    optimizer = torch.optim.AdamW(module.parameters())
    engine = SimpleNamespace(module=module, optimizer=optimizer, zero_optimization_stage=lambda: 0)
    saved = saved_in(folder, topology_of(1))
    load_engine_state(engine, saved, moment_names=("exp_avg",), applied_steps=3)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, value_of(name, "fp32"))
        assert torch.equal(optimizer.state[parameter]["exp_avg"], value_of(name, "exp_avg"))
    assert [key.split("|")[0] for key in counted.keys] == ["fp32"] * 3 + ["exp_avg"] * 3


@pytest.mark.parametrize("applied_steps", [0, 3])
def test_weights_alone_continue_nothing_but_a_run_before_its_first_step(tmp_path, applied_steps):
    folder = write_checkpoint(tmp_path / "c")
    index = json.loads((folder / "index.json").read_text())
    index["moments"] = []
    index["crc32"] = index_checksum(index)
    (folder / "index.json").write_text(json.dumps(index))
    module = make_module(1)
    load_module_weights(module, folder, topology_of(1))
    optimizer = torch.optim.AdamW(module.parameters())
    engine = SimpleNamespace(module=module, optimizer=optimizer, zero_optimization_stage=lambda: 0)

    def load(moment_names: tuple[str, ...] | None) -> None:
        load_engine_state(
            engine,
            saved_in(folder, topology_of(1)),
            moment_names=moment_names,
            applied_steps=applied_steps,
        )

    load(None)  # no_load_optim
    load(())  # an optimizer without moments
    if applied_steps:
        with pytest.raises(CheckpointError, match=r"moments \[\], .*set no_load_optim"):
            load(("exp_avg", "exp_avg_sq"))
    else:
        load(("exp_avg", "exp_avg_sq"))
    assert not optimizer.state


def test_moments_that_the_optimizer_has_not_are_not_dropped_without_a_word(tmp_path):
    folder = write_checkpoint(tmp_path / "c")
    module = make_module(1)
    engine = SimpleNamespace(module=module, zero_optimization_stage=lambda: 0)
    load_module_weights(module, folder, topology_of(1))
    saved = saved_in(folder, topology_of(1))
    with pytest.raises(CheckpointError, match=r"the optimizer needs \[\]; set no_load_optim"):
        load_engine_state(engine, saved, moment_names=(), applied_steps=3)


def load_from(load: Path, save: Path, **options: Any) -> Path | None:
    config: Any = SimpleNamespace(
        saving=SimpleNamespace(load_path=str(load), save_path=str(save), iteration=None)
    )
    with process_group_of_one():
        return checkpoint_to_load(config, lambda line: None, **options)


def test_the_save_folder_by_another_name_is_a_fresh_start(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for other_name in (tmp_path / "link", Path("run"), tmp_path / "x/../run"):
        assert load_from(other_name, tmp_path / "run") is None
    with pytest.raises(CheckpointError, match=r"load: no checkpoint in .*/runs; correct the path"):
        load_from(tmp_path / "runs", tmp_path / "run")


def test_a_checkpoint_in_the_place_of_its_folder_is_told_apart_from_none(tmp_path):
    folder = write_checkpoint(tmp_path / "global_step30")
    with pytest.raises(CheckpointError, match=rf"parent, {tmp_path}, and .* iteration: 30$"):
        load_from(folder, tmp_path / "run")


def test_a_program_that_reads_a_model_does_not_begin_without_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"^load: no checkpoint in .*/run; .* train the mod"):
        load_from(tmp_path / "run", tmp_path / "run", for_training=False)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model-00001-of-00002.bin"])
@pytest.mark.parametrize("for_training", [True, False])
def test_a_model_of_hugging_face_leads_to_the_converter(tmp_path, weights, for_training):
    for name in ("config.json", weights):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError) as refused:
        load_from(tmp_path, tmp_path, for_training=for_training)
    assert f"load: {tmp_path}: is a Hugging Face model" in str(refused.value)
    assert f"python tools/convert_from_hf.py --input_dir {tmp_path}" in str(refused.value)


def test_another_shape_is_refused_before_anything_is_read(tmp_path, counted):
    folder = write_checkpoint(tmp_path / "c")
    module = nn.Module()
    module.add_module("layer", nn.Module())
    module.layer.weight = make_parameter(6, 5, init_method=zeros, tp_dim=0)
    with pytest.raises(CheckpointError, match=r"has 'layer\.bias', which this model lacks"):
        load_module_weights(module, folder, topology_of(1))
    full = make_module(1)
    full.layer.weight = module.layer.weight  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"shape \(7, 5\), this model needs \(6, 5\)"):
        load_module_weights(full, folder, topology_of(1))
    assert counted.elements == 0


def test_random_states_that_were_not_saved_are_said_to_be_missing(tmp_path):
    folder = write_checkpoint(tmp_path / "c")
    said: list[str] = []
    restore_random_state(folder, topology_of(1), said.append)
    assert said == [
        f"{folder}: random states were not saved (no_save_rng): dropout's masks will differ "
        "from those of the uninterrupted run"
    ]


def test_without_dropout_nobody_misses_random_states(tmp_path):
    restore_random_state(write_checkpoint(tmp_path / "c"), topology_of(1), None)


def test_another_layout_is_said_aloud(tmp_path):
    folder = write_checkpoint(tmp_path / "c", tp=2)
    said: list[str] = []
    restore_random_state(folder, topology_of(1), said.append)
    (line,) = said
    assert "saved on {'dp': 1, 'tp': 2, 'pp': 1}, now {'dp': 1, 'tp': 1, 'pp': 1}" in line


@pytest.mark.parametrize("is_old", [False, True], ids=["in the file of the rank", "in its own"])
def test_a_saved_random_state_is_restored_in_silence(tmp_path, is_old):
    folder = write_checkpoint(tmp_path / "c")
    state = accelerator.rng_state()
    if is_old:
        save_file(state, folder / "rng_00000.safetensors")
    else:
        path = folder / "rank_00000.safetensors"
        own = {random_state_key(name): tensor for name, tensor in state.items()}
        save_file({**load_file(path), **own}, path)
    listed_again(folder)
    wanted = torch.rand(3)
    torch.rand(5)
    said: list[str] = []
    restore_random_state(folder, topology_of(1), said.append)
    assert torch.equal(torch.rand(3), wanted)
    assert said == []


def found_in(folder: Path) -> tuple[Path | None, list[str]]:
    said: list[str] = []
    with process_group_of_one():
        return find_checkpoint(folder, None, said.append), said


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("configs/resolved.json", '{"model": ', "is not JSON"),
        ("configs/resolved.json", "", "is not JSON"),
        ("configs/resolved.json", "{}", "lacks model"),
        ("mixture.json", '{"planned": -1}', "lacks schema_version"),
        ("state.json", "[" * 100_000, "64 levels"),
        ("rng_00000.safetensors", "x", "cannot be read"),
        ("rng_00000.safetensors", "\2" + "\0" * 7 + "{}", "not the random states"),
    ],
)
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_damaged_file_of_any_kind_leads_to_the_checkpoint_before(
    tmp_path, name, content, place, is_listed
):
    older = checkpoint(tmp_path)
    newer = shutil.copytree(older, tmp_path / "global_step9")
    (tmp_path / "latest").write_text("global_step9")
    (newer / name).write_text(content)
    if is_listed:
        listed_again(newer)
    found, said = found_in(tmp_path)
    assert found == older
    assert len(said) == 1
    assert f"{newer}/{name}: " in said[0]
    assert (place in said[0]) == is_listed  # else size or checksum tell


@pytest.mark.parametrize("content", ["global_step" + "9" * 5000, "", "x", "global_step-1"])
def test_a_latest_that_names_nothing_is_said_and_the_newest_sound_one_is_taken(tmp_path, content):
    folder = checkpoint(tmp_path)
    (tmp_path / "latest").write_text(content)
    found, said = found_in(tmp_path)
    assert found == folder
    assert said == [f"{tmp_path}/latest: names no checkpoint; taking the newest sound one instead"]


def test_a_checkpoint_as_it_was_written_before_configs_had_checksums_loads(tmp_path):
    folder = checkpoint(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    index["files"] = {k: v for k, v in index["files"].items() if not k.startswith("configs/")}
    write_index(folder, index)
    assert found_in(tmp_path) == (folder, [])


def test_a_missing_configuration_is_said_for_the_network_is_not_compared(tmp_path, caplog):
    folder = checkpoint(tmp_path)
    shutil.rmtree(folder / "configs")
    listed_again(folder)
    settings = resolve_model_fields(FIELDS)
    model = GPT2Model(RunSettings(settings.to_dict()).shape(16), seed=1)
    with caplog.at_level(logging.WARNING):
        load_module_weights(model, folder, topology_of(1))
    assert f"{folder}: has no configs/resolved.json" in caplog.text


def test_what_is_beyond_latest_is_not_taken_for_a_damaged_latest(tmp_path):
    folder = checkpoint(tmp_path)
    shutil.copytree(folder, tmp_path / "global_step9")  # of a run that went back
    (tmp_path / "latest").write_text("global_step0")
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged: global_step0$"):
        found_in(tmp_path)


def test_an_iteration_that_is_asked_for_and_damaged_is_refused_for_what_is_wrong(tmp_path):
    folder = checkpoint(tmp_path)
    (folder / "state.json").unlink()
    said: list[str] = []
    with process_group_of_one():
        with pytest.raises(CheckpointError, match=r"state\.json: listed in index\.json but"):
            find_checkpoint(tmp_path, 0, said.append)
    assert said == []


def test_random_states_of_another_layout_are_not_restored(tmp_path):
    folder = checkpoint(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    index["layout"]["dp"] = 2
    write_index(folder, index)
    torch.manual_seed(3)
    wanted, said = torch.random.get_rng_state(), []
    restore_random_state(folder, topology_of(1), said.append)
    assert torch.equal(torch.random.get_rng_state(), wanted)
    (line,) = said
    assert "saved on {'dp': 2, 'tp': 1, 'pp': 1}, now {'dp': 1, 'tp': 1, 'pp': 1}: dropout" in line


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("python", 624, 625), ("numpy", 624, 625), ("python", 625, 2), ("numpy", 625, 2)],
)
def test_a_random_state_beyond_its_numbers_is_refused(name, place, value):
    state = accelerator.rng_state()
    check_random_state(state)
    state[name][place] = value - 1 if place == 624 else state[name][place]
    check_random_state(state)
    state[name][place] = value
    with pytest.raises(SchemaError, match=f"{name}: must be a position and a version"):
        check_random_state(state)
