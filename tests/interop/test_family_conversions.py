"""Each family in transformers: the same logits both ways, the same bits on the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron.checkpoint.format import CheckpointReader
from tests.interop.conversions import export, refusal
from tools.benchmark.interop import __main__ as interop
from tools.benchmark.interop.checks import (
    check_export,
    check_import,
    our_logits,
    some_tokens,
    their_logits,
    write_their_model,
)
from tools.benchmark.interop.networks import NETWORKS, VOCAB_SIZE, fields_of, write_network
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.hf.network import filled_model
from tools.inspect_checkpoint import main as inspect_main

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


def make(name: str, folder: Path, tokenizer_file: Path) -> Path:
    return write_network(folder / "start", fields_of(NETWORKS[name], tokenizer_file))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_to_transformers_and_back(name, tokenizer_file, tmp_path):
    source = make(name, tmp_path, tokenizer_file)
    row = check_export(source, tmp_path, NETWORKS[name].family)
    assert row.is_equal
    assert row.spread > 1
    assert row.difference <= 1e-4
    assert inspect_main([str(source), "--diff", str(tmp_path / "hf")]) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_of_transformers_comes_here_and_goes_back(name, tokenizer_file, tmp_path):
    source, family = make(name, tmp_path, tokenizer_file), NETWORKS[name].family
    write_their_model(tmp_path / "theirs", source, family, tokenizer_file)
    row = check_import(tmp_path / "theirs", tmp_path)
    assert row.is_equal
    assert row.spread > 1
    assert row.difference <= 1e-4


def test_the_command_prints_the_matrix(capsys):
    arguments = ["--layouts", "one process", "--networks", "qwen3"]
    assert interop.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()[-7:]
    assert table[0].split()[:3] == ["network", "layout", "direction"]
    assert [line.split()[-1] for line in table[1:3]] == ["yes", "yes"]
    assert table[4].split() == ["family", "rows", "max", "difference"]
    family, rows, difference = table[5].split()
    assert (family, rows) == ("qwen3", "2")
    assert float(difference) == max(float(line.split()[-3]) for line in table[1:3])
    assert table[6].startswith(f"transformers {transformers.__version__}: 2 rows, 0 wrong")


@pytest.fixture
def llama(tokenizer_file, tmp_path) -> Path:
    """A model folder of transformers' own making, in two files."""
    source = make("llama", tmp_path, tokenizer_file)
    folder = tmp_path / "theirs"
    write_their_model(folder, source, "llama", tokenizer_file)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)  # parts of a fused weight in different files
    weight_map = {}
    for number in (0, 1):
        part = {name: tensors[name] for name in names[number::2]}
        save_file(part, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, f"part-{number}.safetensors"))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_files_of_tokenizer_and_generation_are_copied_and_come_back(llama, tmp_path, capsys):
    (llama / "generation_config.json").write_text('{"temperature": 0.6}')
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    arguments = ["--input_dir", str(llama), "--output_dir", str(tmp_path / "run")]
    import_main([*arguments, "--seq_length", "8"])
    names = ("tokenizer.json", "generation_config.json", "chat_template.jinja")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (llama / name).read_bytes()
    fields = yaml.safe_load((tmp_path / "run/model.yml").read_text())
    assert (fields["seq_length"], fields["max_position_embeddings"]) == (8, 48)

    export(tmp_path / "run", tmp_path / "hf", "--vocab-is-hf-tokenizer", "--pad-token-id", "7")
    for name in names:
        assert (tmp_path / "hf" / name).read_bytes() == (llama / name).read_bytes()
    assert json.loads((tmp_path / "hf/config.json").read_text())["pad_token_id"] == 7
    told = capsys.readouterr().out
    assert "verified" in told
    assert "--pad-token-id: is in config.json alone" in told
    export(tmp_path / "run", tmp_path / "hf", "--no-verify", "--no_save_tokenizer", "--overwrite")
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors")
    ]


def test_an_import_can_be_verified_before_anything_is_written(llama, tmp_path, capsys, monkeypatch):
    arguments = ["--input_dir", str(llama), "--output_dir", str(tmp_path / "run"), "--verify"]
    monkeypatch.setattr("tools.hf.verification.filled_model", _wrong_model)
    with pytest.raises(SystemExit):
        import_main(arguments)
    assert "logits differ" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    import_main(arguments)
    assert "verified with transformers" in capsys.readouterr().out


def test_the_number_format_that_a_configuration_names_does_not_round_the_weights(
    llama, tmp_path, capsys
):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    import_main(["--input_dir", str(llama), "--output_dir", str(tmp_path / "run"), "--verify"])
    assert "verified with transformers" in capsys.readouterr().out


