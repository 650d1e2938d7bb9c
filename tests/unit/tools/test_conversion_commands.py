"""The commands that rewrite checkpoints, called in this process on files written by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron.checkpoint_format import CheckpointReader, file_facts, index_checksum
from megatron.state import TrainState
from tests.interop.conversions import random_weights, shape_of
from tools.ckpts.single_process import (
    find_source,
    groups_by_size,
    parse_size,
    step_folder_to_make,
)
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.hf.gpt_neox import read_config, write_config
from tools.hf.importing import write_model_checkpoint
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
        save_file({"state": torch.tensor([rank])}, folder / f"rng_{rank:05d}.safetensors")
    resolved = resolve_model_fields(FIELDS).to_dict()
    (folder / "configs/resolved.json").write_text(json.dumps(resolved))
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


def refusal(main: Any, arguments: list[str], capsys: Any) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    return capsys.readouterr().err


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
    assert not list(folder.glob("rng_*"))
    shutil.copy(saved / "global_step7/rng_00000.safetensors", folder)
    reshard_main(["--input", str(folder), "--output", str(tmp_path / "again")])
    again = tmp_path / "again/global_step7/rng_00000.safetensors"
    assert again.read_bytes() == (folder / "rng_00000.safetensors").read_bytes()


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


# export


FIELDS: dict[str, Any] = {
    **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 8},
    **{"max_position_embeddings": 8, "pos_emb": "rotary", "rotary_pct": 0.5},
    **{"rotary_emb_base": 500, "layernorm_epsilon": 0.01, "activation": "swish"},
    **{"gpt_j_residual": True, "no_weight_tying": True, "tokenizer_type": "CharLevelTokenizer"},
}


def write_run(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    fields = {**FIELDS, **changes}
    shape = shape_of(fields, 512)
    weights = random_weights(shape)
    run_config = resolve_model_fields(fields)
    write_model_checkpoint(folder, shape, run_config=run_config, read=weights.__getitem__, files={})
    return weights


@pytest.mark.parametrize("is_parallel", [True, False])
def test_an_export_says_what_the_network_is_and_renames_its_weights(is_parallel, tmp_path, capsys):
    weights = write_run(tmp_path / "run", gpt_j_residual=is_parallel)
    output = tmp_path / "hf"
    flags = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(output), "--no-verify"]
    export_main(flags)
    assert capsys.readouterr().out.endswith(f"wrote {output}\n")
    config = json.loads((output / "config.json").read_text())
    expected = {
        **{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"},
        **{"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "silu"},
        **{"max_position_embeddings": 8, "layer_norm_eps": 0.01},
        **{"use_parallel_residual": is_parallel, "attention_bias": True},
        **{"tie_word_embeddings": False, "rotary_pct": 0.5, "rotary_emb_base": 500},
        **{"torch_dtype": "float32", "dtype": "float32"},
    }
    assert {key: config[key] for key in expected} == expected
    assert config["rope_parameters"] == {
        **{"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    }
    names = {
        "gpt_neox.embed_in.weight": "0.word_embeddings.weight",
        "gpt_neox.final_layer_norm.weight": "4.norm.weight",
        "gpt_neox.final_layer_norm.bias": "4.norm.bias",
        "embed_out.weight": "5.final_linear.weight",
        **{
            f"gpt_neox.layers.0.{part}.{kind}": f"2.{part}.{kind}"
            for part in (
                *("input_layernorm", "post_attention_layernorm"),
                *("attention.query_key_value", "attention.dense"),
                *("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            )
            for kind in ("weight", "bias")
        },
    }
    found = load_file(output / "model.safetensors")
    assert found.keys() == names.keys()
    for theirs, ours in names.items():
        assert torch.equal(found[theirs], weights[ours]), theirs


def test_a_rounded_export_holds_rounded_weights(tmp_path):
    weights = write_run(tmp_path / "run")
    flags = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    export_main([*flags, "--no-verify", "--dtype", "bfloat16"])
    found = load_file(tmp_path / "hf/model.safetensors")
    want = weights["2.mlp.dense_4h_to_h.weight"].bfloat16()
    assert torch.equal(found["gpt_neox.layers.0.mlp.dense_4h_to_h.weight"], want)
    error_flags = [*flags, "--no-verify"]
    with pytest.raises(SystemExit):
        export_main(error_flags)  # the folder is there
    export_main([*error_flags, "--overwrite"])
    assert load_file(tmp_path / "hf/model.safetensors")["embed_out.weight"].dtype == torch.float32


@pytest.mark.parametrize(("rotary_dim", "head_dim"), [(2, 6), (8, 8), (30, 44), (26, 46), (60, 88)])
def test_a_rotary_share_gives_the_rotated_dimensions_back(rotary_dim, head_dim):
    changes = {"hidden_size": 2 * head_dim, "rotary_pct": min(1.0, rotary_dim / head_dim + 1e-9)}
    share = write_config(shape_of({**FIELDS, **changes}, 512))["rotary_pct"]
    assert int(head_dim * share) == rotary_dim
    assert share == pytest.approx(rotary_dim / head_dim)


# import


def write_their_folder(folder: Path, *, rows: int = 24, **changes: Any) -> dict[str, torch.Tensor]:
    """A model folder as transformers writes it, without transformers."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    block = "gpt_neox.layers.0."
    tensors = {
        "gpt_neox.embed_in.weight": some(rows, 16),
        f"{block}attention.query_key_value.weight": some(48, 16),
        f"{block}attention.query_key_value.bias": some(48),
        f"{block}attention.dense.weight": some(16, 16),
        f"{block}attention.dense.bias": some(16),
        f"{block}mlp.dense_h_to_4h.weight": some(40, 16),
        f"{block}mlp.dense_h_to_4h.bias": some(40),
        f"{block}mlp.dense_4h_to_h.weight": some(16, 40),
        f"{block}mlp.dense_4h_to_h.bias": some(16),
        **{
            f"{name}.{kind}": some(16)
            for name in (
                *(f"{block}input_layernorm", f"{block}post_attention_layernorm"),
                "gpt_neox.final_layer_norm",
            )
            for kind in ("weight", "bias")
        },
        "embed_out.weight": some(rows, 16),
    }
    save_file(tensors, folder / "model.safetensors")
    config = {
        **{"model_type": "gpt_neox", "vocab_size": rows, "hidden_size": 16},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40},
        **{"max_position_embeddings": 32, "layer_norm_eps": 0.001, "rotary_emb_base": 500},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"gpt_j_residual": True, "rotary_pct": 0.25, "activation": "gelu"}),
        ({"use_parallel_residual": False}, {"gpt_j_residual": False}),
        ({"rotary_pct": 1.0, "hidden_act": "relu"}, {"rotary_pct": 1.0, "activation": "relu"}),
        ({"hidden_act": "gelu_new"}, {"activation": "gelu", "bias_gelu_fusion": True}),
    ],
)
def test_an_import_reads_the_network_and_every_weight(changes, expected, tmp_path, capsys):
    theirs = write_their_folder(tmp_path / "hf", **changes)
    yml = tmp_path / "model.yml"
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")]
    import_main([*arguments, "--config_out", str(yml)])
    folder = tmp_path / "run/global_step0"
    assert capsys.readouterr().out.endswith(f"wrote {folder} and {yml}\n")
    fields = yaml.safe_load(yml.read_text())
    always = {
        **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "norm": "layernorm"},
        **{"layernorm_epsilon": 0.001, "rotary_emb_base": 500, "max_position_embeddings": 32},
        **{"mlp_inner_size": 40, "no_weight_tying": True, "load": str(tmp_path / "run")},
        **expected,
    }
    assert {key: fields.get(key) for key in always} == always
    reader = CheckpointReader(folder)
    assert reader.moment_names == ()
    pairs = {
        "0.word_embeddings.weight": "gpt_neox.embed_in.weight",
        "2.attention.query_key_value.weight": "gpt_neox.layers.0.attention.query_key_value.weight",
        "2.mlp.dense_h_to_4h.bias": "gpt_neox.layers.0.mlp.dense_h_to_4h.bias",
        "2.post_attention_layernorm.bias": "gpt_neox.layers.0.post_attention_layernorm.bias",
        "4.norm.bias": "gpt_neox.final_layer_norm.bias",
        "5.final_linear.weight": "embed_out.weight",
    }
    assert len(reader.parameters) == len(theirs) == 16
    for ours, name in pairs.items():
        assert torch.equal(reader.read_logical(ours), theirs[name]), ours
    assert (tmp_path / "run/latest").read_text() == "global_step0"
    assert json.loads((folder / "state.json").read_text())["counters"]["step"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type: 'llama' is not supported"),
        ({"intermediate_size": 64}, "has shape (40, 16), config.json says (64, 16)"),
        ({"num_hidden_layers": 2}, "no tensor 'gpt_neox.layers.1."),
        ({"hidden_act": "tanh"}, "hidden_act: 'tanh' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' is not supported"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(changes, message, tmp_path, capsys):
    write_their_folder(tmp_path / "hf", **changes)
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")]
    assert message in refusal(import_main, arguments, capsys)
    left = [path.name for path in (tmp_path / "run").glob("*")]
    assert left == []


def test_rows_that_no_token_selects_are_left_out(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = write_their_folder(tmp_path / "hf", rows=24)
    words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, 20)}}
    model = tokenizers.models.WordLevel(words, unk_token="<|endoftext|>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "hf/tokenizer.json"))
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")])
    assert "4 padding rows of the embedding are left out" in capsys.readouterr().out
    reader = CheckpointReader(tmp_path / "run/global_step0")
    for ours, name in (
        ("0.word_embeddings.weight", "gpt_neox.embed_in.weight"),
        ("5.final_linear.weight", "embed_out.weight"),
    ):
        assert torch.equal(reader.read_logical(ours), theirs[name][:20])


def test_a_configuration_goes_both_ways():
    fields = {"gpt_j_residual": False, "use_bias_in_attn_linear": False, "bias_gelu_fusion": True}
    shape = shape_of({**FIELDS, "activation": "gelu", **fields}, 512)
    back = read_config(write_config(shape))
    expected = {
        **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "rotary_pct": 0.5},
        **{"rotary_emb_base": 500, "layernorm_epsilon": 0.01, "mlp_inner_size": 64},
        **{"activation": "gelu", "no_weight_tying": True},
        **fields,
    }
    assert {key: back[key] for key in expected} == expected
