"""Checkpoints to transformers and back: the same logits, the same bits, and clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from megatron.checkpoint_format import CheckpointReader, verify
from megatron.checkpoint_loading import load_module_weights
from megatron.model.config import ModelConfig
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import RankGrid, Topology
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus
from tools.ckpts import convert_neox_to_hf
from tools.convert_from_hf import main as import_main
from tools.convert_to_hf import main as export_main
from tools.hf.importing import write_model_checkpoint
from tools.hf.network import parameter_infos
from tools.hf.settings import RunSettings, resolve_model_fields, settings_of

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCAB_SIZE = 300
ALONE = Topology(RankGrid(1, 1, 1), 0, None, None, None)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    """Byte-level BPE with some merges; ids 0 to 255 are those of the corpus too."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the weights of the mixture follow the losses of the domains and the tokens in them"
    tokenizer.train_from_iterator([words] * 3, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def model_fields(tokenizer_file: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "no_weight_tying": True,
        "gpt_j_residual": True,
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(tokenizer_file),
    }
    return {**fields, **changes}


def shape_of(fields: dict[str, Any], vocab_size: int = VOCAB_SIZE) -> ModelConfig:
    return RunSettings(resolve_model_fields(fields).to_dict()).shape(vocab_size)


def random_weights(shape: ModelConfig) -> dict[str, torch.Tensor]:
    """Far from initial values: matrices of 0.3, norms and biases spread by 0.5."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(info.shape, generator=generator) * 0.3
        if len(info.shape) == 2
        else float("norm.weight" in name) + 0.5 * torch.randn(info.shape, generator=generator)
        for name, info in parameter_infos(shape).items()
    }


def write_run(folder: Path, fields: dict[str, Any]) -> Path:
    shape = shape_of(fields)
    weights = random_weights(shape)
    return write_model_checkpoint(
        folder,
        shape,
        run_config=resolve_model_fields(fields),
        read=weights.__getitem__,
        files={},
    )


@pytest.fixture(scope="module")
def run(tokenizer_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, model_fields(tokenizer_file))
    return folder


def export(source: Path, output: Path, *flags: str) -> None:
    export_main(["--input_dir", str(source), "--output_dir", str(output), *flags])


def refusal(main, arguments: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def our_logits(checkpoint: Path, tokens: torch.Tensor, vocab_size: int = VOCAB_SIZE):
    shape = settings_of(checkpoint).shape(vocab_size)
    model = GPT2Model(shape, seed=1).eval()
    load_module_weights(model, checkpoint, ALONE)
    with torch.no_grad():
        return model(tokens)


def their_logits(folder: Path, tokens: torch.Tensor):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(tokens).logits


def some_tokens(length: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCAB_SIZE, (2, length), generator=generator)


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


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"norm": "rmsnorm"}, ["norm: 'rmsnorm' it has layernorm"]),
        ({"activation": "swiglu"}, ["activation: 'swiglu' it has gelu, relu, silu and mish, none"]),
        ({"activation": "softsign"}, ["activation: 'softsign' it has gelu, relu, silu and mish"]),
        ({"pos_emb": "learned"}, ["pos_emb: 'learned' it has rotary positions"]),
        ({"num_kv_heads": 2}, ["num_kv_heads: 2 it has a key and a value for every query head"]),
        ({"gpt_j_tied": True}, ["gpt_j_tied: True it has two norms a block"]),
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


def test_a_failed_verification_leaves_nothing(run, tmp_path, capsys):
    arguments = ["--input_dir", str(run), "--output_dir", str(tmp_path / "hf")]
    message = refusal(export_main, [*arguments, "--tolerance", "1e-12"], capsys)
    assert message.startswith("verification: logits differ by ")
    assert message.endswith("more than --tolerance 1e-12; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(run, tmp_path):
    """A limit on the size of files stands for the disk."""
    command = f"ulimit -f 40; exec {sys.executable} tools/convert_to_hf.py --no-verify"
    command += f" --input_dir {run} --output_dir {tmp_path / 'hf'}"
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "File too large" in ended.stderr
    assert list(tmp_path.iterdir()) == []


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
    assert message.startswith(f"{output}: holds 'thesis.tex', which no export writes;")
    assert (output / "thesis.tex").read_text() == "years of work"


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
    assert "tokenizer: transformers has none like CharLevelTokenizer" in output
    assert "verified" in output
    assert not (tmp_path / "hf/tokenizer.json").exists()


def write_their_model(folder: Path, tokenizer_file: Path, *, rows: int) -> None:
    """A Pythia-like folder as transformers writes it, with padding rows."""
    torch.manual_seed(3)
    config = transformers.GPTNeoXConfig(
        vocab_size=rows,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=48,
        initializer_range=0.3,
        rotary_pct=0.5,
        use_parallel_residual=False,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())


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
    assert "20 padding rows of the embedding are left out" in capsys.readouterr().out
    got = our_logits(tmp_path / "run/global_step0", tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    fields = yaml.safe_load(yml.read_text())
    assert fields["load"] == str(tmp_path / "run")
    assert shape_of(fields) == settings_of(tmp_path / "run/global_step0").shape(VOCAB_SIZE)
    assert refusal(import_main, arguments, capsys) == (
        f"{tmp_path / 'run/global_step0'}: exists already; choose another name\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "opt"}, "model_type: 'opt' is not supported; known are gpt_neox"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: 'quick_gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
            "rope_parameters: rope_type 'yarn' is not supported",
        ),
        ({"num_hidden_layers": 3}, "no tensor 'gpt_neox.layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "holds 'gpt_neox.layers.1.attention.dense.bias', which"),
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


def test_names_of_the_output_matrix_are_both_read(run, tmp_path):
    export(run, tmp_path / "hf", "--no-verify")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, tmp_path / "hf/model.safetensors")
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")])
    name = "6.final_linear.weight"
    got = CheckpointReader(tmp_path / "back/global_step0").read_logical(name)
    assert torch.equal(got, CheckpointReader(run / "global_step0").read_logical(name))


@pytest.mark.distributed
def test_every_layout_is_exported_and_continues_from_an_import(
    run, tokenizer_file, tmp_path, capsys
):
    """All runs in one start of the processes: from scratch, and from an imported folder."""
    export(run, tmp_path / "hf", "--no-verify")
    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "import")])
    model = yaml.safe_load((tmp_path / "import/model.yml").read_text())
    scratch = {**model_fields(tokenizer_file), "train_iters": 2}
    still = {"optimizer": {"type": "Adam", "params": {"lr": 1e-9}}, "train_iters": 2}
    layouts = {
        "tp2": {"model_parallel_size": 2, "zero_optimization": {"stage": 1}},
        "pp2": {"pipe_parallel_size": 2, "no_weight_tying": False},
        "zero3": {"zero_optimization": {"stage": 3}},
    }
    imports = {
        "continued": {**layouts["tp2"], "seq_length": 16},
        "finetuned": {**layouts["zero3"], "seq_length": 16, "finetune": True},
    }
    runs = {name: {**scratch, **layout} for name, layout in layouts.items()}
    runs |= {name: {**model, **still, **changes} for name, changes in imports.items()}
    train_all(write_tiny_corpus(tmp_path / "corpus"), tmp_path, 2, runs)

    for name in layouts:
        capsys.readouterr()
        export(tmp_path / name / "run", tmp_path / f"exported {name}")
        assert "logits differ by" in capsys.readouterr().out
    before = CheckpointReader(tmp_path / "import/global_step0")
    for run_name in imports:
        assert list(train_events(tmp_path / run_name / "run.yml")) == [1, 2]
        after = CheckpointReader(tmp_path / run_name / "run/global_step2")
        # the rate is next to nothing: these are the imported weights
        for name in before.parameters:
            torch.testing.assert_close(
                after.read_logical(name), before.read_logical(name), rtol=1e-6, atol=1e-7
            )
