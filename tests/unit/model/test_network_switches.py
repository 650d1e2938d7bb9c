"""Switches of the network: each does what its formula says, and is visible in the logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron.model.gpt2_model import GPT2Model
from megatron.model.key_value_cache import KeyValueCache
from megatron.neox_arguments.sections.model import RopeScaling
from tests.unit.model.shapes import small_model
from tests.unit.oracles import plain_network
from tests.unit.oracles.plain_network import Network

PAIRS = [10000 ** (-i / 2) for i in range(2)]
"""Frequencies of the two pairs that four rotated dimensions have."""
LEARNED = {"pos_emb": "learned", "rotary_dim": 0}

SWITCHES: dict[str, tuple[dict[str, Any], Network]] = {
    "head size": ({"head_dim": 12}, Network(head_dim=12, rotary_dim=4)),
    "no output bias": ({"use_bias_in_attn_output": False}, Network(rotary_dim=4)),
    "output bias alone": (
        {"use_bias_in_attn_linear": False, "use_bias_in_attn_output": True},
        Network(rotary_dim=4),
    ),
    "non-parametric norm": (
        {"norm": "non_parametric_layernorm"},
        Network(rotary_dim=4, norm="non_parametric_layernorm"),
    ),
    **{
        f"head norm, {norm}": (
            {"qk_norm": "head", "norm": norm, "num_kv_heads": 2},
            Network(rotary_dim=4, qk_norm="head", norm=norm, kv_heads=2),
        )
        for norm in ("layernorm", "rmsnorm", "scalenorm", "non_parametric_layernorm")
    },
    **{
        f"gpt-neox's norm, {norm}": (
            {"qk_norm": "neox", "norm": norm},
            Network(rotary_dim=4, qk_norm="neox", norm=norm),
        )
        for norm in ("layernorm", "rmsnorm", "non_parametric_layernorm")
    },
    "learned positions from 2": (
        {**LEARNED, "opt_pos_emb_offset": 2},
        Network(positions="learned", first_position=2),
    ),
    "sinusoids from 2": (
        {**LEARNED, "pos_emb": "sinusoidal", "opt_pos_emb_offset": 2},
        Network(positions="sinusoidal", first_position=2),
    ),
    "linear scaling": (
        {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
        Network(rotary_dim=4, frequencies=(PAIRS[0] / 4, PAIRS[1] / 4)),
    ),
    "dynamic scaling beyond 8": (
        {
            "rope_scaling": RopeScaling(rope_type="dynamic", factor=4.0),
            "max_position_embeddings": 8,
        },
        # 12 tokens: the base grows by 4 * 12 / 8 - 3 = 3 to the power of 4 / (4 - 2)
        Network(rotary_dim=4, frequencies=(1.0, (10000 * 3**2) ** (-1 / 2))),
    ),
    "llama 3 scaling": (
        {
            "rope_scaling": RopeScaling(
                rope_type="llama3",
                factor=4.0,
                original_max_position_embeddings=16,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            )
        },
        # pair 0 turns 16 / 2 pi times in 16 positions, which is between 1 and 4; pair 1 below 1
        Network(
            rotary_dim=4,
            frequencies=(
                (1 - (16 / (2 * math.pi) - 1) / 3) / 4 + (16 / (2 * math.pi) - 1) / 3,
                PAIRS[1] / 4,
            ),
        ),
    ),
    "yarn": (
        {
            "rope_scaling": RopeScaling(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=16
            )
        },
        # 32 turns are before pair 0; 1 turn is at 2 ln(16 / 2 pi) / ln 10000 = 0.2, rounded up to 1
        Network(rotary_dim=4, frequencies=(1.0, PAIRS[1] / 4), rotary_scale=0.1 * math.log(4) + 1),
    ),
}


def far_from_its_start(config: Any) -> GPT2Model:
    """float64, with random numbers in every parameter: no norm is 1 and no bias 0."""
    model = GPT2Model(config, seed=1).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.4, generator=generator)
    return model


def random_tokens() -> torch.Tensor:
    return torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_computes_what_its_formula_says(switch):
    changes, net = SWITCHES[switch]
    model = far_from_its_start(small_model(norm_epsilon=1e-5, **changes))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        got, want = model(random_tokens()), plain_network.logits(weights, net, random_tokens())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
def test_without_the_switch_the_logits_are_others(switch):
    changes, _ = SWITCHES[switch]
    names = ("head_dim", "use_bias_in_attn_output", "qk_norm", "opt_pos_emb_offset", "rope_scaling")
    off = {key: value for key, value in changes.items() if key not in names}
    if "non_parametric" in changes.get("norm", "") and "qk_norm" not in changes:
        del off["norm"]
    with torch.no_grad():
        on, plain = (
            far_from_its_start(small_model(**settings))(random_tokens())
            for settings in (changes, off)
        )
    assert (on - plain).abs().max() > 1e-3


def test_dynamic_scaling_changes_nothing_up_to_the_limit():
    scaled = small_model(rope_scaling=RopeScaling(rope_type="dynamic", factor=4.0))
    results = []
    with torch.no_grad():
        for config in (scaled, small_model()):
            model = far_from_its_start(config)
            caches = model.make_caches(2, 36)
            # several texts after each other in a row: it has more slots than there are positions
            positions = torch.arange(12, 24).expand(2, 12)
            for end in (12, 24, 36):
                mask = torch.ones(12, end, dtype=torch.bool)
                context = {"positions": positions, "attention_mask": mask}
                results.append(model(random_tokens(), caches=caches, **context))
            results.append(model(random_tokens()))
    for got, want in zip(results[:4], results[4:], strict=True):
        assert torch.equal(got, want)


def test_each_new_token_beyond_the_limit_gets_the_angles_of_its_length():
    """As transformers does: keys in the cache stay as they were rotated."""
    dynamic = RopeScaling(rope_type="dynamic", factor=4.0)
    model = far_from_its_start(small_model(rope_scaling=dynamic, max_position_embeddings=8))
    table = model._rotary
    assert table is not None
    like = torch.zeros((), dtype=torch.float64)
    for length, grown in ((8, 1), (12, 3), (10, 2), (4, 1), (24, 9)):
        cos, _ = table.get(length, like=like)
        slow = (10000 * grown**2) ** (-1 / 2)
        assert cos.shape == (length, 4)
        assert cos[-1, 1].item() == pytest.approx(math.cos((length - 1) * slow), rel=1e-7)


def test_keys_of_a_wide_head_fill_the_caches():
    model = GPT2Model(small_model(head_dim=12, num_kv_heads=2), seed=1)
    (cache, _) = model.make_caches(3, 5)
    assert isinstance(cache, KeyValueCache)
    assert cache._keys.shape == (3, 2, 5, 12)
