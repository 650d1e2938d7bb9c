"""Ten runs of the demo's model in one folder, half of them killed: nothing is left behind."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.distributed.runs import REPOSITORY, output_of, start, write_config
from tests.distributed.shared_memory import left_of, segments_of
from tests.distributed.test_death import wait_for_iteration
from tests.tiny import write_tiny_corpus

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RUNS = 10
MODEL_KEYS = ("num_layers", "hidden_size", "num_attention_heads", "seq_length")


def demo_model() -> dict:
    demo = yaml.safe_load((REPOSITORY / "configs/demo.yml").read_text())
    shape = {key: demo[key] for key in MODEL_KEYS}
    return {**shape, "max_position_embeddings": demo["max_position_embeddings"]}


def processes_of(config: Path) -> list[psutil.Process]:
    """Processes of this run, found by its file on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(config.parent) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_ten_runs_half_of_them_killed(tmp_path):
    generator = random.Random(8)
    corpus = write_tiny_corpus(tmp_path / "corpus", documents=400)
    killed = set(generator.sample(range(RUNS), RUNS // 2))
    for number in range(RUNS):
        config = write_config(
            corpus,
            tmp_path / "run",
            processes=2,
            train_iters=10 * (number + 1),
            checkpoint_factor=5,
            **demo_model(),
        )
        process = start(config)
        wait_for_iteration(config, 10 * number + generator.randint(1, 9))
        ranks = psutil.Process(process.pid).children(recursive=True)
        segments = segments_of([process.pid, *(rank.pid for rank in ranks)])
        if number in killed:
            victim = generator.choice([psutil.Process(process.pid), *ranks])
            victim.send_signal(signal.SIGKILL)
        code = process.wait(120)
        assert (code == 0) == (number not in killed), output_of(config)
        _, alive = psutil.wait_procs(ranks, timeout=10)
        assert not alive
        time.sleep(0.1)
        assert not processes_of(config)
        assert left_of(segments) == []
