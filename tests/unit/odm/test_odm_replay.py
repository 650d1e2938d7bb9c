import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odm import EpochCap, Floor, MixtureController, MixtureSchedule, TrustRegion
from odm.replay import ReplayError, find_log, main, read_run_log, replay
from tests.mixers import mixer_for

DOMAINS = ["web", "code", "books"]


def run_log(method="smoothed_mean", constraints=(), steps=range(1, 41), sizes=None, **options):
    mixture = MixtureController(
        DOMAINS, mixer_for(method, 3), MixtureSchedule(5, 3), constraints, **options
    )
    lines = [{"event": "start", "mixture": mixture.describe(), "samples_per_epoch": sizes}]
    rng = np.random.default_rng(0)
    for step in steps:
        weights = dict(zip(DOMAINS, mixture.weights.tolist(), strict=True))
        counts = mixture.draw(step, 4).counts(3)
        losses = np.where(counts > 0, rng.uniform(1, 5, size=3), np.nan)
        mixture.observe(step, losses)
        named = {n: None if x != x else x for n, x in zip(DOMAINS, losses.tolist(), strict=True)}
        tokens = dict(zip(DOMAINS, (counts * 64).tolist(), strict=True))
        epochs = mixture.cursors / [1 if sizes is None else sizes[name] for name in DOMAINS]
        lines.append(
            {"event": "train", "iteration": step, "weights": weights, "losses": named}
            | {"tokens": tokens, "epochs": dict(zip(DOMAINS, epochs.tolist(), strict=True))}
        )
    return lines


def text_of(lines):
    return [json.dumps(line) + "\n" for line in lines]


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema", "static"])
@pytest.mark.parametrize("constraints", [(), (Floor(0.1), TrustRegion(max_kl=0.01))])
def test_a_run_is_replayed_bit_for_bit(method, constraints):
    lines = run_log(method, constraints, warmup_steps=6, update_frequency=3)
    result = replay(read_run_log(text_of(lines)))
    assert result.num_iterations == 40
    assert result.largest_difference == 0.0


@pytest.mark.parametrize("method", ["doremi", "dynamic_batch_loading", "skill_graph"])
def test_a_run_with_numbers_per_domain_is_replayed_without_their_files(method):
    lines = run_log(method, [Floor(0.05)], warmup_steps=6, update_frequency=3)
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0


def test_a_run_of_ado_is_replayed_with_the_losses_of_every_step():
    lines = run_log("ado", steps=range(1, 351), warmup_steps=60, update_frequency=3)
    result = replay(read_run_log(text_of(lines)))
    assert result.num_iterations == 350
    assert result.largest_difference < 1e-14  # sums of the log are means times tokens
    del lines[50]  # of the warm-up
    with pytest.raises(ReplayError, match="iteration 50 changed the weights but is not in the log"):
        replay(read_run_log(text_of(lines)))


def test_a_changed_weight_is_found_with_its_place():
    lines = run_log()
    lines[25]["weights"]["code"] += 1e-9
    result = replay(read_run_log(text_of(lines)))
    assert (result.iteration, result.domain) == (25, "code")
    assert result.largest_difference == pytest.approx(1e-9, rel=1e-3)


def test_a_changed_loss_shows_in_the_next_weights():
    lines = run_log()
    seen = next(name for name, x in lines[20]["losses"].items() if x is not None)
    lines[20]["losses"][seen] += 0.1
    result = replay(read_run_log(text_of(lines)))
    assert result.largest_difference > 1e-4
    assert result.iteration > 20


def test_the_later_of_two_lines_of_an_iteration_counts():
    lines = run_log()
    wrong = json.loads(json.dumps(lines[30]))
    wrong["weights"]["web"] = 0.9
    lines.insert(20, wrong)
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0


def test_a_resume_discards_what_the_killed_run_did_after_it():
    lines = run_log(steps=range(1, 21))
    stale = [dict(line, weights=dict.fromkeys(DOMAINS, 1 / 3)) for line in lines[15:]]
    resumed = [*lines[:15], *stale, {"event": "resume", "iteration": 14}, *lines[15:19]]
    result = replay(read_run_log(text_of(resumed)))
    assert result.num_iterations == 18
    assert result.largest_difference == 0.0


