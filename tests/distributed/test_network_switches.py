"""Networks with switches on: saved, continued on other layouts, and read for generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import read_resolved_config
from megatron.checkpoint.loading import load_module_weights
from megatron.generation.batch import generate_batch
from megatron.model.gpt2_model import GPT2Model
from tests.distributed.many_runs import train_all
from tests.distributed.runs import train_events
from tests.distributed.test_layouts import LLAMA
from tests.interop.conversions import ALONE
from tests.tiny import VOCAB_SIZE, write_tiny_corpus
from tools.hf.settings import RunSettings

pytestmark = pytest.mark.distributed

NETWORKS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt-neox": {
        **{"pos_emb": "learned", "opt_pos_emb_offset": 2, "max_position_embeddings": 18},
        **{"use_qk_layernorm": True, "seq_length": 16},
    },
    "olmo": {
        **{"norm": "non_parametric_layernorm", "use_qk_layernorm": True},
        "rope_scaling": {
            **{"type": "yarn", "factor": 2, "original_max_position_embeddings": 8},
        },
    },
}
CUTS = {"tp2": {"model_parallel_size": 2}, "pp2": {"pipe_parallel_size": 2}}
SAVED_AT, CONTINUED_TO, LAST = 4, 7, 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("switches")
    corpus = write_tiny_corpus(folder / "corpus")
    common = {"train_iters": LAST, "extra_save_iters": [SAVED_AT]}
    alone = {f"{name}/single": {**keys, **common} for name, keys in NETWORKS.items()}
    train_all(corpus, folder, 1, alone)
    continued = {
        f"{name}/{cut}": {
            **{**keys, **layout, "train_iters": CONTINUED_TO, "lr_decay_iters": LAST},
            **{"load": str(folder / name / "single/run"), "iteration": SAVED_AT},
        }
        for name, keys in NETWORKS.items()
        for cut, layout in CUTS.items()
    }
    train_all(corpus, folder, 2, continued, timeout_s=900)
    return folder


def losses(folder: Path) -> dict[int, float]:
    return {step: event["lm_loss"] for step, event in train_events(folder / "run.yml").items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_the_loss(runs, name):
    found = losses(runs / name / "single")
    assert sum(found[step] for step in (10, 11, 12)) < sum(found[step] for step in (1, 2, 3)) - 1


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_continues_on_another_layout(runs, name, cut):
    want = losses(runs / name / "single")
    later = {step: want[step] for step in range(SAVED_AT + 1, CONTINUED_TO + 1)}
    assert losses(runs / name / cut) == pytest.approx(later, rel=1e-4)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_layout_saved_generates_the_same_with_and_without_a_cache(runs, name, cut):
    saved = runs / name / cut / f"run/global_step{CONTINUED_TO}"
    shape = RunSettings(read_resolved_config(saved) or {}).shape(VOCAB_SIZE)
    model = GPT2Model(shape, seed=99).eval()
    load_module_weights(model, saved, ALONE)
    options = {"decode": str, "maximum_tokens": 10, "keep_logits": True}
    prompts = [[65, 66, 67, 68], [48]]
    cached = generate_batch(model, prompts, **options)
    again = generate_batch(model, prompts, recompute=True, **options)
    for one, other in zip(cached, again, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
