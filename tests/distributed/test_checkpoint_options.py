"""finetune, no_load_optim, async_save, retention and moves between layouts, in few processes."""

from __future__ import annotations

import pytest

from megatron.checkpoint.format import CheckpointReader, checkpoint_steps
from megatron.reporting.run_log import read_run_log
from tests.distributed.many_runs import train_all
from tests.distributed.runs import assert_same_state, curve, train_events
from tests.tiny import write_tiny_corpus

pytestmark = pytest.mark.distributed

TP = {"model_parallel_size": 2}
PP = {"pipe_parallel_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    corpus = write_tiny_corpus(folder / "corpus")
    saved = str(folder / "first/run")
    runs = {
        "first": {"train_iters": 4, "lr_decay_iters": 8, "extra_save_iters": [0]},
        "straight": {"train_iters": 8, "lr_decay_iters": 8},
        "on-tp": {"train_iters": 8, "lr_decay_iters": 8, "load": saved, **TP},
        "on-pp": {"train_iters": 8, "lr_decay_iters": 8, "load": saved, **PP},
        "resaved-tp": {"train_iters": 4, "load": saved, **TP},
        "resaved-pp": {"train_iters": 4, "load": saved, **PP},
        "finetune": {"train_iters": 2, "load": saved, "finetune": True},
        "no-optim": {"train_iters": 5, "load": saved, "no_load_optim": True},
        "async": {
            "train_iters": 8,
            "lr_decay_iters": 8,
            "async_save": True,
            "checkpoint_factor": 1,
            "keep_last_n_checkpoints": 2,
            "extra_save_iters": [3],
        },
        "exits": {"train_iters": 8, "exit_interval": 3, "eval_interval": 3},
        "padded": {
            "train_iters": 8,
            "lr_decay_iters": 8,
            "load": saved,
            "make_vocab_size_divisible_by": 768,
            **TP,
        },
    }
    train_all(corpus, folder, 2, runs)
    return folder


def losses(folder, name):
    return {i: e["lm_loss"] for i, e in train_events(folder / name / "run.yml").items()}


@pytest.mark.parametrize("name", ["on-tp", "on-pp", "padded"])
def test_a_data_parallel_checkpoint_continues_on_another_cut(folder, name):
    got, want = losses(folder, name), losses(folder, "straight")
    for step in range(5, 9):
        assert got[step] == pytest.approx(want[step], rel=1e-5)


@pytest.mark.parametrize("name", ["resaved-tp", "resaved-pp"])
def test_loading_on_another_cut_keeps_every_bit(folder, name):
    assert_same_state(folder / "first/run/global_step4", folder / name / "run/global_step4")


def test_finetune_starts_at_iteration_0_from_the_loaded_weights(folder):
    """The first loss is far below that of a new model."""
    got = losses(folder, "finetune")
    assert list(got) == [1, 2]
    assert got[1] < losses(folder, "straight")[1] - 0.2


def test_no_load_optim_continues_the_iteration_with_new_moments(folder):
    got, want = losses(folder, "no-optim"), losses(folder, "straight")
    assert list(got) == [5]
    assert got[5] == pytest.approx(want[5], rel=1e-5)  # the loss comes before the step


def test_saving_in_the_background_changes_nothing(folder):
    assert curve(folder / "async/run.yml") == curve(folder / "straight/run.yml")
    assert_same_state(folder / "async/run/global_step8", folder / "straight/run/global_step8")


def test_the_newest_checkpoints_and_those_asked_for_by_name_are_kept(folder):
    assert checkpoint_steps(folder / "async/run") == [3, 7, 8]


def test_exit_interval_evaluates_what_is_due_saves_and_stops(folder):
    assert list(losses(folder, "exits")) == [1, 2, 3]
    assert checkpoint_steps(folder / "exits/run") == [3]
    events = read_run_log(folder / "exits/run")
    assert [e["iteration"] for e in events if e["event"] == "validation"] == [3]


def test_iteration_0_can_be_saved(folder):
    assert checkpoint_steps(folder / "first/run") == [0, 4]
    assert CheckpointReader(folder / "first/run/global_step0").moment_names == ()


def test_no_temporary_folder_is_left(folder):
    assert not list(folder.glob("*/run/*.tmp"))
