"""`run_tasks` gives what lm-eval's own entry gives, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest

from tests.process_group import process_group_of_one
from tests.tiny_tasks import OFFLINE, write_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed (requirements-eval.txt)")

from lm_eval.api.model import TemplateLM

from megatron.errors import TaskError
from megatron.eval_tasks.harness import evaluation_seed, results_table, run_tasks
from megatron.eval_tasks.isolation import describe_failures
from megatron.eval_tasks.task_selection import load_tasks

NAMES = ["tiny_choice", "tiny_rolling", "tiny_text"]


def number_of(text: str) -> float:
    return -int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 1000


class Oracle(TemplateLM):
    """Scores that depend on the text alone."""

    eot_token_id = 0

    def __init__(self):
        super().__init__()
        self.contexts: list[str] = []

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return list(string.encode())

    def loglikelihood(self, requests, disable_tqdm=False):
        self.contexts += [request.args[0] for request in requests]
        return [(number_of(repr(request.args)), False) for request in requests]

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return [number_of(request.args[0]) for request in requests]

    def generate_until(self, requests, disable_tqdm=False):
        return ["0" if len(request.args[0]) > 3 else "1" for request in requests]


@pytest.fixture(autouse=True, scope="module")
def _surroundings(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with process_group_of_one():
            yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def config(folder):
    def make(names=tuple(NAMES), *, run_seed=7, **changes):
        settings = {
            "tasks": list(names),
            "task_paths": [str(folder)],
            "trust_task_code": False,
            "num_fewshot": None,
            "task_limit": None,
            "seed": None,
            "bootstrap_iters": 100,
            "log_samples": False,
            "batch_tokens": None,
            "apply_chat_template": False,
            "system_instruction": None,
        }
        return SimpleNamespace(
            evaluation=SimpleNamespace(**{**settings, **changes}),
            launch=SimpleNamespace(seed=run_seed),
            model=SimpleNamespace(longest_text=64),
            batch=SimpleNamespace(micro_batch_size=4),
            layout=SimpleNamespace(data_parallel_size=2),
            by_key=lambda: {"hidden_size": 8},
        )

    return make


def scores(results):
    return {name: results["results"][name] for name in NAMES}


@pytest.mark.parametrize("num_fewshot", [None, 2])
@pytest.mark.parametrize("limit", [None, 2])
def test_results_are_those_of_lm_eval_itself(config, folder, num_fewshot, limit):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    settings = config(num_fewshot=num_fewshot, task_limit=limit, seed=5)
    ours = run_tasks(Oracle(), settings, load_tasks(settings))
    theirs = simple_evaluate(
        model=Oracle(),
        tasks=NAMES,
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=100,
        log_samples=False,
        fewshot_random_seed=5,
        task_manager=TaskManager(include_path=[str(folder)], include_defaults=False),
    )
    for key in ("results", "versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks"):
        assert ours[key] == theirs[key], key


def test_the_configuration_stands_beside_the_results(config):
    settings = config(["tiny_text"], num_fewshot=0, task_limit=1)
    results = run_tasks(Oracle(), settings, load_tasks(settings))
    shown = {key: results["config"][key] for key in ("model", "model_args", "batch_size", "limit")}
    assert shown == {
        "model": "neox",
        "model_args": {"hidden_size": 8},
        "batch_size": 8,
        "limit": 1,
    }
    assert results["config"]["fewshot_seed"] == 1234
    assert "samples" not in results


def test_the_same_tasks_run_twice_give_the_same_scores(config):
    """As in training, where they are loaded once."""
    settings = config(num_fewshot=1)
    tasks = load_tasks(settings)
    first, second = Oracle(), Oracle()
    assert scores(run_tasks(first, settings, tasks)) == scores(run_tasks(second, settings, tasks))
    assert first.contexts == second.contexts


def test_the_seed_chooses_the_examples(config):
    def contexts(seed):
        settings = config(["tiny_choice"], num_fewshot=2, seed=seed)
        oracle = Oracle()
        run_tasks(oracle, settings, load_tasks(settings))
        return oracle.contexts

    assert contexts(1) == contexts(1)
    assert contexts(1) != contexts(2)


def test_runs_of_any_seed_are_asked_the_same(config):
    assert evaluation_seed(config(run_seed=1)) == evaluation_seed(config(run_seed=2)) == 1234
    assert evaluation_seed(config(run_seed=1, seed=5)) == 5


def test_a_task_whose_file_says_zero_examples_keeps_them(config, folder, tmp_path):
    text = (folder / "tiny_choice.yaml").read_text() + "num_fewshot: 0\n"
    (tmp_path / "zero.yaml").write_text(text)
    settings = config([str(tmp_path / "zero.yaml")], eval_num_fewshot=2)
    results = run_tasks(Oracle(), settings, load_tasks(settings))
    assert results["n-shot"] == {"tiny_choice": 0}


def test_samples_are_kept_when_asked_for(config):
    settings = config(["tiny_choice"], log_samples=True)
    results = run_tasks(Oracle(), settings, load_tasks(settings))
    assert [sample["doc_id"] for sample in results["samples"]["tiny_choice"]] == [0, 1, 2, 3, 4]


def test_a_system_instruction_stands_before_each_question(config):
    settings = config(["tiny_choice"], system_instruction="Be brief.")
    oracle = Oracle()
    run_tasks(oracle, settings, load_tasks(settings))
    assert all(context.startswith("Be brief.") for context in oracle.contexts)


def test_the_table_has_a_row_a_metric(config):
    settings = config()
    table = results_table(run_tasks(Oracle(), settings, load_tasks(settings)))
    assert "|tiny_choice" in table
    assert "word_perplexity" in table


def test_nothing_is_printed_to_standard_output(config, capfd):
    settings = config(["tiny_choice", "tiny_rolling"])
    run_tasks(Oracle(), settings, load_tasks(settings))
    assert capfd.readouterr().out == ""


def group_of(folder, names, *, name="tiny_group"):
    """Writes a group of tasks whose accuracies are averaged; returns its file."""
    metrics = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    content = {"group": name, "task": list(names), "aggregate_metric_list": metrics}
    (folder / f"{name}.yaml").write_text(json.dumps(content))
    return folder


def local_tasks(folder, *names):
    """Loads tasks and groups without reading lm-eval's own."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(folder)], include_defaults=False).load(list(names))


