"""evaluate.py and evaluation during training, as a user starts them, on local lm-eval tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.format import CheckpointReader
from megatron.reporting.run_log import read_run_log
from tests.distributed.many_runs import train_all
from tests.distributed.runs import REPOSITORY
from tests.distributed.spawn import run_ranks
from tests.tiny import tiny_config, write_tiny_corpus
from tests.tiny_tasks import OFFLINE, write_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed (requirements-eval.txt)")
pytestmark = pytest.mark.distributed

TASKS = ["tiny_choice", "tiny_rolling", "tiny_text"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "tp2": {"model_parallel_size": 2},
    "tp2-sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipe_parallel_size": 2},
    "dp2-zero3": {"zero_optimization": {"stage": 3}},
}


@pytest.fixture(scope="module")
def environ(tmp_path_factory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("datasets")
    return {**OFFLINE, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, list[str]]:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    """The run folder of a model after 30 iterations, saved at 20 too."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(corpus, folder, 1, {"run": {"train_iters": 30, "extra_save_iters": [20]}})
    return folder / "run" / "run"


def write(folder: Path, corpus: dict[str, list[str]], *, processes: int = 1, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(corpus, folder, global_num_gpus=processes, **changes)
    (folder / "run.yml").write_text(json.dumps(config))
    return folder / "run.yml"


Result = subprocess.CompletedProcess[str]


def evaluate(config: Path, environ: dict[str, str], *arguments: str) -> Result:
    """As ``./deepy.py evaluate.py`` starts its ranks; what rank 0 says."""
    return run_program("evaluate.py", config, environ, *arguments)


def run_program(script: str, config: Path, environ: dict[str, str], *arguments: str) -> Result:
    command = [str(config), *arguments]
    size = json.loads(config.read_text())["global_num_gpus"]
    (first, *_) = run_ranks(
        REPOSITORY / script,
        size,
        arguments=command,
        environ=environ,
        cwd=config.parent,
        check=False,
    )
    return Result(command, first.exit_code, first.stdout, first.stderr)


def start(config: Path, environ: dict[str, str], *arguments: str) -> Result:
    """``./deepy.py evaluate.py config arguments``."""
    scripts = (str(REPOSITORY / "deepy.py"), str(REPOSITORY / "evaluate.py"))
    return subprocess.run(
        [sys.executable, *scripts, str(config), *arguments],
        cwd=config.parent,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def report_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*eval_results_*.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def evaluated(corpus, tasks, trained, environ, tmp_path_factory):
    """A process that evaluates tasks and two domains, and its folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = write(
        folder,
        corpus,
        load=str(trained),
        save=None,
        max_validation_samples_per_dataset=None,
        max_test_samples_per_dataset=None,
        log_dir=str(folder / "logs"),
        tensorboard_dir=str(folder / "tensorboard"),
    )
    more = {"eval-task-paths": [str(tasks)], "eval_num_fewshot": 1, "eval_log_samples": True}
    (folder / "tasks.yml").write_text(json.dumps(more))
    result = start(
        config,
        environ,
        *("tasks.yml", "-d", str(folder), "--eval_tasks", *TASKS),
        *("--eval_results_prefix", "deep/x"),
        *("--domains", "digits", f"other={corpus['train'][0]}"),
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_task_that_fails_costs_neither_other_scores_nor_the_losses(
    corpus, tasks, trained, environ, tmp_path
):
    config = write(tmp_path, corpus, load=str(trained), save=None, processes=2)
    task = (tasks / "tiny_choice.yaml").read_text()
    too_long = "doc_to_choice: ['{{ question * 200 }}', a]\ndoc_to_target: 0\ntask: too_long\n"
    lines = [
        line
        for line in task.splitlines()
        if not line.startswith(("doc_to_c", "doc_to_ta", "task:"))
    ]
    (tmp_path / "too_long.yaml").write_text("\n".join([*lines, too_long]))
    names = ("--eval_tasks", "too_long.yaml", str(tasks / "tiny_text.yaml"))
    result = evaluate(config, environ, *names, "--domains", "digits")
    assert result.returncode == 2, result.stderr
    message = "eval_tasks: too_long: loglikelihood: an ending"
    assert [line for line in result.stderr.splitlines() if message in line] != []
    report = report_of(tmp_path)
    assert set(report["results"]) == {"tiny_text"}
    assert list(report["failed_tasks"]) == ["too_long"]
    assert list(report["validation"]["domains"]) == ["digits"]


def test_results_have_the_form_of_lm_eval_and_of_the_research_code(evaluated):
    folder, _ = evaluated
    report = report_of(folder / "deep")
    assert report["iteration"] == 30
    assert set(report["results"]) == set(TASKS)
    assert 0 <= report["results"]["tiny_choice"]["acc,none"] <= 1
    assert report["results"]["tiny_choice"]["acc_stderr,none"] > 0
    assert report["results"]["tiny_rolling"]["byte_perplexity,none"] > 1
    assert report["versions"] == dict.fromkeys(TASKS, 1.0)
    assert report["n-shot"]["tiny_choice"] == 1
    assert report["n-samples"]["tiny_rolling"] == {"original": 3, "effective": 3}
    config = report["config"]
    assert (config["model"], config["num_fewshot"], config["limit"]) == ("neox", 1, None)
    assert config["model_args"]["hidden_size"] == 32
    assert config["fewshot_seed"] == 1234  # not the run's own seed, which is 7


def test_the_file_is_named_by_prefix_examples_and_time(evaluated):
    folder, result = evaluated
    (file,) = (folder / "deep").glob("x_eval_results_1shot_*.json")
    assert f"results in deep/{file.name}" in result.stdout


def test_every_question_is_logged_in_a_file_a_task(evaluated):
    folder, _ = evaluated
    (file,) = (folder / "deep").glob("x_samples_tiny_choice_1shot_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0]["arguments"]["gen_args_0"]["arg_1"] == " de"
    assert len(list((folder / "deep").glob("x_samples_*.jsonl"))) == 3


def test_named_domains_and_other_data_are_measured_beside_the_tasks(evaluated):
    report = report_of(evaluated[0] / "deep")
    assert list(report["validation"]["domains"]) == ["digits"]
    assert list(report["test"]["domains"]) == ["digits"]
    assert list(report["datasets"]["domains"]) == ["other"]
    assert report["datasets"]["domains"]["other"]["num_samples"] > 100


def test_a_table_is_printed_and_scores_reach_run_log_and_tensorboard(evaluated):
    folder, result = evaluated
    assert "|tiny_choice" in result.stdout
    assert "validation at iteration 30" in result.stdout
    events = read_run_log(folder / "logs")
    # the validation of the run is that of training, whole
    assert [event["event"] for event in events] == ["datasets", "tasks"]
    report = report_of(folder / "deep")
    assert events[-1]["iteration"] == 30
    logged = events[-1]["results"]["tiny_choice"]
    assert logged["acc"] == report["results"]["tiny_choice"]["acc,none"]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = accumulator.EventAccumulator(str(folder / "tensorboard"))
    curves.Reload()
    (point,) = curves.Scalars("test/tiny_choice/acc")
    assert point.step == 30
    assert point.value == pytest.approx(logged["acc"])
    assert "datasets/lm_loss/other" in curves.Tags()["scalars"]


def test_without_tasks_all_domains_of_the_named_iteration_are_evaluated(
    corpus, trained, environ, tmp_path
):
    config = write(tmp_path, corpus, load=str(trained), save=None)
    result = evaluate(config, environ, "--iteration", "20")
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path)
    assert report["iteration"] == 20
    assert set(report["test"]["domains"]) == {"letters", "digits", "noise"}
    assert "results" not in report


def read_tasks(files: list[str]) -> list[dict[str, Any]]:
    """Runs on every rank."""
    from megatron.eval_tasks.checkpoint_evaluation import evaluate_checkpoint
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron

    scores = []
    for file in files:
        os.chdir(Path(file).parent)
        config = resolve(NeoXArgs.from_ymls([file]))
        initialize_megatron(config, handle_signals=False)
        scores.append(evaluate_checkpoint(config)["results"])
    return scores


def scores_of(
    corpus: dict[str, list[str]],
    folder: Path,
    layouts: dict[str, dict[str, Any]],
    environ: dict[str, str],
    *,
    processes: int,
    **changes: Any,
) -> dict[str, list[dict[str, Any]]]:
    """Scores on each rank, by layout."""
    files = [
        str(write(folder / name, corpus, processes=processes, save=None, **cut, **changes))
        for name, cut in layouts.items()
    ]
    ranks = run_ranks(
        "tests.interop.test_evaluate_tasks:read_tasks",
        processes,
        keywords={"files": files},
        environ=environ,
    )
    return {name: [r.value[k] for r in ranks] for k, name in enumerate(layouts)}


@pytest.fixture(scope="module")
def scores(corpus, tasks, trained, environ, tmp_path_factory):
    """Scores of one checkpoint, read in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    options = {"load": str(trained), "eval_task_paths": [str(tasks)], "eval_tasks": TASKS}
    found = scores_of(corpus, folder, {"one": {}}, environ, processes=1, **options)
    return found | scores_of(corpus, folder, LAYOUTS, environ, processes=2, **options), folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_scores_do_not_depend_on_the_layout_and_are_written_once(scores, name):
    found, folder = scores
    (want,) = found["one"]
    for got in found[name]:
        assert_scores(got, want)
    assert len(list((folder / name).glob("eval_results_*.json"))) == 1


def assert_scores(got: dict[str, Any], want: dict[str, Any], *, relative: float = 1e-4) -> None:
    assert set(got) == set(want) == set(TASKS)
    for task, metrics in want.items():
        for metric, value in metrics.items():
            near = value if isinstance(value, str) else pytest.approx(value, rel=relative)
            assert got[task][metric] == near, (task, metric)


# what a user can get wrong


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"load": "no/such"}, "load: no checkpoint in no/such; correct the path"),
    "no load": ({"load": None}, "load: is not set"),
    "no iteration": ({"iteration": 7}, "no checkpoint of iteration 7; found: 20, 30"),
    "another model": (
        {"hidden_size": 48},
        "hidden_size is 32, this run has 48, which is another network",
    ),
    "more tokens": (
        {"tokenizer_type": "HFTokenizer", "vocab_file": "big.json"},
        "the model has 512 tokens, the tokenizer of this run has 600",
    ),
    "no task file": ({"eval_tasks": ["x.yaml"]}, "eval_tasks: there is no task file x.yaml"),
    "no task folder": (
        {"eval_tasks": ["tiny_text"], "eval_task_paths": ["no/such"]},
        "eval_task_paths: there is no folder no/such",
    ),
    # before the model is loaded, which would fail
    "unknown task": (
        {"load": "torn", "eval_tasks": ["tiny_choise"]},
        "eval_tasks: there is no task 'tiny_choise'; similar: tiny",
    ),
    "no chat template": (
        {"eval_tasks": ["tiny_text"], "eval_apply_chat_template": True},
        "eval_apply_chat_template: the tokenizer has no chat template",
    ),
    "no domain": ({"eval_domains": ["digit"]}, "there is no domain 'digit'; did you mean digits?"),
    "no data": ({"eval_domains": ["law=no/such"]}, "law=no/such: no tokenized data at no/such"),
}


