"""Sums of losses per domain: what is recorded, and what ranks add up."""

from __future__ import annotations

import math

import torch

from megatron.engine import domain_sums
from megatron.engine.domain_sums import DomainLossRecorder, DomainSums, HeldOutSums

CPU = torch.device("cpu")


def planted_sums() -> DomainSums[torch.Tensor]:
    """Three samples of two tokens, of which one is masked, in the last and the first domain."""
    recorder = DomainLossRecorder(3, CPU)
    nll = torch.tensor([[1.0, 3.0], [10.0, 20.0], [5.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    recorder.record(nll, mask, torch.tensor([2, 0, 2]))
    return recorder.sums()


def test_planted_losses_are_booked_to_their_domain():
    sums = planted_sums()
    assert sums.loss_sum.tolist() == [10.0, 0.0, 16.0]
    assert sums.loss_sq_sum.tolist() == [100.0, 0.0, 1.0 + 9.0 + 25.0 + 49.0]
    assert sums.token_count.tolist() == [1.0, 0.0, 4.0]
    assert sums.sample_count.tolist() == [1.0, 0.0, 2.0]
    assert sums.total.tolist() == [26.0, 5.0]
    assert {field.dtype for field in vars(sums).values()} == {torch.float64}


def test_micro_batches_add_up():
    recorder = DomainLossRecorder(1, CPU)
    for value in (2.0, 4.0):
        recorder.record(torch.full((1, 2), value), torch.ones(1, 2), torch.tensor([0]))
    sums = recorder.sums()
    assert (sums.loss_sum, sums.loss_sq_sum, sums.token_count, sums.sample_count) == (12, 40, 4, 2)
    assert sums.total.tolist() == [12.0, 4.0]


def test_a_padding_row_counts_neither_as_tokens_nor_as_a_sample():
    recorder = DomainLossRecorder(1, CPU)
    recorder.record(torch.full((1, 2), math.e), torch.zeros(1, 2), torch.tensor([0]))
    assert not any(field.any() for field in vars(recorder.sums()).values())


def test_a_rank_that_records_nothing_sends_zeros():
    recorder = DomainLossRecorder(2, CPU)
    sums, held_out = vars(recorder.sums()).values(), recorder.held_out_sums()
    assert [len(field) for field in sums] == [2] * 5
    assert [tuple(field.shape) for field in held_out] == [(2,)] * 5
    assert not any(field.any() for field in (*sums, *held_out))


def test_held_out_sums_are_over_samples():
    recorder = DomainLossRecorder(2, CPU)
    nll = torch.tensor([[1.0, 3.0], [2.0, 6.0], [5.0, 7.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    recorder.record(nll, mask, torch.tensor([1, 1, 0]))
    assert [field.tolist() for field in recorder.held_out_sums()] == [
        [12.0, 6.0],
        [2.0, 3.0],
        [144.0, 4.0 * 4.0 + 2.0 * 2.0],
        [24.0, 4.0 * 2.0 + 2.0],
        [4.0, 2.0 * 2.0 + 1.0],
    ]


def test_every_field_and_the_own_numbers_travel_in_one_all_reduce(monkeypatch):
    sent: list[torch.Tensor] = []

    def of_three_alike(packed: torch.Tensor) -> torch.Tensor:
        sent.append(packed)
        return 3.0 * packed

    monkeypatch.setattr(domain_sums, "all_reduce_sum", of_three_alike)
    mine = planted_sums()
    reduced, own = mine.all_reduce(True, 2**32 - 1)
    assert len(sent) == 1
    assert own.tolist() == [3.0, 3.0 * (2**32 - 1)]
    for name, one in vars(mine).items():
        assert getattr(reduced, name).tolist() == (3.0 * one).tolist(), name
    signal = reduced.signal()
    assert signal.loss_sum.tolist() == [30.0, 0.0, 48.0]
    assert signal.sample_count.tolist() == [3.0, 0.0, 6.0]
    assert reduced.mean_loss() == 26.0 / 5.0

    held_out = HeldOutSums(*torch.arange(10.0).view(5, 2))
    assert [field.tolist() for field in held_out.all_reduce()][:2] == [[0.0, 3.0], [6.0, 9.0]]
    assert len(sent) == 2
