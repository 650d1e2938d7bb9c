"""Checkpoints of GPT-NeoX whose weights ZeRO 3 partitioned, in the form of DeepSpeed's files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.checkpoint.neox.folder import NeoxFolder
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.opening import load_run_state, verify_files
from megatron.errors import CheckpointError
from tests.interop.conversions import random_weights, shape_of
from tests.neox_folder import write_neox_folder

FIELDS: dict[str, Any] = {
    **{"num_layers": 2, "hidden_size": 12, "num_attention_heads": 2, "seq_length": 8},
    **{"max_position_embeddings": 8, "pos_emb": "rotary", "gpt_j_residual": True},
    **{"no_weight_tying": True, "make_vocab_size_divisible_by": 8},
}
RANKS = 5
"""Divides few of the sizes, so that most partitions end in padding."""


def write_zero_3(run: Path, *, parts: int) -> tuple[Path, Any, dict[str, Tensor]]:
    """A folder of RANKS data-parallel ranks: float32 in flat partitions, in groups of some names.

    The first moment of an element is its negative, the second its square.
    """
    shape = shape_of(FIELDS, 61)
    weights = random_weights(shape)
    folder = write_neox_folder(run, weights, shape, parts=parts, stages=False, step=40)
    for part in range(parts):
        path = folder / f"mp_rank_{part:02d}_model_states.pt"
        content = torch.load(path, weights_only=False)
        path.unlink()
        module = {n: t for n, t in content["module"].items() if "inv_freq" not in n}
        names = sorted(module, key=lambda name: module[name].dim(), reverse=True)
        groups = [names[:3], names[3:10], names[10:]]
        counters = {
            **content,
            "module": {name: torch.empty(0) for name in module},
            "param_shapes": [{name: module[name].shape for name in group} for group in groups],
        }
        for rank in range(RANKS):
            tail = f"zero_pp_rank_{rank}_mp_rank_{part:02d}"
            torch.save(counters, folder / f"{tail}_model_states.pt")
            flat = [torch.cat([_piece(module[n], rank) for n in group]) for group in groups]
            states = {k: {"exp_avg": -f, "exp_avg_sq": f * f} for k, f in enumerate(flat)}
            torch.save(
                {
                    "optimizer_state_dict": {
                        "zero_stage": 3,
                        "partition_count": RANKS,
                        "fp32_flat_groups": flat,
                        "optimizer_state_dict": {"state": states, "param_groups": []},
                    }
                },
                folder / f"{tail}_optim_states.pt",
            )
    return folder, shape, weights


def _piece(tensor: Tensor, rank: int) -> Tensor:
    length = math.ceil(tensor.numel() / RANKS)
    padded = torch.cat([tensor.flatten(), torch.zeros(length * RANKS - tensor.numel())])
    return padded[rank * length : (rank + 1) * length].clone()


@pytest.mark.parametrize("parts", [1, 2])
def test_partitions_are_put_together(tmp_path, parts):
    folder, shape, weights = write_zero_3(tmp_path, parts=parts)
    verify_files(folder)
    slim, full = (NeoxReader(folder, shape, with_optimizer=asked) for asked in (False, True))
    assert slim.moment_names == ()
    assert slim.num_parts == parts
    assert full.moment_names == ("exp_avg", "exp_avg_sq")
    for name, tensor in weights.items():
        for reader in (slim, full):
            assert torch.allclose(reader.read_logical(name), tensor, atol=1e-6), name
        if not name.endswith(("dense.bias", "dense_4h_to_h.bias")):  # each part adds its own
            assert torch.allclose(full.read_logical(name, "exp_avg"), -tensor, atol=1e-6), name
            assert torch.allclose(full.read_logical(name, "exp_avg_sq"), tensor**2, atol=1e-6)
    assert load_run_state(folder)[0]["counters"]["step"] == 40


def test_an_exact_sum_of_partitions_is_asked_for(tmp_path):
    folder, shape, _ = write_zero_3(tmp_path, parts=1)
    path = folder / "zero_pp_rank_3_mp_rank_00_optim_states.pt"
    content = torch.load(path, weights_only=False)
    flat = content["optimizer_state_dict"]["fp32_flat_groups"]
    flat[1] = flat[1][:-1]
    torch.save(content, path)
    assert "of different checkpoints" in refusal(folder, shape)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("partition_count", lambda _: 9, "one of 9 partitions, but the folder has 5"),
        ("fp32_flat_groups", lambda flat: [t.int() for t in flat], "fp32 is no flat tensor"),
        ("fp32_flat_groups", lambda flat: flat[:2], "has no states of parameter group 2"),
    ],
)
def test_each_file_must_fit_the_others(tmp_path, rank, key, change, message):
    folder, shape, _ = write_zero_3(tmp_path, parts=1)
    path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    content = torch.load(path, weights_only=False)
    states = content["optimizer_state_dict"]
    states[key] = change(states[key])
    torch.save(content, path)
    assert message in refusal(folder, shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero_pp_rank_0_mp_rank_01_model_states.pt", "rank_01_model_states.pt: is missing"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "rank_00_optim_states.pt: is missing"),
        ("zero_pp_rank_2_mp_rank_01_optim_states.pt", "rank_01_optim_states.pt: is missing"),
        ("zero_pp_rank_4_mp_rank_00_optim_states.pt", "one of 5 partitions, but the folder has 4"),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, message):
    folder, shape, _ = write_zero_3(tmp_path, parts=2)
    (folder / name).unlink()
    line = refusal(folder, shape)
    assert message in line
    assert "no_load_optim" not in line  # which would not help: the weights are there


def test_optimizer_files_all_missing_are_weights_missing(tmp_path):
    folder, shape, _ = write_zero_3(tmp_path, parts=1)
    for path in folder.glob("*optim_states.pt"):
        path.unlink()
    assert "zero_pp_rank_0_mp_rank_00_optim_states.pt: is missing" in refusal(folder, shape)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "has no param_shapes"),
        (3, "has no param_shapes"),
        ([{"sequential.0.word_embeddings.weight": (2, -3)}], "is no parameter with a shape"),
        ([{7: (2, 3)}], "7 is no parameter with a shape"),
    ],
)
def test_shapes_that_do_not_serve_are_a_line(tmp_path, shapes, message):
    folder, shape, _ = write_zero_3(tmp_path, parts=1)
    path = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({**torch.load(path, weights_only=False), "param_shapes": shapes}, path)
    assert message in refusal(folder, shape)


def test_states_of_an_unknown_version_are_refused_with_the_way_out(tmp_path):
    folder, shape, _ = write_zero_3(tmp_path, parts=1)
    for path in folder.glob("*optim_states.pt"):
        torch.save({"optimizer_state_dict": {"zero_stage": 3}}, path)
    assert "version of ZeRO that is not known; load the checkpoint in GPT" in refusal(folder, shape)


def test_files_of_zero_3_beside_whole_weights_are_refused(tmp_path):
    folder, _, _ = write_zero_3(tmp_path / "one", parts=1)
    shape = shape_of(FIELDS, 61)
    other = write_neox_folder(tmp_path / "two", random_weights(shape), shape)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="whole weights, beside files of ZeRO 3"):
        NeoxFolder(folder)


def read(folder: Path, shape: Any) -> None:
    verify_files(folder)
    NeoxReader(folder, shape)


def refusal(folder: Path, shape: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, shape)
    (line,) = str(caught.value).splitlines()
    return line
