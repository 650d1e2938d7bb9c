"""Inference with cached keys and values gives what a pass over the whole sequence gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model.gpt2_model import GPT2Model
from megatron.model.key_value_cache import KeyValueCache
from megatron.neox_arguments.sections.model import RopeScaling
from tests.unit.model.shapes import small_model

VARIANTS: dict[str, dict[str, Any]] = {
    "rotary, half": {"rotary_dim": 4},
    "rotary, two features": {"rotary_dim": 2},
    "rotary, whole heads": {"rotary_dim": 8},
    "learned": {"pos_emb": "learned", "rotary_dim": 0},
    "sinusoidal": {"pos_emb": "sinusoidal", "rotary_dim": 0},
    "none": {"pos_emb": "none", "rotary_dim": 0},
    "grouped keys": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "parallel residual": {"gpt_j_residual": True},
    "qwen3-like": {
        **{"norm": "rmsnorm", "num_kv_heads": 2, "qk_norm": "head", "rotary_dim": 12},
        **{"head_dim": 12, "use_bias_in_attn_output": False},
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16
        ),
    },
    "positions from 2, gpt-neox's norm of queries and keys": {
        **{"pos_emb": "learned", "rotary_dim": 0, "opt_pos_emb_offset": 2, "qk_norm": "neox"},
    },
    "llama-like": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "is_gated_mlp": True,
        "num_kv_heads": 2,
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
        "no_weight_tying": False,
    },
}
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def build(**changes: Any) -> GPT2Model:
    """Weights large enough that a token looks far back, and logits of about one."""
    settings = {"init_method_std": 0.15, "output_layer_init_method": "normal", **changes}
    return GPT2Model(small_model(**settings), seed=1).eval()


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
class TestEveryVariant:
    @pytest.mark.parametrize("pieces", [[12], [5, 1, 1, 1, 1, 1, 1, 1], [4, 3, 5], [1] * 12])
    def test_pieces_give_the_logits_of_the_whole_sequence(self, changes, pieces):
        model, tokens = build(**changes), random_tokens(2, 12)
        whole = model(tokens)
        assert whole.std() > 0.1
        caches = model.make_caches(2, 12)
        parts = [model(piece, caches=caches) for piece in tokens.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TOLERANCE)
        assert [cache.length for cache in caches] == [12, 12]

    def test_rows_padded_on_the_left_give_the_logits_of_each_row_alone(self, changes):
        model, lengths, total = build(**changes), [3, 9, 1], 9
        tokens = random_tokens(3, total)
        more = random_tokens(3, 4, seed=1)
        pad = torch.tensor([total - length for length in lengths]).unsqueeze(1)
        keys = torch.arange(total + 4)
        is_real = (keys >= pad)[:, None, None, :]  # (b, 1, 1, t)
        causal = (keys <= keys[:total].unsqueeze(1))[None, None]
        positions = (keys - pad).clamp_min(0)
        caches = model.make_caches(3, total + 4)
        got = [
            model(
                tokens,
                caches=caches,
                positions=positions[:, :total],
                attention_mask=(is_real & causal)[..., :total],
            )
        ]
        for new in range(4):
            end = total + new + 1
            got.append(
                model(
                    more[:, new : new + 1],
                    caches=caches,
                    positions=positions[:, end - 1 : end],
                    attention_mask=is_real[..., :end],
                )
            )
        logits = torch.cat(got, dim=1)
        assert logits.isfinite().all()
        for row, length in enumerate(lengths):
            alone = model(torch.cat((tokens[row, -length:], more[row])).unsqueeze(0))[0]
            torch.testing.assert_close(logits[row, total - length :], alone, **TOLERANCE)

    def test_endings_packed_behind_one_context_give_the_logits_of_each_text(self, changes):
        model, lengths = build(**changes), [3, 1, 4]
        context, endings = random_tokens(1, 6), random_tokens(1, sum(lengths), seed=1)
        owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
        place = torch.cat([torch.arange(length) for length in lengths])
        own = (owner.unsqueeze(1) == owner) & (place.unsqueeze(1) >= place)
        mask = torch.cat((torch.ones(len(owner), 6, dtype=torch.bool), own), dim=1)
        caches = model.make_caches(1, 6 + len(owner))
        model(context, caches=caches)
        got = model(
            endings,
            caches=caches,
            positions=6 + place.unsqueeze(0),
            attention_mask=mask[None, None],
        )
        for number in range(3):
            ending = endings[:, owner == number]
            want = model(torch.cat((context, ending), dim=1))[:, 6:]
            torch.testing.assert_close(got[:, owner == number], want, **TOLERANCE)

    def test_positions_and_mask_need_no_cache(self, changes):
        model, tokens = build(**changes), random_tokens(2, 7)
        mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
        got = model(tokens, positions=torch.arange(7).expand(2, 7), attention_mask=mask)
        torch.testing.assert_close(got, model(tokens), **TOLERANCE)


@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "sinusoidal"])
def test_a_position_is_more_than_an_order(pos_emb):
    model, tokens = build(pos_emb=pos_emb), random_tokens(1, 6)
    apart = torch.tensor([[0, 1, 2, 9, 10, 11]])
    assert not torch.allclose(model(tokens, positions=apart), model(tokens), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_use_exact_angles(dtype):
    model, tokens = build(rotary_dim=8).to(dtype), random_tokens(2, 12)
    caches = model.make_caches(2, 12)
    parts = [model(piece, caches=caches) for piece in tokens.split([5, 1, 6], dim=1)]
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-12
    got, want = torch.cat(parts, dim=1), model(tokens)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def test_a_query_that_may_attend_nowhere_is_finite():
    model, tokens = build(), random_tokens(1, 4)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None].clone()
    mask[..., 0, :] = False
    assert model(tokens, attention_mask=mask).isfinite().all()


def test_last_logits_are_those_of_the_last_position():
    model, tokens = build(), random_tokens(2, 5)
    torch.testing.assert_close(model(tokens, last_logits_only=True), model(tokens)[:, -1:])


def test_hidden_states_are_what_the_logits_are_made_of():
    model, tokens = build(), random_tokens(2, 5)
    hidden = model.hidden_states(tokens, caches=model.make_caches(2, 5))
    assert hidden.shape == (2, 5, 32)
    weight = model.get_parameter("6.final_linear.weight")[:61]
    torch.testing.assert_close(hidden @ weight.t(), model(tokens), **TOLERANCE)


def numbered(batch: int, length: int, first: int = 0) -> torch.Tensor:
    """Keys (b, 1, s, 1) that tell their row and position: 100 row + position."""
    places = torch.arange(first, first + length) + 100 * torch.arange(batch).unsqueeze(1)
    return places.float()[:, None, :, None]


def make_cache(capacity: int = 5) -> KeyValueCache:
    return KeyValueCache(2, 1, capacity, 1, dtype=torch.float32, device="cpu")


def test_what_is_appended_comes_back_in_order_without_a_copy():
    cache = make_cache()
    first, _ = cache.append(numbered(2, 3), -numbered(2, 3))
    keys, values = cache.append(numbered(2, 2, 3), -numbered(2, 2, 3))
    assert torch.equal(keys, numbered(2, 5))
    assert torch.equal(values, -numbered(2, 5))
    assert keys.data_ptr() == first.data_ptr()
    assert (cache.length, cache.capacity) == (5, 5)


def test_more_than_there_is_room_for_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="6 positions in a cache of 5"):
        make_cache().append(numbered(2, 6), numbered(2, 6))


def test_rows_are_taken_and_repeated():
    cache = make_cache()
    cache.append(numbered(2, 3), numbered(2, 3))
    chosen = cache.select(torch.tensor([1, 0, 1]))
    keys, _ = chosen.append(numbered(3, 1, 3), numbered(3, 1, 3))
    assert keys[:, 0, :, 0].tolist() == [[100, 101, 102, 3], [0, 1, 2, 103], [100, 101, 102, 203]]
    assert (chosen.length, cache.length) == (4, 3)


def test_after_a_rewind_new_positions_replace_those_forgotten():
    cache = make_cache()
    cache.append(numbered(2, 4), numbered(2, 4))
    cache.rewind(1)
    keys, _ = cache.append(numbered(2, 1, 50), numbered(2, 1, 50))
    assert keys[0, 0, :, 0].tolist() == [0, 50]
