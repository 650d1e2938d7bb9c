"""The run log and its writers."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.evaluation.losses import DomainResult
from megatron.neox_arguments import ConfigError
from megatron.reporting.records import TrainRecord, train_scalars, typical_seconds
from megatron.reporting.run_log import RunLogFile
from megatron.reporting.run_logger import RunLogger, print_rank_0, read_run_log
from megatron.reporting.writers import ConsoleWriter, has_wandb_key, wandb_run_name

ROOT = Path(__file__).resolve().parents[3]


def make_config(folder, **logging_args):
    defaults = {
        "tensorboard_dir": None,
        "use_wandb": False,
        "wandb_host": "https://api.wandb.ai",
        "wandb_project": "neox",
        "wandb_group": None,
        "wandb_run_name": None,
        "wandb_team": None,
    }
    log_dir = None if folder is None else str(folder)
    return SimpleNamespace(
        logging=SimpleNamespace(**{**defaults, "log_dir": log_dir, **logging_args}),
        layout=SimpleNamespace(world_size=2),
        to_dict=lambda: {"hidden_size": 8},
    )


def make_record(iteration: int = 10, **values) -> TrainRecord:
    defaults = {
        "iteration": iteration,
        "consumed_samples": 40,
        "consumed_tokens": 320,
        "lm_loss": 0.1 + 0.2,
        "learning_rate": 1e-3,
        "seconds": 0.5,
        "step_seconds": 0.4,
        "samples_per_second": 8.0,
        "tokens_per_second": 64.0,
        "grad_norm": 1.5,
        "weights": {"code": 0.25, "prose": 0.75},
        "losses": {"code": 2.0, "prose": None},
        "mean_losses": {"code": 2.25, "prose": 3.5},
        "tokens": {"code": 32, "prose": 0},
        "epochs": {"code": 0.5, "prose": 0.0},
        "iterations": {"code": 2.5, "prose": 7.5},
        "rewards": {"code": 7.4, "prose": 3.0},
    }
    return TrainRecord(**{**defaults, **values})


def make_logger(folder, *, rank: int = 0, **logging_args):
    stream = io.StringIO()
    logger = RunLogger(
        make_config(folder, **logging_args),
        rank,
        train_iters=100,
        flops_per_token=1e12,
        device_kind="CPU process",
        console=ConsoleWriter(stream),
    )
    return logger, stream


def test_a_training_line_has_the_keys_that_others_rely_on(tmp_path):
    logger, _ = make_logger(tmp_path)
    logger.train(make_record(rewards={}))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "event": "train",
        "iteration": 10,
        "consumed_samples": 40,
        "consumed_tokens": 320,
        "lm_loss": 0.30000000000000004,
        "grad_norm": 1.5,
        "learning_rate": 0.001,
        "loss_scale": None,
        "tokens_per_second": 64.0,
        "seconds": 0.5,
        "step_seconds": 0.4,
        "weights": {"code": 0.25, "prose": 0.75},
        "losses": {"code": 2.0, "prose": None},
        "mean_losses": {"code": 2.25, "prose": 3.5},
        "tokens": {"code": 32, "prose": 0},
        "epochs": {"code": 0.5, "prose": 0.0},
    }


def test_metrics_have_the_names_of_gpt_neox_and_of_the_research_code():
    assert train_scalars(make_record(loss_scale=4096.0), flops_per_second=2e12) == {
        "train/lm_loss": 0.30000000000000004,
        "train/learning_rate": 0.001,
        "train/grad_norm": 1.5,
        "train/loss_scale": 4096.0,
        "train/consumed_samples": 40,
        "train/consumed_tokens": 320,
        "runtime/samples_per_sec": 8.0,
        "runtime/tokens_per_sec": 64.0,
        "runtime/iteration_time": 0.5,
        "runtime/flops_per_sec_per_gpu": 2e12,
        "runtime/tflops_per_gpu": 2.0,
        "train/loss/code": 2.0,
        "train/iterations/code": 2.5,
        "train/iterations/prose": 7.5,
        "train/percent/code": 0.25,
        "train/percent/prose": 0.75,
        "train/epochs/code": 0.5,
        "train/epochs/prose": 0.0,
        "train/_probabilities/code": 0.25,
        "train/_probabilities/prose": 0.75,
        "train/_estimated_reward/code": 7.4,
        "train/_estimated_reward/prose": 3.0,
    }


def test_the_console_line_has_the_names_of_gpt_neox_and_every_domain(tmp_path):
    logger, stream = make_logger(tmp_path)
    logger.train(make_record())
    line, *table = stream.getvalue().splitlines()
    for words in (
        "samples/sec: 8.000 |",
        "iteration 10/100 |",
        "time left: 0:00:36 |",
        "elapsed time per iteration (ms): 500.0 |",
        "learning rate: 1.000E-03 |",
        "approx flops per CPU process: 32.0TFLOPS |",
        "lm_loss: 3.000000E-01 |",
        "number of skipped iterations:   0 |",
        "number of nan iterations:   0 |",
    ):
        assert words in line
    assert "code    25.0%  2.250" in " ".join(table)
    assert "prose   75.0%  3.500" in " ".join(table)


@pytest.mark.parametrize(
    ("times", "typical"),
    [
        ([3.0], 3.0),
        ([3.0, 1.0], 2.0),
        ([9.0, 1.0, 1.5], 1.5),
        ([60.0, 1.0, 2.0, 3.0], 2.5),
        ([60.0, 1.0, 2.0, 3.0, 0.0, 2.0, 50.0], 7 / 3),
    ],
)
def test_a_slow_step_does_not_move_the_typical_time(times, typical):
    assert typical_seconds(times) == pytest.approx(typical)


@pytest.mark.parametrize(
    ("perplexity", "text"),
    [(7.4811, "ppl 7.481"), (50304.4, "ppl 50304"), (1e12, "ppl 1e+12"), (math.inf, "ppl inf")],
)
def test_a_large_perplexity_is_written_plainly(tmp_path, perplexity, text):
    logger, stream = make_logger(tmp_path)
    figures = {"standard_error": None, "bits_per_byte": None, "num_samples": 3, "num_tokens": 24}
    result = DomainResult(loss=1.0, perplexity=perplexity, **figures)
    logger.evaluation("validation", 10, {"code": result}, {})
    assert f"{text} (" in stream.getvalue().splitlines()[1]


def test_an_evaluation_is_logged_and_printed(tmp_path):
    logger, stream = make_logger(tmp_path)
    code = {
        "loss": 1.0,
        "standard_error": 0.125,
        "perplexity": math.e,
        "bits_per_byte": 0.5,
        "num_samples": 3,
        "num_tokens": 3000,
    }
    prose = {**code, "loss": 2.0, "standard_error": None, "bits_per_byte": None}
    results = {"code": DomainResult(**code), "prose": DomainResult(**prose)}
    logger.evaluation("validation", 10, results, {"avg_lm_loss": 1.5})
    assert read_run_log(tmp_path) == [
        {
            "event": "validation",
            "iteration": 10,
            "domains": {"code": code, "prose": prose},
            "averages": {"avg_lm_loss": 1.5},
        }
    ]
    printed = stream.getvalue()
    assert "validation at iteration 10 on 6,000 tokens | avg_lm_loss: 1.5000" in printed
    assert "lm_loss 1.0000 +- 0.1250 ppl 2.718 0.500 bits/byte (3,000 tokens)" in printed
    assert "lm_loss 2.0000 ppl 2.718 (3,000 tokens)" in printed


def test_only_rank_0_writes(tmp_path):
    logger, stream = make_logger(tmp_path, rank=1)
    logger.start({})
    logger.train(make_record())
    logger.evaluation("test", 10, {}, {})
    logger.save(10, "folder")
    logger.warning("something")
    logger.stop(10, "done")
    assert list(tmp_path.iterdir()) == []
    assert stream.getvalue() == ""


def test_events_around_training_are_in_the_log(tmp_path):
    logger, _ = make_logger(tmp_path)
    logger.start({"domains": ["code"]})
    logger.resume(5)
    logger.save(7, "save/global_step7")
    logger.warning("mind the gap", iteration=8)
    logger.stop(9, "train_iters reached")
    events = read_run_log(tmp_path)
    assert [event["event"] for event in events] == ["start", "resume", "save", "warning", "stop"]
    assert events[0]["domains"] == ["code"]
    assert events[2]["folder"] == "save/global_step7"
    assert events[4]["reason"] == "train_iters reached"


def test_a_run_without_a_folder_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger, stream = make_logger(None)
    logger.start({})
    logger.train(make_record())
    assert list(tmp_path.iterdir()) == []
    assert "lm_loss" in stream.getvalue()


def test_a_log_folder_that_cannot_be_made_is_an_error_for_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="log_dir: cannot write the run log"):
        make_logger(tmp_path / "file" / "logs")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_float_comes_back_bit_for_bit(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("log")
    log = RunLogFile(folder / "metrics.jsonl")
    log.append({"event": "train", "iteration": 1, "lm_loss": value, "numpy": np.float64(value)})
    log.close()
    (event,) = read_run_log(folder)
    for read in (event["lm_loss"], event["numpy"]):
        assert read == value or (math.isnan(read) and math.isnan(value))
    json.loads((folder / "metrics.jsonl").read_text(), parse_constant=pytest.fail)  # strict JSON


def test_a_torn_last_line_is_left_out_and_the_next_process_starts_a_new_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    logger, _ = make_logger(tmp_path)
    logger.train(make_record(1))
    with open(file, "a") as torn:
        torn.write('{"event": "train", "iteration": 2, "weights": {"code": 1.0}')
    assert [event["iteration"] for event in read_run_log(file)] == [1]
    logger, _ = make_logger(tmp_path)
    logger.resume(1)
    logger.train(make_record(2))
    assert [(e["event"], e["iteration"]) for e in read_run_log(file)] == [
        ("train", 1),
        ("resume", 1),
        ("train", 2),
    ]


def test_an_event_whose_iteration_is_null_has_none(tmp_path):
    lines = ('{"event": "warning", "iteration": null}', '{"event": "resume", "iteration": 0}')
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert read_run_log(tmp_path) == [{"event": "warning"}, {"event": "resume", "iteration": 0}]


def test_the_later_line_of_an_iteration_counts(tmp_path):
    logger, _ = make_logger(tmp_path)
    logger.train(make_record(1, lm_loss=1.0))
    logger.train(make_record(1, lm_loss=2.0))
    assert [event["lm_loss"] for event in read_run_log(tmp_path)] == [2.0]


def test_a_resume_takes_back_what_came_after_its_checkpoint(tmp_path):
    logger, _ = make_logger(tmp_path)
    for step in (1, 2, 3):
        logger.train(make_record(step))
    logger.resume(1)
    assert [e["iteration"] for e in read_run_log(tmp_path) if e["event"] == "train"] == [1]
    logger.start({})
    assert [e for e in read_run_log(tmp_path) if e["event"] == "train"] == []


def test_a_damaged_line_names_itself(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "start"}\nrubbish\n{"event": "stop"}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not an event"):
        read_run_log(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": 5}', "event: must be the kind of the event, got 5"),
        ('{"iteration": 5}', "lacks event"),
        ('{"event": "train"}', "lacks iteration"),
        ('{"event": "train", "iteration": "7"}', "iteration: .*got '7'"),
        ('{"event": "train", "iteration": -1}', "iteration: .*got -1"),
        ('{"event": "train", "iteration": true}', "iteration: .*got True"),
        ('{"event": "train", "iteration": 7, "losses": 3}', "losses: must be an object, got 3"),
        ('{"event": "train", "iteration": 7, "mean_losses": []}', r"mean_losses: .*got \[\]"),
        (
            '{"event": "train", "iteration": 7, "weights": {"a": "x"}}',
            r"weights\.a: must be a number.*got 'x'",
        ),
        ('{"event": "train", "iteration": 7, "weights": {"a": NaN}}', "contains NaN"),
        ('{"event": "validation", "iteration": 7, "domains": {"a": 2}}', r"domains\.a: .*got 2"),
        (
            '{"event": "validation", "iteration": 7, "domains": {"a": {}}}',
            r"lacks domains\.a\.loss",
        ),
        ('{"event": "resume", "iteration": 1.5}', r"iteration: .*got 1\.5"),
        ("[" * 100_000, "64 levels"),
        ('{"event": "train", "iteration": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_wrong_field_of_a_line_is_named_with_the_line(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_text(f'{{"event": "start"}}\n{line}\n{{"event": "stop"}}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:2: not an event .*{message}"):
        read_run_log(tmp_path)


def test_a_line_torn_at_any_byte_is_left_out_where_the_file_ends(tmp_path):
    whole = '{"event": "warning", "message": "} } {\\" \\u00e9", "iteration": 2}'
    for size in range(len(whole)):
        (tmp_path / "metrics.jsonl").write_text('{"event": "start"}\n' + whole[:size])
        assert read_run_log(tmp_path) == [{"event": "start"}]


class FailingFile:
    def append(self, event):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


def test_the_run_log_is_closed_when_the_run_ends(tmp_path):
    logger, _ = make_logger(tmp_path)
    file = logger._file._file
    logger.train(make_record())
    logger.stop(10, "done")
    assert file.closed
    logger.close()  # a second time, as after an error


def test_a_full_disk_silences_the_run_log_once_and_training_goes_on(tmp_path):
    logger, stream = make_logger(tmp_path)
    logger._file = FailingFile()
    logger.train(make_record(1))
    logger.train(make_record(2))
    assert stream.getvalue().count("No space left on device") == 1


def test_a_disk_that_fills_up_within_a_line_is_said():
    log = RunLogFile(Path(os.devnull))
    log.append({"event": "start"})
    taken = []

    class Disk:
        """Takes ten bytes and is full."""

        def write(self, line):
            if taken:
                raise OSError(28, "No space left on device")
            taken.append(line[:10])
            return 10

    log._file = Disk()
    with pytest.raises(OSError, match="No space left"):
        log.append({"event": "train"})


class GoneConsole(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_console_that_nobody_reads_any_more_is_noted_once_and_training_goes_on(tmp_path):
    logger = RunLogger(make_config(tmp_path), 0, console=ConsoleWriter(GoneConsole()))
    logger.train(make_record(1))
    logger.train(make_record(2))
    logger.say("more")
    events = read_run_log(tmp_path)
    assert [event["event"] for event in events] == ["train", "warning", "train"]
    assert "console" in events[1]["message"]
    assert "(Broken pipe)" in events[1]["message"]


def test_a_program_behind_head_goes_on_to_its_end():
    program = (
        "from megatron.reporting.writers import ConsoleWriter; import sys\n"
        "console = ConsoleWriter()\n"
        "for number in range(1000): console.line('line' * 100)\n"
        "print(console.failure, file=sys.stderr)"
    )
    result = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{program}" | head -n 1; exit ${{PIPESTATUS[0]}}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "Broken pipe\n")


def fake_wandb(monkeypatch, log):
    calls = []

    def init(**values):
        calls.append(values)
        return SimpleNamespace(id="run1", log=log, finish=lambda: None)

    module = ModuleType("wandb")
    module.init = init
    module.Settings = lambda **values: values
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_without_an_account_works_offline_and_a_resume_goes_on_with_the_run(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    logged = []
    calls = fake_wandb(monkeypatch, lambda values, step: logged.append((step, values)))
    logger, _ = make_logger(tmp_path / "logs", use_wandb=True)
    logger.start({})
    logger.train(make_record())
    assert calls[0]["mode"] == "offline"
    assert calls[0]["id"] is None
    assert logged[0][0] == 10
    assert logged[0][1]["train/loss/code"] == 2.0
    logger, _ = make_logger(tmp_path / "logs", use_wandb=True)
    logger.resume(10)
    assert calls[1]["id"] == "run1"


def test_a_logger_that_fails_warns_once_and_is_switched_off(tmp_path, monkeypatch):
    def log(values, step):
        raise ConnectionError("no route")

    fake_wandb(monkeypatch, log)
    logger, stream = make_logger(tmp_path, use_wandb=True)
    logger.start({})
    logger.train(make_record(1))
    logger.train(make_record(2))
    warnings = [e for e in read_run_log(tmp_path) if e["event"] == "warning"]
    assert len(warnings) == 1
    assert "Weights & Biases failed and is switched off" in warnings[0]["message"]
    assert stream.getvalue().count("no route") == 1


def test_a_logger_that_never_finishes_does_not_hold_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.reporting.writers._FINISH_SECONDS", 0.05)
    fake_wandb(monkeypatch, lambda values, step: None)
    run_has_ended, finished = threading.Event(), threading.Event()

    def finish():
        if run_has_ended.wait(60):
            finished.set()

    sys.modules["wandb"].init = lambda **values: SimpleNamespace(
        id="run1", log=lambda values, step: None, finish=finish
    )
    logger, stream = make_logger(tmp_path, use_wandb=True)
    logger.start({})
    began = time.monotonic()
    logger.stop(1, "done")
    assert time.monotonic() - began < 1.0
    run_has_ended.set()
    assert finished.wait(60), "the run waited until the logger gave up"
    assert "still sending after 0.05 s" in stream.getvalue()


def test_a_logger_that_is_not_installed_is_named_with_its_requirements(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger, stream = make_logger(tmp_path, use_wandb=True)
    logger.start({})
    assert "pip install -r requirements/requirements-wandb.txt" in stream.getvalue()


def test_wandb_is_used_unasked_only_with_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_wandb_key("https://api.wandb.ai")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_key("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_wandb_key("https://elsewhere")


def test_wandb_runs_are_named_as_in_the_research_code(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "host")

    def name(**values):
        return wandb_run_name(SimpleNamespace(**values), local_rank=0)

    assert name(wandb_run_name="run", wandb_group="group") == "run-host-0"
    assert name(wandb_run_name=None, wandb_group="group") == "host-0"
    assert name(wandb_run_name=None, wandb_group=None) is None


def test_tensorboard_gets_the_same_names(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, _ = make_logger(tmp_path / "logs", tensorboard_dir=str(tmp_path / "board"))
    logger.start({})
    logger.train(make_record())
    logger.stop(10, "done")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert "train/_probabilities/code" in events.Tags()["scalars"]
    assert events.Scalars("train/lm_loss")[0].step == 10


def test_rank_0_alone_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    print_rank_0("unseen")
    monkeypatch.setenv("RANK", "0")
    print_rank_0("seen", 1)
    assert capsys.readouterr().out == "seen 1\n"


def test_the_share_of_the_peak_is_logged_where_the_peak_is_known(tmp_path):
    # 64 tokens/s of 10^12 operations each on two devices of 100 * 10^12: 32 %
    config, stream = make_config(tmp_path), io.StringIO()
    for peak in (None, 100e12):
        console = ConsoleWriter(stream)
        logger = RunLogger(config, 0, flops_per_token=1e12, peak_flops=peak, console=console)
        logger.train(make_record())
        logger.close()
    without, with_peak = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "mfu" not in without
    assert with_peak["mfu"] == 0.32
    assert stream.getvalue().count("MFU: 32.0%") == 1
    assert train_scalars(make_record(mfu=0.32), flops_per_second=None)["runtime/mfu"] == 0.32
