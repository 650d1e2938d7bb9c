import math

import pytest
import torch

from megatron.model.relative_bias import LearnedBias, alibi_slopes, buckets, make_relative_bias
from megatron.mpu.tensor_parallel import TensorParallel
from tests.parts import allocated
from tests.unit.model.shapes import small_model


def test_slopes_of_eight_heads_are_those_of_the_paper():
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]


def test_slopes_of_twelve_heads_continue_with_every_other_slope_of_sixteen():
    ratio = 2**-0.5
    expected = [*(2.0**-k for k in range(1, 9)), *(ratio**k for k in (1, 3, 5, 7))]
    assert alibi_slopes(12) == pytest.approx(expected)


def test_slopes_of_three_heads():
    assert alibi_slopes(3) == pytest.approx([2.0**-4, 2.0**-8, 2.0**-2])
    assert alibi_slopes(1) == [2.0**-8]


@pytest.mark.parametrize("kind", ["alibi", "rpe"])
def test_each_tensor_rank_has_the_biases_of_its_heads(kind):
    config = small_model(pos_emb=kind, num_attention_heads=6, head_dim=4, rotary_dim=0)
    distances = torch.arange(5)[None]
    whole = make_relative_bias(config)
    if isinstance(whole, LearnedBias):
        torch.nn.init.normal_(allocated(whole).weight)
    want = whole.reader(5, torch.device("cpu"))(distances)
    for rank in range(3):
        part = make_relative_bias(config, TensorParallel(size=3, rank=rank))
        if isinstance(part, LearnedBias):
            allocated(part).weight.data.copy_(whole.weight[:, 2 * rank : 2 * rank + 2])
        got = part.reader(5, torch.device("cpu"))(distances)
        assert torch.equal(got, want[2 * rank : 2 * rank + 2])


def test_buckets_are_exact_and_then_logarithmic():
    # T5's: 16 buckets of one distance, 16 up to 128, by hand at some distances
    found = buckets(torch.arange(1000), 32, 128)
    assert found[:16].tolist() == list(range(16))
    for distance in (16, 17, 20, 33, 60, 100, 127, 128, 999):
        grown = 16 + math.floor(math.log(distance / 16) / math.log(128 / 16) * 16 + 1e-6)
        assert found[distance] == min(grown, 31), distance


def test_a_learned_bias_is_scaled_by_the_root_of_the_head_size():
    config = small_model(pos_emb="rpe", rotary_dim=0, rpe_num_buckets=4, rpe_max_distance=8)
    bias = allocated(LearnedBias(config))
    torch.nn.init.normal_(bias.weight)
    values = bias(12, torch.device("cpu"))
    assert torch.equal(values[0], bias.weight[0] * math.sqrt(8))
    assert torch.equal(values[11], bias.weight[3] * math.sqrt(8))
    assert bias(100, torch.device("cpu")).shape == (100, 4)  # more than the model's positions
