"""A rank or the launcher dies, or hangs: the whole run ends, and the next one continues exactly."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.runs import (
    curve,
    log_of,
    output_of,
    start,
    train,
    train_events,
    write_config,
)
from tests.distributed.shared_memory import left_of, segments_of
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

LAYOUT = {"model_parallel_size": 2, "pipe_parallel_size": 2}
TIMEOUT_S = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory) -> Path:
    config = write(corpus, tmp_path_factory.mktemp("straight"))
    train(config)
    return config


def write(corpus, folder: Path) -> Path:
    return write_config(
        corpus,
        folder,
        processes=4,
        train_iters=40,
        checkpoint_factor=5,
        distributed_timeout_minutes=TIMEOUT_S / 60,
        **LAYOUT,
    )


def kill_rank(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    ranks[2].send_signal(signal.SIGKILL)


def kill_launcher(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    launcher.send_signal(signal.SIGKILL)


def stop_rank(launcher: psutil.Process, ranks: list[psutil.Process]) -> None:
    ranks[1].send_signal(signal.SIGSTOP)


def test_sigterm_to_the_launcher_saves_and_the_restart_is_exact(corpus, reference, tmp_path):
    config = write(corpus, tmp_path)
    process = start(config)
    ranks = psutil.Process(process.pid)
    wait_for_iteration(config, 8)
    children = ranks.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, output_of(config)
    assert not psutil.wait_procs(children, timeout=1)[1]
    assert "asked to stop" in output_of(config)
    train(config)
    assert curve(config) == curve(reference)


# a stopped rank is noticed after half a minute; test_spawn.py has the quick test of that limit
@pytest.mark.parametrize(
    "violences",
    [[kill_rank, kill_launcher], pytest.param([stop_rank], marks=pytest.mark.slow)],
    ids=["killed", "stopped"],
)
def test_all_processes_end_and_the_restart_is_exact(corpus, reference, tmp_path, violences):
    config = write(corpus, tmp_path)
    for number, violence in enumerate(violences):
        assert_all_processes_end(config, violence, at_iteration=8 + 10 * number)
    train(config)
    assert curve(config) == curve(reference)


def assert_all_processes_end(config: Path, violence, *, at_iteration: int) -> None:
    process = start(config)
    launcher = psutil.Process(process.pid)
    wait_for_iteration(config, at_iteration)
    ranks = sorted(launcher.children(recursive=True), key=lambda child: child.pid)
    segments = segments_of([launcher.pid, *(rank.pid for rank in ranks)])
    violence(launcher, ranks)
    began = time.monotonic()
    code = process.wait(60)
    _, alive = psutil.wait_procs(ranks, timeout=max(0.1, 60 - (time.monotonic() - began)))
    assert not alive, output_of(config)
    assert code != 0
    assert left_of(segments) == []
    if violence is stop_rank:
        output = output_of(config)
        assert "timed out: another rank hangs or is stopped" in output
        assert "deepy.py: rank 1 (process" in output
        assert "is stopped by a signal" in output


def wait_for_iteration(config: Path, iteration: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if log_of(config).exists() and max(train_events(config), default=0) >= iteration:
            return
        time.sleep(0.02)
    raise AssertionError(output_of(config))
