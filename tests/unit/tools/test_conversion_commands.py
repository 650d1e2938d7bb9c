"""Export and import called in this process; what they read is written by hand."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron.checkpoint.format import CheckpointReader
from megatron.neox_arguments.sections.model import SoftPrompt
from tests.interop.conversions import random_weights, refusal, shape_of
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.datasets.prepare import get_args as prepare_arguments
from tools.hf.gpt_neox import read_config, refusals, write_config
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import resolve_model_fields

FIELDS: dict[str, Any] = {
    **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 8},
    **{"max_position_embeddings": 8, "pos_emb": "rotary", "rotary_pct": 0.5},
    **{"rotary_emb_base": 500, "layernorm_epsilon": 0.01, "activation": "swish"},
    **{"gpt_j_residual": True, "no_weight_tying": True, "tokenizer_type": "CharLevelTokenizer"},
}


# export


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


def test_a_soft_prompt_is_refused_by_name(tmp_path, capsys):
    prompt = SoftPrompt(num_tokens=3, init_string="", init_range=0.5)
    shape = dataclasses.replace(shape_of(FIELDS, 512), soft_prompt=prompt)
    weights, run_config = random_weights(shape), resolve_model_fields(FIELDS)
    folder = tmp_path / "run"
    write_model_checkpoint(folder, shape, run_config=run_config, read=weights.__getitem__, files={})
    flags = ["--input_dir", str(folder), "--output_dir", str(tmp_path / "hf"), "--no-verify"]
    line = refusal(export_main, flags, capsys)
    assert "has a soft prompt" in line
    assert line.endswith("export the model that it was trained for, from its own checkpoint\n")
    assert not (tmp_path / "hf").exists()


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
        ({"hidden_act": "gelu_python"}, {"activation": "gelu", "bias_gelu_fusion": False}),
        ({"hidden_act": "mish"}, {"activation": "mish", "bias_gelu_fusion": False}),
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
        ({"model_type": "opt"}, "model_type: 'opt' is not supported"),
        ({"intermediate_size": 64}, "has shape (40, 16), config.json says (64, 16)"),
        ({"num_hidden_layers": 2}, "no tensor 'gpt_neox.layers.1."),
        ({"hidden_act": "tanh"}, "hidden_act: 'tanh' is not supported"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(changes, message, tmp_path, capsys):
    write_their_folder(tmp_path / "hf", **changes)
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")]
    assert message in refusal(import_main, arguments, capsys)
    left = [path.name for path in (tmp_path / "run").glob("*")]
    assert left == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config_out", "run"), "--config_out: run is the name of another file"),
        (("--config_out", "run/latest"), "--config_out: run/latest is the name of another file"),
        (("--config_out", "x/../run/generation_config.json"), "is the name of another file"),
        (("--config_out", "run/global_step0/model.yml"), "is the name of another file"),
        (("--config_out", "run/resolved.json"), "is the name of another file"),
        (("--config_out", "hf"), "hf: exists already"),
        (("--seq_length", "0"), "--seq_length: must be from 1 to 32, got 0"),
        (("--seq_length", "33"), "--seq_length: must be from 1 to 32, got 33"),
    ],
)
def test_flags_that_would_lose_a_file_or_do_not_fit_are_refused(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_their_folder(tmp_path / "hf")
    (tmp_path / "hf/generation_config.json").write_text("{}")
    (tmp_path / "x").mkdir()
    line = refusal(import_main, ["--input_dir", "hf", "--output_dir", "run", *flags], capsys)
    assert message in line
    assert line.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "x"]


def test_an_output_matrix_that_tying_would_lose_is_refused(tmp_path, capsys):
    tensors = write_their_folder(tmp_path / "hf", tie_word_embeddings=True)
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")]
    line = refusal(import_main, arguments, capsys)
    assert "embed_out.weight is not gpt_neox.embed_in.weight" in line
    assert "tie_word_embeddings: false" in line
    assert not (tmp_path / "run").exists()
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].clone()
    save_file(tensors, tmp_path / "hf/model.safetensors")
    import_main(arguments)
    reader = CheckpointReader(tmp_path / "run/global_step0")
    (name,) = (name for name in reader.parameters if name.endswith("word_embeddings.weight"))
    assert torch.equal(reader.read_logical(name), tensors["embed_out.weight"])


def test_rows_that_no_token_selects_are_left_out(tmp_path, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = write_their_folder(tmp_path / "hf", rows=24)
    words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, 20)}}
    model = tokenizers.models.WordLevel(words, unk_token="<|endoftext|>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "hf/tokenizer.json"))
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")])
    *told, last = capsys.readouterr().out.splitlines()
    assert any("4 padding rows of the embedding left out" in line for line in told)
    _, _, command = last.partition("prepare_data.py ")
    assert prepare_arguments(shlex.split(command)).vocab_file == f"{tmp_path}/run/tokenizer.json"
    reader = CheckpointReader(tmp_path / "run/global_step0")
    for ours, name in (
        ("0.word_embeddings.weight", "gpt_neox.embed_in.weight"),
        ("5.final_linear.weight", "embed_out.weight"),
    ):
        assert torch.equal(reader.read_logical(ours), theirs[name][:20])


def test_a_scaled_rotation_goes_both_ways():
    scaling = {"rope_type": "linear", "factor": 2.0}
    shape = shape_of({**FIELDS, "activation": "gelu", "rope_scaling": scaling}, 512)
    assert refusals(shape) == []
    assert read_config(write_config(shape))["rope_scaling"] == scaling


def test_a_configuration_goes_both_ways():
    fields: dict = {"gpt_j_residual": False}
    fields |= {"use_bias_in_attn_linear": False, "bias_gelu_fusion": True}
    fields |= {"attention_dropout": 0.125, "hidden_dropout": 0.25, "init_method_std": 0.03}
    shape = shape_of({**FIELDS, "activation": "gelu", **fields}, 512)
    back = read_config(write_config(shape))
    expected = {
        **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "rotary_pct": 0.5},
        **{"rotary_emb_base": 500, "layernorm_epsilon": 0.01, "mlp_inner_size": 64},
        **{"activation": "gelu", "no_weight_tying": True},
        **fields,
    }
    assert {key: back[key] for key in expected} == expected
