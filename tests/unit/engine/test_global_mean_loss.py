"""Masks that leave tokens out: loss and gradient are means over the tokens of the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron import training
from megatron.data.batch import Batch, make_batch
from megatron.engine import runners
from megatron.engine.domain_sums import DomainSums
from megatron.engine.runners import DataParallelRunner, StepResult
from megatron.model.gpt2_model import GPT2Model
from odm import MixtureController, MixtureSchedule
from tests.process_group import process_group_of_one
from tests.unit.model.shapes import small_model

EOD = 0
SEQUENCE = 8


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group_of_one():
        yield


class AccumulatingEngine:
    """What DeepSpeed does with a loss: divides it by the number of micro-batches."""

    skipped_steps = 0

    def __init__(self, module: GPT2Model, num_micro_batches: int) -> None:
        self.module = module
        self.num_micro_batches = num_micro_batches

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.num_micro_batches).backward()

    def step(self) -> None:
        pass

    def get_global_grad_norm(self) -> float:
        return 0.0


def model_of(*, z_loss: float = 0.0) -> GPT2Model:
    return GPT2Model(small_model(z_loss=z_loss), seed=5).double()


def batch_of(rows: torch.Tensor) -> Batch:
    return make_batch(rows.numpy(), [0] * len(rows), eod_token=EOD, eod_mask_loss=True)


def uneven_rows() -> torch.Tensor:
    """Four samples, of which 8, 7, 3 and 0 predictions count."""
    rows = torch.randint(1, 30, (4, SEQUENCE + 1), generator=torch.Generator().manual_seed(1))
    rows[1, 3] = EOD
    rows[2, :5] = EOD
    rows[3, :SEQUENCE] = EOD
    return rows


def gradients_of(model: GPT2Model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def runner_of(model: GPT2Model, num_micro_batches: int) -> DataParallelRunner:
    engine: Any = AccumulatingEngine(model, num_micro_batches)
    topology: Any = SimpleNamespace(is_last_stage=True, model_rank=0)
    return DataParallelRunner(engine, topology, None, num_domains=1, has_masks=True)


def train_step(rows: torch.Tensor, micro_batch_size: int, **options: float) -> Any:
    model = model_of(**options)
    batches = [batch_of(part) for part in rows.split(micro_batch_size)]
    return runner_of(model, len(batches)).train_step(batches), gradients_of(model)


def plain_step(rows: torch.Tensor, *, z_loss: float = 0.0) -> Any:
    """The mean over all tokens whose input is not the end of a document, from whole logits."""
    model = model_of()
    logits = model(rows[:, :-1]).flatten(0, 1)
    counts = (rows[:, :-1] != EOD).flatten()
    loss = cross_entropy(logits[counts], rows[:, 1:].flatten()[counts])
    penalty = logits[counts].logsumexp(dim=1).square().mean()
    (loss + z_loss * penalty).backward()
    return loss.item(), gradients_of(model)


def logged_loss(result: StepResult) -> float:
    mixture = MixtureController(["web"], "static", MixtureSchedule(1, 1))
    _, loss, _, _ = training.reduce_step(result, mixture)
    return loss


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_no_accumulation_changes_the_mean_over_all_tokens_nor_its_gradient(
    micro_batch_size, z_loss
):
    rows = uneven_rows()
    result, gradients = train_step(rows, micro_batch_size, z_loss=z_loss)
    expected_loss, expected = plain_step(rows, z_loss=z_loss)
    assert logged_loss(result) == pytest.approx(expected_loss, rel=1e-9)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # the mean number of tokens is a float32
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_the_gradients_of_two_ranks_average_to_that_of_the_mean_over_all_tokens(monkeypatch):
    rows = uneven_rows()  # the first rank has 15 tokens that count, the second one 3
    total = torch.tensor([18.0, 4.0], dtype=torch.float64)  # of four micro-batches
    monkeypatch.setattr(runners, "all_reduce_sum", lambda counts: total)
    of_ranks = [train_step(part, 1)[1] for part in rows.split(2)]
    for name, gradient in plain_step(rows)[1].items():
        mean = (of_ranks[0][name] + of_ranks[1][name]) / 2  # as DeepSpeed averages over ranks
        torch.testing.assert_close(mean, gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_ranks_share_tokens_and_micro_batches(monkeypatch):
    sent: list[list[float]] = []
    monkeypatch.setattr(
        runners, "all_reduce_sum", lambda counts: sent.append(counts.tolist()) or 3 * counts
    )
    train_step(uneven_rows(), 2)
    assert sent == [[18.0, 2.0]]


def test_a_batch_without_a_token_that_counts_has_loss_0_and_no_gradient():
    rows = torch.full((4, SEQUENCE + 1), EOD)
    result, gradients = train_step(rows, 2)
    assert logged_loss(result) == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("loss_sum", "tokens", "mean"), [(30.0, 12.0, 2.5), (7.0, 1.0, 7.0), (0.0, 0.0, 0.0)]
)
def test_the_logged_loss_is_the_sum_of_losses_by_the_number_of_tokens(loss_sum, tokens, mean):
    numbers = torch.tensor([loss_sum, 0, tokens, 1], dtype=torch.float64)
    sums = DomainSums(*numbers.split(1), total=numbers[::2])
    assert logged_loss(StepResult(sums, None, skipped=False)) == mean
