"""Norms of parameters and gradients, and the noise scale: one process and every layout agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron.checkpoint.format import CheckpointReader
from megatron.reporting.run_log import read_run_log
from tests.distributed.cuts import some_cuts
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

LEARNING_RATE = 0.5
CHANGES: dict[str, Any] = {
    "optimizer": {"type": "SGD", "params": {"lr": LEARNING_RATE}},
    "lr_decay_style": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
    "gradient_clipping": 0.1,  # below every norm of this run
    "hidden_size": 24,  # no multiple of what the layouts could hide behind
    "num_attention_heads": 2,
    "train_iters": 4,
    "checkpoint_factor": 1,
    "extra_save_iters": [0],
    "log_grad_norm": True,
    "log_param_norm": True,
    "log_grad_pct_zeros": True,
    "log_gradient_noise_scale": True,
    "gradient_noise_scale_n_batches": 2,
}
ADAM = {
    "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
    "log_optimizer_states": True,
    "gradient_clipping": 1.0,
}
CUTS = {
    **some_cuts("dp2", "dp2-zero1", "dp2-zero2", "dp2-zero3", "tp2", "tp2-zero1", "pp2-zero1"),
    "pp2-tied": {**some_cuts("pp2")["pp2"], "no_weight_tying": False},
}
MORE = {"dp2-zero3": {"gradient_noise_scale_cpu_offload": True}}


def statistics_of(folder: Path) -> dict[int, dict[str, Any]]:
    events = read_run_log(folder / "run")
    return {e["iteration"]: e for e in events if e["event"] == "statistics"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("statistics")
    singles = {"single": {}, "single-tied": {"no_weight_tying": False}, "single-adam": ADAM}
    train_all(corpus, folder, 1, {name: {**CHANGES, **more} for name, more in singles.items()})
    return folder


@pytest.fixture(scope="module")
def cut_runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    cuts = {**CUTS, "dp2-adam": {**ADAM, "zero_optimization": {"stage": 1}}}
    runs = {name: {**CHANGES, **cut, **MORE.get(name, {})} for name, cut in cuts.items()}
    train_all(corpus, folder, 2, runs)
    return folder


def test_gradient_norms_are_those_of_the_steps_that_were_taken(runs):
    """Plain gradient descent: a step is the clipped gradient times the learning rate."""
    folder = runs / "single"
    norms, events = statistics_of(folder), train_events(folder / "run.yml")
    for step in (1, 2, 3, 4):
        before, after = (CheckpointReader(folder / f"run/global_step{n}") for n in (step - 1, step))
        clip = 0.1 / (events[step]["grad_norm"] + 1e-6)
        assert clip < 1
        assert norms[step]["gradient_norms"].keys() == before.parameters.keys()
        for name, norm in norms[step]["gradient_norms"].items():
            moved = (after.read_logical(name) - before.read_logical(name)).double().norm().item()
            # a weight near 1 is rounded to 6e-8, which is seen in small norms
            want = pytest.approx(moved / (LEARNING_RATE * clip), rel=1e-3, abs=1e-5)
            assert norm == want, name
        squares = sum(norm**2 for norm in norms[step]["gradient_norms"].values())
        assert squares**0.5 == pytest.approx(events[step]["grad_norm"], rel=1e-5)


def test_parameter_norms_are_those_of_the_weights_after_the_step(runs):
    statistics = statistics_of(runs / "single")
    reader = CheckpointReader(runs / "single/run/global_step3")
    for name, norm in statistics[3]["parameter_norms"].items():
        assert norm == pytest.approx(reader.read_logical(name).double().norm().item(), rel=1e-5)


def test_tokens_that_do_not_occur_have_no_gradient(runs):
    zeros = statistics_of(runs / "single")[1]["pct_grad_zeros"]
    assert 30 < zeros["0.word_embeddings.weight"] < 100
    assert zeros["5.norm.weight"] == 0


def test_moments_have_the_norms_of_the_checkpoint(runs):
    measured = statistics_of(runs / "single-adam")[4]["optimizer_state_norms"]
    reader = CheckpointReader(runs / "single-adam/run/global_step4")
    expected = {
        f"{name}_{moment}": reader.read_logical(name, moment).double().norm().item()
        for name in reader.parameters
        for moment in ("exp_avg", "exp_avg_sq")
    }
    assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [*CUTS, "dp2-adam"])
def test_two_processes_measure_what_one_measures(runs, cut_runs, cut):
    reference = {"pp2-tied": "single-tied", "dp2-adam": "single-adam"}.get(cut, "single")
    got, want = statistics_of(cut_runs / cut), statistics_of(runs / reference)
    assert got.keys() == want.keys() == {1, 2, 3, 4}
    for step, expected in want.items():
        for statistic in ("gradient_norms", "parameter_norms", "optimizer_state_norms"):
            found = got[step].get(statistic, {})
            assert found == pytest.approx(expected.get(statistic, {}), rel=2e-3, abs=1e-6)
        zeros = expected["pct_grad_zeros"]
        assert got[step]["pct_grad_zeros"] == pytest.approx(zeros, abs=0.5)
        assert ("noise_scale" in got[step]) == ("noise_scale" in expected)
        if "noise_scale" in expected:
            assert got[step]["noise_scale"] == pytest.approx(expected["noise_scale"], rel=1e-2)
