"""Learning curves from run logs whose losses follow known lines."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from megatron.reporting.run_log import RunLogFile
from tools.learning_curves import fit_curves
from tools.plot_mixture import main, read_history

TOKENS = 100


def write_log(path, losses, *, steps=range(1, 401), tokens=True, noise=0.0) -> None:
    """Writes a log of domains whose losses are functions of the step."""
    log = RunLogFile(path)
    chance = np.random.default_rng(0)
    for step in steps:
        values = {name: of(step) for name, of in losses.items()}
        noisy = {
            name: None if loss is None else loss + noise * chance.standard_normal()
            for name, loss in values.items()
        }
        count = {"consumed_tokens": TOKENS * step} if tokens else {}
        log.append(
            {
                "event": "train",
                "iteration": step,
                "weights": dict.fromkeys(losses, 1 / len(losses)),
                "losses": noisy,
                "epochs": dict.fromkeys(losses, 0.1),
                **count,
            }
        )
    log.close()


def line(slope: float):
    return lambda step: 4.0 + slope * math.log(step)


def numbers(capsys, path, *arguments: str) -> dict:
    assert main([str(path), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_slope_of_a_line_in_the_logarithm_is_found_and_so_is_the_price_of_a_gain(
    tmp_path, capsys
):
    write_log(tmp_path / "metrics.jsonl", {"web": line(-0.5), "code": line(-0.01)}, noise=0.001)
    found = numbers(capsys, tmp_path)
    assert (found["iteration"], found["tokens"], found["gain_nats"]) == (400, 40_000, 0.01)
    web, code = found["domains"]["web"], found["domains"]["code"]
    assert web["slope_per_doubling"] == pytest.approx(-0.5 * math.log(2), abs=0.001)
    assert web["loss"] == pytest.approx(4 - 0.5 * math.log(400), abs=0.001)
    # the loss falls by 0.01 while ln(tokens) grows by 0.01 / 0.5
    assert web["tokens_to_gain"] == pytest.approx(40_000 * math.expm1(0.02), rel=0.01)
    assert code["tokens_to_gain"] == pytest.approx(40_000 * math.expm1(1.0), rel=0.1)
    for domain in (web, code):
        assert domain["tokens_to_gain_low"] < domain["tokens_to_gain"]
        assert domain["tokens_to_gain"] < domain["tokens_to_gain_high"]
    last = found["curves"]["web"]
    assert last["iterations"][-1] == 400
    assert last["loss"][-1] == pytest.approx(web["loss"])
    assert last["standard_error"][-1] == pytest.approx(web["loss_error"])
    assert last["loss"][0] is None  # one point is no line


def test_an_interval_covers_the_true_slope_of_noisy_losses(tmp_path):
    write_log(tmp_path / "metrics.jsonl", {"web": line(-0.3), "flat": line(0.0)}, noise=0.2)
    curves = fit_curves(read_history(tmp_path)).domains
    for name, slope in (("web", -0.3), ("flat", 0.0)):
        found = curves[name]
        assert 0.005 < found.slope_error < 0.05
        assert abs(found.slope_per_doubling - slope * math.log(2)) < 3 * found.slope_error
    assert curves["flat"].tokens_to_gain_high is None


def test_a_loss_that_rises_or_is_constant_never_gains(tmp_path, capsys):
    write_log(tmp_path / "metrics.jsonl", {"up": line(0.2), "same": line(0.0)}, noise=0.0)
    found = numbers(capsys, tmp_path)["domains"]
    assert found["up"]["slope_per_doubling"] > 0.1
    assert found["up"]["tokens_to_gain"] is None
    assert found["same"]["tokens_to_gain"] is None


def test_what_a_log_does_not_tell_is_null(tmp_path, capsys):
    never = {
        "web": line(-0.5),
        "never": lambda step: None,
        "once": lambda s: 3.0 if s == 7 else None,
    }
    write_log(tmp_path / "metrics.jsonl", never, steps=range(1, 30), tokens=False)
    found = numbers(capsys, tmp_path)
    assert found["tokens"] is None
    assert found["domains"]["web"]["tokens_to_gain"] is None
    assert set(found["domains"]["never"].values()) == {None}
    assert found["domains"]["once"]["slope_per_doubling"] is None
    assert set(found["curves"]["once"]["loss"]) == {None}


def test_sparse_lines_of_a_log_give_the_same_line(tmp_path, capsys):
    write_log(tmp_path / "metrics.jsonl", {"web": line(-0.5)}, steps=range(20, 401, 20), noise=1e-4)
    found = numbers(capsys, tmp_path)["domains"]["web"]
    # each loss stands for the 20 iterations before it, half of them earlier
    assert found["slope_per_doubling"] == pytest.approx(-0.5 * math.log(2), abs=0.03)


@pytest.mark.parametrize("num_domains", [1, 5])
def test_the_curves_become_a_picture(tmp_path, capsys, num_domains):
    losses = {f"d$_{k}": line(-0.1 * k) for k in range(num_domains)}
    write_log(tmp_path / "metrics.jsonl", losses, steps=range(1, 30), noise=0.1)
    log = RunLogFile(tmp_path / "metrics.jsonl")
    results = {"d$_0": {"loss": None}}
    log.append({"event": "validation", "iteration": 29, "domains": results})
    log.close()
    output = tmp_path / "made" / "curves.png"
    assert main([str(tmp_path), "--curves", "-o", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {output}\n"


def test_losses_that_overflow_break_nothing(tmp_path, capsys):
    log = RunLogFile(tmp_path / "metrics.jsonl")
    for step, loss in enumerate((1e300, math.inf, 1e308, math.nan, -1e308, 2.0)):
        event = {"event": "train", "iteration": step, "weights": {"web": 1e300}}
        log.append({**event, "losses": {"web": loss}, "consumed_tokens": 2**62})
    log.close()
    numbers(capsys, tmp_path)


def test_flags_that_do_not_go_together_are_refused(tmp_path):
    for arguments in (["--option", "a=1"], ["--replay", "ema", "--json"]):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path), *arguments])
