"""lm-eval's own command heeds the evaluation keys of a configuration, as evaluate.py does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (requirements-eval.txt)")

from lm_eval.api.instance import Instance

from megatron.eval_tasks.chat import template_folder
from megatron.eval_tasks.surroundings import lm_eval_surroundings
from megatron.evaluation.trained_model import LoadedModel
from megatron.neox_arguments import ConfigError
from megatron.reporting import progress_lines
from megatron.tokenizer.character_level import CharLevelTokenizer
from tests.generation_runs import FIELDS
from tests.interop.conversions import ALONE
from tests.process_group import process_group_of_one
from tests.unit.eval_tasks.test_packing import tiny_model


@pytest.fixture
def open_adapter(tmp_path, monkeypatch):
    """Opens an adapter on a model that no checkpoint holds."""
    loaded = LoadedModel(tiny_model("rotary"), CharLevelTokenizer(512), ALONE, iteration=1)
    with lm_eval_surroundings():
        from megatron.eval_tasks import registration
    monkeypatch.setattr(registration, "prepare_process", lambda: None)
    monkeypatch.setattr(registration, "initialize_megatron", lambda *args, **options: None)
    monkeypatch.setattr(registration, "make_topology", lambda *args, **options: ALONE)
    monkeypatch.setattr(registration, "open_checkpoint", lambda *args: loaded)
    file = tmp_path / "run.yml"
    file.write_text(json.dumps({**FIELDS, "train_micro_batch_size_per_gpu": 1, "train_iters": 1}))
    return lambda **arguments: registration.open_adapter({"config": str(file), **arguments}, {})


def test_keys_of_the_configuration_reach_the_adapter(open_adapter):
    adapter = open_adapter(eval_batch_tokens=77, eval_seed=5)
    assert adapter.max_batch_tokens == 77
    assert adapter._seed == 5


def test_the_argument_of_the_command_wins(open_adapter):
    assert open_adapter(eval_batch_tokens=77, max_batch_tokens=40).max_batch_tokens == 40


def test_no_tokens_are_refused(open_adapter):
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        open_adapter(max_batch_tokens=0)


def test_the_folder_of_a_chat_template_is_that_of_the_tokenizer(tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    monkeypatch.chdir(tmp_path)

    def folder_for(vocab_file: str | None):
        return template_folder(SimpleNamespace(data=SimpleNamespace(vocab_file=vocab_file)))

    assert folder_for(str(file)) == folder_for(str(tmp_path)) == tmp_path
    assert folder_for(None) is None
    assert folder_for("gpt2") is None  # a name on the Hub is no file of the current folder


def test_a_long_evaluation_prints_lines_where_no_terminal_shows_a_bar(
    open_adapter, monkeypatch, capsys
):
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setenv("RANK", "0")
    requests = [
        # the model has ids below 30: control characters
        Instance("loglikelihood", {}, ("\x05\x06", chr(7 + number)), number)
        for number in (0, 7, 8)
    ]
    adapter = open_adapter()
    with process_group_of_one():
        adapter.loglikelihood(requests)
        assert "loglikelihood: 3 of 3 requests, 0 s left" in capsys.readouterr().out
        adapter.loglikelihood(requests, disable_tqdm=True)
        assert capsys.readouterr().out == ""
