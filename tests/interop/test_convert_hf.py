"""Checkpoints to transformers and back: the same logits, the same bits, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.verification import verify
from tests.interop.conversions import (
    VOCAB_SIZE,
    export,
    model_fields,
    our_logits,
    random_weights,
    refusal,
    shape_of,
    some_tokens,
    their_logits,
    write_run,
    write_their_model,
)
from tools.ckpts import convert_neox_to_hf
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import resolve_model_fields, settings_of

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("rotary_pct", [0.25, 1.0])
@pytest.mark.parametrize("untied", [True, False])
def test_transformers_computes_our_logits_and_the_way_back_keeps_every_bit(
    parallel, rotary_pct, untied, tokenizer_file, tmp_path, capsys
):
    fields = model_fields(
        tokenizer_file, gpt_j_residual=parallel, rotary_pct=rotary_pct, no_weight_tying=untied
    )
    source = write_run(tmp_path / "run", fields)
    export(source, tmp_path / "hf")
    line, wrote = capsys.readouterr().out.splitlines()
    assert line.startswith(f"verified with transformers {transformers.__version__} on 48 tokens:")
    assert wrote == f"wrote {tmp_path / 'hf'}"
    tokens = some_tokens()
    want = our_logits(source, tokens)
    assert want.std() > 1
    torch.testing.assert_close(their_logits(tmp_path / "hf", tokens), want, rtol=0, atol=1e-4)

    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")])
    verify(tmp_path / "back/global_step0")
    first, second = CheckpointReader(source), CheckpointReader(tmp_path / "back/global_step0")
    assert first.parameters == second.parameters
    for name in first.parameters:
        assert torch.equal(first.read_logical(name), second.read_logical(name)), name
    assert torch.equal(our_logits(tmp_path / "back/global_step0", tokens), want)


@pytest.mark.parametrize(
    ("changes", "hidden_act"),
    [
        ({"bias_gelu_fusion": True}, "gelu_pytorch_tanh"),
        ({"activation": "relu"}, "relu"),
        ({"activation": "swish"}, "silu"),
        ({"use_bias_in_attn_linear": False, "layernorm_epsilon": 0.01}, "gelu"),
        ({"rotary_emb_base": 500, "intermediate_size": 80, "activation": "mish"}, "mish"),
    ],
)
def test_what_the_class_has_a_field_for_goes_both_ways(
    changes, hidden_act, tokenizer_file, tmp_path
):
    fields = model_fields(tokenizer_file, **changes)
    write_run(tmp_path / "run", fields)
    export(tmp_path / "run", tmp_path / "hf")  # verified: the logits are the same
    assert json.loads((tmp_path / "hf/config.json").read_text())["hidden_act"] == hidden_act
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")])
    got = settings_of(tmp_path / "back/global_step0").shape(VOCAB_SIZE)
    silu = {"activation": "silu"} if hidden_act == "silu" else {}
    assert got == shape_of({**fields, **silu})


def test_config_and_tokenizer_are_complete_for_both_versions(run, tokenizer_file, tmp_path):
    export(run, tmp_path / "hf", "--dtype", "bfloat16", "--no-verify")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    expected = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": VOCAB_SIZE,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    assert expected.items() <= config.items()
    assert config["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    }
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 0, 1)
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.model_max_length == 48
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|padding|>"
    assert tokenizer.decode(tokenizer("a  b .\n c")["input_ids"]) == "a  b .\n c"


def test_shards_hold_everything_and_are_limited_in_size(run, tmp_path, capsys):
    export(run, tmp_path / "one")
    export(run, tmp_path / "many", "--max_shard_size", "30kB")
    files = sorted(tmp_path.glob("many/model-*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "one/model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in whole.values())
    for path in files:
        tensors = load_file(path)
        assert len(tensors) == 1 or path.stat().st_size < 30_000 + 4_000
        for name, tensor in tensors.items():
            assert index["weight_map"][name] == path.name
            assert torch.equal(tensor, whole[name])


def test_half_precision_is_verified_and_its_rounding_told(run, tmp_path, capsys):
    export(run, tmp_path / "hf", "--dtype", "float16")
    assert "rounding to float16 itself moved logits by" in capsys.readouterr().out
    tensors = load_file(tmp_path / "hf/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_configuration_files_and_overwritten_values_win(run, tokenizer_file, tmp_path, capsys):
    """As GPT-NeoX's own test calls it, with files of another layout and without a tokenizer."""
    layout = {"model_parallel_size": 2, "train_batch_size": 8, "train_iters": 5}
    fields = model_fields(tmp_path / "moved.json", **layout)
    (tmp_path / "run.yml").write_text(yaml.safe_dump(fields))
    arguments = ["--input_dir", str(run), "--config_file", str(tmp_path / "run.yml")]
    arguments += ["--output_dir", str(tmp_path / "hf")]
    assert f"no file {tmp_path / 'moved.json'}" in refusal(export_main, arguments, capsys)
    convert_neox_to_hf.main(arguments, {"vocab_file": str(tokenizer_file)})
    assert "verified" in capsys.readouterr().out

    fields["num_layers"] = 3
    (tmp_path / "run.yml").write_text(yaml.safe_dump(fields))
    message = refusal(export_main, [*arguments, "--overwrite"], capsys)
    assert "which the configured model" in message


