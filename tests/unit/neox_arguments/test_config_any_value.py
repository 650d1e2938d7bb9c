"""Whatever stands in a configuration, the user gets a configuration or lines to read."""

import datetime
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.launcher.plan import plan_launch
from megatron.neox_arguments import ConfigError, NeoXArgs, Purpose, resolve
from megatron.neox_arguments.fields import field_table

MINIMAL = {
    **{"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4},
    **{"max_position_embeddings": 128, "train_iters": 100, "train_micro_batch_size_per_gpu": 4},
}
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.5, 10**7, 10**9, 10**30, 10**400),
    *(math.inf, -math.inf, math.nan, "", "x", "1e-8", "-1", "2", "1e400", "1" + "0" * 400),
    *("None", "\u00b2", "a\nb", b"x", datetime.date(2024, 1, 31)),
    *([], [1], ["a"], [None], [[1]], [[["flash"], 2]], [[["flash"], 10**9]], [{}]),
    *({}, {"a": 1}, {1: 2}, {"enabled": True}, {"enabled": "yes"}, {"enabled": None}),
    *({"stage": 1}, {"stage": "x"}, {"stage": 3, "reduce_bucket_size": "many"}),
    *({"offload_optimizer": True}, {"type": "Adam"}, {"type": 1, "params": 3}),
    {"type": "Adam", "params": {"lr": math.nan, "betas": 1}},
)
"""Right and wrong ones for every type of field, and what YAML makes of slips of the pen."""

DOMAINS = ["d/a/text", "d/b/text"]
EVERYTHING = {
    **MINIMAL,
    **{"fp16": {"enabled": True}, "pos_emb": "rotary", "activation": "swiglu"},
    **{f"{name}_data_paths": DOMAINS for name in ("train", "valid", "test")},
    **{"data_sampling_method": "smoothed_mean", "use_named_eval_datasets": True},
    **{"pipe_parallel_size": 2, "world_size": 2, "save": "run", "checkpoint_factor": 5},
}
"""A configuration under which most fields are read."""


def outcome(values):
    """Starts as `deepy.py` does; returns the messages of a refusal."""
    try:
        args = NeoXArgs.from_dict(values)
        plan_launch(args, {}, num_devices=0)
        resolve(args).to_dict()
    except ConfigError as error:
        return error.messages or ("",)
    return ()


def outcome_of_reading(values):
    """The same for a program that reads a model, which goes on where a training is refused."""
    try:
        resolve(NeoXArgs.from_dict(values), purpose=Purpose.READING).to_dict()
    except ConfigError as error:
        return error.messages
    return ()


@pytest.mark.parametrize("section", sorted({field.section for field in field_table().values()}))
def test_any_value_of_any_key_is_taken_or_refused_in_short_lines(section):
    for name in [field.name for field in field_table().values() if field.section == section]:
        for value in VALUES:
            messages = outcome({**EVERYTHING, name: value})
            if messages:
                messages += outcome_of_reading({**EVERYTHING, name: value})
            for message in messages:
                assert "\n" not in message, (name, value)
                assert 0 < len(message) < 1000, (name, value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(field_table())), PLAIN, max_size=4))
def test_any_values_of_several_keys_are_taken_or_refused(values):
    outcome({**MINIMAL, **values})
