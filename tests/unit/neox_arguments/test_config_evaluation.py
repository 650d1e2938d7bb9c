import pytest

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.neox_arguments.command_line import read_script_command

DOMAINS = "eval_domains must be names of domains, or name=path"
TASKS = {"eval_tasks": ["piqa"]}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"eval_num_fewshot": -1}, "eval_num_fewshot must be at least 0, got -1"),
        ({"eval_task_limit": 0}, "eval_task_limit must be at least 1, got 0"),
        ({"eval_seed": -1}, "eval_seed must be at least 0, got -1"),
        ({"eval_bootstrap_iters": -1}, "eval_bootstrap_iters must be at least 0, got -1"),
        ({"eval_batch_tokens": 0}, "eval_batch_tokens must be at least 1, got 0"),
        (
            {**TASKS, "eval_harness_interval": 0},
            "eval_harness_interval must be at least 1, got 0",
        ),
        (
            {"eval_harness_interval": 10},
            "eval_harness_interval is 10 but there are no eval_tasks; set them",
        ),
        ({"eval_domains": ["law="]}, f"{DOMAINS}, got ['law=']"),
        ({"eval_domains": ["=x"]}, f"{DOMAINS}, got ['=x']"),
        (
            {**TASKS, "eval_harness_interval": 10, "zero_optimization": {"stage": 3}},
            "eval_harness_interval with zero_optimization.stage 3 reads the model from a temporary "
            "checkpoint in the save folder, and there is none; set save",
        ),
    ],
)
def test_wrong_evaluations_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_a_pipeline_evaluates_tasks_where_there_is_a_save_folder(make_config, problem):
    keys = {**TASKS, "eval_harness_interval": 10, "pipe_parallel_size": 2, "num_layers": 4}
    assert problem(2, **keys).startswith("eval_harness_interval with pipe_parallel_size 2 reads")
    config = make_config(2, **keys, save="out", checkpoint_factor=10)
    assert config.evaluation.tasks_interval == 10


def test_tasks_are_no_hint_any_more(make_config):
    keys = {"eval_task_paths": ["x"], "eval_num_fewshot": 5, "eval_task_limit": 3}
    assert make_config(**TASKS, **keys).notes == ()


def test_tasks_that_a_training_does_not_run_are_noted(make_config):
    data = {"data_path": "x", **TASKS}
    assert make_config(**data, user_script="a/train.py").notes == (
        "train.py does not run eval_tasks without eval_harness_interval; set it, or use "
        "evaluate.py",
    )
    assert make_config(**data, user_script="evaluate.py").notes == ()
    config = make_config(**data, user_script="train.py", eval_harness_interval=10)
    assert config.notes == ()


@pytest.mark.parametrize(
    "arguments",
    [
        "-d {d} a.yml --eval_tasks x y* --eval_results_prefix p --domains law=/data/law code",
        "-d {d} a --eval-tasks x y* --eval-results-prefix p --domains law=/data/law code",
        "--eval_tasks x y* --eval_results_prefix p --domains law=/data/law code -d {d} a.yml",
    ],
)
def test_the_command_line_names_tasks_and_domains(write, minimal, tmp_path, arguments):
    import json

    write("a.yml", json.dumps(minimal))
    values = read_script_command(arguments.format(d=tmp_path).split()).values
    config = resolve(NeoXArgs.from_dict(values))
    assert config.evaluation.tasks == ["x", "y*"]
    assert config.evaluation.results_prefix == "p"
    assert config.evaluation.domains == ["law=/data/law", "code"]
