"""Comparisons of runs whose logs are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.reporting.run_log import RunLogFile
from tools.compare_runs import main

DOMAINS = ("prose", "code")


def write_log(
    folder: Path,
    losses: dict[int, tuple[float, float]],
    *,
    seed: int = 1,
    method: str = "static",
    tokens: int = 80,
    bits: float | None = 0.5,
    **start: Any,
) -> str:
    """Writes a log whose validations have these losses by iteration; returns the folder."""
    log = RunLogFile(folder / "logs" / "metrics.jsonl")
    settings = {"model": "aa", "data": "bb", "mixing": method}
    known = {"settings": settings, "tokenizer": "ab" * 32, "train_iters": 400, "parameters": 5}
    known["mixture"] = {"seed": seed, "method": method, "domains": list(DOMAINS)}
    log.append({"event": "start", "iteration": 0, **known, **start})
    for iteration, values in losses.items():
        results = {
            name: {
                "loss": loss,
                "bits_per_byte": None if bits is None else bits * loss,
                "num_samples": 5,
                "num_tokens": tokens,
            }
            for name, loss in zip(DOMAINS, values, strict=True)
        }
        log.append({"event": "validation", "iteration": iteration, "domains": results})
    log.close()
    return str(folder)


def compared(capsys, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_figures_of_a_pair_by_hand(tmp_path, capsys):
    one = write_log(tmp_path / "one", {200: (4.0, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {200: (3.5, 1.5), 400: (2.5, 1.1)}, method="exp3")
    first, second = compared(capsys, one, other)["arms"]
    assert (first["mean_loss"], second["mean_loss"]) == (2.0, pytest.approx(1.8))
    assert first["mean_perplexity"] == pytest.approx((20.085537 + 2.718282) / 2)
    assert second["bits_per_byte"] == pytest.approx(0.9)
    assert (second["worst_loss"], second["worst_domains"]) == (2.5, ["prose"])
    assert second["domains_better"] == 1.0
    # from 2.5 at 200 to 1.8 at 400: 2.0 is five sevenths of the way
    assert second["iterations_to_target"]["mean_loss"] == [pytest.approx(200 + 200 * 5 / 7)]
    assert first["iterations_to_target"]["mean_loss"] == [400.0]
    assert second["domains"]["code"]["mean"] == pytest.approx(0.1)
    assert second["differences"]["worst_loss"]["mean"] == -0.5


def test_runs_that_differ_in_their_seed_are_pairs_of_two_arms(tmp_path, capsys):
    arguments = []
    for method, shift in (("static", 0.0), ("exp3", -0.1)):
        for seed in (1, 2, 3):
            losses = {400: (3.0 + seed + shift * seed, 1.0 + seed)}
            folder = tmp_path / f"{method}-seed{seed}"
            arguments.append(write_log(folder, losses, seed=seed, method=method))
    found = compared(capsys, *arguments)
    assert [arm["name"] for arm in found["arms"]] == ["static", "exp3"]
    arm = found["arms"][1]
    assert arm["seeds"] == [1, 2, 3]
    difference = arm["differences"]["mean_loss"]
    assert (difference["count"], difference["num_lower"]) == (3, 3)
    assert difference["mean"] == pytest.approx(-0.1)
    low, high = difference["bootstrap"]
    assert -0.15 - 1e-9 <= low < -0.1 < high <= -0.05 + 1e-9
    assert difference["student"][0] < low
    assert any("fewer than five pairs" in note for note in found["notes"])
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "seeds: 1, 2, 3" in shown
    assert "3 of 3" in shown


def test_seeds_that_one_arm_lacks_are_left_out_with_a_note(tmp_path, capsys):
    arguments = [
        write_log(tmp_path / name, {400: (3.0, seed)}, seed=seed, method=name[0])
        for name, seed in (("a1", 1), ("a2", 2), ("b2", 2), ("b3", 3))
    ]
    found = compared(capsys, *arguments)
    assert found["arms"][1]["seeds"] == [2]
    assert "b2: seeds that only one arm has are left out: 1, 3" in found["notes"]
    assert found["arms"][0]["seeds"] == [1, 2]


def test_a_run_that_is_not_finished_is_compared_where_both_are(tmp_path, capsys):
    one = write_log(tmp_path / "one", {200: (4.0, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {200: (3.5, 1.5)}, method="exp3")
    found = compared(capsys, one, other)
    assert found["iteration"] == 200
    assert found["notes"][0] == (
        "compared at iteration 200, which all runs have (one: up to 400; other: up to 200)"
    )
    assert found["arms"][1]["differences"]["mean_loss"]["mean"] == -0.5


def test_runs_of_other_lengths_are_compared_only_where_one_asks_for_it(tmp_path, capsys):
    one = write_log(tmp_path / "one", {200: (4.0, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {400: (3, 1), 800: (2, 1)}, method="x", train_iters=800)
    assert "train_iters differ (400, 800)" in refused(capsys, one, other)
    assert "--at 300: not all runs were validated then" in refused(capsys, one, other, "--at=300")
    found = compared(capsys, one, other, "--at", "400")
    assert "train_iters differ: the learning rates" in found["notes"][1]


def test_domains_can_be_chosen_to_leave_noise_out(tmp_path, capsys):
    one = write_log(tmp_path / "one", {400: (3.0, 9.0)})
    other = write_log(tmp_path / "other", {400: (2.0, 9.5)}, method="exp3")
    found = compared(capsys, one, other, "--domains", "prose")
    assert found["domains"] == ["prose"]
    assert found["arms"][1]["mean_loss"] == 2.0
    assert "--domains: no validation of math" in refused(capsys, one, other, "--domains", "math")


def test_bits_per_byte_that_one_run_lacks_are_not_compared(tmp_path, capsys):
    one = write_log(tmp_path / "one", {400: (3.0, 9.0)}, bits=None)
    other = write_log(tmp_path / "other", {400: (2.0, 9.5)}, method="exp3")
    found = compared(capsys, one, other)
    assert "bits_per_byte" not in found["arms"][1]["differences"]
    assert found["arms"][0]["bits_per_byte"] is None
    assert main([one, other]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 96}, "validation sets differ from those of one (prose: (5, 96) and (5, 80))"),
        (
            {"tokenizer": "cd" * 32},
            f"tokenizers differ from those of one ({'cd' * 32} and {'ab' * 32})",
        ),
        (
            {"evaluation": {"validation": {"paths": ["x", "z" * 50 + "b"]}}},
            "settings of the validation differ from those of one "
            f"(paths: entry 2: {'z' * 50}b and {'z' * 50}a)",
        ),
        ({"evaluation": {"validation": {"paths": ["x"]}}}, "(paths: 1 and 2 entries)"),
        ({"seed": 2}, "has seed 2, and one 1; only runs of equal seed form a pair"),
        ({"method": "static"}, "has the settings and the seed 1 of one"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_line(tmp_path, capsys, changes, message):
    evaluation = {"validation": {"paths": ["x", "z" * 50 + "a"]}}
    one = write_log(tmp_path / "one", {400: (3.0, 1.0)}, evaluation=evaluation)
    changes = {"method": "exp3", "evaluation": evaluation, **changes}
    other = write_log(tmp_path / "other", {400: (3.0, 1.0)}, **changes)
    assert message in refused(capsys, one, other)


def test_other_settings_than_those_of_the_mixing_are_a_note(tmp_path, capsys):
    one = write_log(tmp_path / "one", {400: (3.0, 1.0)})
    settings = {"model": "aa", "data": "bb", "optimizer": "x", "mixing": "y"}
    first = write_log(tmp_path / "first", {400: (3.0, 1.0)}, settings={**settings, "model": "c"})
    note = "first and one differ in more than the mixing: settings of model"
    assert note in compared(capsys, one, first)["notes"]


def test_logs_of_an_early_version_are_told_apart_by_their_mixtures(tmp_path, capsys):
    arguments = [
        write_log(
            tmp_path / f"{method}{seed}",
            {400: (3.0, 1.0)},
            seed=seed,
            method=method,
            **dict.fromkeys(("settings", "tokenizer", "train_iters")),
        )
        for method in ("static", "exp3")
        for seed in (1, 2)
    ]
    found = compared(capsys, *arguments)
    assert [(arm["name"], arm["seeds"]) for arm in found["arms"]] == [
        ("static", [1, 2]),
        ("exp3", [1, 2]),
    ]


def test_what_evaluate_py_added_on_other_text_does_not_count(tmp_path, capsys):
    one = write_log(tmp_path / "one", {200: (4.0, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {200: (4.0, 2.0), 400: (3.0, 1.5)}, method="exp3")
    write = RunLogFile(Path(other) / "logs" / "metrics.jsonl")
    results = {name: {"loss": 1.0, "num_samples": 9, "num_tokens": 9} for name in DOMAINS}
    write.append({"event": "validation", "iteration": 100, "domains": results})
    write.close()
    assert compared(capsys, one, other)["arms"][1]["mean_loss"] == 2.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"event": "start", "settings": 5}, "settings: must be an object, got 5"),
        ({"event": "start", "train_iters": "x"}, "train_iters: must be a whole number"),
        ({"event": "start", "mixture": {"seed": None}}, "mixture.seed: must be a whole number"),
        (
            {"event": "validation", "iteration": 400, "domains": {"a": {"loss": None}}},
            "the loss of a at iteration 400 is not finite; the run diverged",
        ),
        (
            {
                "event": "validation",
                "iteration": 4,
                "domains": {"a": {"loss": 1, "num_tokens": []}},
            },
            "a.num_tokens: must be a whole number",
        ),
        ({"event": "validation", "iteration": 4, "domains": {}}, "has no validation"),
    ],
)
def test_a_damaged_log_is_one_line_with_its_place(tmp_path, capsys, line, message):
    one = write_log(tmp_path / "one", {400: (3.0, 1.0)})
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    error = refused(capsys, one, str(tmp_path))
    assert message in error
    assert str(tmp_path / "metrics.jsonl") in error


def test_a_folder_without_a_log_and_a_format_nobody_knows_are_one_line(tmp_path, capsys):
    one = write_log(tmp_path / "one", {400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {400: (3.0, 1.0)}, method="exp3")
    assert "no run log here" in refused(capsys, one, str(tmp_path / "none"))
    picture = str(tmp_path / "x.bmpx")
    assert "pictures of the kind .bmpx are not supported" in refused(
        capsys, one, other, "-o", picture
    )
    assert not (tmp_path / "x.bmpx").exists()


def test_names_with_signs_of_formulas_are_drawn(tmp_path, capsys):
    one = write_log(tmp_path / "a$_b$", {200: (4.0, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "c", {200: (4.0, 2.0), 400: (3.0, 1.0)}, method="exp3")
    assert main([one, other, "-o", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_runs_whose_folders_have_the_same_name_are_told_apart(tmp_path, capsys):
    places = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    one, two = (
        write_log(place, {400: (3.0, 1.0)}, method=method)
        for place, method in zip(places, ("static", "exp3"), strict=True)
    )
    assert [arm["name"] for arm in compared(capsys, one, two)["arms"]] == [one, two]
    same = write_log(tmp_path / "three" / "run", {400: (3.0, 1.0)})
    error = refused(capsys, one, same)
    assert f"{same}: has the settings and the seed 1 of {one}" in error


def test_a_run_that_is_given_twice_is_named(tmp_path, capsys):
    run = write_log(tmp_path / "run", {400: (3.0, 1.0)})
    assert f"{run}/logs: this run is given twice" in refused(capsys, run, f"{run}/logs")


def test_domains_are_paired_by_name_whatever_their_order_in_a_log(tmp_path, capsys):
    one = write_log(tmp_path / "one", {400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {400: (3.0, 1.0)}, method="exp3")
    path = tmp_path / "other" / "logs" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "validation":
            line["domains"] = dict(reversed(line["domains"].items()))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, second = compared(capsys, one, other)["arms"]
    assert {name: found["mean"] for name, found in second["domains"].items()} == {
        "prose": 0.0,
        "code": 0.0,
    }
    assert second["domains_better"] == 0.0


def test_a_loss_that_is_not_finite_where_runs_are_compared_is_named(tmp_path, capsys):
    one = write_log(tmp_path / "one", {200: (3.5, 2.0), 400: (3.0, 1.0)})
    other = write_log(tmp_path / "other", {200: (3.5, 2.0), 400: (3.0, 1.0)}, method="exp3")
    path = tmp_path / "other" / "logs" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 2.0', '"loss": "nan"', 1))
    expected = "other: the loss of code at iteration 200 is not finite; the run diverged"
    assert expected in refused(capsys, one, other, "--at", "200")
