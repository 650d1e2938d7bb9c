"""Every layout goes to transformers and back to the bit, and continues from an imported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron.checkpoint.format import CheckpointReader
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.interop.conversions import (
    export,
    model_fields,
    our_logits,
    some_tokens,
    their_logits,
    write_run,
    write_tokenizer,
)
from tests.tiny import write_tiny_corpus
from tools.benchmark.interop.checks import check_export
from tools.benchmark.interop.networks import NETWORKS, fields_of, write_network
from tools.convert_from_hf import main as import_main
from tools.inspect_checkpoint import main as inspect_main
from tools.reshard_checkpoint import reshard

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "tp2": (2, "untied", {"model_parallel_size": 2}),
    "pp2": (2, "tied", {"pipe_parallel_size": 2}),
    "zero1": (2, "tied", {"zero_optimization": {"stage": 1}}),
    "zero3": (2, "untied", {"zero_optimization": {"stage": 3}}),
    "tp2 pp2": (4, "tied", {"model_parallel_size": 2, "pipe_parallel_size": 2}),
}
"""{name: (processes, the model it starts from, settings)}"""

FAMILIES = {
    "tp2": "qwen3",
    "pp2": "qwen2",
    "zero1": "mistral",
    "zero3": "llama 3.x",
    "tp2 pp2": "llama, tied, with biases",
}
"""{layout: a network of `NETWORKS`}: each family on one layout, each layout once; the
command `python -m tools.benchmark.interop` has them all."""

STILL = {"optimizer": {"type": "Adam", "params": {"lr": 1e-9}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models far from their initial values, exported, imported, and trained on each layout.

    All runs of one number of processes share one start of them.
    """
    folder = tmp_path_factory.mktemp("layouts")
    write_tokenizer(folder / "tokenizer.json")
    common = {}
    for kind in ("tied", "untied"):
        fields = model_fields(folder / "tokenizer.json", no_weight_tying=kind == "untied")
        write_run(folder / kind, fields)
        export(folder / kind, folder / f"{kind} exported", "--no-verify")
        arguments = ["--input_dir", str(folder / f"{kind} exported")]
        import_main([*arguments, "--output_dir", str(folder / f"{kind} import")])
        model = yaml.safe_load((folder / f"{kind} import/model.yml").read_text())
        common[kind] = {**model, "seq_length": 16, "train_iters": 2}
    runs: dict[int, dict[str, dict[str, Any]]] = {2: {}, 4: {}}
    for name, (processes, kind, settings) in LAYOUTS.items():
        runs[processes][name] = {**common[kind], **settings}
    runs[2]["continued"] = {**common["untied"], **LAYOUTS["tp2"][2], **STILL}
    runs[2]["finetuned"] = {**common["untied"], **LAYOUTS["zero3"][2], **STILL, "finetune": True}
    for layout, name in FAMILIES.items():
        processes, _, settings = LAYOUTS[layout]
        fields = fields_of(NETWORKS[name], folder / "tokenizer.json")
        write_network(folder / f"{name} start", fields)
        load = {"load": str(folder / f"{name} start"), "finetune": True, "train_iters": 2}
        runs[processes][f"{layout}, {name}"] = {
            **{"gpt_j_residual": False, "rotary_pct": 1.0},
            **{**fields, **settings, **load},
        }
    paths = write_tiny_corpus(folder / "corpus")
    for processes, configs in runs.items():
        train_all(paths, folder, processes, configs)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_any_layout_is_exported_and_read_back_to_the_bit(
    layout, folder, tmp_path, capsys
):
    source = folder / layout / "run"
    export(source, tmp_path / "hf")
    assert "logits differ by" in capsys.readouterr().out  # by our network filled from logical ones
    tokens = some_tokens(32)
    want = our_logits(source / "global_step2", tokens)
    assert want.std() > 1
    torch.testing.assert_close(their_logits(tmp_path / "hf", tokens), want, rtol=0, atol=1e-4)

    import_main(["--input_dir", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back")])
    first = CheckpointReader(source / "global_step2")
    second = CheckpointReader(tmp_path / "back/global_step0")
    assert {name: info.shape for name, info in first.parameters.items()} == {
        name: info.shape for name, info in second.parameters.items()
    }
    start = CheckpointReader(folder / f"{LAYOUTS[layout][1]}/global_step0")
    for name in first.parameters:
        assert torch.equal(first.read_logical(name), second.read_logical(name)), name
        assert not torch.equal(first.read_logical(name), start.read_logical(name)), name
    assert inspect_main([str(source), "--diff", str(tmp_path / "hf")]) == 0


@pytest.mark.parametrize(("layout", "name"), FAMILIES.items(), ids=list(FAMILIES))
def test_a_checkpoint_of_any_family_goes_to_transformers_and_back(layout, name, folder, tmp_path):
    source = folder / f"{layout}, {name}/run/global_step2"
    row = check_export(source, tmp_path, NETWORKS[name].family)
    assert row.is_equal
    assert row.spread > 1
    assert row.difference <= 1e-4
    assert inspect_main([str(source), "--diff", str(tmp_path / "hf")]) == 0


@pytest.mark.parametrize("name", ["continued", "finetuned"])
def test_training_goes_on_from_an_import_on_any_layout(name, folder):
    """The learning rate is next to nothing, so the weights are still the imported ones."""
    assert list(train_events(folder / name / "run.yml")) == [1, 2]
    before = CheckpointReader(folder / "untied import/global_step0")
    after = CheckpointReader(folder / name / "run/global_step2")
    for parameter in before.parameters:
        torch.testing.assert_close(
            after.read_logical(parameter), before.read_logical(parameter), rtol=1e-6, atol=1e-7
        )


def test_an_export_in_half_precision_differs_from_its_checkpoint_by_its_rounding(
    folder, tmp_path, capsys
):
    source = folder / "tp2/run"
    export(source, tmp_path / "hf", "--dtype", "bfloat16", "--no-verify")
    capsys.readouterr()
    assert inspect_main([str(source), "--diff", str(tmp_path / "hf")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'hf'}: contains bfloat16, compared in float32"
    largest = max(float(line.split()[3]) for line in lines[2:-1])
    assert 2**-10 < largest <= 2**-8


def test_the_layout_that_saved_them_makes_no_difference_between_checkpoints(
    folder, tmp_path, capsys
):
    source = folder / "tp2 pp2/run"
    reshard(source / "global_step2", tmp_path / "one process")
    assert inspect_main([str(source), "--diff", str(tmp_path / "one process")]) == 0
    tied = 28 - 1  # weights, each with two moments
    assert capsys.readouterr().out == f"{3 * tied} of {3 * tied} tensors are equal to the bit\n"
