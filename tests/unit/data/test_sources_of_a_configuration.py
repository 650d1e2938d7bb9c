"""What the keys of a configuration make of its data: mixture, batches and held-out samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron.data.data_utils import build_evaluation_source, build_train_source
from megatron.neox_arguments import NeoXArgs, resolve
from tests.tiny import DOMAINS, tiny_config, write_tiny_corpus

TOKENIZER: Any = SimpleNamespace(eod=48, vocab_size=512)
"""48 is "0", half of the text of the second domain."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def config_of(corpus: dict[str, list[str]], folder: Any, **changes: Any) -> Any:
    return resolve(NeoXArgs.from_dict(tiny_config(corpus, folder, **changes)), world_size=1)


def train_source(config: Any, **ranks: int) -> Any:
    placed = {"dp_rank": 0, "dp_size": 1, **ranks}
    return build_train_source(config, tokenizer_info=TOKENIZER, **placed)


def test_a_mixture_is_what_the_keys_say(corpus, tmp_path):
    keys = {
        **{"data_sampling_warmup_steps": 3, "data_sampling_update_frequency": 2},
        **{"data_sampling_smoothing_factor": 0.25, "data_sampling_stratified": True},
        **{"data_sampling_min_weight": 0.1, "data_sampling_max_weight": {"noise": 0.5}},
        **{"data_sampling_max_epochs": {"digits": 3.0}, "train_data_weights": [1, 2, 5]},
        **{"seed": 11, "train_iters": 4},
    }
    source, mixture = train_source(config_of(corpus, tmp_path, **keys))
    sizes = source.samples_per_epoch.tolist()
    described = mixture.describe()
    caps = described["constraints"].pop()
    assert described == {
        **{"domains": list(DOMAINS), "method": "smoothed_mean"},
        **{"options": {"smoothing_factor": 0.25, "share": "linear"}},
        **{"initial_weights": [1.0, 2.0, 5.0], "warmup_steps": 3, "update_frequency": 2},
        "constraints": [
            {"name": "floor", "minimum": [0.1, 0.1, 0.1]},
            {"name": "ceiling", "maximum": [1.0, 1.0, 0.5]},
        ],
        **{"seed": 11, "stratified": True},
    }
    assert (caps["name"], caps["total_samples"]) == ("epoch_cap", 32)  # 4 steps of 8
    assert caps["domain_sizes"] == sizes
    assert caps["max_epochs"] == pytest.approx([32 / sizes[0], 3.0, 32 / sizes[2]])


@pytest.mark.parametrize("masks", [False, True])
def test_micro_batches_are_the_plan_in_order_and_masked_as_asked(masks, corpus, tmp_path):
    """Of 8 samples in micro-batches of 2."""
    config = config_of(corpus, tmp_path, eod_mask_loss=masks)
    alone, mixture = train_source(config)
    draw = mixture.draw(1, alone.global_batch_size, config.mixing.run_length)
    whole = list(alone.batches(draw))
    assert [batch.tokens.shape for batch in whole] == [(2, 16)] * 4
    domains = np.concatenate([batch.domain_ids for batch in whole])
    assert domains.tolist() == draw.domains.tolist()
    masked = [((batch.tokens != 48) | (not masks)).float() for batch in whole]
    assert all(bool((b.loss_mask == mask).all()) for b, mask in zip(whole, masked, strict=True))
    assert any(bool((mask == 0).any()) for mask in masked) == masks


def held_out(config: Any, split: Any) -> Any:
    source = build_evaluation_source(config, split, dp_rank=0, dp_size=1, tokenizer_info=TOKENIZER)
    assert source is not None
    return source


@pytest.mark.parametrize("masks", [False, True])
def test_held_out_text_is_masked_as_asked(masks, corpus, tmp_path):
    batch = next(held_out(config_of(corpus, tmp_path, eod_mask_loss=masks), "valid").batches(1))
    assert bool((batch.tokens == 48).any())
    assert bool((batch.loss_mask == ((batch.tokens != 48) | (not masks)).float()).all())


def test_each_split_has_its_own_limit(corpus, tmp_path):
    keys = {"max_validation_samples_per_dataset": 3, "max_test_samples_per_dataset": 2}
    config = config_of(corpus, tmp_path, **keys)
    assert held_out(config, "valid").num_samples == (3, 3, 3)
    assert held_out(config, "test").num_samples == (2, 2, 2)


def test_data_without_names_share_the_batches_of_an_evaluation(corpus, tmp_path):
    """8 samples by weights of 1, 2 and 0: 2.67 and 5.33, rounded up."""
    paths = {split: p if split == "valid" else p[:1] for split, p in corpus.items()}
    config = config_of(
        paths,
        tmp_path,
        **{"use_named_eval_datasets": False, "eval_iters": 1, "valid_data_weights": [1, 2, 0]},
        **{"use_named_train_datasets": False, "data_sampling_method": None},
        **{"mixed_minibatches": False, "data_sampling_smoothing_factor": None},
    )
    assert held_out(config, "valid").num_samples == (3, 6)


def test_a_batch_across_the_end_of_an_epoch_reads_what_each_position_does(corpus, tmp_path):
    source, _ = train_source(config_of(corpus, tmp_path))
    dataset = source._datasets[1]
    size = dataset.samples_per_epoch
    alone = [dataset.get_many(np.array([position]))[0] for position in range(3 * size + 1)]
    for first in range(3 * size):
        both = dataset.get_many(np.array([first + 1, first]))
        assert both.tolist() == [alone[first + 1].tolist(), alone[first].tolist()]
    texts = [sorted(map(tuple, alone[start : start + size])) for start in (0, size, 2 * size)]
    assert texts[0] == texts[1] == texts[2]
    assert not np.array_equal(alone[:size], alone[size : 2 * size])
