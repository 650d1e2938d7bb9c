"""The helper that every test of several ranks stands on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.distributed


def add_ranks(base: float) -> dict[str, float]:
    """Sums ``base + rank`` over all ranks through our own initialisation."""
    from types import SimpleNamespace

    import torch
    import torch.distributed as dist

    from megatron.runtime.initialize import initialize_megatron, set_timeout_on_all_groups

    other = SimpleNamespace(seed=5, distributed_backend="nccl", distributed_timeout_minutes=0.05)
    config = SimpleNamespace(launch=other)
    info = initialize_megatron(config, handle_signals=False)
    dist.new_group([0])
    set_timeout_on_all_groups(config)
    value = torch.tensor([base + info.rank])
    dist.all_reduce(value)
    return {
        "sum": value.item(),
        "random": torch.rand(()).item(),
        "threads": torch.get_num_threads(),
        "segments": len(list(Path("/dev/shm").glob("*deepspeed*"))),
    }


def wait_for_a_silent_rank() -> str:
    """Rank 1 never comes; rank 0 reports what it hears."""
    import os

    import torch
    import torch.distributed as dist

    add_ranks(0.0)
    if os.environ["RANK"] == "1":
        time.sleep(8)
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def fail_on_rank_1() -> None:
    import os

    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 objects")


def test_ranks_return_values_and_see_each_other():
    results = run_ranks("tests.distributed.test_spawn:add_ranks", 2, keywords={"base": 1.5})
    assert [r.value["sum"] for r in results] == [4.0, 4.0]
    assert results[0].value["random"] == results[1].value["random"]
    assert results[0].value["threads"] == 1
    assert [r.stdout for r in results] == ["", ""], "DeepSpeed is not silent"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
def test_deepspeeds_shared_memory_stays_unused_under_its_own_launcher():
    # its launcher sets LOCAL_SIZE, and then every rank would leave 66 MiB behind
    before = len(list(Path("/dev/shm").glob("*deepspeed*")))
    results = run_ranks(
        "tests.distributed.test_spawn:add_ranks",
        2,
        keywords={"base": 0.0},
        environ={"LOCAL_SIZE": "2"},
    )
    assert [r.value["segments"] for r in results] == [before, before]


def test_a_silent_rank_times_out_after_the_configured_minutes():
    began = time.monotonic()
    results = run_ranks(
        "tests.distributed.test_spawn:wait_for_a_silent_rank", 2, timeout_s=25, check=False
    )
    assert "3000ms" in results[0].value
    assert time.monotonic() - began < 40


def test_a_failing_rank_fails_the_test_with_its_own_words():
    with pytest.raises(AssertionError, match="rank 1 objects"):
        run_ranks("tests.distributed.test_spawn:fail_on_rank_1", 2)


def test_a_timeout_kills_the_ranks_and_says_so(tmp_path):
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(60)")
    results = run_ranks(script, 2, timeout_s=1.0, check=False)
    assert [r.exit_code for r in results] == [-9, -9]


def test_a_rank_is_killed_when_the_test_wants_it(tmp_path):
    script = tmp_path / "sleep.py"
    script.write_text("import os, time; time.sleep(3 if os.environ['RANK'] == '1' else 0)")
    results = run_ranks(script, 2, kill={1: 0.3}, check=False)
    assert [r.exit_code for r in results] == [0, -9]