def try_to_evaluate(files: list[str]) -> list[str]:
    """Runs in one process: the text of each error."""
    from megatron.errors import UserError
    from megatron.eval_tasks.checkpoint_evaluation import evaluate_checkpoint
    from megatron.eval_tasks.surroundings import lm_eval_surroundings
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron

    with lm_eval_surroundings():
        import lm_eval.tasks
    # lm-eval's own 14,000 files take ten seconds
    lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    errors = []
    for file in files:
        os.chdir(Path(file).parent)
        Path("torn/global_step1").mkdir(parents=True)
        Path("torn/global_step1/index.json").write_text("{}")
        config = resolve(NeoXArgs.from_ymls([file]))
        initialize_megatron(config, handle_signals=False)
        try:
            evaluate_checkpoint(config)
        except UserError as error:
            errors.append(str(error))
    return errors


@pytest.fixture(scope="module")
def mistakes(corpus, tasks, trained, environ, tmp_path_factory):
    """The message of each mistake, and the folder."""
    folder = tmp_path_factory.mktemp("mistakes")
    files = []
    for name, (changes, _) in MISTAKES.items():
        options = {"load": str(trained), "save": None, "eval_task_paths": [str(tasks)], **changes}
        files.append(str(write(folder / name, corpus, **options)))
        write_big_tokenizer(folder / name / "big.json")
    (rank,) = run_ranks(
        "tests.interop.test_evaluate_tasks:try_to_evaluate",
        1,
        keywords={"files": files},
        environ=environ,
    )
    return dict(zip(MISTAKES, rank.value, strict=True)), folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistakes, name):
    messages, folder = mistakes
    assert MISTAKES[name][1] in messages[name]
    assert "\n" not in messages[name]
    assert not list((folder / name).glob("*eval_results*"))


def test_a_task_that_is_not_there_is_refused_before_training(corpus, environ, tmp_path):
    options = {"eval_tasks": ["x.yaml"], "eval_harness_interval": 2}
    config = write(tmp_path, corpus, **options)
    result = run_program("train.py", config, environ)
    assert result.returncode == 2, result.stderr
    assert result.stderr == "error: eval_tasks: there is no task file x.yaml; correct the path\n"
    assert not list((tmp_path / "run").glob("global_step*"))


def write_big_tokenizer(path: Path) -> None:
    vocabulary = {f"t{number}": number for number in range(599)} | {"<|endoftext|>": 599}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
    }
    path.write_text(json.dumps(content))


# during training

TRAINING_LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2-zero1": {"zero_optimization": {"stage": 1}},
    "dp2-zero2": {"zero_optimization": {"stage": 2}},
    "dp2-zero3": {"zero_optimization": {"stage": 3}},
    "tp2": {"model_parallel_size": 2},
    "tp2-sp": {"model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 2},
    "dp2-bf16": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
}


@pytest.fixture(scope="module")
def trainings(corpus, tasks, environ, tmp_path_factory):
    """Runs of 6 iterations with dropout, without and with tasks at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trainings")
    runs: dict[str, dict[str, Any]] = {}
    for name, cut in TRAINING_LAYOUTS.items():
        plain = {**cut, "train_iters": 6, "hidden_dropout": 0.1, "attention_dropout": 0.1}
        runs[f"{name}-plain"] = plain
        runs[f"{name}-tasks"] = {
            **plain,
            "eval_tasks": TASKS,
            "eval_task_paths": [str(tasks)],
            "eval_harness_interval": 2,
            "eval_seed": 99,
        }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environ.items():
            patch.setenv(key, value)
        train_all(corpus, folder, 2, runs)
    return folder


def events_of(folder: Path, *, without: str = "") -> list[dict[str, Any]]:
    """A run's log, but for times and places, and for what the configuration says of tasks."""
    other = ("time", "seconds", "step_seconds", "tokens_per_second", "folder", "evaluation")
    events = read_run_log(folder / "run" / "logs")
    return [{k: v for k, v in e.items() if k not in other} for e in events if e["event"] != without]


