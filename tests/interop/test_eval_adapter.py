"""Our model in lm-eval against lm-eval's own ``hf`` model on the exported weights."""

from __future__ import annotations

import importlib.util
import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.errors import EvaluationStopped, TaskError
from megatron.neox_arguments import ConfigError
from tests.distributed.spawn import run_ranks
from tests.interop.conversions import (
    ALONE,
    VOCAB_SIZE,
    export,
    model_fields,
    write_run,
    write_tokenizer,
)
from tests.interop.eval_runs import (
    NEW_TOKENS,
    OFFLINE,
    READING_FIELDS,
    TASKS,
    differences,
    evaluate_tasks,
    write_local_tasks,
)

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm-eval is not installed (requirements-eval.txt)", allow_module_level=True)

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {},
    "tp2": {"model_parallel_size": 2},
    "pp2": {"pipe_parallel_size": 2},
}


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return model_fields(file)


@pytest.fixture(scope="module")
def folder(fields, tmp_path_factory) -> Path:
    """``run`` holds a checkpoint, ``hf`` its export, ``tasks`` the tasks."""
    folder = tmp_path_factory.mktemp("eval")
    checkpoint = write_run(folder / "run", fields)
    export(checkpoint, folder / "hf", "--no-verify")
    write_local_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    """lm-eval's model."""
    from megatron.eval_tasks.surroundings import lm_eval_surroundings

    with lm_eval_surroundings():
        from lm_eval.models.huggingface import HFLM
    return HFLM(pretrained=str(folder / "hf"), device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def ours(fields, folder):
    """Our adapter, without a process group."""
    from megatron.checkpoint.loading import load_module_weights
    from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter
    from megatron.model.gpt2_model import GPT2Model
    from tools.hf.settings import settings_of

    checkpoint = folder / "run/global_step0"
    settings = settings_of(checkpoint)
    tokenizer = settings.tokenizer()
    model = GPT2Model(settings.shape(tokenizer.vocab_size), seed=1).eval()
    load_module_weights(model, checkpoint, ALONE)
    return NeoXEvalAdapter(model, tokenizer, ALONE, max_batch_tokens=200)


@pytest.fixture(scope="module")
def their_results(theirs, folder):
    return evaluate_tasks(theirs, folder / "tasks")


@pytest.fixture(scope="module")
def our_results(ours, folder):
    return evaluate_tasks(ours, folder / "tasks")


@pytest.fixture(scope="module")
def layout_results(fields, folder):
    ranks = run_ranks(
        "tests.interop.eval_runs:evaluate_layouts",
        2,
        keywords={
            "fields": fields,
            "load": str(folder / "run"),
            "tasks": str(folder / "tasks"),
            "layouts": LAYOUTS,
        },
        environ=OFFLINE,
    )
    return [rank.value for rank in ranks]


def test_every_document_and_every_metric_is_that_of_transformers(our_results, their_results):
    assert set(their_results["metrics"]) == set(TASKS)
    assert differences(our_results, their_results, tolerance=1e-3) == []


def test_some_texts_end_at_a_stop_string_and_some_do_not(their_results):
    lengths = [len(text) for (text,) in their_results["answers"]["local_until"]]
    assert min(lengths) < 5
    assert max(lengths) >= NEW_TOKENS // 2


def test_token_requests_give_the_scores_of_transformers_and_tell_greedy_endings(ours, theirs):
    source = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [source.randrange(VOCAB_SIZE) for _ in range(count)]

    contexts = [tokens(count) for count in (1, 5, 20, 47, 48, 60)]
    pairs = [(context, tokens(source.randint(1, 9))) for context in contexts for _ in range(3)]
    for context in contexts:
        room = 48 - min(len(context), 42)
        ending = greedy_tokens(ours.model, context[-42:], room)
        pairs += [(context[-42:], ending), (context[-42:], [*ending[:-1], ending[-1] ^ 1])]
    pairs.append((tokens(3), tokens(48)))  # an ending as long as the window
    source.shuffle(pairs)
    requests = [(None, context, ending) for context, ending in pairs]
    got = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    want = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    for (one, is_ours), (other, is_theirs) in zip(got, want, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        assert is_ours == is_theirs
    assert sum(is_greedy for _, is_greedy in got) >= len(contexts)


def greedy_tokens(model, context: list[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(context) :]


def test_sampled_texts_depend_on_the_seed_and_the_request_alone(ours):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    requests = [instance("generate_until", text, settings) for text in ("the", "a", "the")]
    first = ours.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests, disable_tqdm=True) == first
    assert first[0] != first[2]  # repeated requests are other samples
    assert ours.generate_until(requests[:2], disable_tqdm=True) == first[:2]


def test_a_document_that_is_asked_for_twice_is_answered_twice(ours):
    pair = ("the weights", " of the")
    requests = [instance("loglikelihood", *pair)] * 2 + [instance("loglikelihood", "x", "y")]
    first, second, other = ours.loglikelihood(requests, disable_tqdm=True)
    assert first == second != other


def test_results_reach_the_cache_of_lm_eval_under_their_own_arguments(ours, monkeypatch):
    kept = []

    class Hook:
        def add_partial(self, kind, arguments, result):
            kept.append((kind, arguments, result))

    monkeypatch.setattr(ours, "cache_hook", Hook())
    (score,) = ours.loglikelihood([instance("loglikelihood", "a", " b")], disable_tqdm=True)
    (total,) = ours.loglikelihood_rolling([instance("loglikelihood_rolling", "a b")], True)
    (text,) = ours.generate_until([instance("generate_until", "a", {"max_gen_toks": 1})], True)
    assert kept == [
        ("loglikelihood", ("a", " b"), score),
        ("loglikelihood_rolling", ("a b",), total),
        ("generate_until", ("a", {"max_gen_toks": 1}), text),
    ]


def test_an_empty_document_is_certain(ours):
    assert ours.loglikelihood_rolling([instance("loglikelihood_rolling", "")], True) == [0.0]


def test_an_empty_prompt_is_continued(ours):
    (text,) = ours.generate_until([instance("generate_until", "", {"max_gen_toks": 4})], True)
    assert isinstance(text, str)


def test_a_text_longer_than_the_window_is_refused_with_the_numbers(ours):
    with pytest.raises(TaskError, match=r"max_gen_toks 48 leaves no room.*context of 48 tokens"):
        ours.generate_until([instance("generate_until", "a", {"max_gen_toks": 48})], True)
    long = "0" * 60
    with pytest.raises(TaskError, match="ending has 60 tokens, the model's context 48"):
        ours.loglikelihood([instance("loglikelihood", "a", long)], disable_tqdm=True)


def run_lm_evals_command(arguments: list[str]) -> None:
    """``python -m megatron.eval_tasks``, without lm-eval's own 14,000 files: ten seconds."""
    from megatron.eval_tasks.surroundings import lm_eval_surroundings

    with lm_eval_surroundings():
        import lm_eval.tasks
        import lm_eval.tasks.manager

    class LocalTasks(lm_eval.tasks.TaskManager):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **{**keywords, "include_defaults": False})

    lm_eval.tasks.TaskManager = lm_eval.tasks.manager.TaskManager = LocalTasks
    sys.argv = ["lm-eval", *arguments]
    runpy.run_module("megatron.eval_tasks", run_name="__main__")


def test_lm_evals_own_command_knows_the_model(fields, folder, their_results):
    config = {**fields, **READING_FIELDS, "seq_length": fields["max_position_embeddings"]}
    (folder / "model.yml").write_text(json.dumps(config))
    arguments = [f"config={folder / 'model.yml'}", f"load={folder / 'run'}", "max_batch_tokens=99"]
    where = ["--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    command = ["run", "--model", "neox", "--model_args", *arguments, "--tasks", "local_choice"]
    (run,) = run_ranks(
        "tests.interop.test_eval_adapter:run_lm_evals_command",
        1,
        keywords={"arguments": [*command, *where]},
        environ=OFFLINE,
    )
    assert "|local_choice|" in run.stdout
    (file,) = (folder / "out").rglob("results_*.json")
    report = json.loads(file.read_text())
    assert report["config"]["model_dtype"] == "torch.float32"
    got = report["results"]["local_choice"]
    for metric, value in their_results["metrics"]["local_choice"].items():
        assert got[metric] == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ("load=x", {}, "model_args: config is missing"),
        ("config=a.yml", {"batch_size": 8}, "batch_size: got 8, but batches are cut by tokens"),
        ("config=a.yml", {"max_batch_size": 8}, "max_batch_size: got 8"),
        ("config=/nowhere/a.yml", {"batch_size": 1, "device": "x"}, "a.yml"),
    ],
)
def test_wrong_arguments_of_lm_evals_command_are_named(arguments, more, message):
    from megatron.eval_tasks.surroundings import lm_eval_surroundings

    with lm_eval_surroundings():
        from megatron.eval_tasks.registration import CommandLineAdapter
    with pytest.raises(ConfigError, match=message):
        CommandLineAdapter.create_from_arg_string(arguments, more)


