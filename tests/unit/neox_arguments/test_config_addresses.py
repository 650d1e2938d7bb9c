"""`save`, `load` and `save_copy` as addresses of fsspec."""

from __future__ import annotations

import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.purpose import Purpose

BASE = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "seq_length": 4,
    "max_position_embeddings": 4,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 3,
    "optimizer": {"type": "adam", "params": {"lr": 0.001}},
    "checkpoint_factor": 1,
}


def config(**keys):
    return resolve(NeoXArgs.from_dict(BASE | keys))


def places(**keys):
    saving = config(**keys).saving
    return saving.save_path, saving.save_copy, saving.load_path, saving.load_copy


def test_folders_stay_folders():
    assert places(save="run", load="other") == ("run", None, "other", None)


def test_an_address_to_save_to_has_a_folder_here_of_its_own():
    save, copy, _, _ = places(save="s3://bucket/my run")
    assert copy == "s3://bucket/my run"
    assert save.startswith("checkpoints/my_run-")
    assert save != places(save="s3://other/my run")[0]
    assert save == places(save="s3://bucket/my run/")[0]
    assert any(save in note for note in config(save="s3://bucket/my run").notes)


def test_a_program_that_reads_keeps_its_load_whatever_is_saved():
    args = NeoXArgs.from_dict(BASE | {"load": "s3://bucket/run", "s3_path": "s3://bucket"})
    saving = resolve(args, purpose=Purpose.READING).saving
    assert saving.load_copy == "s3://bucket/run"
    assert (saving.load_path or "").startswith("checkpoints/run-")


def test_loading_what_is_saved_uses_the_same_folder():
    save, copy, load, load_copy = places(save="s3://bucket/run", load="s3://bucket/run/")
    assert (save, copy) == (load, "s3://bucket/run")
    assert load_copy == "s3://bucket/run/"
    one = places(save="run", save_copy="gs://bucket/run", load="gs://bucket/run")
    assert one == ("run", "gs://bucket/run", "run", "gs://bucket/run")
    other = places(save="run", save_copy="gs://bucket/run", load="gs://bucket/other")
    assert other[2].startswith("checkpoints/other-")


def test_the_old_name_has_the_folder_of_gpt_neox():
    keys = {"save": "/scratch/checkpoints_70M", "s3_path": "s3://bucket/models/"}
    assert places(**keys)[:2] == (
        "/scratch/checkpoints_70M",
        "s3://bucket/models/checkpoints_70M",
    )
    assert any("'s3_path' is an old name" in note for note in config(**keys).notes)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"save": "://bucket"}, r"save must be an address such as s3://bucket/folder"),
        ({"save": "s3://"}, "save s3:// names no folder"),
        ({"load": "s3:///"}, "load s3:// names no folder"),
        ({"save": "file://run"}, "save file://run is not absolute"),
        ({"save": "run", "save_copy": "elsewhere/run"}, "save_copy must be an address"),
        ({"save_copy": "s3://bucket/run"}, "save_copy needs save"),
        ({"save": "s3://a/b", "save_copy": "s3://c/d"}, "save_copy needs save to be a folder"),
        ({"save": "abfs://box/run?sig=abcd"}, r"save contains \? or #"),
    ],
)
def test_a_wrong_address_is_named_with_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        config(**keys)


def test_a_program_that_reads_is_refused_a_wrong_address():
    with pytest.raises(ConfigError, match="load s3:// names no folder"):
        resolve(NeoXArgs.from_dict(BASE | {"load": "s3://"}), purpose=Purpose.READING)


@pytest.mark.parametrize("key", ["save", "load", "save_copy"])
def test_an_address_with_a_password_is_refused_without_repeating_it(key):
    keys = {key: "ftp://me:hunter2@host/run"}
    if key == "save_copy":
        keys["save"] = "run"
    with pytest.raises(ConfigError, match=f"{key} contains a password") as caught:
        config(**keys)
    assert "hunter2" not in str(caught.value)
