import pytest
import torch

from megatron.data.errors import DataError
from megatron.data.samplers import DistributedBatchSampler


def batches_of_ranks(num_samples, batch_size, drop_last, world_size=2, **options):
    return [
        list(
            DistributedBatchSampler(
                range(num_samples), batch_size, drop_last, rank, world_size, **options
            )
        )
        for rank in range(world_size)
    ]


def test_ranks_get_contiguous_slices_of_each_global_batch():
    assert batches_of_ranks(9, 4, True) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_a_last_batch_is_shared_out_or_filled_with_the_first_indexes():
    assert [batches[-1] for batches in batches_of_ranks(7, 4, False)] == [[4], [5, 6]]
    filled = batches_of_ranks(7, 4, False, wrap_last=True)
    assert [batches[-1] for batches in filled] == [[4, 5], [6, 0]]


def test_its_length_is_the_number_of_batches():
    for drop_last, expected in ((True, 1), (False, 2)):
        sampler = DistributedBatchSampler(range(7), 4, drop_last, 0, 2)
        assert len(sampler) == len(list(sampler)) == expected


class NoIteration(torch.utils.data.SequentialSampler):
    def __iter__(self):
        raise AssertionError("walked over what was consumed")


def test_skipping_does_not_walk_over_what_was_consumed():
    sampler = DistributedBatchSampler(NoIteration(range(10**12)), 10, True, 1, 2)
    sampler.start_iter = 10**11 - 1
    assert next(iter(sampler)) == [10**12 - 5, 10**12 - 4, 10**12 - 3, 10**12 - 2, 10**12 - 1]
    assert sampler.start_iter == 0


def test_any_iterable_can_be_sampled():
    sampler = DistributedBatchSampler({5: None, 7: None, 9: None}, 1, True, 0, 1)
    sampler.start_iter = 1
    assert list(sampler) == [[7], [9]]


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(DataError, match="a batch of 5 is not divisible by 2 ranks"):
        DistributedBatchSampler(range(9), 5, True, 0, 2)
    with pytest.raises(DataError, match="rank 2 is not one of 2 ranks"):
        DistributedBatchSampler(range(9), 4, True, 2, 2)
