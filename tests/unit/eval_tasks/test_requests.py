"""Mistakes in `eval_tasks` that are found before lm-eval, or torch, is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron.eval_tasks.requests import NOT_INSTALLED, task_problems
from tests.tiny_tasks import write_tasks

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("tiny_txt", "eval_tasks: there is no task 'tiny_txt'; similar: tiny_text"),
        ("hellaswagg", "eval_tasks: there is no task 'hellaswagg'; similar: hellaswag"),
        ("QQQQQQ", "eval_tasks: there is no task 'QQQQQQ'; `lm-eval ls tasks` lists"),
        ("squad2", "eval_tasks: 'squad2' is an old name; use lm-eval's present name, squadv2"),
        ("x/y.yaml", "eval_tasks: there is no task file x/y.yaml; correct the path"),
    ],
)
def test_a_task_that_does_not_exist_is_named(tmp_path, request_, message):
    folder = str(write_tasks(tmp_path))
    (problem,) = task_problems(["tiny_text", request_, "piqa"], [folder])
    assert problem.startswith(message)


@pytest.mark.parametrize("request_", ["tiny_text", "tiny_tag", "mmlu", "piqa", "nope_*", "(odd)"])
def test_tasks_that_may_exist_are_left_to_lm_eval(tmp_path, request_):
    assert task_problems([request_], [str(write_tasks(tmp_path))]) == []


def test_a_name_may_be_in_a_file_that_another_one_includes(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "base").write_text("tag: far_away\n")
    (tmp_path / "tasks/near.yaml").write_text("include: ../base\ntask: near\n")
    assert task_problems(["far_away"], [str(tmp_path / "tasks")]) == []


def test_without_tasks_lm_eval_is_not_needed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert task_problems([], ["no/such"]) == []
    assert task_problems(["piqa"], []) == [NOT_INSTALLED]


@pytest.mark.slow
def test_tasks_of_lm_eval_may_exist():
    from lm_eval.tasks import TaskManager

    names = TaskManager().all_tasks
    assert len(names) > 10_000
    assert task_problems(names[::50], []) == []


def test_evaluate_answers_before_it_loads_torch_or_lm_eval(tmp_path):
    values = {
        **{"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "seq_length": 8},
        **{"max_position_embeddings": 8, "tokenizer_type": "CharLevelTokenizer", "load": "run"},
    }
    (tmp_path / "run.yml").write_text(yaml.safe_dump(values))
    code = (
        "import sys, evaluate\n"
        "try:\n"
        f"    evaluate.main([{str(tmp_path / 'run.yml')!r}, '--eval_tasks', 'nope_task'])\n"
        "except ValueError as error:\n"
        "    print(error, sorted({'torch', 'lm_eval', 'datasets'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("eval_tasks: there is no task 'nope_task'; ")
    assert line.endswith("eval_task_paths []")
