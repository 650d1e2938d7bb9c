"""Figures of an evaluation: means, their standard errors and the tokens behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from megatron.engine.domain_sums import DomainLossRecorder, HeldOutSums
from megatron.engine.state import TrainState
from megatron.evaluation.losses import DomainResult, averages, evaluate_domains, standard_error
from megatron.hooks.evaluation import EvaluationHook
from megatron.hooks.measured import evaluation_settings, measured_at
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.reporting import progress_lines
from megatron.reporting.run_log import RunLogFile
from tests.process_group import process_group_of_one

LOSSES = [[1.0, 3.0], [2.0, 6.0], [5.0, 7.0]]
"""Nats of three samples of two tokens."""


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with process_group_of_one():
        yield


class Source:
    """Domain ``code`` has the three samples of `LOSSES`, ``text`` the first one."""

    domains = ("code", "text")
    num_samples = (3, 1)
    text_bytes_per_token = (4.0, None)

    def num_batches(self, domain_id: int) -> int:
        return self.num_samples[domain_id]

    def batches(self, domain_id: int) -> Iterator[tuple[int, int]]:
        return ((domain_id, row) for row in range(self.num_samples[domain_id]))


class Evaluator:
    """Looks the losses up."""

    device = torch.device("cpu")

    def __init__(self, mask: Any = None) -> None:
        self.mask = torch.ones(3, 2) if mask is None else torch.tensor(mask)
        self.count = 0

    def evaluate(self, batches: Any, recorder: DomainLossRecorder) -> None:
        for domain_id, row in batches:
            self.count += 1
            recorder.record(
                torch.tensor([LOSSES[row]]), self.mask[row : row + 1], torch.tensor([domain_id])
            )


def results_of(mask: Any = None) -> dict[str, DomainResult]:
    runner, source = Evaluator(mask), Source()
    return evaluate_domains(runner, source)  # type: ignore[arg-type]


def test_a_mean_has_the_standard_error_of_samples_of_one_length():
    result = results_of()["code"]
    assert (result.loss, result.num_samples, result.num_tokens) == (4.0, 3, 6)
    assert result.perplexity == pytest.approx(math.exp(4.0))
    assert result.bits_per_byte == pytest.approx(4.0 / math.log(2) / 4.0)
    # means of samples: 2, 4, 6, with variance 4; of the mean of three: 4 / 3
    assert result.standard_error == pytest.approx(math.sqrt(4 / 3))


def test_masked_tokens_weigh_nothing_in_the_mean_and_its_error():
    result = results_of([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])["code"]
    assert (result.loss, result.num_tokens) == (18 / 5, 5)
    # sums less 3.6 a token: 4 - 7.2, 2 - 3.6, 12 - 7.2
    residuals = np.array([-3.2, -1.6, 4.8])
    assert result.standard_error == pytest.approx(math.sqrt(3 / 2 * np.square(residuals).sum()) / 5)


def test_one_sample_and_no_token_have_no_standard_error():
    assert results_of()["text"].standard_error is None
    nothing = results_of([[0.0, 0.0]] * 3)["code"]
    assert nothing.num_tokens == 0
    assert math.isnan(nothing.loss)
    assert nothing.standard_error is None


def test_rounding_never_leaves_a_negative_variance():
    loss = 0.1 * 7
    numbers = np.array([3 * loss, 21.0, 3 * loss * loss, 3 * loss * 7, 147.0]) * (1 - 1e-16)
    sums = HeldOutSums(*torch.from_numpy(numbers))
    assert standard_error(sums, num_samples=3) == pytest.approx(0.0, abs=1e-7)


def make_result(loss: float, standard_error: float | None, num_samples: int) -> DomainResult:
    return DomainResult(
        loss=loss,
        standard_error=standard_error,
        perplexity=math.exp(loss),
        bits_per_byte=None,
        num_samples=num_samples,
        num_tokens=num_samples * 2,
    )


def test_averages_written_out_by_hand():
    found = averages({"a": make_result(1.0, 0.3, 3), "b": make_result(3.0, 0.4, 1)})
    assert found == pytest.approx(
        {
            "avg_lm_loss": 2.0,
            "avg_ppl": (math.e + math.e**3) / 2,
            "ppl_of_avg_lm_loss": math.e**2,
            "weighted_avg_lm_loss": 1.5,
            "weighted_avg_ppl": (3 * math.e + math.e**3) / 4,
            "worst_lm_loss": 3.0,
            "avg_lm_loss_standard_error": 0.25,  # sqrt(0.09 + 0.16) / 2
        }
    )
    one = averages({"a": make_result(1.0, 0.3, 3), "b": make_result(3.0, None, 1)})
    assert "avg_lm_loss_standard_error" not in one


def test_a_long_evaluation_tells_every_ten_seconds_how_far_it_is(monkeypatch):
    moments = iter([0.0, 1.0, 11.0, 12.0, 30.0])  # the start, then each batch
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: next(moments))
    said: list[str] = []
    runner: Any = Evaluator()
    source: Any = Source()
    evaluate_domains(runner, source, name="validation", say=said.append)
    assert said == [
        " validation: 1 of 4 samples, now code, 33 s left",
        " validation: 3 of 4 samples, now text, 10 s left",
    ]


# what was measured before


def write_log(folder: Any, *events: dict[str, Any]) -> str:
    log = RunLogFile(folder / "metrics.jsonl")
    for event in events:
        log.append(event)
    log.close()
    return str(folder)


def event_of(name: str, step: int, **samples: int) -> dict[str, Any]:
    domains = {domain: {"loss": 1.0, "num_samples": count} for domain, count in samples.items()}
    return {"event": name, "iteration": step, "domains": domains}


def begun(**settings: Any) -> dict[str, Any]:
    return {"event": "resume", "iteration": 0, "evaluation": settings}


def test_evaluations_of_the_last_iteration_are_found_in_the_log(tmp_path):
    settings = {"validation": {"paths": ["a"]}, "test": {}, "tasks": {"shots": 2}}
    folder = write_log(
        tmp_path,
        begun(**settings),
        event_of("validation", 4, code=3),
        event_of("validation", 5, code=3),
        {"event": "tasks", "iteration": 5, "results": {"piqa": {"acc": 0.5}}},
        {"event": "save", "iteration": 5, "folder": "x"},
    )
    assert measured_at(folder, 5, settings).keys() == {"validation", "tasks"}
    assert measured_at(folder, 5, {**settings, "tasks": {"shots": 0}}).keys() == {"validation"}
    assert measured_at(folder, 4, settings).keys() == {"validation"}
    assert measured_at(folder, 6, settings) == {}
    assert measured_at(None, 5, settings) is None
    assert measured_at(str(tmp_path / "none"), 5, settings) is None
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    assert measured_at(folder, 5, settings) is None


def test_what_a_later_start_measured_on_other_text_does_not_count(tmp_path):
    a, b = {"validation": {"paths": ["a"]}}, {"validation": {"paths": ["b"]}}
    resumed = {**begun(**b), "iteration": 5}
    measured = event_of("validation", 5, code=3)
    folder = write_log(tmp_path, begun(**a), measured, resumed, {**measured, "averages": {}})
    assert "averages" in measured_at(folder, 5, b)["validation"]
    assert "averages" not in measured_at(folder, 5, a).get("validation", {})
    old = write_log(tmp_path / "old", {"event": "start", "iteration": 0}, measured)
    assert measured_at(old, 5, a) == {}  # of a version that did not log its settings


@pytest.mark.parametrize(
    ("samples", "again"),
    [
        ({"code": 3, "text": 1}, ["test"]),
        ({"code": 2, "text": 1}, ["validation", "test"]),
        ({"code": 3}, ["validation", "test"]),
    ],
)
def test_a_finished_run_measures_only_what_its_log_does_not_hold(samples, again):
    done: list[str] = []
    said: list[str] = []
    logger: Any = SimpleNamespace(say=said.append, evaluation=lambda name, *rest: done.append(name))
    runner: Any = Evaluator()
    source: Any = Source()
    hook = EvaluationHook(
        runner,
        logger,
        validation=source,
        test=source,
        interval=1,
        measured={"validation": event_of("validation", 5, **samples)},
    )
    hook.at_end(TrainState(step=5))
    assert done == again
    assert runner.count == 4 * len(again)
    assert len(said) == 2 - len(again)


@pytest.mark.parametrize(
    ("step", "measured", "again"),
    [
        (6, {}, ["validation"]),
        (6, {"validation": event_of("validation", 6, code=3, text=1)}, []),
        (6, {"validation": event_of("validation", 3, code=3, text=1)}, ["validation"]),
        (6, None, []),
        (5, {}, []),
        (0, {}, []),
    ],
)
def test_a_validation_that_a_kill_lost_is_made_first(step, measured, again):
    done: list[str] = []
    logger: Any = SimpleNamespace(say=print, evaluation=lambda name, *rest: done.append(name))
    runner, source = cast("Any", Evaluator()), cast("Any", Source())
    hook = EvaluationHook(
        runner, logger, validation=source, test=source, interval=3, measured=measured
    )
    hook.at_start(TrainState(step=step))
    assert done == again


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {"validation", "test", "tasks"}),
        ({"seed": 8, "eval_interval": 2}, {"validation", "test", "tasks"}),
        ({"valid_data_paths": ["b/web_text_document"]}, {"test", "tasks"}),
        ({"test_data_paths": ["b/web_text_document"]}, {"validation", "tasks"}),
        ({"eod_mask_loss": True}, {"tasks"}),
        ({"eval_num_fewshot": 2}, {"validation", "test"}),
        ({"eval_task_limit": 7}, {"validation", "test"}),
    ],
)
def test_figures_of_other_text_or_other_settings_are_measured_again(changes, kept):
    def settings(**values: Any) -> dict[str, Any]:
        keys = {
            "num_layers": 2,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "seq_length": 8,
            "max_position_embeddings": 8,
            "train_iters": 2,
            "train_batch_size": 2,
            "train_data_paths": ["train/web_text_document"],
            "valid_data_paths": ["a/web_text_document"],
            "test_data_paths": ["a/web_text_document"],
            "use_named_train_datasets": True,
            "use_named_eval_datasets": True,
            "tokenizer_type": "CharLevelTokenizer",
        }
        config = resolve(NeoXArgs.from_dict({**keys, **values}), world_size=1)
        return json.loads(json.dumps(evaluation_settings(config.to_dict())))

    now, before = settings(**changes), settings()
    assert {name for name in before if now[name] == before[name]} == kept
