"""Which lm-eval tasks are meant, and what a user reads when they are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from megatron.neox_arguments import ConfigError
from tests.process_group import process_group_of_one
from tests.tiny_tasks import OFFLINE, QUESTIONS, write_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed (requirements-eval.txt)")

from megatron.eval_tasks.old_names import current_name
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.eval_tasks.task_selection import find_tasks, load_tasks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path_factory):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    import datasets

    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def one_process():
    with process_group_of_one():
        yield


def config_of(names, folders, *, trust_task_code=False):
    paths = [str(path) for path in folders]
    return SimpleNamespace(
        model=SimpleNamespace(longest_text=64),
        evaluation=SimpleNamespace(
            tasks=list(names),
            task_paths=paths,
            apply_chat_template=False,
            trust_task_code=trust_task_code,
        ),
    )


@pytest.fixture
def only_local_tasks(monkeypatch):
    """lm-eval without its own tasks: reading 14,000 files takes ten seconds."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager

    def make(*, include_path, include_defaults=True):
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", make)


@pytest.mark.usefixtures("only_local_tasks")
@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        (["tiny_text"], ["tiny_text"]),
        (["tiny_*"], ["tiny_choice", "tiny_rolling", "tiny_text"]),
        (["tiny_text", "tiny_*t*"], ["tiny_text"]),
        (["tiny_tag"], ["tiny_tag"]),
        (["tiny_ta*"], ["tiny_tag"]),
    ],
)
def test_names_and_patterns_mean_tasks(folder, requests, expected):
    assert find_tasks(requests, [str(folder)])[1] == expected


def test_own_tasks_are_found_without_reading_those_of_lm_eval(folder):
    manager, names = find_tasks(
        ["tiny_text", str(folder / "tiny_choice.yaml"), "tiny_rolling"], [str(folder)]
    )
    assert names == ["tiny_text", str(folder / "tiny_choice.yaml"), "tiny_rolling"]
    assert manager.all_tasks == ["tiny_choice", "tiny_rolling", "tiny_tag", "tiny_text"]


@pytest.mark.usefixtures("only_local_tasks")
def test_an_unknown_task_is_refused_with_near_names(folder):
    with pytest.raises(ConfigError) as error:
        find_tasks(["tiny_choise", "zzz"], [str(folder)])
    near, far = error.value.messages
    assert near.startswith("eval_tasks: there is no task 'tiny_choise'; similar: tiny_choice")
    assert "`lm-eval ls tasks`" in far


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(("hendrycksTest-*", "mmlu"), ("hendrycksTest-college_*", "mmlu"), ("sst", "sst2")),
        *(("hendrycksTest-abstract_algebra", "mmlu_abstract_algebra"), ("squad2", "squadv2")),
        *(("math_algebra", "hendrycks_math_algebra"), ("lambada_mt_de", "lambada_openai_mt_de")),
        *(("hendrycksTest-alchemy", None), ("piqa", None)),
    ],
)
def test_a_name_of_an_earlier_lm_eval_leads_to_its_own(old, new):
    known = {
        *("mmlu", "mmlu_abstract_algebra", "hendrycks_math_algebra", "sst2", "squadv2", "piqa"),
        "lambada_openai_mt_de",
    }
    assert current_name(old, known) == new


@pytest.mark.usefixtures("only_local_tasks")
def test_an_old_name_is_refused_with_the_new_one(tmp_path):
    task = {"task": "mmlu", "dataset_path": "json", "output_type": "loglikelihood"}
    (tmp_path / "mmlu.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(ConfigError, match=r"^eval_tasks: 'hendrycksTest-\*' .* name, mmlu"):
        find_tasks(["hendrycksTest-*"], [str(tmp_path)])


def test_a_folder_or_file_that_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match=r"^eval_task_paths: there is no folder no/such"):
        find_tasks(["tiny_text"], ["no/such"])
    with pytest.raises(ConfigError, match=r"^eval_tasks: there is no task file x/y.yaml"):
        find_tasks(["tiny_text", "x/y.yaml"], [str(folder)])


@pytest.mark.usefixtures("one_process")
def test_tasks_are_loaded_with_their_documents(folder):
    tasks = load_tasks(config_of(["tiny_choice", str(folder / "tiny_text.yaml")], [folder]))
    assert list(tasks["tasks"]) == ["tiny_choice", "tiny_text"]
    assert list(tasks["tasks"]["tiny_choice"].eval_docs) == QUESTIONS


