"""What a user can get wrong when converting: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.interop.conversions import (
    VOCAB_SIZE,
    export,
    model_fields,
    random_weights,
    refusal,
    shape_of,
    write_run,
    write_their_model,
)
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import resolve_model_fields

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"norm": "rmsnorm"}, ["norm: 'rmsnorm' it has layernorm"]),
        ({"activation": "swiglu"}, ["activation: 'swiglu' it has gelu, relu, silu and mish, none"]),
        ({"activation": "softsign"}, ["activation: 'softsign' it has gelu, relu, silu and mish"]),
        ({"pos_emb": "learned"}, ["pos_emb: 'learned' it has rotary positions"]),
        ({"pos_emb": "alibi"}, ["pos_emb: 'alibi' it has rotary positions"]),
        ({"pos_emb": "rpe"}, ["pos_emb: 'rpe' it has rotary positions"]),
        ({"num_kv_heads": 2}, ["num_kv_heads: 2 it has a key and a value for every query head"]),
        ({"gpt_j_tied": True}, ["gpt_j_tied: True it has two norms per block"]),
        (
            {"head_dim": 32, "qk_norm": "head", "use_bias_in_attn_output": False},
            [
                "head_dim: 32 its heads are hidden_size / num_attention_heads wide",
                "qk_norm: 'head' it does not normalise queries and keys",
                "use_bias_in_attn_output: False both attention projections have a bias or none",
            ],
        ),
        (
            {"norm": "non_parametric_layernorm"},
            ["norm: 'non_parametric_layernorm' it has layernorm"],
        ),
        (
            {"use_bias_in_norms": False, "use_bias_in_mlp": False},
            [
                "use_bias_in_norms: False its norms have a bias",
                "use_bias_in_mlp: False its MLP has biases",
            ],
        ),
    ],
)
def test_what_the_class_cannot_express_is_refused_by_field_and_value(
    changes, messages, tokenizer_file, tmp_path, capsys
):
    write_run(tmp_path / "run", model_fields(tokenizer_file, **changes))
    arguments = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    lines = refusal(export_main, arguments, capsys).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        field, value, reason = message.split(" ", 2)
        assert line.startswith(f"{field} GPTNeoXForCausalLM cannot express {value}; {reason}")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"sliding_window_width": 3}, "a window of 3 tokens"),
        (
            {"attention_config": ["local", "flash"], "sliding_window_width": 3},
            "2 blocks of 16 tokens and a window of 3 tokens",
        ),
    ],
)
def test_windows_that_the_class_cannot_express_are_refused_by_key(
    changes, value, tokenizer_file, tmp_path, capsys
):
    write_run(tmp_path / "run", model_fields(tokenizer_file, **changes))
    arguments = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    (line,) = refusal(export_main, arguments, capsys).splitlines()
    assert line == (
        "sliding_window_width and 'local' in attention_config: GPTNeoXForCausalLM cannot express "
        f"{value}; its layers see all earlier tokens"
    )


def test_a_failed_verification_leaves_nothing(run, tmp_path, capsys):
    arguments = ["--input_dir", str(run), "--output_dir", str(tmp_path / "hf")]
    message = refusal(export_main, [*arguments, "--tolerance", "1e-12"], capsys)
    assert message.startswith("verification: logits differ by ")
    assert message.endswith("more than --tolerance 1e-12; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """Lets this process make no file of more than 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_during_an_export_leaves_nothing_and_keeps_what_was_there(
    run, tmp_path, capsys
):
    output = tmp_path / "hf"
    arguments = ["--input_dir", str(run), "--output_dir", str(output), "--no-verify"]
    with full_disk():
        error = refusal(export_main, arguments, capsys)
    assert error.count("\n") == 1
    assert f"{output}.tmp/model.safetensors: " in error
    assert "check the free space; nothing was written" in error
    assert list(tmp_path.iterdir()) == []
    export(run, output, "--no-verify")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with full_disk():
        refusal(export_main, [*arguments, "--overwrite"], capsys)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_full_disk_during_an_import_leaves_nothing(run, tmp_path, capsys):
    export(run, tmp_path / "hf", "--no-verify")
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")]
    with full_disk():
        error = refusal(import_main, arguments, capsys)
    assert error.count("\n") == 1
    assert "check the free space; nothing was written" in error
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--input_dir", "nowhere"],
            "nowhere: there is no such folder; give the save folder of a run",
        ),
        (["--iteration", "3"], "RUN: no checkpoint of iteration 3; found: 0"),
        (
            ["--max_shard_size", "much"],
            "--max_shard_size: must be a size such as 5GB, got 'much'",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(flags, message, run, tmp_path, capsys):
    arguments = ["--input_dir", str(run), "--output_dir", str(tmp_path / "hf"), *flags]
    assert refusal(export_main, arguments, capsys).replace(str(run), "RUN") == message + "\n"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_size_is_refused_with_parameter_and_both_shapes(
    run, tokenizer_file, tmp_path, capsys
):
    fields = model_fields(tokenizer_file, hidden_size=64)
    (tmp_path / "run.yml").write_text(yaml.safe_dump(fields))
    arguments = ["--input_dir", str(run), "--output_dir", str(tmp_path / "hf")]
    arguments += ["--config_file", str(tmp_path / "run.yml")]
    assert refusal(export_main, arguments, capsys) == (
        f"{run / 'global_step0'}: 0.word_embeddings.weight has shape (300, 32), the configured "
        "model needs (300, 64); the checkpoint belongs to another configuration\n"
    )
    assert not (tmp_path / "hf").exists()


def test_a_tokenizer_with_more_tokens_than_the_checkpoint_is_refused(
    run, tokenizer_file, tmp_path, capsys
):
    content = json.loads(tokenizer_file.read_text())
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": VOCAB_SIZE, "content": "<|more|>"}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    fields = model_fields(tmp_path / "tokenizer.json")
    (tmp_path / "run.yml").write_text(yaml.safe_dump(fields))
    arguments = ["--input_dir", str(run), "--output_dir", str(tmp_path / "hf")]
    arguments += ["--config_file", str(tmp_path / "run.yml")]
    assert refusal(export_main, arguments, capsys) == (
        f"{run / 'global_step0'}: has 300 tokens, the tokenizer 301; correct vocab_file\n"
    )
    assert not (tmp_path / "hf").exists()


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/global_step0/rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    arguments = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    message = refusal(export_main, arguments, capsys)
    assert message.startswith(f"{file}: fp32|")
    assert message.endswith(": checksum differs; the file is damaged\n")
    assert not (tmp_path / "hf").exists()


def test_a_run_that_diverged_is_not_exported(tokenizer_file, tmp_path, capsys):
    fields = model_fields(tokenizer_file)
    weights = random_weights(shape_of(fields))
    weights["2.mlp.dense_4h_to_h.bias"][3] = float("nan")
    write_model_checkpoint(
        tmp_path / "run",
        shape_of(fields),
        run_config=resolve_model_fields(fields),
        read=weights.__getitem__,
        files={},
    )
    arguments = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    for dtype in ("float32", "float16"):
        assert refusal(export_main, [*arguments, "--dtype", dtype], capsys) == (
            f"{tmp_path / 'run/global_step0'}: 2.mlp.dense_4h_to_h.bias contains values that are "
            "not finite, so the run has diverged; export an earlier one with --iteration\n"
        )
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "configs/resolved.json: not a readable configuration (lacks model"),
        (
            '{"derived": {}, "model": {}, "training": {}}',
            "configs/resolved.json: not a readable configuration (lacks model",
        ),
        ("3", "(must be an object, got 3)"),
        ("{", "configs/resolved.json: not a readable configuration (is not JSON"),
    ],
)
def test_a_configuration_of_another_version_is_one_line(content, message, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/global_step0/configs/resolved.json").write_text(content)
    arguments = ["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "hf")]
    line = refusal(export_main, arguments, capsys)
    assert message in line
    assert line.endswith("give the files of the run with --config_file\n")
    assert line.count("\n") == 1


def test_only_an_export_is_replaced_and_only_when_asked(run, tmp_path, capsys):
    output = tmp_path / "hf"
    arguments = ["--input_dir", str(run), "--output_dir", str(output), "--no-verify"]
    export_main(arguments)
    assert refusal(export_main, arguments, capsys) == (
        f"{output}: exists and is not empty; choose another --output_dir or use --overwrite\n"
    )
    export_main([*arguments, "--overwrite"])
    (output / "thesis.tex").write_text("years of work")
    message = refusal(export_main, [*arguments, "--overwrite"], capsys)
    assert message.startswith(f"{output}: contains 'thesis.tex', ")
    assert (output / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "opt"}, "model_type: 'opt' is not supported; known are gpt_neox"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: 'quick_gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}},
            "rope_parameters: rope_type 'longrope' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
            "config.json: rope_parameters.rope_theta: must be a finite number above 0",
        ),
        ({"vocab_size": None}, "config.json: "),
        ({"hidden_dropout": None}, "config.json: "),
        ({"num_hidden_layers": 3}, "no tensor 'gpt_neox.layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "contains 'gpt_neox.layers.1.attention.dense.bias', which"),
        ({"intermediate_size": 64}, "dense_h_to_4h.weight has shape (96, 32), config.json says"),
    ],
)
def test_what_this_program_cannot_express_is_refused_and_nothing_written(
    change, message, tokenizer_file, tmp_path, capsys
):
    folder = tmp_path / "hf"
    write_their_model(folder, tokenizer_file, rows=320)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    arguments = ["--input_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    assert message in refusal(import_main, arguments, capsys)
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_imported(value, tokenizer_file, tmp_path, capsys):
    folder = tmp_path / "hf"
    write_their_model(folder, tokenizer_file, rows=320)
    weights = load_file(folder / "model.safetensors")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    weights[name][2, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arguments = ["--input_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    assert refusal(import_main, arguments, capsys).startswith(
        f"{folder}: {name} has values that are not finite; "
    )
    assert not list(tmp_path.glob("run/*"))


def test_a_configuration_without_a_size_is_refused_by_its_name(tokenizer_file, tmp_path, capsys):
    folder = tmp_path / "hf"
    write_their_model(folder, tokenizer_file, rows=320)
    whole = json.loads((folder / "config.json").read_text())
    arguments = ["--input_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    for key in ("vocab_size", "hidden_size", "intermediate_size"):
        part = {name: value for name, value in whole.items() if name != key}
        (folder / "config.json").write_text(json.dumps(part))
        message = f"{folder / 'config.json'}: lacks {key}\n"
        assert refusal(import_main, arguments, capsys) == message


def test_an_import_does_not_make_another_run_begin_anew(run, tokenizer_file, tmp_path, capsys):
    write_their_model(tmp_path / "hf", tokenizer_file, rows=320)
    there = tmp_path / "run"
    shutil.copytree(run / "global_step0", there / "global_step7")
    (there / "latest").write_text("global_step7")
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir"]
    assert refusal(import_main, [*arguments, str(there)], capsys) == (
        f"{there}: contains a run, at iteration 7; choose another --output_dir\n"
    )
    assert (there / "latest").read_text() == "global_step7"
    assert sorted(path.name for path in there.iterdir()) == ["global_step7", "latest"]


def test_an_import_needs_the_folder_of_a_run(tokenizer_file, tmp_path, capsys):
    write_their_model(tmp_path / "hf", tokenizer_file, rows=320)
    output = tmp_path / "global_step5"
    arguments = ["--input_dir", str(tmp_path / "hf"), "--output_dir", str(output)]
    assert refusal(import_main, arguments, capsys) == (
        f"{output}: is the name of a checkpoint; give the folder of a run as --output_dir\n"
    )
    assert not output.exists()


def test_a_name_on_the_hub_is_no_folder_and_the_line_says_how_to_get_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ["--input_dir", "EleutherAI/pythia-70m", "--output_dir", "run"]
    assert refusal(import_main, arguments, capsys) == (
        "EleutherAI/pythia-70m: there is no such folder; `hf download OWNER/NAME --local-dir "
        "FOLDER` fetches a model from the Hub\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("global_step3/index.json", "is a run of this program.*tools/convert_to_hf.py"),
        ("index.json", "is a run of this program.*tools/convert_to_hf.py"),
        ("tokenizer.json", "contains no config.json"),
    ],
)
def test_a_folder_that_is_no_model_of_transformers_is_named_for_what_it_is(
    name, message, tmp_path, capsys
):
    folder = tmp_path / "there"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("{}")
    arguments = ["--input_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    line = refusal(import_main, arguments, capsys)
    assert re.fullmatch(f"{re.escape(str(folder))}: {message}.*\n", line)
