"""Every method replays its own run to 1e-12, with both kinds of reward and all limits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from odm import (
    EpochCap,
    Floor,
    GroupLimits,
    Guard,
    HeldOut,
    MixtureController,
    MixtureSchedule,
    Signal,
    TrustRegion,
    make_mixer,
)
from odm.methods import METHODS
from odm.replay import main
from odm.rewards import Reward
from tests.no_warnings import no_warnings

DOMAINS = ("web", "code", "books")
SIZES = (1000, 400, 160)
STEPS = 160
REQUIRED = {
    "schedule": {"points": ((0.0, (1.0, 1.0, 1.0)), (20.0, (3.0, 2.0, 1.0)))},
    "doremi": {"reference_losses": (2.0, 1.5, 3.0)},
    "dynamic_batch_loading": {"target_losses": (2.0, 1.5, 3.0)},
    "skill_graph": {"transfer_matrix": ((1.0, 0.1, 0.0), (0.2, 1.0, 0.0), (0.0, 0.3, 1.0))},
}
"""Options without a default."""


def accepts(name: str, reward: str) -> bool:
    method = METHODS[name]
    if reward == "heldout":
        return method.reward_problem(name, "heldout") is None
    return method.signal != "held_out"


CASES = [
    (name, reward) for name in METHODS for reward in ("train", "heldout") if accepts(name, reward)
]


def by_domain(values) -> dict[str, float | None]:
    return {
        name: None if value != value else value
        for name, value in zip(DOMAINS, np.asarray(values).tolist(), strict=True)
    }


LIMITS = (
    Floor(0.05),
    GroupLimits(("text",), ((0, 2),), (0.1,), (0.7,)),
    EpochCap(3.0, SIZES, STEPS * 8),
    TrustRegion(max_total_variation=0.2),
)


def write_run(path, method: str, reward: str, limits=LIMITS) -> list[dict]:
    """Trains a pretended model and writes its log; returns the lines."""
    mixture = MixtureController(
        DOMAINS,
        make_mixer(method, **REQUIRED.get(method, {})),
        MixtureSchedule(5, 3),
        limits,
        reward=reward,
        warmup_steps=5,
        update_frequency=2,
        total_steps=STEPS,
    )
    sizes = dict(zip(DOMAINS, SIZES, strict=True))
    start = {"mixture": mixture.describe(), "samples_per_epoch": sizes, "train_iters": STEPS}
    lines = [{"event": "start", "iteration": 0, **start}]
    chance = np.random.default_rng(1)
    for step in range(1, STEPS + 1):
        weights = mixture.weights
        counts = mixture.draw(step, 8).counts(3)
        true = np.array([2.0, 1.0, 3.0]) + np.array([3.0, 2.0, 0.5]) * step**-0.4
        signal = Signal.from_means(true + 0.1 * chance.standard_normal(3), counts * 16.0)
        measured = None
        if step % 4 == 0:
            measured = HeldOut.from_means(
                true + 0.05 * chance.standard_normal(3),
                step=step,
                standard_error=[0.02, 0.03, 0.01],
                token_count=[256, 256, 128],
            )
            fields = measured.by_domain(DOMAINS)
            lines.append({"event": "held_out", "iteration": step, **fields})
        mixture.observe(step, signal, held_out=measured)
        lines.append(
            {
                "event": "train",
                "iteration": step,
                "weights": by_domain(weights),
                "losses": by_domain(signal.mean_loss()),
                "tokens": by_domain(signal.token_count),
                "epochs": by_domain(mixture.cursors / np.array(SIZES)),
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.mark.parametrize(("method", "reward"), CASES)
def test_a_run_is_replayed_within_rounding(tmp_path, capsys, method, reward):
    lines = write_run(tmp_path / "metrics.jsonl", method, reward)
    assert main([str(tmp_path)]) == 0  # the tolerance is 1e-12
    assert "160 iterations replayed" in capsys.readouterr().out
    trained = [line["weights"] for line in lines if line["event"] == "train"]
    if reward == "train" and (METHODS[method].learns or METHODS[method].follows_steps):
        assert trained[-1] != trained[0]


@pytest.mark.parametrize(("method", "reward"), CASES)
def test_it_gives_the_same_weights_as_another_method_of_the_same_name(
    tmp_path, capsys, method, reward
):
    write_run(tmp_path / "metrics.jsonl", method, reward)
    options = [
        f"--option={name}={json.dumps(value)}" for name, value in REQUIRED.get(method, {}).items()
    ]
    assert main([str(tmp_path), "--mixer", method, "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in DOMAINS:
        np.testing.assert_allclose(found["run"][name], found["other"][name], rtol=0, atol=1e-12)


def test_a_method_of_held_out_losses_takes_those_of_the_log(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = write_run(path, "smoothed_mean", "train")
    assert main([str(path), "--mixer", "naive_validation", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["other"]
    assert answer["web"][0] == pytest.approx(1 / 3)
    assert answer["web"][-1] != answer["web"][0]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["event"] != "held_out")
    )
    assert main([str(path), "--mixer", "naive_validation"]) == 2
    error = capsys.readouterr().err
    assert "naive_validation learns from held-out losses, and the log has none" in error
    assert error.count("\n") == 1


def test_the_worth_of_repetition_is_judged_by_the_sizes_in_the_log(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = write_run(path, "exp3", "train", limits=())
    request = [str(path), "--mixer", "learning_curve", "--json"]
    last = []
    for options in ([], ["--option", "repetition_decay=0.5"]):
        assert main([*request, *options]) == 0
        last.append(json.loads(capsys.readouterr().out)["other"]["books"][-1])
    assert last[1] < 0.8 * last[0]  # books is small, and exp3 has read it several times
    sizes = lines[0].pop("samples_per_epoch")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([*request, "--option", "repetition_decay=0.5"]) == 2
    error = capsys.readouterr().err
    assert "the log has no samples_per_epoch of them; add the option domain_sizes=[...]" in error
    given = f"domain_sizes={[sizes[name] for name in DOMAINS]}"
    assert main([*request, "--option", "repetition_decay=0.5", "--option", given]) == 2
    assert "depends on the cursors of the run" in capsys.readouterr().err


def test_a_run_that_was_resumed_with_more_text_is_judged_by_the_new_sizes(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = write_run(path, "exp3", "train", limits=())
    for line in lines:  # the sizes do not tell the cursors then
        if line["event"] == "train":
            sizes = lines[0]["samples_per_epoch"]
            line["cursors"] = {k: round(v * sizes[k]) for k, v in line["epochs"].items()}
    middle = next(i for i, line in enumerate(lines) if line.get("iteration") == 60)
    more = dict.fromkeys(lines[0]["samples_per_epoch"], 10**6)
    request = [str(path), "--mixer", "learning_curve", "--json", "--option", "repetition_decay=0.5"]
    last = []
    for sizes in (lines[0]["samples_per_epoch"], more):
        resumed = {**lines[0], "event": "resume", "iteration": 60, "samples_per_epoch": sizes}
        parts = [*lines[: middle + 1], resumed, *lines[middle + 1 :]]
        path.write_text("".join(json.dumps(line) + "\n" for line in parts))
        assert main(request) == 0
        last.append(json.loads(capsys.readouterr().out)["other"]["books"][-1])
    assert last[1] > 1.1 * last[0]


def test_a_weight_that_is_not_known_is_named(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = write_run(path, "exp3", "train", limits=())
    line = next(line for line in lines if line["event"] == "train" and line["iteration"] == 8)
    line["weights"]["web"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(path), "--mixer", "ema"]) == 2
    assert "iteration 8: the weight of 'web' is not known" in capsys.readouterr().err


def test_a_method_that_does_not_learn_is_replayed_on_a_run_with_held_out_rewards(tmp_path, capsys):
    write_run(tmp_path / "metrics.jsonl", "exp3", Reward("heldout").source)
    assert main([str(tmp_path), "--mixer", "static", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["other"]
    assert answer["books"][0] == pytest.approx(1 / 3)


def test_a_guard_that_restores_its_anchor_is_replayed(tmp_path, capsys):
    guard = Guard(STEPS, 8, decision_point=0.5, first_look=0.2)
    lines = write_run(tmp_path / "metrics.jsonl", "exp3", "train", (Floor(0.02), guard))
    assert main([str(tmp_path)]) == 0
    shares = [line["weights"]["code"] for line in lines if line["event"] == "train"]
    assert min(shares) < 0.3  # exp3 prefers high losses
    epochs = list(lines[-1]["epochs"].values())
    counts = np.rint(np.array(epochs) * SIZES)
    assert counts.max() - counts.min() <= 1  # those of the anchor, equal weights
    for line in lines:
        line.pop("epochs", None)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(tmp_path)]) == 2
    assert "constraint 'guard' depends on the cursors" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["doremi", "learning_curve", "smoothed_mean"])
def test_what_cannot_learn_from_differences_of_losses_follows_held_out_losses(
    tmp_path, capsys, method
):
    options = [f"--option={k}={json.dumps(v)}" for k, v in REQUIRED.get(method, {}).items()]
    answers = {}
    for reward in ("generalization", "heldout"):
        write_run(tmp_path / "metrics.jsonl", "exp3", reward, limits=())
        assert main([str(tmp_path), "--mixer", method, "--json", *options]) == 0
        answers[reward] = json.loads(capsys.readouterr().out)["other"]["web"]
    is_same = np.allclose(answers["generalization"], answers["heldout"], atol=0.05)
    assert is_same == METHODS[method].needs_losses


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--mixer", ""], "mixers: unknown method ''"),
        (["--mixer", "exp3", "--option", "reward_scale=" + "[" * 100_000], "is nested too deep"),
        (["--mixer", "exp3", "--option", "reward_scale=1", "--option", "reward_scale=2"], "twice"),
        (["--mixer", "schedule", "--option", "points=3"], "schedule: points must be a list of"),
    ],
)
def test_an_odd_request_is_one_line(tmp_path, capsys, arguments, problem):
    write_run(tmp_path / "metrics.jsonl", "exp3", "train")
    assert main([str(tmp_path), *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert problem in printed.err


@pytest.mark.parametrize("tolerance", ["nan", "-1"])
def test_a_tolerance_without_a_meaning_is_refused(tmp_path, capsys, tolerance):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--tolerance", tolerance])
    assert f"--tolerance must be at least 0, got {float(tolerance)}" in capsys.readouterr().err


@no_warnings()
def test_numbers_that_overflow_end_in_one_line(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = write_run(path, "exp3", "train", limits=())
    lines[5]["losses"] = {name: 1e308 for name in DOMAINS}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(path), "--mixer", "learning_curve"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "must be finite" in printed.err