@pytest.mark.usefixtures("one_process", "only_local_tasks")
def test_a_tag_means_its_tasks_and_a_group_keeps_its_name(tmp_path):
    write_tasks(tmp_path)
    content = {"group": "both", "task": ["tiny_choice", "tiny_text"]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(content))
    assert load_tasks(config_of(["both"], [tmp_path]))["group_map"] == {
        "both": ["tiny_choice", "tiny_text"]
    }
    assert list(load_tasks(config_of(["tiny_tag"], [tmp_path]))["tasks"]) == ["tiny_choice"]
    with pytest.raises(ConfigError, match=r"tiny_text.*leave one of them out"):
        load_tasks(config_of(["both", "tiny_text"], [tmp_path]))


def write_code(folder: Path) -> None:
    """Functions beside a task file, which leave a mark when they are imported."""
    (folder / "utils.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w')\ndef process(docs): return docs\nclass Task: pass\n"
    )


CODE = {
    "function": ("process_docs: !function utils.process\n", "!function utils.process"),
    "verbatim tag": ("process_docs: !<!function> utils.process\n", "!function utils.process"),
    "in a list": ("filter_list: [{filter: [{function: !function utils.process}]}]\n", "!func"),
    "class": ("class: utils.Task\n", "class utils.Task"),
    "included": ("include: other.yaml\n", "!function utils.process"),
    "nested include": ("include: [first.yaml]\n", "!function utils.process"),
    "merged include": ("<<: {include: other.yaml}\n", "!function utils.process"),
    "include merged from a list": ("<<: [{a: 1}, {include: first.yaml}]\n", "!function"),
    "merged class": ("<<: {class: utils.Task}\n", "class utils.Task"),
    "own metric": ("metric_list: [{metric: me/mine}]\n", "metric me/mine"),
    "fetched": ("metric_list: [{metric: acc, hf_evaluate: true}]\n", "metric acc"),
    "fetched by a merge": ("metric_list: [{metric: acc, <<: {hf_evaluate: yes}}]\n", "metric acc"),
    "fetched by yes": ("metric_list: [{metric: acc, hf_evaluate: On}]\n", "metric acc"),
}


@pytest.mark.usefixtures("one_process", "only_local_tasks")
@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("case", CODE)
def test_code_of_a_task_file_is_named_and_not_run(tmp_path, case, by_path):
    addition, code = CODE[case]
    write_tasks(tmp_path)
    write_code(tmp_path)
    (tmp_path / "other.yaml").write_text("process_docs: !function utils.process\n")
    (tmp_path / "first.yaml").write_text("include: other.yaml\n")
    file = tmp_path / "tiny_text.yaml"
    settings = yaml.safe_load(file.read_text())
    settings.pop(addition.partition(":")[0], None)
    file.write_text(yaml.safe_dump(settings) + addition)
    place = tmp_path / "other.yaml" if "include" in case else file
    line = 1 if "include" in case else file.read_text().count("\n")
    name = str(file) if by_path else "tiny_text"
    with pytest.raises(ConfigError) as refused:
        load_tasks(config_of([name], [tmp_path]))
    (message,) = refused.value.messages
    assert message.startswith(f"eval_tasks: {place}:{line}: runs Python code ({code}")
    assert "--trust_task_code" in message
    assert not (tmp_path / "ran").exists()
    assert list(load_tasks(config_of(["tiny_choice"], [tmp_path]))["tasks"]) == ["tiny_choice"]


@pytest.mark.usefixtures("one_process", "only_local_tasks")
def test_code_that_is_trusted_runs(tmp_path):
    write_tasks(tmp_path)
    write_code(tmp_path)
    with (tmp_path / "tiny_text.yaml").open("a") as file:
        file.write("process_docs: !function utils.process\n")
    load_tasks(config_of(["tiny_text"], [tmp_path], trust_task_code=True))
    assert (tmp_path / "ran").exists()


