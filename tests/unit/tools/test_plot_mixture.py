"""The mixture's picture from a run log."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from megatron.reporting.run_log import RunLogFile
from odm import MixtureController, MixtureSchedule
from odm.other_method import replay_with
from odm.replay import read_run_log as read_lines
from tests.no_warnings import no_warnings
from tools.plot_mixture import (
    draw_mixture,
    epochs_text,
    iteration_limits,
    line_style,
    main,
    read_history,
    smooth,
    spread,
)


def write_log(path, *, num_domains: int, iterations: int = 20) -> None:
    log = RunLogFile(path)
    names = [f"domain_{k}" for k in range(num_domains)]
    log.append({"event": "start", "iteration": 0})
    for step in range(1, iterations + 1):
        losses = {
            name: None if (step + k) % 3 == 0 else 5.0 / step + k for k, name in enumerate(names)
        }
        log.append(
            {
                "event": "train",
                "iteration": step,
                "weights": dict.fromkeys(names, 1 / num_domains),
                "losses": losses,
                "epochs": dict.fromkeys(names, 0.1 * step),
            }
        )
    results = {
        name: {"loss": 2.0, "perplexity": math.exp(2), "bits_per_byte": None} for name in names
    }
    log.append({"event": "validation", "iteration": 10, "domains": results, "averages": {}})
    log.close()


@pytest.mark.parametrize("num_domains", [1, 22])
def test_a_run_log_becomes_a_picture(tmp_path, num_domains):
    write_log(tmp_path / "logs" / "metrics.jsonl", num_domains=num_domains)
    output = tmp_path / "pictures" / "mixture.png"
    assert main([str(tmp_path), "-o", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in output.parent.iterdir()] == ["mixture.png"]


def test_a_run_of_one_iteration_has_an_axis_with_a_length(tmp_path):
    write_log(tmp_path / "metrics.jsonl", num_domains=2, iterations=1)
    history = replace(read_history(tmp_path), validation={})
    assert iteration_limits(history) == (1, 2)


def test_validation_outside_the_logged_iterations_is_inside_the_picture(tmp_path):
    write_log(tmp_path / "metrics.jsonl", num_domains=3, iterations=1)
    assert iteration_limits(read_history(tmp_path)) == (1, 10)
    with no_warnings():  # matplotlib's, that the layout does not fit
        assert main([str(tmp_path), "-o", str(tmp_path / "x.png")]) == 0


@pytest.mark.parametrize("losses", [[], [math.nan], [math.inf]])
def test_a_domain_without_validation_points_leaves_the_panels_their_size(
    tmp_path, monkeypatch, losses
):
    write_log(tmp_path / "metrics.jsonl", num_domains=3)
    history = read_history(tmp_path)
    places = list(range(len(losses)))
    validation = {**history.validation, "domain_1": (places, losses)}
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    with no_warnings():
        draw_mixture(replace(history, validation=validation), tmp_path / "x.png", title="a run")
    (figure,) = drawn
    for panel in figure.axes:
        extent = panel.get_window_extent()
        assert extent.width > 0.6 * figure.bbox.width
        assert extent.height > 0.2 * figure.bbox.height
    monkeypatch.undo()
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("name", "start"), [("noext", b"\x89PNG"), ("x.PNG", b"\x89PNG"), ("x.svg", b"<?xml")]
)
def test_the_ending_chooses_the_format(tmp_path, name, start):
    write_log(tmp_path / "metrics.jsonl", num_domains=2)
    assert main([str(tmp_path), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        (0.0, "0"),
        (0.00001, "< 0.01"),
        (0.014, "0.014"),
        (1.26, "1.3"),
        (9.96, "10"),
        (99.7, "100"),
        (163.4, "163"),
        (1234567.0, "1234567"),
    ],
)
def test_epochs_are_written_plainly(epochs, text):
    assert epochs_text(epochs) == text


def test_no_two_of_thirty_domains_share_a_colour_and_no_two_of_two_hundred_a_line():
    styles = [line_style(index) for index in range(200)]
    assert len({style["color"] for style in styles[:30]}) == 30
    assert len({tuple(style.values()) for style in styles}) == 200


def test_the_picture_shows_means_since_the_line_before_where_the_log_has_them(tmp_path):
    log = RunLogFile(tmp_path / "metrics.jsonl")
    log.append(
        {
            "event": "train",
            "iteration": 10,
            "weights": {"code": 1.0},
            "losses": {"code": None},
            "mean_losses": {"code": 2.5},
            "epochs": {"code": 0.5},
        }
    )
    log.close()
    assert read_history(tmp_path).losses.tolist() == [[2.5]]


def test_a_field_that_is_null_is_as_absent(tmp_path):
    event = {"event": "train", "iteration": 1, "weights": {"code": 1.0}, "losses": {"code": 2.0}}
    log = RunLogFile(tmp_path / "metrics.jsonl")
    log.append({**event, "epochs": None})
    log.close()
    assert np.isnan(read_history(tmp_path).epochs).all()


def test_an_unknown_format_is_one_line_and_leaves_nothing(tmp_path, capsys):
    write_log(tmp_path / "metrics.jsonl", num_domains=2)
    assert main([str(tmp_path), "-o", str(tmp_path / "x.bmpx")]) == 2
    error = capsys.readouterr().err
    assert "pictures of the kind .bmpx are not supported" in error
    assert error.count("\n") == 1
    assert main([str(tmp_path), "--json", "-o", str(tmp_path / "x.bmpx")]) == 2
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_in_the_place_of_the_picture_is_named_without_an_error_number(tmp_path, capsys):
    write_log(tmp_path / "metrics.jsonl", num_domains=2)
    assert main([str(tmp_path), "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}: Is a directory; check the path" in error
    assert error.count("\n") == 1


def test_the_history_holds_what_the_log_says(tmp_path):
    write_log(tmp_path / "metrics.jsonl", num_domains=2, iterations=4)
    history = read_history(tmp_path)
    assert history.domains == ("domain_0", "domain_1")
    assert history.iterations.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(history.losses[:, 0], [5.0, 2.5, np.nan, 1.25])
    assert history.validation["domain_1"] == ([10], [2.0])


@pytest.mark.parametrize("events", [[], [{"event": "start"}]])
def test_a_log_without_iterations_is_one_clear_line(tmp_path, capsys, events):
    log = RunLogFile(tmp_path / "metrics.jsonl")
    for event in events:
        log.append(event)
    log.close()
    assert main([str(tmp_path), "-o", str(tmp_path / "x.png")]) == 2
    assert "nothing to draw yet" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_folder_without_a_log_is_one_clear_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run log here" in capsys.readouterr().err


def test_smoothing_leaves_gaps_out_and_does_not_shift_a_straight_line():
    values = np.array([1.0, np.nan, 2.0, 3.0, 4.0, np.nan, 5.0])
    np.testing.assert_allclose(smooth(values, points=3), values)
    np.testing.assert_allclose(smooth(np.array([0.0, 3.0, 0.0]), points=3), [0.0, 1.0, 0.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.05))
def test_labels_keep_their_order_their_distance_and_the_panel(wanted, gap):
    placed = spread(np.sort(np.array(wanted)), gap=gap)
    assert np.all(np.diff(placed) >= gap - 1e-9)
    assert placed[0] >= -1e-9
    assert placed[-1] <= 1 + 1e-9


def test_labels_that_have_room_stay_where_they_are():
    np.testing.assert_allclose(spread(np.array([0.1, 0.5, 0.9]), gap=0.1), [0.1, 0.5, 0.9])


def test_labels_that_are_moved_apart_keep_their_mean():
    np.testing.assert_allclose(spread(np.array([0.5, 0.5, 0.56]), gap=0.1), [0.42, 0.52, 0.62])


def test_the_weights_of_another_method_are_a_fourth_panel(tmp_path, monkeypatch, capsys):
    path = tmp_path / "metrics.jsonl"
    write_replayable(path)
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    with no_warnings():
        arguments = ["--replay", "odm_paper", "--option", "smoothing_factor=0.1"]
        assert main([str(tmp_path), "-o", str(tmp_path / "x.png"), *arguments]) == 0
    (figure,) = drawn
    assert len(figure.axes) == 4
    assert figure.axes[3].get_title(loc="left").startswith("Weights of odm_paper on these losses")
    found = replay_with(
        read_lines(path.read_text().splitlines()), "odm_paper", {"smoothing_factor": 0.1}
    )
    curves = [line.get_ydata() for line in figure.axes[3].lines[:2]]
    np.testing.assert_allclose(curves, 100 * found.other.T)
    monkeypatch.undo()
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replay", "exp4"], "unknown method 'exp4'"),
        (["--replay", "ema", "--option", "x"], "--option: must be name=value"),
    ],
)
def test_a_method_that_cannot_be_replayed_is_one_line(tmp_path, capsys, arguments, message):
    write_replayable(tmp_path / "metrics.jsonl")
    assert main([str(tmp_path), "-o", str(tmp_path / "x.png"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def write_replayable(path) -> None:
    """A log of 30 iterations of smoothed_mean on two domains."""
    controller = MixtureController(["web", "code"], "smoothed_mean", MixtureSchedule(1, 2))
    log = RunLogFile(path)
    log.append({"event": "start", "iteration": 0, "mixture": controller.describe()})
    for step in range(1, 31):
        weights = dict(zip(("web", "code"), controller.weights.tolist(), strict=True))
        losses = {"web": 3.0 + 1 / step, "code": 1.0 + 3 / step}
        controller.observe(step, list(losses.values()))
        log.append({"event": "train", "iteration": step, "weights": weights, "losses": losses})
    log.close()


def test_lines_of_a_version_without_mean_losses_keep_their_losses(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_log(path, num_domains=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    expected = read_history(path).losses
    for line in lines:
        if line["event"] == "train" and line["iteration"] > 10:
            line["mean_losses"] = line.pop("losses")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.testing.assert_array_equal(read_history(path).losses, expected)
