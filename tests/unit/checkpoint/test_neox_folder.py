"""Checkpoints as GPT-NeoX writes them have the logits of the model that they were made of."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.loading import find_checkpoint
from megatron.checkpoint.neox.merging import merge
from megatron.checkpoint.neox.reader import NeoxReader
from megatron.checkpoint.neox.torch_file import read_torch_file
from megatron.checkpoint.opening import load_run_state, saved_configuration, verify_files
from megatron.errors import CheckpointError
from megatron.evaluation.trained_model import read_model
from megatron.model.parameters import ParameterSpec, cut_shard
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.tokenizer import build_tokenizer
from tests.interop.conversions import ALONE, random_weights, shape_of
from tests.neox_folder import write_neox_folder
from tests.process_group import process_group_of_one
from tools.checkpoints.import_neox import main as import_neox
from tools.convert_to_hf import main as convert_to_hf
from tools.hf.network import filled_model, parameter_infos

PYTHIA: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "seq_length": 16,
    "max_position_embeddings": 16,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "gpt_j_residual": True,
    "no_weight_tying": True,
    "make_vocab_size_divisible_by": 8,
}
SEQUENTIAL = {**PYTHIA, "gpt_j_residual": False, "pos_emb": "learned", "no_weight_tying": False}
LLAMA = {
    **PYTHIA,
    "gpt_j_residual": False,
    "rotary_pct": 1.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "mlp_inner_size": 24,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "pythia": PYTHIA,
    "sequential": SEQUENTIAL,
    "llama": LLAMA,
    "grouped": {**LLAMA, "num_attention_heads": 8, "num_kv_heads": 4},
    "normed": {**LLAMA, "use_qk_layernorm": True},
    "relative": {**PYTHIA, "pos_emb": "rpe"},
    "geglu": {**PYTHIA, "activation": "geglu", "mlp_inner_size": 24, "gpt_j_tied": True},
}
FORMS = {
    "1 part": {"parts": 1},
    "2 parts, older names": {"parts": 2, "renamed": False},
    "2 parts, no stages": {"parts": 2, "stages": False},
    "4 parts": {"parts": 4},
    "4 parts, no stages, older names": {"parts": 4, "renamed": False, "stages": False},
}
VOCAB_SIZE = 61
Written = tuple[Path, Any, dict[str, torch.Tensor]]
"""Folder, shape and our weights by name."""


def write(
    run: Path, name: str = "pythia", **form: Any
) -> tuple[Path, Any, dict[str, torch.Tensor]]:
    shape = shape_of(NETWORKS[name], VOCAB_SIZE)
    weights = random_weights(shape)
    return write_neox_folder(run, weights, shape, divisor=8, **form), shape, weights


def equal(reader: Any, weights: dict[str, torch.Tensor], atol: float = 1e-6) -> bool:
    return reader.shapes.keys() == weights.keys() and all(
        torch.allclose(reader.read_logical(name), tensor, atol=atol)
        for name, tensor in weights.items()
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_model_for_every_number_of_parts(tmp_path, name, form):
    folder, shape, weights = write(tmp_path, name, **FORMS[form])
    tokens = torch.arange(12)[None] * 5 % VOCAB_SIZE
    with torch.no_grad():
        want = filled_model(shape, weights.__getitem__)(tokens)
        got = filled_model(shape, NeoxReader(folder, shape).read_logical)(tokens)
    assert torch.allclose(got, want, atol=1e-5)


def test_a_layernorm_over_the_heads_of_a_part_is_refused(tmp_path):
    shape = shape_of({**PYTHIA, "use_qk_layernorm": True}, VOCAB_SIZE)
    weights = random_weights(shape)
    one = write_neox_folder(tmp_path / "one", weights, shape, divisor=8, parts=1)
    assert equal(NeoxReader(one, shape), weights)
    two = write_neox_folder(tmp_path / "two", weights, shape, divisor=8, parts=2)
    with pytest.raises(CheckpointError, match="over the heads of each of 2 parts"):
        NeoxReader(two, shape)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_a_rank_reads_the_same_shard_from_any_number_of_parts(tmp_path, tp_size, parts):
    folder, shape, weights = write(tmp_path, "grouped", parts=parts)
    reader = NeoxReader(folder, shape)
    padded = parameter_infos(replace(shape, padded_vocab_size=64))
    for name, info in padded.items():
        cut = list(info.shape)
        if info.tp_dim is not None:
            cut[info.tp_dim] = info.extent // tp_size
        spec = ParameterSpec(torch.nn.init.zeros_, info.shape, info.tp_dim, tuple(cut), True)
        for rank in range(tp_size):
            shard = reader.read_shard(name, spec, kind="fp32", tp_rank=rank, tp_size=tp_size)
            assert torch.equal(shard, cut_shard(weights[name], spec, rank)), name


def test_grouped_queries_are_ordered_by_group():
    shape = replace(shape_of(NETWORKS["grouped"], VOCAB_SIZE), head_dim=1)
    # 8 heads, 4 groups, in two parts of [4 queries, 2 keys, 2 values]
    parts = [[torch.tensor([0.0, 1, 2, 3, 10, 11, 20, 21])], [torch.arange(100.0, 108)]]
    merged = merge("attention.query_key_value.bias", parts, shape, num_parts=2)
    assert merged.tolist() == [
        *(0, 1, 10, 20, 2, 3, 11, 21),
        *(100, 101, 104, 106, 102, 103, 105, 107),
    ]


def test_the_gate_is_the_second_half_of_each_part():
    shape = shape_of(NETWORKS["llama"], VOCAB_SIZE)
    parts = [[torch.tensor([1.0, 2, 10, 20])], [torch.tensor([3.0, 4, 30, 40])]]
    merged = merge("mlp.dense_h_to_4h.bias", parts, shape, num_parts=2)
    assert merged.tolist() == [[10, 20, 30, 40], [1, 2, 3, 4]]


def test_biases_of_a_parallel_residual_are_summed_and_their_moments_averaged():
    shape = shape_of(PYTHIA, VOCAB_SIZE)
    parts = [[torch.tensor([1.0, 2])], [torch.tensor([3.0, 5])]]
    name = "attention.dense.bias"
    assert merge(name, parts, shape, num_parts=2).tolist() == [4, 7]
    assert merge(name, parts, shape, num_parts=2, kind="exp_avg").tolist() == [2, 3.5]
    sequential = shape_of(SEQUENTIAL, VOCAB_SIZE)
    assert merge(name, [parts[0]] * 2, sequential, num_parts=2).tolist() == [1, 2]


def test_copies_that_drifted_apart_are_averaged():
    parts = [[torch.tensor([1.0, 2])], [torch.tensor([3.0, 2])]]
    merged = merge("input_layernorm.weight", parts, shape_of(PYTHIA, VOCAB_SIZE), num_parts=2)
    assert merged.tolist() == [2, 2]


def test_half_precision_and_files_before_torch_1_6_are_read(tmp_path):
    folder, shape, weights = write(tmp_path, parts=2, dtype=torch.float16, legacy=True)
    assert equal(NeoxReader(folder, shape), weights, atol=1e-2)
    assert load_run_state(folder)[0]["counters"]["step"] == 100


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("ran_code"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"x": torch.ones(2), "more": Hostile()}
    torch.save(content, "file.pt", _use_new_zipfile_serialization=zipped)
    with contextlib.suppress(CheckpointError):  # refused, or read without the object
        assert read_torch_file(Path("file.pt"))["x"].tolist() == [1, 1]
    assert not Path("ran_code").exists()


@pytest.mark.parametrize("latest", [True, False])
def test_the_newest_is_found_with_and_without_latest(tmp_path, latest):
    for step in (2, 10):
        write(tmp_path, step=step, latest=latest)
    with process_group_of_one():
        assert find_checkpoint(tmp_path, None, print) == tmp_path / "global_step10"
        assert find_checkpoint(tmp_path, 2, print) == tmp_path / "global_step2"


def test_a_torn_one_is_skipped_with_a_line_and_named_by_iteration_is_an_error(tmp_path):
    for step in (2, 10):
        write(tmp_path, step=step)
    torn = tmp_path / "global_step10/layer_03-model_00-model_states.pt"
    torn.write_bytes(torn.read_bytes()[:3000])
    lines: list[str] = []
    with process_group_of_one():
        assert find_checkpoint(tmp_path, None, lines.append) == tmp_path / "global_step2"
        with pytest.raises(CheckpointError, match="layer_03-model_00"):
            find_checkpoint(tmp_path, 10, print)
    assert len(lines) == 1
    assert str(torn) in lines[0]


def damage(folder: Path, how: str) -> None:
    layer = folder / "layer_03-model_01-model_states.pt"
    if how == "cut":
        layer.write_bytes(layer.read_bytes()[:2000])
    elif how == "empty":
        layer.write_bytes(b"")
    elif how == "web page":
        layer.write_bytes(b"<!DOCTYPE html>")
    elif how == "git lfs":
        layer.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 123\n")
    elif how == "missing part":
        layer.unlink()
    elif how == "missing layer":
        for part in (0, 1):
            (folder / f"layer_03-model_0{part}-model_states.pt").unlink()
    elif how == "another size":
        content = torch.load(layer, weights_only=True)
        torch.save({name: tensor[:3].clone() for name, tensor in content.items()}, layer)
    elif how == "another layer":
        shutil.copy(folder / "layer_00-model_01-model_states.pt", layer)
    elif how == "no state dict":
        torch.save([1, 2], layer)
    elif how == "foreign tensor":
        content = torch.load(layer, weights_only=True)
        for part in (0, 1):
            path = folder / f"layer_03-model_0{part}-model_states.pt"
            torch.save({**content, "mlp.router.weight": torch.ones(2, 2)}, path)


DAMAGE = {
    "cut": "layer_03-model_01",
    "empty": "layer_03-model_01",
    "web page": "layer_03-model_01-model_states.pt: is cut, damaged or not a file of torch.save "
    "(begins with b'<!DO')",
    "git lfs": "layer_03-model_01-model_states.pt: is a pointer of Git LFS",
    "missing part": "layer_03-model_01-model_states.pt: is missing",
    "missing layer": "layer_03-model_00-model_states.pt: is missing",
    "another size": "layer_03-model_01",
    "another layer": "layer_03-model_01",
    "no state dict": "layer_03-model_01",
    "foreign tensor": "3.mlp.router.weight",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_folder_is_one_line_with_the_name_of_the_file(tmp_path, how):
    folder, _, _ = write(tmp_path, parts=2)
    damage(folder, how)
    with pytest.raises(CheckpointError) as error:
        load(folder, PYTHIA)
    assert DAMAGE[how] in str(error.value)
    assert "\n" not in str(error.value)


def load(folder: Path, fields: dict[str, Any]) -> Any:
    """Reads the model as generate.py and evaluate.py do, with the tokenizer of bytes."""
    values = {**fields, "train_micro_batch_size_per_gpu": 1, "train_iters": 1}
    values = {**values, "tokenizer_type": "CharLevelTokenizer"}
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    tokenizer = build_tokenizer(config)
    verify_files(folder)
    with process_group_of_one():
        return read_model(config, tokenizer, ALONE, folder=folder)


CHANGED = {
    "num_layers": ({"num_layers": 3}, "num_layers is 2"),
    "heads": ({"num_attention_heads": 2}, "num_attention_heads is 4"),
    "tying": ({"no_weight_tying": False}, "no_weight_tying is true"),
    "gate": ({"activation": "swiglu", "mlp_inner_size": 32}, "dense_h_to_4h"),
    "norm": ({"norm": "rmsnorm"}, "input_layernorm"),
    "biases": ({"use_bias_in_mlp": False}, "bias"),
    "groups": ({"num_kv_heads": 2}, "query_key_value"),
}


@pytest.mark.parametrize("key", CHANGED)
def test_another_network_is_an_error_that_names_the_difference(tmp_path, key):
    folder, _, _ = write_of_bytes(tmp_path)
    changes, expected = CHANGED[key]
    with pytest.raises(CheckpointError, match=expected):
        load(folder, {**PYTHIA, **changes})


def write_of_bytes(run: Path, **form: Any) -> Written:
    """A folder of a model for the tokenizer of bytes, with GPT-NeoX's own padding."""
    shape = shape_of(PYTHIA, 512)
    weights = random_weights(shape)
    form = {"divisor": 100, "parts": 2, **form}
    return write_neox_folder(run, weights, shape, **form), shape, weights


