"""``train_epochs``: iterations counted from the data before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.engine.learning_rates import learning_rate_schedule
from megatron.neox_arguments import ConfigError, NeoXArgs, Purpose, RunConfig, resolve
from megatron.sizing.mixture import training_sizes
from tests.tiny import write_dataset, write_tiny_corpus

SMALL: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "seq_length": 8,
    "max_position_embeddings": 8,
    "train_micro_batch_size_per_gpu": 3,
    "tokenizer_type": "CharLevelTokenizer",
}

SIZES = {"a": 65, "b": 33}


def resolved(folder: Path, **changes: Any) -> RunConfig:
    """A run on domains of 65 and 33 tokens: 8 and 4 samples."""
    paths = [write_dataset(folder / name / "text", num_tokens=n) for name, n in SIZES.items()]
    values = {**SMALL, "train_data_paths": paths, "train_epochs": 1, **changes}
    return resolve(NeoXArgs.from_dict(values), world_size=1)


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(folder, **changes)
    (message,) = caught.value.messages
    return message


@pytest.mark.parametrize(
    ("epochs", "batch", "iterations"), [(1, 3, 4), (5, 3, 20), (1, 5, 2), (2, 5, 4), (1, 12, 1)]
)
def test_an_epoch_is_the_samples_of_all_domains(tmp_path, epochs, batch, iterations):
    config = resolved(tmp_path, train_epochs=epochs, train_micro_batch_size_per_gpu=batch)
    assert config.schedule.train_iters == iterations
    assert config.schedule.train_epochs == epochs
    assert any(f"{iterations} iteration" in note and "12 samples" in note for note in config.notes)


def test_schedules_have_the_counted_length(tmp_path):
    config = resolved(tmp_path, train_epochs=5, lr_decay_fraction=0.5, warmup=0.2, lr=1.0)
    assert (config.schedule.decay_iters, config.schedule.warmup_iters) == (10, 2.0)
    assert learning_rate_schedule(config)(6) == pytest.approx(0.5)


@pytest.mark.parametrize("split", [None, "60,20,20"])
def test_the_count_is_that_of_the_opened_data(tmp_path, split):
    paths = write_tiny_corpus(tmp_path)["train"]
    values = {**SMALL, "train_data_paths": paths, "train_epochs": 2, "split": split}
    config = resolve(NeoXArgs.from_dict({k: v for k, v in values.items() if v}), world_size=1)
    samples = sum(size.samples for size in training_sizes(config))
    assert config.schedule.train_iters == 2 * samples // 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [write_dataset(folder / name / "text", num_tokens=n) for name, n in SIZES.items()]


@settings(max_examples=20)
@given(epochs=st.integers(1, 50), batch=st.integers(1, 40))
def test_no_iteration_more_would_fit(paths, epochs, batch):
    changes = {"train_data_paths": paths, "train_micro_batch_size_per_gpu": batch}
    values = {**SMALL, "train_epochs": epochs, **changes}
    try:
        config = resolve(NeoXArgs.from_dict(values), world_size=1)
    except ConfigError:
        assert epochs * 12 < batch
        return
    iterations = config.schedule.train_iters
    assert iterations * batch <= epochs * 12 < (iterations + 1) * batch


def test_both_lengths_are_refused(tmp_path):
    message = refusal(tmp_path, train_iters=7)
    assert message.startswith("train_epochs is 1 and train_iters is 7")


def test_neither_length_is_refused(tmp_path):
    assert "train_epochs" in refusal(tmp_path, train_epochs=None)


def test_data_that_are_not_there_cannot_be_counted(tmp_path):
    paths = [str(tmp_path / "missing" / "text")]
    assert "text.idx: no such file" in refusal(tmp_path, train_data_paths=paths)
    assert "without training data" in refusal(tmp_path, train_data_paths=None)


def test_less_than_a_batch_is_refused(tmp_path):
    message = refusal(tmp_path, train_micro_batch_size_per_gpu=13)
    assert "12 samples in batches of 13 are no whole batch" in message


def test_data_without_a_whole_sample_are_named_as_the_reason(tmp_path):
    paths = [write_dataset(tmp_path / "short" / "text", num_tokens=8)]
    message = refusal(tmp_path, train_data_paths=paths)
    assert "no whole sample of seq_length 8" in message
    assert "lower seq_length" in message


@pytest.mark.parametrize("epochs", [0, -1])
def test_too_few_epochs_are_one_line(tmp_path, epochs):
    assert (
        refusal(tmp_path, train_epochs=epochs) == f"train_epochs must be at least 1, got {epochs}"
    )


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "all", 2**63 - 1])
def test_impossible_numbers_of_epochs_are_refused(tmp_path, epochs):
    with pytest.raises(ConfigError, match="train_epochs"):
        resolved(tmp_path, train_epochs=epochs)


def test_a_program_that_reads_a_model_needs_no_data(tmp_path):
    values = {**SMALL, "train_data_paths": [str(tmp_path / "gone")], "train_epochs": 3}
    config = resolve(NeoXArgs.from_dict(values), world_size=1, purpose=Purpose.READING)
    assert config.schedule.train_iters == 1
