"""``soft_prompt_tuning``: what it means, and what it does not work with."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, Purpose, resolve
from megatron.neox_arguments.sections.model import SoftPrompt

SMALL: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "seq_length": 8,
    "max_position_embeddings": 16,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 5,
    "load": "base",
}


def prompt(section: Any, **changes: Any) -> SoftPrompt | None:
    values = {**SMALL, "soft_prompt_tuning": section, **changes}
    return resolve(NeoXArgs.from_dict(values), world_size=2).model.soft_prompt


def refusal(section: Any, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        prompt(section, **changes)
    return caught.value.messages[0]


@pytest.mark.parametrize("section", [None, {}, {"enabled": False, "num_tokens": 4}])
def test_without_the_section_there_is_no_prompt(section):
    assert prompt(section) is None


@pytest.mark.parametrize("key", ["num_tokens", "n_tokens"])
def test_both_of_gpt_neox_names_give_the_length(key):
    section = {key: 4, "init_string": "ab", "init_range": 1}
    assert prompt(section) == SoftPrompt(num_tokens=4, init_string="ab", init_range=1.0)


def test_defaults_are_those_of_gpt_neox():
    expected = SoftPrompt(num_tokens=10, init_string="", init_range=0.5)
    assert prompt({"enabled": True}, seq_length=6) == expected


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"num_tokens": 0}, "num_tokens"),
        ({"num_tokens": 1.5}, "num_tokens"),
        ({"n_tokens": -1}, "n_tokens"),
        ({"num_tokens": 4, "init_range": -1}, "init_range"),
        ({"num_tokens": 4, "init_range": 1e300}, "init_range"),
        ({"num_tokens": 4, "init_string": 3}, "init_string"),
        ({"num_tokens": 4, "length": 3}, "length"),
        ({"num_tokens": 4, "n_tokens": 5}, "n_tokens"),
    ],
)
def test_wrong_values_are_refused_by_name(section, key):
    message = refusal({**section, "num_tokens": 4} if "n_tokens" in section else section)
    assert f"soft_prompt_tuning.{key}" in message


def test_the_prompt_needs_positions_beside_the_text():
    message = refusal({"num_tokens": 9})
    assert "9 vectors and 8 tokens" in message
    assert "seq_length to 7" in message
    assert "shorten the prompt" in refusal({"num_tokens": 99})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipe_parallel_size": 2}, "pipe_parallel_size 2"),
        ({"model_parallel_size": 2, "sequence_parallel": True}, "sequence_parallel"),
        ({"load": None}, "set load"),
        ({"load": ""}, "set load"),
        ({"pos_emb": "alibi"}, "pos_emb alibi"),
        ({"sliding_window_width": 2}, "sliding_window_width"),
        ({"attention_config": [[["local"], "all"]]}, "'local' layers"),
        ({"reset_attention_mask": True}, "reset_attention_mask"),
        ({"reset_position_ids": True}, "reset_position_ids"),
    ],
)
def test_what_does_not_work_with_a_prompt_is_refused_by_name(changes, words):
    message = refusal({"num_tokens": 4}, **changes)
    assert message.startswith("soft_prompt_tuning")
    assert words in message


def test_a_program_that_reads_a_model_has_the_prompt_on_any_layout():
    values = {**SMALL, "soft_prompt_tuning": {"num_tokens": 4}, "pipe_parallel_size": 2}
    config = resolve(NeoXArgs.from_dict(values), world_size=2, purpose=Purpose.READING)
    assert config.model.soft_prompt is not None
    assert config.model.longest_text == 12
