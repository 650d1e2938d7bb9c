"""Checkpoints that DeepSpeed itself writes: weights, master weights and moments are read from them.

Each run saves twice at the same iteration: as this program does, and by the engine's own
``save_checkpoint``, whose files have GPT-NeoX's names and DeepSpeed's form.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.neox.reader import NeoxReader
from tests.distributed.runs import REPOSITORY, train, write_config
from tests.distributed.spawn import run_ranks
from tests.generation_runs import FIELDS, write_run
from tests.interop.conversions import random_weights, shape_of
from tests.neox_folder import write_neox_folder
from tests.tiny import VOCAB_SIZE, tiny_config, write_tiny_corpus
from tools.hf.network import filled_model
from tools.hf.settings import settings_of

pytestmark = pytest.mark.distributed

# biases that every part adds are GPT-NeoX's alone; without a parallel residual there are none
NETWORK: dict[str, Any] = {"gpt_j_residual": False, "train_iters": 3, "vocab_file": None}
TP, PP = {"model_parallel_size": 2}, {"pipe_parallel_size": 2}
ZERO_1, ZERO_2, ZERO_3 = ({"zero_optimization": {"stage": stage}} for stage in (1, 2, 3))
SMALL_GROUPS = {"zero_optimization": {"stage": 3, "sub_group_size": 5000}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "single-zero1": (1, ZERO_1),
    "dp2-zero1": (2, ZERO_1),
    "dp2-zero2-bf16": (2, {**ZERO_2, "precision": "bfloat16"}),
    "dp2-zero1-bf16": (2, {**ZERO_1, "precision": "bfloat16"}),
    "tp2": (2, TP),
    "tp2-zero1": (2, {**TP, **ZERO_1}),
    "dp2-zero3": (2, SMALL_GROUPS),
    "dp3-zero3-bf16": (3, {**ZERO_3, "precision": "bfloat16", "train_batch_size": 6}),
    "pp2-zero1": (2, {**PP, **ZERO_1}),
    "pp2-zero1-tied": (2, {**PP, **ZERO_1, "no_weight_tying": False}),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    "name", [n if n == "pp2-zero1" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]
)
def test_files_of_deepspeed_give_the_weights_and_moments_that_we_save(corpus, tmp_path, name):
    processes, changes = LAYOUTS[name]
    config = tiny_config(
        corpus, tmp_path, global_num_gpus=processes, **{**NETWORK, **changes}, eval_iters=0
    )
    file = tmp_path / "run.yml"
    file.write_text(json.dumps(config))
    run_ranks(
        "tests.distributed.test_neox_folder:train_and_save_twice",
        processes,
        keywords={"file": str(file), "theirs": str(tmp_path / "theirs")},
        environ={"OMP_NUM_THREADS": "1"},
        timeout_s=120,
    )
    ours = CheckpointReader(tmp_path / "run/global_step3")
    shape = settings_of(ours.folder).shape(VOCAB_SIZE)
    theirs = NeoxReader(tmp_path / "theirs/global_step3", shape, with_optimizer=True)
    assert theirs.why_no_moments is None
    assert set(theirs.moment_names) == {"exp_avg", "exp_avg_sq"}
    assert theirs.shapes == ours.shapes
    for parameter in ours.shapes:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            one, other = (r.read_logical(parameter, kind) for r in (ours, theirs))
            assert torch.equal(one, other), f"{kind} of {parameter}"
    if name != "pp2-zero1":
        return
    # a run of another layout that loads them and has nothing left to train saves the same
    resumed = tmp_path / "resumed"
    again = {**NETWORK, **ZERO_1, "load": str(tmp_path / "theirs"), "eval_iters": 0}
    train(write_config(corpus, resumed, **again))
    loaded = CheckpointReader(resumed / "run/global_step3")
    for parameter in ours.shapes:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            one, other = (r.read_logical(parameter, kind) for r in (ours, loaded))
            assert torch.equal(one, other), f"{kind} of {parameter}"
    state = json.loads((loaded.folder / "state.json").read_text())["counters"]
    assert state["step"] == state["applied_steps"] == 3
    assert state["consumed_samples"] == 24


def test_generate_reads_slim_weights_as_the_readme_of_gpt_neox_asks(tmp_path):
    shape = shape_of(FIELDS, VOCAB_SIZE)
    weights = random_weights(shape)
    for rows in (slice(0, 32), slice(127, None)):
        weights["6.final_linear.weight"][rows] = 0.0  # the likeliest characters are printable
    write_neox_folder(tmp_path / "20B_checkpoints", weights, shape, parts=2, counters=False)
    (tmp_path / "prompts.txt").write_text("abc")
    config = write_run(
        tmp_path,
        tmp_path / "20B_checkpoints",
        processes=2,
        model_parallel_size=2,
        text_gen_type="input-file",
        sample_input_file=str(tmp_path / "prompts.txt"),
        sample_output_file=str(tmp_path / "out.jsonl"),
        maximum_tokens=5,
    )
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "deepy.py"), "generate.py", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    tokens = torch.tensor([list(b"abc")])
    model = filled_model(shape, weights.__getitem__)
    with torch.no_grad():
        for _ in range(5):
            tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    text = json.loads((tmp_path / "out.jsonl").read_text())["text"]
    assert text == "".join(map(chr, tokens[0, 3:].tolist()))


def train_and_save_twice(file: str, theirs: str) -> None:
    """What a rank does."""
    from megatron.checkpointing import CheckpointSaver
    from tests.distributed.many_runs import train_files

    save = CheckpointSaver.save

    def save_both(self, engine, contents):
        save(self, engine, contents)
        step = contents.state.step
        state = {"iteration": step, "args": {"model_parallel_size": 1}}
        engine.save_checkpoint(theirs, tag=f"global_step{step}", client_state=state)

    CheckpointSaver.save = save_both
    train_files([file])
