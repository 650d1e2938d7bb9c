"""No part of a training step reads a value from the device, whatever the network's switches are.

Everything runs on torch's ``meta`` device, where a read raises: ``.item()``, ``.tolist()``,
``bool(tensor)``, ``nonzero``, ``.cpu()``. On a GPU such a read would make the host wait. There is
one exception, the read of the step's sums in `DomainSums.all_reduce`. DeepSpeed's engine does not
run on ``meta``, so our modules run without it; see `tools.benchmark.meta_step`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.engine import domain_sums, runners
from megatron.model.activations import ACTIVATIONS, GATED_ACTIVATIONS, get_activation
from megatron.mpu.tensor_parallel import TensorParallel
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.training import reduce_step
from odm import MixtureController, MixtureSchedule
from tests.process_group import process_group_of_one
from tools.benchmark.meta_step import MetaStep, meta_kernels, zipf_batch

DOMAINS = 3
VOCABULARY = 130
BASE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "pos_emb": "rotary",
    "no_weight_tying": True,
    "train_iters": 10,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}},
}
LLAMA = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "num_kv_heads": 2,
    "mlp_inner_size": 96,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
}
PACKED = {"reset_attention_mask": True, "reset_position_ids": True}
WINDOW = {"sliding_window_width": 8}
LOCAL = {"attention_config": [[["local", "global"], 1]], "sparsity_config": {"block": 4}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
SWITCHES: dict[str, dict[str, Any]] = {
    "gpt-neox": {"gpt_j_residual": True, "rotary_pct": 0.25, "bias_gelu_fusion": True},
    "gpt-j, tied norms": {"gpt_j_residual": True, "gpt_j_tied": True},
    "tied embeddings": {"no_weight_tying": False},
    **{f"{p} positions": {"pos_emb": p} for p in ("learned", "sinusoidal", "none", "alibi", "rpe")},
    "positions from 2": {"pos_emb": "learned", "opt_pos_emb_offset": 2, "seq_length": 30},
    "yarn": {"rope_scaling": YARN},
    **{
        f"norm {norm}": {"norm": norm}
        for norm in ("rmsnorm", "scalenorm", "non_parametric_layernorm")
    },
    "llama": LLAMA,
    "qwen 2": {**LLAMA, "use_bias_in_attn_linear": True, "use_bias_in_attn_output": False},
    "qwen 3": {**LLAMA, "qk_norm": "head", "head_dim": 24},
    "gpt-neox's head norms": {"use_qk_layernorm": True},
    "window": WINDOW,
    "window, grouped": {**WINDOW, **LLAMA},
    "local blocks": LOCAL,
    "packed documents": PACKED,
    "packed, windows": {**PACKED, **WINDOW},
    "packed, alibi": {**PACKED, "pos_emb": "alibi"},
    "packed, learned biases": {**PACKED, "pos_emb": "rpe"},
    "dropout": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "dropout and windows": {**WINDOW, "attention_dropout": 0.1},
    "z-loss": {"z_loss": 1e-4},
    "masked documents": {"eod_mask_loss": True, "gradient_accumulation_steps": 2},
    "recomputed": {"checkpoint_activations": True, "gradient_accumulation_steps": 2},
    "recomputed, learned biases": {"checkpoint_activations": True, "pos_emb": "rpe"},
    "bf16": {"precision": "bfloat16", "gpt_j_residual": True},
    "fp16": {"fp16": {"enabled": True}},
    "bf16, recomputed, llama": {**LLAMA, "precision": "bfloat16", "checkpoint_activations": True},
    "bf16, window": {**WINDOW, "precision": "bfloat16"},
    "no clipping": {"gradient_clipping": 0.0},
    "lion": {"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}},
    "sgd": {"optimizer": {"type": "sgd", "params": {"lr": 1e-2, "momentum": 0.9}}},
    "lion, bf16": {"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}, "precision": "bfloat16"},
    "soft prompt": {
        "soft_prompt_tuning": {"enabled": True, "num_tokens": 4},
        "seq_length": 28,
        "finetune": True,
        "load": "a-model",
    },
}


class HostCopies(TorchDispatchMode):
    """Collects shapes of tensors that are copied from the host to the device."""

    supports_higher_order_operators = True  # flex_attention

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("_to_copy", "copy_") and isinstance(result, torch.Tensor) and result.is_meta:
            source = args[1] if name == "copy_" else args[0]
            if source.device.type == "cpu" and source.dim():
                self.shapes.append(tuple(source.shape))
        return result


def resolved(**changes: Any) -> Any:
    return resolve(NeoXArgs.from_dict({**BASE, **changes}), world_size=1)


def reduce_on_meta(sums: Any, norm: Any) -> None:
    mixture = MixtureController(["a", "b", "c"], "static", MixtureSchedule(1, DOMAINS))
    with process_group_of_one():
        reduce_step(runners.StepResult(sums=sums, grad_norm=norm, skipped=False), mixture)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_step_reads_no_value_before_its_sums(switch):
    config = resolved(**SWITCHES[switch])
    step = MetaStep(config, vocab_size=VOCABULARY, num_domains=DOMAINS)
    batches = zipf_batch(config, vocab_size=VOCABULARY, num_domains=DOMAINS)
    with meta_kernels():
        step.run(batches)
        with HostCopies() as copies:
            sums = step.run(batches)
    assert {field.device.type for field in vars(sums).values()} == {"meta"}
    fields = [field for batch in batches for field in vars(batch).values() if field is not None]
    # tables and biases came to the device in the first step; later only the batches do
    assert sorted(copies.shapes) == sorted(tuple(field.shape) for field in fields)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        reduce_on_meta(sums, step.norm)


def test_the_sums_and_the_norm_are_read_at_once(monkeypatch):
    reads: list[int] = []
    read = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: reads.append(t.numel()) or read(t))
    recorder = domain_sums.DomainLossRecorder(DOMAINS, torch.device("cpu"))
    recorder.record(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 2]))
    norm = torch.tensor(1 / 3)
    result = runners.StepResult(sums=recorder.sums(), grad_norm=norm, skipped=False)
    mixture = MixtureController(["a", "b", "c"], "static", MixtureSchedule(1, DOMAINS))
    with process_group_of_one():
        signal, loss, grad_norm, stop = reduce_step(result, mixture)
    assert reads == [4 * DOMAINS + 2 + 2 + 1]
    assert (grad_norm, loss, stop) == (float(norm), 1.0, False)
    assert signal.token_count.tolist() == [4.0, 0.0, 4.0]


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("switch", ["gpt-neox", "llama", "qwen 3", "dropout", "bf16"])
def test_a_part_of_a_tensor_group_reads_no_value(switch, sequence_parallel):
    from torch._C._distributed_c10d import FakeProcessGroup

    config = resolved(**SWITCHES[switch])
    group = FakeProcessGroup._create_internal(rank=0, world_size=2)
    tp = TensorParallel(2, 1, group, sequence_parallel)
    step = MetaStep(config, vocab_size=VOCABULARY, num_domains=DOMAINS, tp=tp)
    batches = zipf_batch(config, vocab_size=VOCABULARY, num_domains=DOMAINS)
    with meta_kernels():
        sums = step.run(batches)
    assert sums.loss_sum.device.type == "meta"


@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATED_ACTIVATIONS])
def test_an_activation_reads_no_value(name):
    values = torch.empty(2, 3, device="meta", requires_grad=True)
    get_activation(name, tanh_gelu=True)(values).sum().backward()
    assert values.grad is not None
    assert values.grad.is_meta


def test_a_read_would_be_noticed(monkeypatch):
    read = runners.forward_and_record

    def reading(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = read(*args, **kwargs)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr("tools.benchmark.meta_step.forward_and_record", reading)
    config = resolved()
    step = MetaStep(config, vocab_size=VOCABULARY, num_domains=DOMAINS)
    with meta_kernels(), pytest.raises(RuntimeError, match="cannot be called on meta"):
        step.run(zipf_batch(config, vocab_size=VOCABULARY, num_domains=DOMAINS))