def test_the_padding_of_the_vocabulary_is_left_out(tmp_path):
    folder, shape, weights = write_of_bytes(tmp_path, dtype=torch.float32)
    assert NeoxReader(folder, shape).num_vocabulary_rows == 600
    model = load(folder, PYTHIA)
    found = dict(model.named_parameters())["0.word_embeddings.weight"]
    assert torch.equal(found[:512], weights["0.word_embeddings.weight"])


def test_a_tokenizer_that_is_too_large_is_an_error_and_a_small_one_a_warning(tmp_path, caplog):
    folder, _, _ = write(tmp_path)
    with pytest.raises(CheckpointError, match="the model has 64 tokens, the tokenizer"):
        load(folder, PYTHIA)
    shape = shape_of(PYTHIA, 3000)
    large = write_neox_folder(tmp_path / "large", random_weights(shape), shape)
    with caplog.at_level(logging.WARNING):
        load(large, PYTHIA)
    assert "has 3072 rows, the tokenizer 512 tokens" in caplog.text


def test_counters_are_those_of_the_files_or_of_the_name_of_the_folder(tmp_path):
    folder, _, _ = write(tmp_path / "full", step=40)
    assert load_run_state(folder, seq_length=16)[0]["counters"] == {
        "step": 40,
        "applied_steps": 39,
        "consumed_samples": 320,
        "consumed_tokens": 5120,
        "consecutive_skips": 0,
    }
    assert saved_configuration(folder)["schedule"]["decay_iters"] == 8
    slim, _, _ = write(tmp_path / "slim", step=150000, counters=False)
    assert load_run_state(slim)[0]["counters"]["step"] == 150000
    assert saved_configuration(slim) is None