def test_a_model_that_transformers_refuses_is_not_verified(llama, tmp_path, capsys, monkeypatch):
    def fail(folder, transformers):
        raise KeyError("a field\nof theirs")

    monkeypatch.setattr("tools.hf.verification._load", fail)
    with pytest.raises(SystemExit):
        import_main(["--input_dir", str(llama), "--output_dir", str(tmp_path / "run"), "--verify"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot use the model" in line
    assert "leave --verify out" in line


def _wrong_model(shape, read):
    return filled_model(shape, lambda name: read(name).flip(0))


def test_a_tokenizer_without_neox_end_of_document_ends_with_its_own(llama, tmp_path, capsys):
    text = (llama / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
    (llama / "tokenizer.json").write_text(text)
    arguments = ["--input_dir", str(llama), "--output_dir", str(tmp_path / "run")]
    line = refusal(import_main, arguments, capsys)
    assert "the vocabulary has no token '<|endoftext|>' to end a document" in line
    assert "tokenizer_config.json" in line
    assert not (tmp_path / "run").exists()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": "</s>"}}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    import_main(arguments)
    export(tmp_path / "run", tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"] == 0
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "</s>"


def test_a_pickle_with_the_output_of_tied_embeddings_is_read(tokenizer_file, tmp_path):
    source = make("llama, tied, with biases", tmp_path, tokenizer_file)
    folder = tmp_path / "theirs"
    write_their_model(folder, source, "llama", tokenizer_file)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(tensors, folder / "pytorch_model.bin")
    tokens = some_tokens(source)
    want = their_logits(folder, tokens)[..., :VOCAB_SIZE]
    (folder / "model.safetensors").unlink()
    import_main(["--input_dir", str(folder), "--output_dir", str(tmp_path / "run")])
    got = our_logits(tmp_path / "run/global_step0", tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"), "no tensor 'model.layers.1"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
            "contains 'model.layers.0.self_attn.q_proj.bias', which config.json does not mention",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.v_proj.weight": torch.ones(8, 32)}),
            "v_proj.weight has shape (8, 32), config.json says (16, 32)",
        ),
        (
            lambda t: t["model.layers.0.mlp.up_proj.weight"].fill_(float("inf")),
            "up_proj.weight has values that are not finite",
        ),
    ],
)
def test_wrong_parts_of_a_fused_weight_are_named(change, message, llama, tmp_path, capsys):
    tensors = {
        name: tensor
        for path in llama.glob("part-*.safetensors")
        for name, tensor in load_file(path).items()
    }
    change(tensors)
    (llama / "model.safetensors.index.json").unlink()
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    arguments = ["--input_dir", str(llama), "--output_dir", str(tmp_path / "run")]
    line = refusal(import_main, arguments, capsys)
    assert message in line
    assert line.count("\n") == 1
    assert not list(tmp_path.glob("run/*"))


# options of GPT-NeoX's converter


def test_precision_auto_is_that_of_training(tokenizer_file, tmp_path):
    fields = fields_of(NETWORKS["gpt_neox"], tokenizer_file)
    run = write_network(tmp_path / "run", {**fields, "precision": "bfloat16"})
    flags = ("--no-verify", "--overwrite", "--precision")
    for precision, dtype in (
        *[("auto", "bfloat16"), ("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")],
    ):
        export(run, tmp_path / "hf", *flags, precision)
        assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == dtype
    (tmp_path / "model.yml").write_text(
        yaml.safe_dump({key: value for key, value in fields.items() if key != "vocab_file"})
    )
    export(run, tmp_path / "hf", *flags, "auto", "--config_file", str(tmp_path / "model.yml"))
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


def test_the_padding_token_is_the_one_that_is_asked_for(tokenizer_file, tmp_path, capsys):
    source = make("gpt_neox", tmp_path, tokenizer_file)
    export(source, tmp_path / "hf", "--no-verify", "--pad-token-id", "7")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["pad_token_id"] == 7
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").pad_token_id == 7
    arguments = ["--input_dir", str(source), "--output_dir", str(tmp_path / "other")]
    line = refusal(export_main, [*arguments, "--pad-token-id", "300"], capsys)
    assert line == "--pad-token-id: must be from 0 to 299, got 300\n"
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "float16", "--precision", "fp32"], "--dtype, --precision: both name"),
        (["--no_save_tokenizer", "--vocab-is-hf-tokenizer"], "give only one of them"),
        (["--tolerance", "nan"], "--tolerance: must be a number above 0, got nan"),
        (["--tolerance", "-1"], "--tolerance: must be a number above 0, got -1"),
        (["--tolerance", "1e-3", "--no-verify"], "--tolerance, --no-verify: nothing is compared"),
        (["--architecture", "neox"], "norm: GPTNeoXForCausalLM cannot express 'rmsnorm'"),
    ],
)
def test_options_that_contradict_each_other_or_the_network_are_refused(
    flags, message, tokenizer_file, tmp_path, capsys
):
    source = make("llama", tmp_path, tokenizer_file)
    arguments = ["--input_dir", str(source), "--output_dir", str(tmp_path / "hf"), *flags]
    assert message in refusal(export_main, arguments, capsys)
    assert not (tmp_path / "hf").exists()


def test_a_forced_architecture_is_written(tokenizer_file, tmp_path):
    source = make("llama", tmp_path, tokenizer_file)
    export(source, tmp_path / "hf", "--architecture", "mistral")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] is None
    assert CheckpointReader(source).parameters
