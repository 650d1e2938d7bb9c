"""The layout does not change the answer: losses, gradient norms and weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from tests.distributed.cuts import CUTS
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

# SGD without clipping shows every error of scale that Adam would hide
SGD = {
    "optimizer": {"type": "SGD", "params": {"lr": 0.5, "momentum": 0.9}},
    "gradient_clipping": 0.0,
    "weight_decay": 0.0,
}
LLAMA = {
    **{"norm": "rmsnorm", "rms_norm_epsilon": 1e-6, "gpt_j_residual": False},
    **{"activation": "swiglu", "mlp_inner_size": 88, "use_bias_in_mlp": False},
    **{"num_kv_heads": 2, "head_dim": 12, "qk_norm": "head"},
    **{"use_bias_in_attn_linear": True, "use_bias_in_attn_output": False},
    **{"rotary_pct": 1.0, "rotary_emb_base": 500},
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 4, "original_max_position_embeddings": 8},
        **{"low_freq_factor": 1, "high_freq_factor": 4},
    },
}
"""What Llama 3, Qwen2 and Qwen3 have, each some of it."""
MODELS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": SGD,
    "tied": {
        "no_weight_tying": False,
        "pos_emb": "learned",
        "opt_pos_emb_offset": 2,
        "max_position_embeddings": 18,
        "use_qk_layernorm": True,
        **SGD,
    },
    "llama": {**LLAMA, **SGD},
}
ITERATIONS = {"train_iters": 5}


def event_of(folder: Path) -> dict[int, dict[str, Any]]:
    return train_events(folder / "run.yml")


def drawn(event: dict[str, Any]) -> dict[str, float]:
    """Losses of the domains that the batch held."""
    return {domain: loss for domain, loss in event["losses"].items() if loss is not None}


def assert_same_curve(folder: Path, reference: Path, rel: float = 1e-4) -> None:
    got, want = event_of(folder), event_of(reference)
    assert got.keys() == want.keys()
    for step, expected in want.items():
        event = got[step]
        assert event["lm_loss"] == pytest.approx(expected["lm_loss"], rel=rel), step
        assert event["grad_norm"] == pytest.approx(expected["grad_norm"], rel=rel), step
        assert event["weights"] == pytest.approx(expected["weights"], rel=rel), step
        assert event["tokens"] == expected["tokens"], step
        assert drawn(event) == pytest.approx(drawn(expected), rel=rel), step


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    singles = {f"{model}/single": {**changes, **ITERATIONS} for model, changes in MODELS.items()}
    train_all(corpus, folder, 1, singles)
    cut = {
        f"{model}/{name}": {**changes, **cut, **ITERATIONS}
        for model, changes in MODELS.items()
        for name, cut in CUTS.items()
    }
    train_all(corpus, folder, 2, cut)
    return folder


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_compute_what_one_computes(runs, model, cut):
    assert_same_curve(runs / model / cut, runs / model / "single")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", MODELS)
def test_the_final_weights_are_those_of_one_process(runs, model, cut):
    got = CheckpointReader(runs / model / cut / "run/global_step5")
    want = CheckpointReader(runs / model / "single" / "run/global_step5")
    assert got.parameters.keys() == want.parameters.keys()
    for name in want.parameters:
        torch.testing.assert_close(
            got.read_logical(name), want.read_logical(name), rtol=1e-3, atol=2e-5, msg=name
        )


@pytest.mark.parametrize("cut", CUTS)
def test_validation_losses_are_those_of_one_process(runs, cut):
    from megatron.reporting.run_log import read_run_log

    def validation(name: str) -> dict[str, float]:
        events = read_run_log(runs / "llama" / name / "run")
        (event,) = [e for e in events if e["event"] == "validation"]
        return {domain: result["loss"] for domain, result in event["domains"].items()}

    assert validation(cut) == pytest.approx(validation("single"), rel=1e-4)
