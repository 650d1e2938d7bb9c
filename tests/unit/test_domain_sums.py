"""Sums of losses per domain: what is recorded, and what ranks add up."""

from __future__ import annotations

import math

import torch

from megatron.engine.domain_sums import DomainLossRecorder


class TestDomainLossRecorder:
    def test_planted_losses_are_booked_to_their_domain(self):
        recorder = DomainLossRecorder(3, torch.device("cpu"))
        nll = torch.tensor([[1.0, 3.0], [10.0, 20.0], [5.0, 7.0]])
        mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        recorder.record(nll, mask, torch.tensor([2, 0, 2]))
        sums = recorder.drain()
        assert sums[:3].tolist() == [10.0, 0.0, 16.0]
        assert sums[3:6].tolist() == [100.0, 0.0, 1.0 + 9.0 + 25.0 + 49.0]
        assert sums[6:9].tolist() == [1.0, 0.0, 4.0]
        assert sums[9:12].tolist() == [1.0, 0.0, 2.0]
        assert sums[12:].tolist() == [26.0, 5.0]

    def test_micro_batches_add_up_and_draining_starts_anew(self):
        recorder = DomainLossRecorder(1, torch.device("cpu"))
        for value in (2.0, 4.0):
            recorder.record(torch.full((1, 2), value), torch.ones(1, 2), torch.tensor([0]))
        assert recorder.drain().tolist() == [12.0, 40.0, 4.0, 2.0, 12.0, 4.0]
        assert not recorder.drain().any()

    def test_a_padding_row_counts_neither_as_tokens_nor_as_a_sample(self):
        recorder = DomainLossRecorder(1, torch.device("cpu"))
        recorder.record(torch.full((1, 2), math.e), torch.zeros(1, 2), torch.tensor([0]))
        assert not recorder.drain().any()
