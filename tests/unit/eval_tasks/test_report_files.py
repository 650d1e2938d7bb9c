"""Files, numbers and log lines of an evaluation."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from megatron.eval_tasks.checkpoint_evaluation import evaluate_checkpoint
from megatron.eval_tasks.harness import task_metrics
from megatron.eval_tasks.report_files import (
    check_results_place,
    results_path,
    unused_path,
    write_report,
)
from megatron.neox_arguments import ConfigError
from megatron.neox_arguments.rules.evaluation import pieces_of_the_model
from megatron.neox_arguments.sections import Layout
from megatron.reporting.run_logger import RunLogger, read_run_log
from megatron.reporting.writers import ConsoleWriter
from tests.process_group import process_group_of_one

RESULTS = {
    "results": {
        "quiz": {
            "name": "quiz",
            "alias": " - quiz",
            "sample_len": 5,
            "acc,none": 0.5,
            "acc_stderr,none": "N/A",
            "exact_match,strict": 1,
        }
    }
}


@pytest.mark.parametrize(
    ("prefix", "num_fewshot", "expected"),
    [
        ("", None, "eval_results_now.json"),
        ("a/b", 0, "a/b_eval_results_now.json"),
        ("b", 5, "b_eval_results_5shot_now.json"),
    ],
)
def test_a_result_file_is_named_as_in_the_research_code(prefix, num_fewshot, expected):
    assert results_path(prefix, "now", num_fewshot=num_fewshot) == Path(expected)


def test_a_result_file_that_is_there_is_not_overwritten(tmp_path):
    paths = []
    for _ in range(3):
        paths.append(unused_path(tmp_path / "a_eval_results_now.json"))
        write_report(paths[-1], {"samples": {"quiz": []}})
    assert [path.name[15:] for path in paths] == ["now.json", "now_2.json", "now_3.json"]
    assert (tmp_path / "a_samples_quiz_now_2.jsonl").exists()


def test_a_place_that_cannot_take_the_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for prefix in ("", "a", "new/folder/a", str(tmp_path / "new/a")):
        check_results_place(prefix)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ConfigError, match=r"^eval_results_prefix: 'file/deep/a': /.*file is a file"
    ):
        check_results_place("file/deep/a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=rf"'new/a': {tmp_path} may not be written"):
        check_results_place("new/a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_evaluation_whose_results_have_no_place_does_not_begin(tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings = SimpleNamespace(results_prefix=str(tmp_path / "file/x"))
    with process_group_of_one(), pytest.raises(ConfigError, match="is a file; name a folder"):
        evaluate_checkpoint(SimpleNamespace(evaluation=settings))  # all else is missing


def test_samples_stand_beside_the_results_in_the_form_of_lm_eval(tmp_path):
    sample = {
        "doc_id": 0,
        "doc": {"q": "\u00e9"},
        "arguments": [("c", " a"), ("c", " b")],
        "acc": 1.0,
    }
    path = tmp_path / "new" / "x_eval_results_now.json"
    write_report(path, {"iteration": 3, "samples": {"quiz/1": [sample, sample]}})
    assert json.loads(path.read_text()) == {"iteration": 3}
    (file,) = path.parent.glob("x_samples_*.jsonl")
    assert file.name == "x_samples_quiz_1_now.jsonl"
    first, second = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["arguments"] == {
        "gen_args_0": {"arg_0": "c", "arg_1": " a"},
        "gen_args_1": {"arg_0": "c", "arg_1": " b"},
    }
    assert first == second


def test_numbers_that_json_lacks_are_written_as_text(tmp_path):
    write_report(tmp_path / "r.json", {"a": math.nan, "b": [math.inf], "c": print})
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["a"], content["b"]) == ("nan", ["inf"])
    assert "print" in content["c"]


def test_only_numbers_are_metrics_and_the_plain_filter_has_no_name():
    assert task_metrics(RESULTS) == {"quiz": {"acc": 0.5, "exact_match,strict": 1.0}}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"pipe_parallel_size": 1, "zero_stage": 2, "sequence_parallel": False}, None),
        (
            {"pipe_parallel_size": 2, "zero_stage": 1, "sequence_parallel": False},
            "pipe_parallel_size 2",
        ),
        (
            {"pipe_parallel_size": 1, "zero_stage": 3, "sequence_parallel": False},
            "zero_optimization.stage 3",
        ),
        (
            {"pipe_parallel_size": 1, "zero_stage": 0, "sequence_parallel": True},
            "sequence_parallel",
        ),
    ],
)
def test_a_module_that_is_not_the_whole_model_is_known(layout, expected):
    cut = Layout(
        world_size=2, data_parallel_size=1, model_parallel_size=2, zero_options={}, **layout
    )
    assert pieces_of_the_model(cut) == expected


def make_logger(folder, **logging_args):
    stream = io.StringIO()
    defaults = {
        "tensorboard_dir": None,
        "use_wandb": False,
        "wandb_host": "https://api.wandb.ai",
        "wandb_project": "neox",
        "wandb_group": None,
        "wandb_run_name": None,
        "wandb_team": None,
    }
    config = SimpleNamespace(
        logging=SimpleNamespace(**{**defaults, "log_dir": str(folder), **logging_args}),
        layout=SimpleNamespace(world_size=1),
        to_dict=lambda: {},
    )
    return RunLogger(config, 0, console=ConsoleWriter(stream)), stream


def test_scores_are_logged_by_task_and_printed_as_a_table(tmp_path):
    logger, stream = make_logger(tmp_path)
    logger.tasks(20, task_metrics(RESULTS), table="|quiz|")
    assert stream.getvalue() == " tasks at iteration 20\n|quiz|\n"
    assert read_run_log(tmp_path) == [
        {
            "event": "tasks",
            "iteration": 20,
            "results": {"quiz": {"acc": 0.5, "exact_match,strict": 1.0}},
        }
    ]


def test_two_evaluations_of_one_iteration_both_count_until_a_resume_takes_them_back(tmp_path):
    logger, _ = make_logger(tmp_path)
    logger.tasks(20, {"quiz": {"acc": 0.5}}, table="")
    logger.tasks(20, {"other": {"acc": 0.5}}, table="")
    assert [event["event"] for event in read_run_log(tmp_path)] == ["tasks", "tasks"]
    logger.resume(10)
    assert [event["event"] for event in read_run_log(tmp_path)] == ["resume"]


def test_an_evaluation_hides_no_curve_and_has_a_wandb_run_of_its_own(tmp_path, monkeypatch):
    """The run of the training may still be going on."""
    opened, logged = {}, []

    class Run:
        id = "abc"

        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            pass

    def init(**keywords):
        opened.update(keywords)
        return Run()

    wandb = ModuleType("wandb")
    wandb.init = init
    wandb.Settings = lambda **keywords: keywords
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    purged = []

    class Writer:
        def __init__(self, log_dir, purge_step):
            purged.append(purge_step)

        def add_scalar(self, key, value, step):
            logged.append((step, {key: value}))

        def flush(self):
            pass

        close = flush

    tensorboard = ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    logger, stream = make_logger(tmp_path, tensorboard_dir=str(tmp_path / "tb"), use_wandb=True)
    (tmp_path / "wandb_run_id").write_text("training\n")
    logger.join()
    logger.tasks(20, {"quiz": {"acc": 0.5}}, table="")
    logger.close()
    assert not re.search("warning", stream.getvalue()), stream.getvalue()
    assert purged == [None]
    assert opened["id"] is None
    assert (tmp_path / "wandb_run_id").read_text() == "training\n"
    assert logged == [(20, {"test/quiz/acc": 0.5})] * 2
