"""The plan of a step on a GPU: its arithmetic, its bytes, and what fusion saves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.flops import model_flops_per_token
from megatron.sizing.gpus import GPUS, gpu_of_device
from tools.benchmark import gpu_plan
from tools.benchmark.planning import fusion
from tools.benchmark.planning.costs import Access, Kernel
from tools.benchmark.planning.fusion import fused
from tools.benchmark.planning.recorder import Recorder

VOCABULARY = 1000
BASE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "gpt_j_residual": True,
    "no_weight_tying": True,
    "train_iters": 10,
    "train_micro_batch_size_per_gpu": 2,
    "precision": "bfloat16",
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "gpt-neox": {},
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "num_kv_heads": 2, "mlp_inner_size": 96},
    "window": {"sliding_window_width": 16},
    "recomputed": {"checkpoint_activations": True},
    "fp32, two micro-batches": {"precision": "fp32", "gradient_accumulation_steps": 2},
}


def planned(**changes: Any) -> tuple[gpu_plan.Plan, Any]:
    config = resolve(NeoXArgs.from_dict({**BASE, **changes}), world_size=1)
    return gpu_plan.make_plan("tiny", config, GPUS["H100"], vocab_size=VOCABULARY), config


@pytest.mark.parametrize("network", NETWORKS)
def test_the_arithmetic_is_that_of_the_formula(network):
    plan, config = planned(**NETWORKS[network])
    formula = plan.tokens * model_flops_per_token(config, vocab_size=VOCABULARY)
    # the recorder counts attention as the formula does; products are counted one by one
    assert plan.model_flops == pytest.approx(formula, rel=1e-3)
    assert plan.eager.flops == plan.fused.flops >= plan.model_flops
    assert plan.recompute == (network == "recomputed")
    # bytes and seconds of the parts are those of the whole
    for side in (plan.eager, plan.fused):
        assert side.nbytes == sum(row["nbytes"] for row in side.by_role.values())
        assert side.mfu == pytest.approx(formula / side.seconds / 989.4e12, rel=1e-2) or (
            config.precision.dtype == "fp32"
        )
    assert plan.fused.nbytes < plan.eager.nbytes
    assert plan.fused.kernels < plan.eager.kernels


def test_what_is_computed_again_is_arithmetic_of_the_machine_only():
    kept, again = (planned(checkpoint_activations=value)[0] for value in (False, True))
    assert again.model_flops == kept.model_flops
    assert again.eager.flops > 1.15 * kept.eager.flops


def test_fusion_touches_the_logits_three_times_at_most():
    # 64 tokens of width 64: the weights of the output layer are as large as the logits
    plan, _ = planned(train_micro_batch_size_per_gpu=1)
    # in float32 copies: products 0.5 each, casts 1.5 each, logsumexp 6, softmax 3
    assert plan.eager.logits_passes == pytest.approx(3 * 0.5 + 2 * 1.5 + 6 + 3, abs=0.01)
    assert plan.fused.logits_passes == pytest.approx(2.5, abs=0.01)
    whole_rows = fusion.LONGEST_ROW
    fusion.LONGEST_ROW = 500  # rows of a real vocabulary are read twice
    try:
        long, _ = planned(train_micro_batch_size_per_gpu=1)
    finally:
        fusion.LONGEST_ROW = whole_rows
    assert long.fused.logits_passes == pytest.approx(3.0, abs=0.01)


def test_every_part_of_the_network_has_a_line():
    plan, _ = planned()
    assert {"embedding", "norms", "attention", "activation", "residual", "loss", "optimizer"} <= {
        *plan.eager.by_role
    }
    other = plan.eager.by_role.get("other", {"nbytes": 0})["nbytes"]
    assert other < 0.02 * plan.eager.nbytes
    text = gpu_plan.table(plan)
    assert "optimizer" in text
    assert f"{plan.eager.mfu:.1%}" in text


def test_bytes_of_single_kernels():
    x = torch.empty(8, 16, dtype=torch.bfloat16, device="meta")
    row = torch.empty(16, dtype=torch.bfloat16, device="meta")
    with Recorder() as recorder:
        y = x @ x.t()  # reads 256 bytes twice, writes 128
        y.view(64).add_(1)  # reads and writes 128
        x + row.expand(8, 16)  # an expanded row is read once
        torch.zeros(4, device="meta")
        torch.empty(1000, device="meta")
        x.float().logsumexp(dim=1)
    found = [(kernel.name, kernel.nbytes, kernel.flops) for kernel in recorder.kernels]
    assert found[:4] == [
        ("mm", 2 * 256 + 128, 2.0 * 8 * 8 * 16),
        ("add_", 2 * 128, 0.0),
        ("add", 256 + 32 + 256, 0.0),
        ("zeros", 16, 0.0),
    ]
    assert found[4:] == [("_to_copy", 256 + 512, 0.0), ("logsumexp", 6 * 512 + 32, 0.0)]


def test_a_fused_kernel_reads_once_and_writes_what_is_used_later():
    def access(storage: int) -> Access:
        return Access(storage, 100, 100, 10)

    def kernel(reads: list[int], writes: list[int], **more: Any) -> Kernel:
        facts = {"role": "norms", "is_fusible": True, **more}
        return Kernel("k", reads=(*map(access, reads),), writes=(*map(access, writes),), **facts)

    product = kernel([3], [4], is_fusible=False, role="loss", flops=1.0)
    joined = fused([kernel([0, 1], [2]), kernel([2, 1], [3]), kernel([3], [5]), product])
    assert [k.launches for k in joined] == [1, 1]
    assert [a.storage for a in joined[0].reads] == [0, 1]
    assert [a.storage for a in joined[0].writes] == [3, 5]  # 5 is a result of the step
    optimizer = fused([kernel([0], [1], role="optimizer")] * 2)
    assert len(optimizer) == 2


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 3090", None),
        ("cpu", None),
    ],
)
def test_a_gpu_is_found_by_the_name_of_its_driver(device, name):
    found = gpu_of_device(device)
    assert (found and found.name) == name


def test_the_command_plans_files_and_writes_figures(tmp_path, capsys):
    import yaml

    file = tmp_path / "tiny.yml"
    # what belongs to many processes does not matter to one
    file.write_text(yaml.safe_dump({**BASE, "train_batch_size": 512, "pipe_parallel_size": 2}))
    out = tmp_path / "plan.json"
    arguments = ["--config", str(file), "--gpu", "A100", "--micro-batch", "1", "--json", str(out)]
    assert gpu_plan.main(arguments) == 0
    (plan,) = json.loads(out.read_text())
    assert (plan["shape"], plan["gpu"], plan["micro_batch"], plan["tokens"]) == (
        *("tiny", "A100", 1, 64),
    )
    assert "tiny:" in capsys.readouterr().out
    file.write_text("num_layers: 2\n")
    assert gpu_plan.main(["--config", str(file)]) == 2


def test_the_shapes_are_files_of_this_project():
    assert all((gpu_plan.ROOT / "configs" / name).is_file() for name in gpu_plan.SHAPES.values())