def test_the_conversation_is_written_with_the_template_of_the_tokenizers_folder(ours, tmp_path):
    adapter = type(ours)(ours.model, ours._text, ALONE, tokenizer_folder=tmp_path)
    history = [{"role": "user", "content": "the weights"}]
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        adapter.apply_chat_template(history)
    without = adapter.tokenizer_name
    write_tokenizer(tmp_path / "tokenizer.json")
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert adapter.apply_chat_template(history) == "<user>the weights\n<assistant>"
    prefill = [*history, {"role": "assistant", "content": "of"}]
    text = adapter.apply_chat_template(prefill, add_generation_prompt=False)
    assert text == "<user>the weights\n<assistant>of"
    assert adapter.chat_template(True) == template
    assert adapter.chat_template(False) is None
    assert adapter.tokenizer_name != without


def instance(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("loglikelihood", ("the weights", " of the")),
        ("loglikelihood_rolling", ("the weights of the domains " * 20,)),
        ("generate_until", ("the", {"max_gen_toks": 4})),
    ],
)
def test_a_request_to_stop_ends_requests_between_batches(ours, monkeypatch, kind, arguments):
    answers = iter((False, True))
    monkeypatch.setattr(ours, "_should_stop", lambda: next(answers))
    monkeypatch.setattr(ours, "max_batch_tokens", 1)
    contexts = [f"{number} {arguments[0]}" for number in range(3)]
    requests = [instance(kind, context, *arguments[1:]) for context in contexts]
    with pytest.raises(EvaluationStopped):
        getattr(ours, kind)(requests, disable_tqdm=True)
    assert next(answers, None) is None


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_ranks_stop_when_one_is_asked(name, layout_results):
    assert [rank[name]["stops"] for rank in layout_results] == [True, True]


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_numbers_of_transformers(name, layout_results, their_results):
    for rank in layout_results:
        assert differences(rank[name], their_results, tolerance=1e-3) == []