@pytest.mark.parametrize("name", TRAINING_LAYOUTS)
def test_training_is_the_same_to_the_bit_with_tasks_and_without(trainings, name):
    plain, tasks = trainings / f"{name}-plain", trainings / f"{name}-tasks"
    assert events_of(tasks, without="tasks") == events_of(plain)
    one, other = (CheckpointReader(run / "run" / "global_step6") for run in (plain, tasks))
    for parameter in one.parameters:
        for kind in ("fp32", *one.moment_names):
            assert torch.equal(
                one.read_logical(parameter, kind), other.read_logical(parameter, kind)
            )


@pytest.fixture(scope="module")
def scores_afterwards(corpus, tasks, environ, trainings, tmp_path_factory):
    """Scores of each run's checkpoint, read by one process."""
    options = {"eval_task_paths": [str(tasks)], "eval_tasks": TASKS, "eval_seed": 99}
    runs = {
        name: {
            "load": str(trainings / f"{name}-tasks" / "run"),
            **{key: value for key, value in cut.items() if key == "bf16"},
        }
        for name, cut in TRAINING_LAYOUTS.items()
    }
    folder = tmp_path_factory.mktemp("afterwards")
    return scores_of(corpus, folder, runs, environ, processes=1, **options)


@pytest.mark.parametrize("name", TRAINING_LAYOUTS)
def test_scores_during_training_are_those_of_the_checkpoint(trainings, scores_afterwards, name):
    save = trainings / f"{name}-tasks" / "run"
    events = [event for event in read_run_log(save / "logs") if event["event"] == "tasks"]
    assert [event["iteration"] for event in events] == [2, 4, 6]
    (want,) = scores_afterwards[name]
    report = json.loads((save / "logs" / "eval_results_6.json").read_text())
    # sums in bf16 depend on the batches of each rank, and a perplexity is the exponential of one
    relative = 5e-3 if "bf16" in name else 1e-4
    assert_scores(report["results"], want, relative=relative)
    assert events[-1]["results"]["tiny_choice"]["acc"] == want["tiny_choice"]["acc,none"]


@pytest.mark.parametrize("name", TRAINING_LAYOUTS)
def test_the_copy_that_is_read_leaves_nothing(trainings, name):
    names = [path.name for path in (trainings / f"{name}-tasks" / "run").iterdir()]
    assert sorted(names) == [".lock", "global_step6", "latest", "logs"]