def test_flat_states_of_half_precision_without_zero_are_read(tmp_path):
    folder, shape, weights = write(tmp_path, parts=1, stages=False, dtype=torch.float16)
    path = folder / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=False)
    named = {n: t.float() for n, t in content["module"].items() if "inv_freq" not in n}
    kept = [t.flatten() for n, t in named.items() if "norm." in n or n.endswith(".bias")]
    decays = [t.flatten() for n, t in named.items() if t.dim() == 2]
    flat = [torch.cat(group) + 0.125 for group in (decays, kept)]
    states = {k: {"exp_avg": -f, "exp_avg_sq": f * f, "step": 7} for k, f in enumerate(flat)}
    groups = [{"params": [0]}, {"params": [1]}]
    state = {"state": states, "param_groups": groups}
    content["optimizer"] = {"optimizer_state_dict": state, "fp32_groups_flat": flat}
    torch.save({**content, "cur_scale": 2.0}, path)
    reader = NeoxReader(folder, shape, with_optimizer=True)
    for name, tensor in weights.items():
        master = tensor.half().float() + 0.125
        assert torch.allclose(reader.read_logical(name), master, atol=1e-6), name
        assert torch.allclose(reader.read_logical(name, "exp_avg"), -master, atol=1e-6)
    flat[0] = flat[0][:-1]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="of different checkpoints"):
        NeoxReader(folder, shape, with_optimizer=True)