@pytest.mark.usefixtures("one_process", "only_local_tasks")
def test_a_group_or_tag_is_refused_for_any_of_its_files(tmp_path):
    write_tasks(tmp_path)
    write_code(tmp_path)
    with (tmp_path / "tiny_choice.yaml").open("a") as file:
        file.write("process_docs: !function utils.process\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [tiny_choice, tiny_text]\n")
    for name in ("both", "tiny_tag", str(tmp_path / "both.yaml")):
        with pytest.raises(ConfigError, match=r"tiny_choice\.yaml:\d+: runs Python code"):
            load_tasks(config_of([name], [tmp_path]))
    assert not (tmp_path / "ran").exists()


def test_a_template_reaches_nothing_but_its_document():
    from jinja2.exceptions import SecurityError

    with lm_eval_surroundings():
        from lm_eval.utils import apply_template

        assert apply_template("{{q.strip()|regex_replace('b', 'c')}}\n", {"q": " ab "}) == "ac\n"
        for template in (
            "{{ q.__class__.__mro__[1].__subclasses__() }}",
            "{{ cycler.__init__.__globals__.os.getcwd() }}",
        ):
            with pytest.raises(SecurityError):
                apply_template(template, {"q": "x"})


@pytest.mark.usefixtures("one_process")
def test_missing_data_of_a_local_task_are_told_in_one_line(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "tiny_text.jsonl").unlink()
    with pytest.raises(ConfigError) as error:
        load_tasks(config_of(["tiny_text"], [tmp_path]))
    assert str(error.value).startswith("eval_tasks: tiny_text: its file or data cannot be read")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("one_process")
def test_data_of_the_hub_that_are_not_here_are_told_in_one_line_without_a_network(tmp_path):
    write_tasks(tmp_path)
    file = tmp_path / "tiny_text.yaml"
    content = yaml.safe_load(file.read_text())
    content.update(dataset_path="nobody/nothing", dataset_kwargs={})
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        load_tasks(config_of(["tiny_text"], [tmp_path]))
    assert "tiny_text: its data are not on this machine" in str(error.value)
    assert "HF_HOME" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("one_process")
def test_code_written_by_the_model_is_not_run(folder, monkeypatch):
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(ConfigError, match="tiny_text runs code that the model writes"):
        load_tasks(config_of(["tiny_text"], [folder]))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"num_beams": 4}, "num_beams: 4 is not supported"),
        ({"max_gen_toks": 64}, "max_gen_toks 64 leaves no room .*context of 64"),
        ({"do_sample": True, "top_p": 5}, r"top_p must be in \[0, 1\], got 5"),
    ],
)
def test_text_that_is_not_written_here_is_refused_before_anything_is_computed(
    wanted, message, tmp_path
):
    """A training would end at its first evaluation otherwise."""
    write_tasks(tmp_path)
    file = tmp_path / "tiny_text.yaml"
    content = yaml.safe_load(file.read_text())
    content["generation_kwargs"].update(wanted)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"^eval_tasks: tiny_text: generation_kwargs: {message}"):
        load_tasks(config_of(["tiny_choice", "tiny_text"], [tmp_path]))


def test_without_lm_eval_the_requirement_file_is_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install -r requirements/requir"):
        with lm_eval_surroundings():
            pass


def test_tasks_import_the_library_that_has_the_name_of_our_script():
    code = (
        "import sys; sys.path.insert(0, '.'); import evaluate as ours\n"
        "from megatron.eval_tasks.surroundings import lm_eval_surroundings\n"
        "with lm_eval_surroundings():\n"
        "    import evaluate as library\n"
        "    assert hasattr(library, 'load'), library\n"
        "import evaluate\n"
        "assert evaluate is ours and '.' in sys.path\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_local_tasks_ask_no_network(folder, tmp_path):
    code = (
        "import json, socket\n"
        "from types import SimpleNamespace as Space\n"
        "asked = []\n"
        "def refuse(*args, **keywords):\n"
        "    asked.append(repr(args)); raise OSError('no network')\n"
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "socket.getaddrinfo = refuse\n"
        "from megatron.eval_tasks.task_selection import load_tasks\n"
        f"folders = [{str(folder)!r}]\n"
        "settings = Space(tasks=['tiny_text'], task_paths=folders)\n"
        "settings.apply_chat_template = settings.trust_task_code = False\n"
        "load_tasks(Space(evaluation=settings, model=Space(longest_text=64)))\n"
        "print(json.dumps(asked))\n"
    )
    environ = {k: v for k, v in os.environ.items() if k not in OFFLINE}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environ, "HF_DATASETS_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == []
