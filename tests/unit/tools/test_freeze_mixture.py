"""What freeze_mixture makes of checkpoints that are odd; a real run is in test_mixing_controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.engine.state import TrainState
from megatron.neox_arguments import NeoXArgs, resolve
from odm import MixtureController, MixtureSchedule
from tools.freeze_mixture import main

SETTINGS = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "max_position_embeddings": 8,
    "train_iters": 10,
    "train_batch_size": 4,
    "tokenizer_type": "CharLevelTokenizer",
    "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
    "data_sampling_method": "smoothed_mean",
    "train_data_paths": ["data/web/text", "data/code/text"],
    "split": "90, 5, 5",
    "train_data_weights": [3.0, 1.0],
    "checkpoint_factor": 5,
}
GROUPS = {"text": {"domains": ["web"], "max": 0.9}}


def write_run(folder: Path, *, drawn=(30, 10), sizes=True, stored=None, **changes: Any) -> Path:
    """Writes what freeze_mixture reads of a checkpoint; returns the save folder."""
    values = {**SETTINGS, "save": str(folder / "run"), **changes}
    checkpoint = folder / "run" / "global_step10"
    (checkpoint / "configs").mkdir(parents=True)
    (checkpoint / "configs" / "run.yml").write_text(yaml.safe_dump(values))
    resolved = json.loads(json.dumps(resolve(NeoXArgs.from_dict(values), 1).to_dict()))
    for section, fields in (stored or {}).items():
        resolved[section].update(fields)
    (checkpoint / "configs" / "resolved.json").write_text(json.dumps(resolved))
    mixture = MixtureController(
        ["web", "code"], "smoothed_mean", MixtureSchedule(0, 2), initial_weights=[3.0, 1.0]
    )
    mixture.schedule.set_cursors(list(drawn))
    (checkpoint / "mixture.json").write_text(json.dumps(mixture.state_dict()))
    state = {"counters": TrainState(10, 10, 40, 320).state_dict(), "config_files": ["run.yml"]}
    if sizes:
        state["samples_per_epoch"] = {"code": 100, "web": 300}
    (checkpoint / "state.json").write_text(json.dumps(state))
    return folder / "run"


def frozen(run: Path, *arguments: str) -> dict[str, Any]:
    output = run.parent / "static.yml"
    assert main([str(run), "-o", str(output), *arguments]) == 0
    return yaml.safe_load(output.read_text())


def refused(capsys, run: Path, *arguments: str) -> str:
    assert main([str(run), "-o", str(run.parent / "static.yml"), *arguments]) == 2
    assert not (run.parent / "static.yml").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_held_out_text_keeps_its_weights_where_those_of_training_are_its_own(tmp_path):
    values = frozen(write_run(tmp_path, drawn=(20, 20)))
    assert values["train_data_weights"] == [0.5, 0.5]
    assert values["valid_data_weights"] == values["test_data_weights"] == [3.0, 1.0]


def test_held_out_text_keeps_the_weights_of_a_rule_too(tmp_path):
    values = frozen(write_run(tmp_path, drawn=(20, 20), train_data_weights="natural"))
    assert values["train_data_weights"] == [0.5, 0.5]
    assert values["valid_data_weights"] == values["test_data_weights"] == [3.0, 1.0]


def test_domains_evaluated_by_themselves_need_no_such_weights(tmp_path):
    values = frozen(write_run(tmp_path, drawn=(20, 20), use_named_eval_datasets=True))
    assert "valid_data_weights" not in values


def test_keys_that_only_a_method_that_learns_may_have_are_left_out(tmp_path):
    rewards = {"validation_based_reward": True, "batch_normalized_reward": True}
    exp3 = {"data_sampling_method": "exp3", "mixed_minibatches": True, **rewards}
    run = write_run(tmp_path, **exp3, data_sampling_heldout_interval=4, data_sampling_groups=GROUPS)
    values = frozen(run)
    assert not rewards.keys() & values.keys()
    assert values["data_sampling_groups"] == GROUPS
    assert values["mixed_minibatches"] is True
    assert {key for key in values if key.startswith("data_sampling_")} == {
        "data_sampling_method",
        "data_sampling_groups",
    }


def test_a_run_that_began_with_the_weights_of_another_does_so_again(tmp_path):
    values = frozen(write_run(tmp_path, load="base", finetune=True))
    assert (values["load"], values["finetune"]) == ("base", True)


def test_a_run_that_continued_another_is_controlled_from_its_start_with_a_note(tmp_path, capsys):
    values = frozen(write_run(tmp_path, load="base"))
    assert values["load"] == values["save"]
    assert "note: the run continued one of base; this one begins at" in capsys.readouterr().out


def test_other_places_that_a_run_writes_to_are_not_shared(tmp_path):
    values = frozen(write_run(tmp_path, tensorboard_dir="tb", wandb_run_name="a"), "--natural")
    assert (values["tensorboard_dir"], values["wandb_run_name"]) == ("tb-natural", "a-natural")
    assert values["train_data_weights"] == [0.75, 0.25]
    assert "load" not in values


def test_what_the_command_line_said_is_in_the_file(tmp_path):
    values = frozen(write_run(tmp_path, stored={"logging": {"wandb_group": "pairs"}}))
    assert values["wandb_group"] == "pairs"


def test_a_default_that_has_changed_since_the_run_is_reported(tmp_path, capsys):
    frozen(write_run(tmp_path, stored={"optimizer": {"weight_decay": 0.3}}))
    assert "note: optimizer.weight_decay had another value in the run" in capsys.readouterr().out


def test_a_secret_is_not_in_a_checkpoint_and_a_note_tells_so(tmp_path, capsys):
    extra = {"comet": {"api_key": "<redacted>"}}
    frozen(write_run(tmp_path, deepspeed_extra_args=extra))
    assert "note: checkpoints have no secrets" in capsys.readouterr().out


def test_a_run_without_files_named_domains_or_samples_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path, drawn=(0, 0), sizes=False)
    assert "nothing has been drawn up to iteration 10" in refused(capsys, run)
    assert "no samples_per_epoch" in refused(capsys, run, "--natural")
    state = run / "global_step10" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "config_files": []}))
    assert "configs: has no configuration files" in refused(capsys, run)
    for name in ("x.yml", "../run.yml", "run.yml\0"):
        state.write_text(json.dumps({**content, "config_files": ["run.yml", name]}))
        assert f"configs: lacks {name!r}, which state.json names" in refused(capsys, run)
    state.write_text(json.dumps(content))
    (run / "global_step10" / "mixture.json").write_text("null")
    assert "mixture.json: is null" in refused(capsys, run)


def test_files_of_two_checkpoints_are_refused(tmp_path, capsys):
    run = write_run(tmp_path)
    file = run / "global_step10" / "configs" / "run.yml"
    file.write_text(file.read_text().replace("data/web", "data/news"))
    error = refused(capsys, run)
    assert "['code', 'web']" in error
    assert "['code', 'news']" in error


def test_unnamed_data_have_no_domains_to_freeze(tmp_path, capsys):
    run = write_run(tmp_path)
    file = run / "global_step10" / "configs" / "run.yml"
    values = yaml.safe_load(file.read_text())
    del values["data_sampling_method"]
    file.write_text(yaml.safe_dump(values))
    assert "0 named domains, mixing needs at least 2" in refused(capsys, run)


@pytest.mark.parametrize("part", ["state.json", "mixture.json", "configs/resolved.json"])
def test_a_damaged_part_is_named(tmp_path, capsys, part):
    run = write_run(tmp_path)
    (run / "global_step10" / part).write_text('{"counters": ')
    assert part in refused(capsys, run)


@pytest.mark.parametrize("save", ["", "  ", "occupied", "occupied/new", "static.yml"])
def test_a_save_that_is_no_folder_is_one_line(tmp_path, monkeypatch, capsys, save):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").write_text("a file")
    run = write_run(tmp_path)
    assert main([str(run), "-o", "static.yml", "--save", save]) == 2
    error = capsys.readouterr().err
    assert (
        error == f"freeze_mixture.py: --save: {save!r} is no folder; name one for the checkpoints\n"
    )
    assert not (tmp_path / "static.yml").exists()


def test_a_name_with_the_end_of_a_line_does_not_end_the_comment(tmp_path):
    output = tmp_path / "a\nseed: 5 #.yml"
    assert main([str(write_run(tmp_path)), "-o", str(output)]) == 0
    assert "seed" not in yaml.safe_load(output.read_text())
    assert "train.py a?seed: 5 #.yml" in output.read_text()


@pytest.mark.parametrize("target", ["nowhere", "static.yml"])
def test_a_link_in_the_place_of_the_file_is_not_replaced(tmp_path, capsys, target):
    run, output = write_run(tmp_path / "run"), tmp_path / "static.yml"
    output.symlink_to(target)  # to nothing, or to itself
    assert main([str(run), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.is_symlink()


def test_a_run_that_is_no_folder_is_told_from_one_without_checkpoints(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "there is no such folder" in refused(capsys, tmp_path / "nothing")
    assert "is a file, not a folder" in refused(capsys, tmp_path / "file")
    assert "no checkpoint; give the save folder" in refused(capsys, tmp_path)