@pytest.mark.parametrize("value", [-1, True, "7", 2**60, float("nan")])
def test_a_wrong_counter_is_a_line_with_its_name(tmp_path, value):
    folder, _, _ = write(tmp_path)
    path = folder / "mp_rank_00_model_states.pt"
    torch.save({"iteration": value}, path)
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states.pt: iteration must be"):
        load_run_state(folder)


def write_yaml(folder: Path) -> Path:
    path = folder / "model.yml"
    path.write_text(json.dumps({**PYTHIA, "tokenizer_type": "CharLevelTokenizer"}))
    return path


def test_import_writes_a_checkpoint_of_ours(tmp_path, capsys):
    folder, _, weights = write_of_bytes(tmp_path / "theirs", step=40)
    out = tmp_path / "ours"
    import_neox([str(folder.parent), "--config", str(write_yaml(tmp_path)), "-o", str(out)])
    verify_files(out / "global_step40")
    reader = CheckpointReader(out / "global_step40")
    assert equal(reader, weights)
    assert (out / "latest").read_text() == "global_step40"
    assert load_run_state(out / "global_step40")[0]["counters"]["applied_steps"] == 39
    assert saved_configuration(out / "global_step40")["schedule"]["decay_iters"] == 8
    printed = capsys.readouterr().out
    assert "iteration 40" in printed
    assert "2 model-parallel parts; 88 padding rows" in printed
    assert "optimizer states are not read: the folder has no files with them" in printed