def test_a_tokenizer_that_transformers_lacks_is_left_out_with_a_line(tmp_path, capsys):
    fields = model_fields(tmp_path, tokenizer_type="CharLevelTokenizer", vocab_file=None)
    weights = random_weights(shape_of(fields, 512))
    write_model_checkpoint(
        tmp_path / "run",
        shape_of(fields, 512),
        run_config=resolve_model_fields(fields),
        read=weights.__getitem__,
        files={},
    )
    export(tmp_path / "run", tmp_path / "hf")
    output = capsys.readouterr().out
    assert "tokenizer: transformers has no CharLevelTokenizer;" in output
    assert "verified" in output
    assert not (tmp_path / "hf/tokenizer.json").exists()


def make_old_fashioned(folder: Path) -> None:
    """As transformers 4 stored it: a pickle with masks in it, and the old names in config.json."""
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 10000, "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("is_old", [False, True])
def test_a_model_of_transformers_is_read_without_its_padding_rows(
    is_old, tokenizer_file, tmp_path, capsys
):
    write_their_model(tmp_path / "hf", tokenizer_file, rows=320)
    tokens = some_tokens()
    want = their_logits(tmp_path / "hf", tokens)[..., :VOCAB_SIZE]
    if is_old:
        make_old_fashioned(tmp_path / "hf")
    yml = tmp_path / "configs/model.yml"
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")]
    import_main([*arguments, "--config_out", str(yml)])
    assert "20 padding rows of the embedding left out" in capsys.readouterr().out
    got = our_logits(tmp_path / "run/global_step0", tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    fields = yaml.safe_load(yml.read_text())
    assert fields["load"] == str(tmp_path / "run")
    assert shape_of(fields) == settings_of(tmp_path / "run/global_step0").shape(VOCAB_SIZE)
    assert refusal(import_main, arguments, capsys) == (
        f"{tmp_path / 'run/global_step0'}: exists already; choose another name\n"
    )


def test_names_of_the_output_matrix_are_both_read(run, tmp_path):
    export(run, tmp_path / "hf", "--no-verify")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, tmp_path / "hf/model.safetensors")
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")])
    name = "6.final_linear.weight"
    got = CheckpointReader(tmp_path / "back/global_step0").read_logical(name)
    assert torch.equal(got, CheckpointReader(run / "global_step0").read_logical(name))


@pytest.fixture
def beginning_tokenizer(tokenizer_file, tmp_path) -> Path:
    """Adds ``<|padding|>`` before each text, in transformers."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    begin = "<|padding|>"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize(
    ("adds", "line"),
    [
        (False, "tokenizer: '<|padding|>' before each text is no longer added, since training"),
        (True, "tokenizer: transformers adds '<|padding|>' before each text, as training did"),
    ],
)
def test_an_exported_tokenizer_gives_the_tokens_of_training(
    adds, line, beginning_tokenizer, tmp_path, capsys
):
    fields = model_fields(beginning_tokenizer, tokenizer_adds_special_tokens=adds)
    source = write_run(tmp_path / "run", fields)
    export(source, tmp_path / "hf")
    told, verified, _ = capsys.readouterr().out.splitlines()
    assert told.startswith(line)
    assert verified.startswith("verified with transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs("the domains")["input_ids"]
    assert (ids[0] == 1) == adds
    assert ids == settings_of(source).tokenizer().tokenize("the domains")


def test_the_verification_encodes_as_a_user_of_the_folder_does(
    beginning_tokenizer, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "tools.hf.tokenizer_files._without_added", lambda post_processor: post_processor
    )
    source = write_run(tmp_path / "run", model_fields(beginning_tokenizer))
    arguments = ["--input_dir", str(source), "--output_dir", str(tmp_path / "hf")]
    message = refusal(export_main, arguments, capsys)
    assert "AutoTokenizer gives other tokens than training, from token 0 on" in message
    assert not (tmp_path / "hf").exists()


def test_an_import_tells_what_the_tokenizer_adds_elsewhere(beginning_tokenizer, tmp_path, capsys):
    write_their_model(tmp_path / "hf", beginning_tokenizer, rows=320)
    settings = {"tokenizer_class": "GPTNeoXTokenizer", "add_eos_token": True}
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(settings))
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "transformers adds '<|padding|>' before each text" in line]
    assert [line for line in lines if "tokenizer_config.json sets add_eos_token" in line]
