"""The device's random states, threads and precisions on a CPU."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from megatron.runtime import accelerator
from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="describes a CPU")


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    ]


def test_a_restored_state_draws_the_same_numbers_from_every_generator():
    accelerator.seed_everything(7)
    draws()  # leaves a second Gaussian waiting in Python's and numpy's generators
    state = accelerator.rng_state()
    expected = draws()
    draws()
    accelerator.set_rng_state(state)
    assert draws() == expected


def test_states_are_tensors_that_a_checkpoint_can_hold_without_pickle(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    accelerator.seed_everything(7)
    state = accelerator.rng_state()
    expected = draws()
    safetensors.save_file(state, tmp_path / "rng.safetensors")
    accelerator.set_rng_state(safetensors.load_file(tmp_path / "rng.safetensors"))
    assert draws() == expected


def test_a_seed_decides_every_generator():
    accelerator.seed_everything(2**40 + 3)
    first = draws()
    accelerator.seed_everything(2**40 + 3)
    assert draws() == first


def test_a_machine_without_gpus_is_a_cpu_that_talks_over_gloo():
    assert accelerator.is_cpu()
    assert accelerator.device() == torch.device("cpu")
    assert accelerator.device_count() == 1
    assert accelerator.backend() == "gloo"
    assert accelerator.supports("fp32")
    assert not accelerator.supports("fp16")


def test_batches_are_copied_to_a_gpu_from_pinned_memory_and_nowhere_on_a_cpu(monkeypatch):
    tensor = torch.ones(2)
    assert accelerator.pinned(tensor) is tensor
    monkeypatch.setattr(accelerator, "is_cpu", lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    assert accelerator.pinned(tensor).tolist() == [2.0, 2.0]


def test_deepspeed_is_told_of_a_machine_without_gpus(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    accelerator.prepare_environment()
    assert os.environ["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_that_wait_soon_sleep_unless_the_user_decides(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    accelerator.prepare_environment()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_subnormal_numbers_are_zero_until_the_run_ends():
    tiny = torch.full((8,), 1e-40)
    accelerator.flush_subnormals()
    try:
        assert not (tiny * 1.0).any()
    finally:
        accelerator.flush_subnormals(False)
    assert (tiny * 1.0).all()


def test_every_thread_of_a_run_takes_subnormal_numbers_for_zero():
    target = "tests.unit.runtime.test_accelerator:check_all_threads"
    run_ranks(target, 1, environ={"OMP_NUM_THREADS": "2"}, fresh=True)


def check_all_threads() -> None:
    """What the rank does."""
    from megatron.runtime.initialize import shutdown
    from tools.benchmark.step_throughput import join_process_group

    join_process_group()
    assert torch.get_num_threads() == 2
    assert not (torch.full((1 << 22,), 1e-40) * 1.0).any()
    shutdown()