def test_a_resume_with_other_settings_goes_on_with_them():
    options = {"initial_weights": [3, 2, 1], "warmup_steps": 4}
    first = run_log(steps=range(1, 21), **options)
    old = MixtureController(DOMAINS, "smoothed_mean", MixtureSchedule(5, 3), **options)
    new = MixtureController(
        DOMAINS, "smoothed_mean", MixtureSchedule(5, 3), [Floor(0.2)], update_frequency=3, **options
    )
    for line in first[1:13]:
        old.observe(line["iteration"], losses_in(line))
    new.load_state_dict(old.state_dict())
    lines = [*first, {"event": "resume", "iteration": 12, "mixture": new.describe()}]
    for line in first[13:]:
        weights = dict(zip(DOMAINS, new.weights.tolist(), strict=True))
        new.observe(line["iteration"], losses_in(line))
        lines.append({**line, "weights": weights})
    result = replay(read_run_log(text_of(lines)))
    assert (result.num_iterations, result.largest_difference) == (20, 0.0)
    del lines[21]["mixture"]
    assert replay(read_run_log(text_of(lines))).largest_difference > 1e-3


def losses_in(line):
    return [np.nan if line["losses"][name] is None else line["losses"][name] for name in DOMAINS]


def test_a_line_that_a_killed_run_tore_is_passed_over_before_the_run_that_went_on():
    lines = text_of(run_log(steps=range(1, 21)))
    torn = [*lines[:15], '{"event": "train", "itera\n', '{"event": "warning"}\n']
    resumed = [*torn, '{"event": "resume", "iteration": 14}\n', *lines[15:]]
    result = replay(read_run_log(resumed))
    assert (result.num_iterations, result.largest_difference) == (20, 0.0)


@pytest.mark.parametrize("line", ["5\n", "[]\n", "null\n"])
def test_json_that_is_no_object_is_one_line_of_error(tmp_path, capsys, line):
    lines = text_of(run_log())
    lines[3] = line
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines))
    assert main([str(path)]) == 2
    assert "line 4: " in capsys.readouterr().err


def test_other_events_and_a_torn_last_line_are_passed_over():
    lines = text_of([{"event": "warning", "message": "x"}, *run_log(), {"event": "save"}])
    result = replay(read_run_log([*lines, '{"event": "train", "itera']))
    assert (result.num_iterations, result.largest_difference) == (40, 0.0)


def test_iterations_without_an_update_may_be_missing():
    lines = run_log(warmup_steps=10, update_frequency=5)
    kept = [line for line in lines if line["event"] == "start" or line["iteration"] % 5 == 0]
    assert replay(read_run_log(text_of(kept))).largest_difference == 0.0


def test_the_last_iteration_of_a_warm_up_may_be_missing():
    lines = run_log(warmup_steps=12)
    del lines[12]
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0


@pytest.mark.parametrize("overflow", ["inf", "-inf", "nan"])
def test_a_loss_that_overflowed_counts_as_that_of_a_domain_not_drawn(overflow):
    lines = run_log()
    absent = [(line, name) for line in lines[1:] for name, x in line["losses"].items() if x is None]
    for line, name in absent:
        line["losses"][name] = overflow
    assert len(absent) > 10
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0


def test_any_iteration_of_a_static_run_may_be_missing():
    lines = run_log("static", initial_weights=[3, 2, 1])
    assert replay(read_run_log(text_of([lines[0], *lines[10::10]]))).num_iterations == 4


def test_a_missing_update_is_an_error_that_says_what_to_do():
    lines = run_log()
    del lines[12]
    with pytest.raises(ReplayError, match=r"iteration 12 changed the weights.*log_interval 1"):
        replay(read_run_log(text_of(lines)))


def test_damage_inside_the_log_is_named_by_line():
    lines = text_of(run_log())
    lines[3] = '{"torn\n'
    with pytest.raises(ReplayError, match="line 4: "):
        read_run_log(lines)


CAP = EpochCap(max_epochs=4, domain_sizes=(90, 11, 7), total_samples=160)
SIZES = dict(zip(DOMAINS, CAP.domain_sizes, strict=True))


def test_an_epoch_cap_cannot_be_replayed_from_a_log_without_cursors():
    lines = run_log(constraints=[CAP])
    for line in lines[1:]:
        del line["epochs"]
    with pytest.raises(ReplayError, match="iteration 1: constraint 'epoch_cap' depends on the cur"):
        replay(read_run_log(text_of(lines)))


@pytest.mark.parametrize("field", ["epochs", "cursors"])
def test_an_epoch_cap_is_replayed_from_cursors_or_epochs(field):
    lines = run_log(constraints=[CAP, TrustRegion(max_kl=0.1)], sizes=SIZES)
    last = lines[-1]["epochs"]
    assert 3.5 < last["books"] < 4.6  # the limit held
    if field == "cursors":
        for line in lines[1:]:
            epochs = line.pop("epochs")
            line["cursors"] = {name: round(epochs[name] * SIZES[name]) for name in DOMAINS}
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0
    lines[20][field]["books"] += 1
    assert replay(read_run_log(text_of(lines))).iteration >= 21


