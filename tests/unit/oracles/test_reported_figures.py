"""Figures of the log and of evaluations, each worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron import training
from megatron.data.batch import Batch
from megatron.engine.domain_sums import DomainLossRecorder
from megatron.engine.runners import InferenceRunner, count_parameters
from megatron.engine.state import TrainState
from megatron.evaluation.losses import averages, evaluate_domains
from megatron.hooks.logging import LoggingHook
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import RankGrid, Topology
from megatron.training import train
from odm import MixtureController, MixtureSchedule
from tests.process_group import engine_of_one
from tests.unit.model.shapes import small_model
from tests.unit.oracles.plain_network import Network, losses
from tests.unit.oracles.training_runs import configuration, make_runner
from tests.unit.reporting.test_run_logger import make_logger, make_record
from tests.unit.test_training_loop import EvaluatingRunner, EvaluationSource, Runner, Source


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with engine_of_one(configuration()):
        yield


# the log of a training


class Clock:
    """Time that passes while a step runs, and at no other moment."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(Runner):
    """Steps of 2, 1, 4, 2, 8 and 6 seconds; the fourth is skipped."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(step=4, skipped=True)
        self.clock = clock

    def train_step(self, draw: Any) -> Any:
        self.clock.now += {1: 2.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 8.0, 6: 6.0}[draw.step]
        return super().train_step(draw)


@pytest.fixture
def records(monkeypatch) -> list[Any]:
    """Records of six steps of 8 samples of 4 tokens, every second one."""
    clock, found = Clock(), []
    monkeypatch.setattr(training.time, "perf_counter", clock)
    mixture = MixtureController(("web", "code"), "static", MixtureSchedule(1, 2))
    source: Any = Source()
    logger: Any = SimpleNamespace(train=found.append)
    runner: Any = TimedRunner(clock)
    train(
        runner,
        source,
        mixture,
        [LoggingHook(logger, source, mixture, interval=2)],
        TrainState(),
        last_step=6,
        learning_rate_of=lambda applied: 0.1 * applied,
    )
    return found


def column(records: list[Any], name: str) -> list[Any]:
    return [getattr(record, name) for record in records]


def test_times_and_rates_are_means_since_the_last_record(records):
    assert column(records, "iteration") == [2, 4, 6]
    assert column(records, "seconds") == [1.5, 3.0, 7.0]
    assert column(records, "samples_per_second") == pytest.approx([8 / 1.5, 8 / 3, 8 / 7])
    assert column(records, "tokens_per_second") == pytest.approx([32 / 1.5, 32 / 3, 32 / 7])


def test_counts_are_those_since_the_start(records):
    assert column(records, "consumed_samples") == [16, 32, 48]
    assert column(records, "consumed_tokens") == [64, 128, 192]
    assert column(records, "skipped_iterations") == [0, 1, 1]
    assert column(records, "nan_iterations") == [0, 0, 0]
    # of the steps applied before the iteration: 1, 3 and 4
    assert column(records, "learning_rate") == pytest.approx([0.1, 0.3, 0.4])


def test_epochs_are_samples_drawn_over_samples_of_the_domain(records):
    schedule, drawn = MixtureSchedule(1, 2), np.zeros(2)
    for step in range(1, 7):
        drawn = drawn + schedule.draw(step, [0.5, 0.5], 8).counts(2)
        if step % 2 == 0:
            record = records[step // 2 - 1]
            assert list(record.epochs.values()) == pytest.approx((drawn / 100).tolist())
            assert list(record.iterations.values()) == pytest.approx((drawn / 8).tolist())
    assert drawn.sum() == 48


def test_weights_of_a_record_are_those_that_drew_its_iteration():
    mixture = MixtureController(("web", "code"), "smoothed_mean", MixtureSchedule(1, 2))
    found: list[Any] = []
    source: Any = Source()
    logger: Any = SimpleNamespace(train=found.append, update=lambda step, fields: None)
    used = {step: None for step in (1, 2, 3)}

    class WatchedRunner(Runner):
        def train_step(self, draw: Any) -> Any:
            used[draw.step] = mixture.weights.tolist()
            return super().train_step(draw)

    runner: Any = WatchedRunner(step=2, loss=3.0)
    train(
        runner,
        source,
        mixture,
        [LoggingHook(logger, source, mixture, interval=1)],
        TrainState(),
        last_step=3,
        learning_rate_of=lambda applied: 0.1,
    )
    assert [list(record.weights.values()) for record in found] == list(used.values())
    assert used[2] != used[3]


# held-out data


class TwoDomains(EvaluationSource):
    """Domains of 1 and 3 samples, of 2 and 4 bytes a token."""

    num_samples = (1, 3)
    text_bytes_per_token = (2.0, 4.0)


class SummedRunner(EvaluatingRunner):
    """A sample of 12 nats over 4 tokens; and three of 2, 4 and 6 nats over 4 tokens each."""

    def evaluate(self, batches: Any, recorder: DomainLossRecorder) -> None:
        super().evaluate(batches, recorder)
        nll = torch.tensor([12.0, 2.0, 4.0, 6.0])[:, None].expand(4, 4) / 4
        recorder.record(nll, torch.ones(4, 4), torch.tensor([0, 1, 1, 1]))


def test_held_out_figures_of_two_domains():
    runner: Any = SummedRunner()
    source: Any = TwoDomains()
    results = evaluate_domains(runner, source)
    first, second = results.values()
    assert (first.loss, second.loss) == (3.0, 1.0)
    assert first.standard_error is None  # one sample tells of no spread
    assert second.standard_error == pytest.approx(0.2886751346)  # sqrt(3/2 * (1 + 0 + 1) * 4) / 12
    assert first.perplexity == pytest.approx(20.0855369232)  # e^3
    assert second.perplexity == pytest.approx(2.7182818285)
    assert first.bits_per_byte == pytest.approx(2.1640425613)  # 3 / ln 2 / 2
    assert second.bits_per_byte == pytest.approx(0.3606737602)
    expected = {
        "avg_lm_loss": 2.0,
        "avg_ppl": 11.4019093758,  # (e^3 + e) / 2
        "ppl_of_avg_lm_loss": 7.3890560989,  # e^2
        "weighted_avg_lm_loss": 1.5,  # (1 * 3 + 3 * 1) / 4
        "weighted_avg_ppl": 7.0600956022,  # (e^3 + 3 e) / 4
        "worst_lm_loss": 3.0,
        "avg_bits_per_byte": 1.2623581607,
    }
    summary = averages(results)
    assert {name: summary[name] for name in expected} == pytest.approx(expected)


def test_a_domain_whose_bytes_are_not_known_leaves_no_average_of_bits():
    class OneUnknown(TwoDomains):
        text_bytes_per_token = (2.0, None)

    runner: Any = SummedRunner()
    source: Any = OneUnknown()
    results = evaluate_domains(runner, source)
    assert [result.bits_per_byte is None for result in results.values()] == [False, True]
    assert "avg_bits_per_byte" not in averages(results)


def masked_batches() -> list[Batch]:
    """Two micro-batches whose masks leave 12, 1 and 5, 0 tokens of their rows."""
    generator, batches = np.random.default_rng(4), []
    for counts, domains in (((12, 1), (0, 1)), ((5, 0), (1, 1))):
        text = torch.from_numpy(generator.integers(0, 61, (2, 13)))
        mask = (torch.arange(12) < torch.tensor(counts)[:, None]).float()
        labels = text[:, 1:].contiguous()
        batches.append(Batch(text[:, :-1].contiguous(), labels, mask, torch.tensor(domains)))
    return batches


def test_losses_by_domain_are_means_over_the_tokens_that_count():
    """Not means of micro-batches or rows: 1 token of the first batch stands beside 5."""
    model = GPT2Model(small_model(init_method_std=0.3), seed=4).double()
    net = Network(rotary_dim=4)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    total, count = np.zeros(2), np.zeros(2)
    for batch in masked_batches():
        _, nll = losses(weights, net, batch.tokens, batch.labels)
        for row, mask, domain in zip(nll, batch.loss_mask, batch.domain_ids, strict=True):
            total[domain] += (row * mask).sum().item()
            count[domain] += mask.sum().item()
    topology = Topology(RankGrid(1, 1, 1), 0, None, None, None)
    recorder = DomainLossRecorder(2, torch.device("cpu"))
    InferenceRunner(model, topology).evaluate(masked_batches(), recorder)
    sums = recorder.held_out_sums()
    assert sums.loss.tolist() == pytest.approx(total.tolist(), rel=1e-6)
    assert sums.tokens.tolist() == count.tolist() == [12.0, 6.0]
    squares = sums.token_squares.tolist()
    assert squares == [144.0, 26.0]  # of the tokens of a row: 12; 1, 5 and 0


# sizes


def test_parameters_are_counted_without_the_rows_that_pad_the_vocabulary(monkeypatch):
    # tables 2 * 61 * 32, two blocks of norms 128, fused 96 * 33, dense 32 * 33, mlp 128 * 33 and
    # 32 * 129, final norm 64
    blocks = 2 * (128 + 96 * 33 + 32 * 33 + 128 * 33 + 32 * 129)
    assert 2 * 61 * 32 + blocks + 64 == 29_376
    settings = {"pos_emb": "rotary", "no_weight_tying": True}
    assert count_parameters(make_runner(monkeypatch, **settings)[0]) == 29_376
    tied = {"pos_emb": "learned", "no_weight_tying": False}
    # one table less, and twelve positions
    assert count_parameters(make_runner(monkeypatch, **tied)[0]) == 29_376 - 61 * 32 + 12 * 32


@pytest.mark.parametrize(
    ("seconds", "shown"),
    # times 90 iterations that are left
    [(0.5, "0:00:45"), (1.0, "0:01:30"), (81.5, "2:02:15"), (1200.0, "30:00:00")],
)
def test_the_time_that_is_left_is_in_hours_minutes_and_seconds(seconds, shown, tmp_path):
    logger, stream = make_logger(tmp_path)  # of 100 iterations
    logger.train(make_record(iteration=10, step_seconds=seconds))
    assert f"time left: {shown} " in stream.getvalue()