@pytest.fixture
def two_choices(tmp_path):
    write_tasks(tmp_path, prefix="one")
    write_tasks(tmp_path, prefix="two")
    group_of(tmp_path, ["one_choice"], name="half")
    return group_of(tmp_path, ["half", "one_choice", "two_choice"])


def test_groups_have_the_scores_that_lm_eval_gives_them(config, two_choices):
    import lm_eval

    ours = run_tasks(Oracle(), config(), local_tasks(two_choices, "tiny_group", "one_text"))
    tasks = local_tasks(two_choices, "tiny_group", "one_text")
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    theirs = lm_eval.evaluate(Oracle(), tasks, bootstrap_iters=100, log_samples=False)
    assert ours["groups"]["tiny_group"]["acc,none"] > 0
    for key in ("results", "groups", "group_subtasks", "n-shot", "higher_is_better", "versions"):
        assert ours[key] == theirs[key], key


def fail(*args, **options):
    raise ZeroDivisionError("of a task")


@pytest.mark.parametrize(
    "step", ["build_all_requests", "process_results", "apply_filters", "aggregation", "dump_config"]
)
def test_a_task_that_fails_anywhere_costs_its_own_scores_alone(config, two_choices, step):
    names = ("tiny_group", "one_text")
    settings = config(log_samples=True)
    whole = run_tasks(Oracle(), settings, local_tasks(two_choices, *names))
    tasks = local_tasks(two_choices, *names)
    setattr(tasks["tasks"]["two_choice"], step, fail)
    results = run_tasks(Oracle(), settings, tasks)
    assert results["failed_tasks"] == {
        "two_choice": "ZeroDivisionError: of a task",
        "tiny_group": "its task two_choice failed",
    }
    assert set(results["results"]) == {"one_choice", "one_text", "half"}
    assert set(results["samples"]) == {"one_choice", "one_text"}
    for name, scores_of_task in results["results"].items():
        assert scores_of_task == whole["results"][name]
    assert "one_text" in results_table(results)


class Picky(Oracle):
    """Does not answer some requests."""

    def loglikelihood(self, requests, disable_tqdm=False):
        raise TaskError("loglikelihood: an ending has 65 tokens")


def test_no_task_with_scores_is_no_reason_to_end_in_a_traceback(config, capsys):
    settings = config(["tiny_choice"])
    results = run_tasks(Picky(), settings, load_tasks(settings))
    assert results["results"] == {}
    assert describe_failures(results) == [
        "eval_tasks: tiny_choice: loglikelihood: an ending has 65 tokens"
    ]
    assert "Traceback" not in capsys.readouterr().err