def test_the_sizes_of_a_resumed_run_count_from_there_on():
    lines = run_log(constraints=[CAP], sizes=SIZES)
    resumed = {**lines[0], "event": "resume", "iteration": 20}
    resumed["samples_per_epoch"] = {name: 2 * size for name, size in SIZES.items()}
    for line in lines[21:]:
        line["epochs"] = {name: epochs / 2 for name, epochs in line["epochs"].items()}
    lines.insert(21, resumed)
    assert replay(read_run_log(text_of(lines))).largest_difference == 0.0


@given(st.integers(0, 2**49), st.integers(1, 2**31))
def test_cursors_follow_exactly_from_epochs(cursor, size):
    assert round(np.float64(np.float64(cursor) / np.float64(size)) * size) == cursor


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda lines: lines, 0, "40 iterations replayed, largest difference 0"),
        (lambda lines: lines[10]["weights"].update(web=0.9), 1, "iteration 10, domain web"),
        (lambda lines: lines[0].pop("mixture"), 2, "no start line with a mixture"),
        (lambda lines: lines[9]["weights"].pop("web"), 2, "iteration 9: weights must name"),
        (lambda lines: lines[0]["mixture"].update(method="x"), 2, "unknown method 'x'"),
        (lambda lines: lines.__delitem__(slice(1, None)), 2, "no training iteration"),
    ],
)
def test_the_exit_code_says_whether_the_log_agrees(tmp_path, capsys, change, code, words):
    lines = run_log()
    change(lines)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text_of(lines)))
    assert main([str(path)]) == code
    output = capsys.readouterr()
    assert words in output.out + output.err


def test_a_byte_order_mark_of_an_editor_does_not_matter(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(text_of(run_log())), encoding="utf-8-sig")
    assert main([str(tmp_path)]) == 0


def test_an_empty_path_is_not_the_working_folder(capsys):
    with pytest.raises(SystemExit) as exit_code:
        main([" "])
    assert exit_code.value.code == 2
    assert "log is empty" in capsys.readouterr().err


def test_a_missing_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "none.jsonl"
    assert main([str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: No such file or directory\n"


@pytest.mark.parametrize("place", ["metrics.jsonl", "logs/metrics.jsonl"])
def test_a_folder_stands_for_the_log_in_it(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    assert find_log(str(tmp_path)) == str(tmp_path / place)


def test_a_folder_without_a_log_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path}: no run log here")
    assert error.count("\n") == 1


def test_a_tolerance_can_be_given(tmp_path):
    lines = run_log()
    lines[10]["weights"]["web"] += 1e-6
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text_of(lines)))
    assert main([str(path)]) == 1
    assert main([str(path), "--tolerance", "1e-5"]) == 0


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"mixture": 5}, "line 1: mixture: must be an object, got 5"),
        (0, {"mixture": {"domains": ["a"]}}, r"line 1: lacks mixture\.method"),
        (4, {"iteration": None}, "line 5: iteration: .*got None"),
        (4, {"iteration": "5"}, "line 5: iteration: .*got '5'"),
        (4, {"iteration": True}, "line 5: iteration: .*got True"),
        (4, {"losses": [1, 2, 3]}, "line 5: losses: must be an object"),
        (4, {"losses": {"web": {}}}, r"line 5: losses\.web: must be a number.*got {}"),
        (4, {"weights": {"web": "much"}}, r"line 5: weights\.web: must be a number"),
        (4, {"event": 5}, "line 5: event: must be text, got 5"),
        (4, {"event": "train\ud800"}, "line 5: event: must be text"),
    ],
)
def test_a_wrong_type_is_one_line_with_its_place(tmp_path, capsys, place, change, message):
    lines = run_log()
    lines[place].update(change)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text_of(lines)))
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"{path}: {message}.*\n", said), said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"smoothing_factor": "x"}}, "smoothing_factor must be"),
        ({"options": {"smoothing_factor": None}}, "smoothing_factor must be"),
        ({"options": {"smothing_factor": 0.5}}, "unknown option"),
        ({"constraints": [{"name": "floor", "minimum": "x"}]}, "floor: minimum must be"),
        ({"constraints": [{"name": "floor", "minimum": {}}]}, "floor: minimum must be"),
        ({"constraints": [{"name": "trust_region", "max_kl": "x"}]}, "trust_region: give"),
        ({"constraints": [{"name": "floor", "maximum": 1}]}, "options that do not fit"),
        ({"constraints": [{}]}, r"constraints\[0\]\.name"),
        ({"seed": -1}, "seed"),
        ({"update_frequency": 0}, "update_frequency"),
        ({"initial_weights": [1, 1]}, "expected 3 weights"),
        ({"domains": ["web", "web", "books"]}, "named twice"),
    ],
)
def test_wrong_settings_of_a_mixture_are_one_line(tmp_path, capsys, change, message):
    lines = run_log()
    lines[0]["mixture"].update(change)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text_of(lines)))
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"{path}: .*{message}.*\n", said), said


