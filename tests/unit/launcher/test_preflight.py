"""What a run on this machine would be refused for is found before it starts, and all of it."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from megatron.launcher.command import main
from megatron.launcher.preflight import start_problems
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.memory import memory_plan
from megatron.sizing.stages import stage_parameters
from megatron.tokenizer import build_tokenizer
from tests.tiny import write_dataset


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("WORLD_SIZE", "DLTS_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    for script in ("train.py", "evaluate.py", "generate.py", "mine.py"):
        (tmp_path / script).write_text("")


@pytest.fixture
def values(tmp_path):
    """A run that could start here."""
    paths = {s: [write_dataset(tmp_path / s / "a" / "text")] for s in ("train", "valid", "test")}
    return {
        **{"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "train_iters": 1},
        **{"max_position_embeddings": 16, "train_micro_batch_size_per_gpu": 1},
        **{f"{split}_data_paths": listed for split, listed in paths.items()},
        **{"use_named_train_datasets": True, "use_named_eval_datasets": True},
        "tokenizer_type": "CharLevelTokenizer",
    }


def problems_of(values, script="train.py", **changes):
    args = NeoXArgs.from_dict({**values, "user_script": script, **changes})
    found = start_problems(resolve(args, world_size=1), has_accelerator=False)
    return [(problem.key, str(problem)) for problem in found]


def test_data_too_small_for_the_weights_or_the_limits_are_found(values, tmp_path):
    values["train_data_paths"].append(write_dataset(tmp_path / "train" / "b" / "text"))
    ((key, problem),) = problems_of(values, train_iters=100, train_data_weights={"unimax": 2})
    assert key == "train_data_weights"
    assert "2 epochs of the domains are 12 samples, the run draws 100" in problem
    ((key, problem),) = problems_of(values, train_iters=100, data_sampling_max_epochs=2)
    assert key == "data_sampling_max_epochs"


def test_a_check_shows_what_the_run_reads(values, tmp_path, capsys):
    values["train_data_paths"].append(write_dataset(tmp_path / "train" / "b" / "text"))
    (tmp_path / "run.yml").write_text(yaml.safe_dump({**values, "train_data_weights": [3, 1]}))
    for option in ("--check", "--dry-run"):
        assert main(["train.py", "run.yml", option]) == 0
        lines = capsys.readouterr().out.splitlines()
        start = lines.index("mixture of 16 tokens (list; constant weights):")
        assert [line.split() for line in lines[start + 1 :]] == [
            ["domain", "weight", "share", "tokens", "epochs"],
            ["a", "3", "0.7500", "12", "0.25"],
            ["b", "1", "0.2500", "4", "0.0833"],
        ]


def checkpoint(folder, step=3):
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / f"global_step{step}" / "index.json").write_text("{}")
    return str(folder)


def test_a_run_that_can_start_has_no_problem(values, tmp_path):
    new = str(tmp_path / "new")
    assert problems_of(values, save=new, load=new, checkpoint_factor=1) == []
    load = checkpoint(tmp_path / "old")
    assert problems_of(values, load=load, iteration=3) == []
    for script in ("evaluate.py", "generate.py"):
        assert problems_of(values, script, load=load) == []


def cut(tmp_path, name, size):
    os.truncate(tmp_path / "train/a" / name, size)


BROKEN_DATA = {
    "no .idx": (lambda d: (d / "train/a/text.idx").unlink(), "text.idx: no such file"),
    "no .bin": (lambda d: (d / "train/a/text.bin").unlink(), "text.bin: no such file"),
    "torn .idx": (lambda d: cut(d, "text.idx", 60), "truncated or damaged"),
    "empty .idx": (lambda d: cut(d, "text.idx", 0), "not an index"),
    "torn .bin": (lambda d: cut(d, "text.bin", 100), "must have 128 bytes for"),
    "other file": (lambda d: (d / "train/a/text.idx").write_text("x" * 90), "not an index"),
    "torn sidecar": (lambda d: (d / "train/a/text.meta.json").write_text("{"), "meta.json"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN_DATA.values(), ids=BROKEN_DATA)
def test_data_that_cannot_be_opened_are_named_with_their_key(values, tmp_path, breaks, message):
    breaks(tmp_path)
    ((key, problem),) = problems_of(values)
    assert key == "train_data_paths"
    assert problem.startswith(f"train_data_paths: {tmp_path}")
    assert message in problem


def test_a_data_path_that_no_file_can_have_is_named_with_its_key(values):
    problems = problems_of(values, train_data_paths=["d/" + "a" * 5000])
    ((key, problem),) = problems
    assert key == "train_data_paths"
    assert "aaa.idx: cannot be read: File name too long" in problem
    assert len(problem) < 400


def test_a_data_set_that_is_cut_ends_the_run_itself_too(values, tmp_path):
    from megatron.data.errors import DataError
    from megatron.data.index_format import read_index

    for name, size in (("text.idx", 60), ("text.bin", 100)):
        cut(tmp_path, name, size)
        with pytest.raises(DataError):
            read_index(values["train_data_paths"][0])


def test_data_that_nobody_opens_are_not_looked_at(values, tmp_path):
    for split in ("valid", "test"):
        (tmp_path / split / "a" / "text.idx").unlink()
    assert [key for key, _ in problems_of(values)] == ["valid_data_paths", "test_data_paths"]
    assert problems_of(values, use_named_eval_datasets=False, eval_iters=0) == []
    load = checkpoint(tmp_path / "run")
    assert len(problems_of(values, "evaluate.py", load=load)) == 2
    assert problems_of(values, "evaluate.py", load=load, eval_tasks=["piqa"]) == []
    assert problems_of(values, "generate.py", load=load) == []
    assert problems_of(values, "mine.py") == []


def test_a_data_set_shorter_than_one_sample_is_named(values, tmp_path):
    short = write_dataset(tmp_path / "train/b/text", num_tokens=16)
    paths = [*values["train_data_paths"], short]
    ((_, problem),) = problems_of(values, train_data_paths=paths)
    assert f"{short}: domain b is shorter than one sample: 16 tokens" in problem
    assert "needs 17" in problem


def sidecar(prefix, **changes):
    tokenizer = {"type": "HFTokenizer", "vocab_size": 9000, "sha256": None}
    content = {"schema": 1, "documents": 1, "tokens": 64, "text_bytes": 64, "max_token_id": 9}
    with open(f"{prefix}.meta.json", "w") as stream:
        json.dump({**content, "tokenizer": tokenizer, **changes}, stream)


@pytest.mark.parametrize(
    ("largest", "tokens", "is_refused"), [(511, 64, 0), (512, 64, 1), (600, 5, 0)]
)
def test_an_id_beyond_the_vocabulary_is_named(values, largest, tokens, is_refused):
    sidecar(values["train_data_paths"][0], max_token_id=largest, tokens=tokens)
    found = problems_of(values)
    assert len(found) == is_refused  # a sidecar of other data says nothing
    for key, problem in found:
        assert key == "train_data_paths"
        assert f"token id {largest}" in problem
        assert "512 ids" in problem


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"tokenizer_type": "HFTokenizer", "vocab_file": "no.json"}, "vocab_file", "no.json"),
        ({"tokenizer_type": "HFTokenizer"}, "vocab_file", "none is given"),
        ({"precision": "fp16"}, "precision", "no accelerator"),
        ({"fp16": {"enabled": True}}, "fp16", "no accelerator"),
        ({"save": "train.py", "checkpoint_factor": 1}, "save", "train.py); choose a writable"),
        ({"save": "train.py/x", "checkpoint_factor": 1}, "save", "train.py); choose a writable"),
        ({"log_dir": "train.py/logs"}, "log_dir", "train.py); choose a writable"),
        ({"tensorboard_dir": "mine.py/t"}, "tensorboard_dir", "mine.py); choose a writable"),
        ({"load": "elsewhere"}, "load", "no checkpoint in elsewhere"),
        ({"load": "run", "iteration": 4}, "load", "no checkpoint of iteration 4; found: 3"),
        ({"load": "neox/global_step10"}, "load", "checkpoint of GPT-NeoX"),
        ({"load": "neox", "iteration": 4}, "load", "no checkpoint of iteration 4; found: 10"),
        ({"save": "run", "checkpoint_factor": 1}, "save", "contains 1 checkpoint, which"),
        ({"finetune": True}, "finetune", "set load"),
        ({"iteration": 3}, "iteration", "set load"),
    ],
    ids=str,
)
def test_files_and_folders_of_a_training_are_named(values, tmp_path, changes, key, message):
    checkpoint(tmp_path / "run")
    (tmp_path / "neox/global_step10").mkdir(parents=True)
    (tmp_path / "neox/global_step10/mp_rank_00_model_states.pt").write_bytes(b"")
    ((found, problem),) = problems_of(values, **changes)
    assert found == key
    assert message in problem


def test_a_split_without_training_documents_is_named(values):
    held_out = {"valid_data_paths": None, "test_data_paths": None}
    assert problems_of(values, **held_out, split="1,0,0") == []
    ((key, problem),) = problems_of(values, **held_out, split="0,9,1")
    assert key == "split"
    assert "'0,9,1' leaves no training documents" in problem


def test_a_folder_that_may_not_be_written_is_named(values, monkeypatch):
    # root may write everywhere
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    ((key, problem),) = problems_of(values, save="locked/run", checkpoint_factor=1)
    assert key == "save"
    assert "Permission denied" in problem


def test_an_address_whose_file_system_is_missing_is_named_and_others_are_not_looked_at(values):
    assert problems_of(values, save="memory://run", load="memory://run", checkpoint_factor=1) == []
    changes = {"save": "run", "save_copy": "s4://bucket/run", "checkpoint_factor": 1}
    ((key, problem),) = problems_of(values, **changes)
    assert key == "save_copy"
    assert "fsspec knows no file system s4" in problem
    ((key, problem),) = problems_of(values, "evaluate.py", load="s4://bucket/run")
    assert key == "load"
    assert "s4://bucket/run" in problem


def test_a_program_that_reads_needs_a_checkpoint_and_no_folder(values):
    ((_, problem),) = problems_of(values, "generate.py", save="train.py", precision="fp16")
    assert problem.startswith("load: is not set")
    ((_, problem),) = problems_of(values, "evaluate.py", load="nowhere", save="nowhere")
    assert problem.startswith("load: no checkpoint in nowhere")


@pytest.mark.parametrize(
    ("script", "changes", "key", "message"),
    [
        ("generate.py", {"sample_input_file": "no.txt"}, "sample_input_file", "no.txt"),
        ("generate.py", {"sample_input_file": "run"}, "sample_input_file", "no file run"),
        ("generate.py", {"sample_output_file": "no/x"}, "sample_output_file", "no folder no"),
        ("generate.py", {"sample_output_file": "run"}, "sample_output_file", "run is a folder"),
        ("evaluate.py", {"eval_domains": ["b"]}, "eval_domains", "b is neither"),
        ("evaluate.py", {"eval_domains": ["a", "b=no"]}, "eval_domains", "b=no is neither"),
        ("evaluate.py", {"eval_results_prefix": "mine.py/x"}, "eval_results_prefix", "mine.py"),
        ("evaluate.py", {"eval_tasks": ["no/such.yaml"]}, "eval_tasks", "no task file no/such"),
        ("evaluate.py", {"eval_tasks": ["nope_task"]}, "eval_tasks", "no task 'nope_task'"),
        (
            "evaluate.py",
            {"eval_tasks": ["piqa"], "eval_task_paths": ["no"]},
            "eval_task_paths",
            "no folder no",
        ),
        (
            "evaluate.py",
            {"valid_data_paths": None, "test_data_paths": None},
            "valid_data_paths",
            "no held-out data",
        ),
    ],
)
def test_files_of_a_program_that_reads_are_named(values, tmp_path, script, changes, key, message):
    load = checkpoint(tmp_path / "run")
    ((found, problem),) = problems_of(values, script, load=load, **changes)
    assert (found, problem.partition(":")[0]) == (key, key)
    assert message in problem


@pytest.mark.parametrize(
    ("script", "changes"),
    [
        ("generate.py", {"sample_input_file": "mine.py", "sample_output_file": "out.jsonl"}),
        ("generate.py", {"text_gen_type": "unconditional", "sample_input_file": "no.txt"}),
        ("evaluate.py", {"eval_domains": ["a", "b=train/a/text", "train/a/text.idx", "train"]}),
        ("evaluate.py", {"eval_results_prefix": "new/folder/x"}),
        ("evaluate.py", {"eval_tasks": ["piqa", "mmlu_*"]}),
        ("train.py", {"eval_tasks": ["nope_task"]}),
    ],
)
def test_files_that_a_program_can_read_and_write_are_no_problem(values, tmp_path, script, changes):
    assert problems_of(values, script, load=checkpoint(tmp_path / "run"), **changes) == []


@pytest.mark.parametrize("key", ["save", "load", "log_dir", "vocab_file"])
@pytest.mark.parametrize("path", ["x" * 300, "x/" * 2500], ids=["long name", "long path"])
def test_a_path_beyond_the_systems_limits_is_named_with_its_key(values, key, path):
    tokenizer = {"tokenizer_type": "HFTokenizer"} if key == "vocab_file" else {}
    ((found, problem),) = problems_of(values, checkpoint_factor=1, **tokenizer, **{key: path})
    assert found == key
    assert "File name too long" in problem
    assert len(problem) < 500


def told_by_check(values, tmp_path, capsys, *flags):
    (tmp_path / "run.yml").write_text(yaml.safe_dump(values, sort_keys=False))
    assert main(["--check", "train.py", "run.yml", *flags]) == 2
    return capsys.readouterr().err.splitlines()


def test_wrong_numbers_processes_and_files_are_told_together(values, tmp_path, capsys):
    values |= {"num_gpus": 0, "hidden_size": 7, "num_attention_heads": 3, "pipe_parallel_size": 4}
    values |= {"num_layers": 4, "train_batch_size": 64, "train_data_paths": ["no/a\nb/text"]}
    told = told_by_check(values, tmp_path, capsys)
    keys = [line.split()[1].rstrip(":") for line in told]
    assert sorted(keys) == ["hidden_size", "num_gpus", "train_data_paths"]
    assert all(line.startswith("run.yml:") for line in told)
    assert "no/a\\nb/text.idx: no such file" in told[keys.index("train_data_paths")]
    assert len(told_by_check(values, tmp_path, capsys, "--elsewhere")) == 2


def test_a_wrong_hostfile_and_a_wrong_size_are_told_together(values, tmp_path, capsys):
    (tmp_path / "hosts").write_text("a slots=2\nb\n")
    values |= {"hostfile": "hosts", "hidden_size": 7, "num_attention_heads": 3}
    values |= {"pipe_parallel_size": 4, "num_layers": 4, "train_data_paths": ["there/a/text"]}
    host, size = told_by_check(values, tmp_path, capsys)
    assert host.startswith("hosts:2: ")
    assert "hidden_size 7" in size


def test_check_and_dry_run_tell_everything_at_once_with_its_line(values, tmp_path, capsys):
    (tmp_path / "train/a/text.idx").unlink()
    broken = {**values, "tokenizer_type": "SPMTokenizer", "vocab_file": "no.model"}
    broken |= {"precision": "fp16", "load": "elsewhere"}
    (tmp_path / "run.yml").write_text(yaml.safe_dump(broken, sort_keys=False))
    lines = {key: number for number, key in enumerate(broken, start=1)}
    lines = {key: text.split(":")[1] for key, text in placed_lines(tmp_path / "run.yml", lines)}
    wanted = [f"run.yml:{lines[k]}: {k}: " for k in ("vocab_file", "train_data_paths", "precision")]
    for flag in ("--check", "--dry-run"):
        assert main([flag, "train.py", "run.yml"]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 5
        for line, start in zip(told, [*wanted, f"run.yml:{lines['load']}: load: "], strict=False):
            assert line.startswith(start)
        assert main([flag, "train.py", "run.yml", "--elsewhere"]) == 0
        assert "no.model" in capsys.readouterr().out or flag == "--dry-run"
    assert main(["train.py", "run.yml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def placed_lines(path, keys):
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        key = line.split(":")[0]
        if key in keys:
            yield key, f"run.yml:{number}"


def test_on_several_machines_what_is_not_here_is_noted(values, tmp_path, capsys):
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    (tmp_path / "train/a/text.idx").unlink()
    (tmp_path / "run.yml").write_text(yaml.safe_dump({**values, "precision": "fp16"}))
    assert main(["--check", "train.py", "run.yml", "-H", "hosts"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("not on this machine: run.yml:") == 2


def test_a_run_of_odm_is_checked_for_generation_without_its_data(values, tmp_path, capsys):
    load = checkpoint(tmp_path / "run")
    model = {k: v for k, v in values.items() if not k.endswith("_data_paths")}
    method = {"data_sampling_method": "smoothed_mean", "train_data_weights": [1, 2], "load": load}
    method["eval_tasks"] = ["piqa"]
    (tmp_path / "run.yml").write_text(yaml.safe_dump({**model, **method}))
    for script in ("evaluate.py", "generate.py"):
        assert main(["--check", script, "run.yml"]) == 0, capsys.readouterr().err
        assert f"reads          {load}" in capsys.readouterr().out


def test_the_reported_parameters_are_those_of_the_model_that_is_built(values, tmp_path):
    vocabulary = {f"t{number}": number for number in range(2047)}
    content = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary}}
    content["model"] |= {"unk_token": "t0", "vocab": {**vocabulary, "<|endoftext|>": 2047}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    values |= {"tokenizer_type": "HFTokenizer", "vocab_file": "t.json", "hidden_size": 32}
    values |= {"num_attention_heads": 2, "make_vocab_size_divisible_by": 100}
    config = resolve(NeoXArgs.from_dict(values), world_size=1)
    plan = memory_plan(config)
    assert (plan.vocabulary.size, plan.shape.padded_vocab_size) == (2048, 2100)
    from megatron.engine.build import build_model_config

    built = GPT2Model(build_model_config(config, build_tokenizer(config)), seed=1)
    assert stage_parameters(plan.layers) == sum(p.numel() for p in built.parameters())


def test_a_wrong_section_for_deepspeed_is_told_with_missing_files(values, tmp_path, capsys):
    values |= {"tensorboard": {"params": ""}, "train_data_paths": ["no/a"]}
    told = told_by_check(values, tmp_path, capsys)
    assert [("tensorboard.params" in line, "no/a.idx" in line) for line in told] == [
        (True, False),
        (False, True),
    ]