def test_import_takes_the_configuration_inside_the_checkpoint(tmp_path):
    folder, _, weights = write_of_bytes(tmp_path / "theirs")
    (folder / "configs").mkdir()
    write_yaml(folder / "configs")
    import_neox([str(folder), "-o", str(tmp_path / "ours")])
    assert equal(CheckpointReader(tmp_path / "ours/global_step100"), weights)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["nowhere"], "nowhere"), (["theirs", "--iteration", "7"], "found: 100"), (["theirs"], "--c")],
)
def test_import_refuses_in_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    write_of_bytes(tmp_path / "theirs")
    with pytest.raises(SystemExit) as error:
        import_neox([*arguments, "-o", "ours"])
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert not Path("ours").exists()


def spoil(folder: Path, how: str) -> None:
    if how == "latest":
        (folder.parent / "latest").write_text("global_step99")
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        path = folder / "layer_03-model_00-model_states.pt"
        content = torch.load(path, weights_only=True)
        content["attention.dense.bias"].fill_(float("nan"))
        torch.save(content, path)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("latest", "latest: names global_step99, which is missing; found: 100; choose one with "),
        ("empty", "global_step100: contains no checkpoint"),
        ("nan", "fp32 of 3.attention.dense.bias has values that are not finite"),
    ],
)
def test_import_of_a_spoilt_folder_is_one_line_and_leaves_nothing(tmp_path, capsys, how, expected):
    folder, _, _ = write_of_bytes(tmp_path / "theirs")
    spoil(folder, how)
    out = tmp_path / "ours"
    with pytest.raises(SystemExit) as error:
        import_neox([str(folder.parent), "--config", str(write_yaml(tmp_path)), "-o", str(out)])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not out.exists()


def test_export_reads_it_without_an_import(tmp_path):
    folder, _, weights = write_of_bytes(tmp_path / "theirs", parts=4)
    out, config = tmp_path / "hf", write_yaml(tmp_path)
    options = ["--config_file", str(config), "--no-verify", "--output_dir", str(out)]
    convert_to_hf(["--input_dir", str(folder), *options])
    from safetensors.torch import load_file

    found = load_file(out / "model.safetensors")
    assert torch.equal(found["embed_out.weight"], weights["6.final_linear.weight"])
    bias = found["gpt_neox.layers.1.attention.dense.bias"]
    assert torch.allclose(bias, weights["3.attention.dense.bias"], atol=1e-6)