def test_a_gap_of_ages_is_found_at_once():
    lines = run_log(warmup_steps=2**60, update_frequency=7)
    lines.append({**lines[-1], "iteration": 2**62})
    first = -(-(2**60 + 1) // 7) * 7
    with pytest.raises(ReplayError, match=f"iteration {first} changed the weights"):
        replay(read_run_log(text_of(lines)))


def other(tmp_path, capsys, lines, *arguments):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text_of(lines)))
    code = main([str(path), *arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_method_that_replays_its_own_run_chooses_the_logged_weights(tmp_path, capsys):
    for method in ("smoothed_mean", "odm_paper", "exp3", "ema", "static"):
        lines = run_log(method, [Floor(0.1), CAP], sizes=SIZES, warmup_steps=4)
        code, out, _ = other(tmp_path, capsys, lines, "--mixer", method, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["iterations"] == list(range(1, 41))
        for name in DOMAINS:
            logged = [line["weights"][name] for line in lines[1:]]
            assert found["run"][name] == logged
            np.testing.assert_allclose(found["other"][name], logged, rtol=0, atol=1e-12)


def test_another_method_is_given_the_losses_and_the_weights_of_the_run(tmp_path, capsys):
    lines = run_log("smoothed_mean")
    expected = MixtureController(DOMAINS, mixer_for("exp3", 3), MixtureSchedule(5, 3))
    by_hand = []
    state = expected.mixer.init(DOMAINS, [1, 1, 1])
    weights = np.full(3, 1 / 3)
    for line in lines[1:]:
        by_hand.append(weights)
        used = list(line["weights"].values())
        state, weights = expected.mixer.update(state, line["iteration"], losses_in(line), used)
    code, out, _ = other(tmp_path, capsys, lines, "--mixer", "exp3", "--json")
    assert code == 0
    found = json.loads(out)
    assert "losses would have been others" in found["caveat"]
    assert found["method"] == "exp3"
    np.testing.assert_allclose(np.array(list(found["other"].values())).T, by_hand, atol=1e-12)


def test_the_table_shows_means_and_last_weights_and_the_caveat(tmp_path, capsys):
    lines = run_log("smoothed_mean")
    option = ("--option", "smoothing_factor=0.1")
    code, out, _ = other(tmp_path, capsys, lines, "--mixer", "smoothed_mean", *option)
    assert code == 0
    rows = out.splitlines()
    assert rows[0] == "weights of iterations 1 to 40"
    assert len(rows) == 6
    name, mean, _, last, other_last = rows[2].split()
    assert name == "web"
    assert float(mean) == pytest.approx(
        np.mean([line["weights"]["web"] for line in lines[1:]]), abs=5e-5
    )
    assert float(last) == pytest.approx(lines[-1]["weights"]["web"], abs=5e-5)
    assert last != other_last
    assert rows[-1].startswith("note: these are answers to the losses of the run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixer", "exp4"], "unknown method 'exp4'"),
        (["--mixer", "ema", "--option", "x=1"], "unknown option of ema 'x'"),
        (["--mixer", "ema", "--option", "x"], "--option: must be name=value, got 'x'"),
        (["--mixer", "odm_paper", "--option", "smoothing_factor=a"], "smoothing_factor must be"),
    ],
)
def test_a_method_or_option_that_is_wrong_is_one_line(tmp_path, capsys, arguments, message):
    code, out, error = other(tmp_path, capsys, run_log(), *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_options_without_a_method_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        other(tmp_path, capsys, run_log(), "--json")
    with pytest.raises(SystemExit, match="2"):
        other(tmp_path, capsys, run_log(), "--option", "x=1")


def test_a_log_without_iterations_has_no_other_weights(tmp_path, capsys):
    code, _, error = other(tmp_path, capsys, run_log()[:1], "--mixer", "ema")
    assert code == 2
    assert "has no training iteration" in error
