"""The learning_curve method: what it makes of slopes, objectives, anchors and held-out losses."""

import json
import math

import numpy as np
import pytest

from odm import MixtureController, MixtureSchedule, Signal
from odm.held_out import HeldOut
from odm.mixers import LearningCurve, Mixer
from odm.mixers.learning_curve import expected_falls
from odm.replay import ReplayError, read_run_log, replay
from tests.no_warnings import no_warnings

NAMES = ("web", "code", "math", "noise")
FALLS = np.array([0.5, 0.2, 0.2, 0.0])
TOTAL = 800


def mixture(mixer=None, *, weights=None, total=TOTAL, **options):
    schedule = MixtureSchedule(5, len(NAMES), stratified=True)
    mixer = mixer or LearningCurve()
    return MixtureController(
        NAMES, mixer, schedule, initial_weights=weights, total_steps=total, **options
    )


def train(controller, first, last, *, falls=FALLS, level=3.0, held_out=None, log=None):
    """Losses fall by ``falls`` per e-fold of steps, and are at ``level`` at the end of the run."""
    for step in range(first, last + 1):
        before = controller.weights
        counts = controller.draw(step, 16).counts(len(NAMES)).astype(float)
        rng = np.random.default_rng(step)
        losses = level - falls * math.log(step / TOTAL) + 0.1 * rng.standard_normal(len(NAMES))
        signal = Signal.from_means(losses, 64 * counts, counts)
        given = held_out(step) if held_out else None
        controller.observe(step, signal, held_out=given)
        if log is not None:
            means = [None if math.isnan(mean) else mean for mean in signal.mean_loss().tolist()]
            record = {"event": "train", "iteration": step}
            record["weights"] = dict(zip(NAMES, before.tolist(), strict=True))
            record["losses"] = dict(zip(NAMES, means, strict=True))
            record["tokens"] = dict(zip(NAMES, signal.token_count.tolist(), strict=True))
            log.append(json.dumps(record))
    return controller


def test_what_falls_fast_gets_more_and_noise_gets_the_least_share():
    weights = train(mixture(), 1, TOTAL).weights
    assert weights[0] > 0.35 > weights[1] > 0.15
    assert weights[1] == pytest.approx(weights[2], abs=0.02)
    assert weights[3] == pytest.approx(0.25 / 3, abs=1e-3)


def test_domains_that_fall_alike_stay_at_the_anchor():
    weights = train(mixture(), 1, TOTAL, falls=np.full(4, 0.3)).weights
    np.testing.assert_allclose(weights, np.full(4, 0.25), atol=2e-3)


def test_nothing_moves_where_no_fall_can_be_told_from_chance():
    initial = [0.4, 0.3, 0.2, 0.1]
    still = train(mixture(weights=initial), 1, TOTAL, falls=np.zeros(4))
    np.testing.assert_allclose(still.weights, initial, atol=1e-3)


def test_weights_are_the_anchor_for_a_twentieth_of_the_run():
    start = train(mixture(), 1, 39)
    assert start.weights.tolist() == [0.25] * 4
    assert train(start, 40, 60).weights[0] > 0.26
    unknown = train(mixture(total=None), 1, 99)
    assert unknown.weights.tolist() == [0.25] * 4
    assert train(unknown, 100, 130).weights[0] > 0.26


def test_the_anchor_is_what_was_asked_for():
    initial = [0.4, 0.3, 0.2, 0.1]
    for anchor, expected in (("uniform", [0.25] * 4), ((1, 1, 1, 5), [0.125] * 3 + [0.625])):
        controller = mixture(LearningCurve(anchor=anchor), weights=initial)
        np.testing.assert_allclose(controller.weights, initial)
        at_anchor = train(controller, 1, TOTAL, falls=np.zeros(4)).weights
        np.testing.assert_allclose(at_anchor, expected, atol=1e-3)


def test_shares_stay_within_the_ratio_to_the_anchor_and_0_stays_0():
    initial = np.array([0.5, 0.3, 0.2, 0.0])
    mixer = LearningCurve(max_ratio=1.5, exponent=1.0)
    weights = train(mixture(mixer, weights=initial), 1, TOTAL, falls=np.array([0, 0, 1, 1])).weights
    assert weights[3] == 0.0
    ratio = weights[:3] / initial[:3]
    assert ratio.min() >= 1 / 1.5 - 1e-12
    assert ratio.max() == pytest.approx(1.5, abs=1e-3)


def test_the_objective_moves_shares_to_what_it_counts():
    falls, level = np.full(4, 0.3), np.array([4.0, 3.0, 3.0, 3.0])
    by_share = [
        train(mixture(LearningCurve(share)), 1, TOTAL, falls=falls, level=level).weights[0]
        for share in (0.0, 0.5, 1.0)
    ]
    assert by_share[0] == pytest.approx(0.25, abs=0.01)
    assert by_share[0] + 0.02 < by_share[1] < by_share[2] - 0.02
    counted = LearningCurve(objective_weights=(1, 1, 4, 0))
    weights = train(mixture(counted), 1, TOTAL, falls=falls).weights
    assert weights[2] > 1.5 * weights[0]
    assert weights[3] == pytest.approx(0.25 / 3, abs=1e-3)


def test_held_out_losses_replace_training_losses_where_there_are_any():
    """By training losses noise falls fast, as if it were memorised; held out it does not."""
    falls = np.array([0.2, 0.2, 0.2, 0.6])

    def held_out(step):
        if step % 5:
            return None
        means = 3.0 - np.array([0.2, 0.2, np.nan, 0.0]) * math.log(step / TOTAL)
        wiggle = 0.01 * np.random.default_rng(step).standard_normal(4)
        return HeldOut.from_means(means + wiggle, step=step)

    deceived = train(mixture(), 1, TOTAL, falls=falls).weights
    follows = mixture(reward="heldout")
    informed = train(follows, 1, TOTAL, falls=falls, held_out=held_out).weights
    assert deceived[3] > 0.3
    assert informed[3] == pytest.approx(0.25 / 3, abs=2e-3)
    assert informed[2] == pytest.approx(informed[0], abs=0.04)


@pytest.mark.parametrize("stop", [1, 7, 10, 403])
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_bit(stop):
    def held_out(step):
        return HeldOut.from_means([3.0, 2.0, np.nan, 1.0 + 1.0 / step], step=step)

    for given in (None, held_out):
        reward = "heldout" if given else "train"
        whole = train(mixture(reward=reward), 1, stop + 90, held_out=given)
        stopped = train(mixture(reward=reward), 1, stop, held_out=given)
        state = json.loads(json.dumps(stopped.state_dict(), allow_nan=False))
        resumed = mixture(reward=reward)
        resumed.load_state_dict(state)
        train(resumed, stop + 1, stop + 90, held_out=given)
        assert resumed.state_dict() == whole.state_dict()


def test_a_run_that_goes_on_with_the_same_options_reports_no_change(caplog):
    mixer = LearningCurve(objective_weights=(1, 2, 3, 4), anchor=(1, 1, 1, 2))
    state = json.loads(json.dumps(train(mixture(mixer), 1, 20).state_dict()))
    mixture(mixer).load_state_dict(state)
    assert caplog.text == ""
    mixture(mixer, total=TOTAL + 1).load_state_dict(state)
    assert "total_steps was 800, now 801" in caplog.text


def test_steps_of_the_warm_up_and_between_updates_are_part_of_the_curves():
    often = train(mixture(warmup_steps=200), 1, 400)
    seldom = train(mixture(warmup_steps=200, update_frequency=40), 1, 400)
    assert train(mixture(warmup_steps=200), 1, 200).weights.tolist() == [0.25] * 4
    assert often.weights[3] < 0.1
    assert seldom.weights[3] < 0.15
    assert seldom.last_decision["updated"]


@pytest.mark.parametrize("options", [{}, {"warmup_steps": 150, "update_frequency": 7}])
def test_a_log_of_losses_and_tokens_gives_the_weights_again(options):
    controller = mixture(**options)
    log = [json.dumps({"event": "start", "mixture": controller.describe()})]
    train(controller, 1, 500, log=log)
    assert controller.weights[0] > 0.3
    result = replay(read_run_log(log))
    assert result.num_iterations == 500
    assert result.largest_difference <= 1e-12
    with pytest.raises(ValueError, match=r"iteration 3 .* is not in the log"):
        replay(read_run_log([*log[:3], *log[4:]]))


def test_a_slope_that_differs_by_chance_becomes_the_common_one():
    errors = np.full(4, 0.1)
    np.testing.assert_allclose(expected_falls(np.array([0.9, 1.0, 1.1, 1.0]), errors), [1.0] * 4)
    apart = expected_falls(np.array([0.5, 1.0, 2.0, 4.0]), errors)
    assert (np.diff(apart) > 0.3).all()
    assert 0.5 < apart[0] < 0.6
    assert 3.9 < apart[3] < 4.0
    unknown = expected_falls(np.array([1.0, 1.0, 0.0]), np.array([0.1, 0.1, np.inf]))
    np.testing.assert_allclose(unknown, [1.0] * 3)
    assert expected_falls(np.array([0.1, 0.1]), np.array([0.2, 0.2])) is None
    assert expected_falls(np.zeros(2), np.full(2, np.inf)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perplexity_share": 1.5}, r"perplexity_share must be a number in \[0, 1\], got 1.5"),
        ({"max_ratio": 1.0}, r"max_ratio must be a number in \(1, 1000\], got 1.0"),
        ({"exponent": 0.0}, r"exponent must be a number in \(0, 1\], got 0.0"),
        ({"anchor": "natural"}, "anchor must be initial, uniform or one number per domain"),
        ({"objective_weights": (0.0, 0.0)}, "objective_weights: all weights are 0"),
        ({"objective_weights": (1.0, -1.0)}, "objective_weights: must be finite and not neg"),
        ({"repetition_decay": 0, "domain_sizes": (5,)}, "repetition_decay must be a number above"),
        ({"repetition_decay": math.nan, "domain_sizes": (5,)}, "repetition_decay must be a number"),
        ({"repetition_decay": 15.0}, "repetition_decay and domain_sizes need each other"),
        ({"domain_sizes": (5, 5)}, "repetition_decay and domain_sizes need each other"),
        ({"repetition_decay": 15.0, "domain_sizes": (5, 0)}, r"domain_sizes\[1\] must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"learning_curve: {message}"):
        LearningCurve(**options)


REPEATING = {"repetition_decay": 4.0, "domain_sizes": (400, 10**6, 10**6, 10**6)}


def test_a_domain_loses_weight_by_how_often_it_was_read():
    falls = np.array([0.5, 0.2, 0.2, 0.2])
    new, again = (
        train(mixture(LearningCurve(**options)), 1, TOTAL, falls=falls)
        for options in ({}, REPEATING)
    )
    passes = again.cursors[0] / 400
    assert passes > 8
    expected = math.exp(-(passes - 1) / 4.0) ** 0.5  # by the exponent of the method
    found = again.weights[0] / again.weights[1] / (new.weights[0] / new.weights[1])
    assert found == pytest.approx(expected, rel=0.1)  # the weights follow with a delay


def test_the_first_pass_over_a_domain_counts_in_full():
    sizes = (10**6,) * 4
    options = [{}, {"repetition_decay": 0.01, "domain_sizes": sizes}]
    new, again = (train(mixture(LearningCurve(**each)), 1, TOTAL) for each in options)
    assert again.weights.tolist() == new.weights.tolist()
    assert "repetition_decay" not in new.describe()["options"]  # as in checkpoints before it


class Reader(Mixer):
    """Writes down what it is told about the samples that were read."""

    name = "reader"
    depends_on_cursors = True

    def __init__(self):
        self.read = []

    def options(self):
        return {}

    def _init(self, weights):
        return {}

    def _update(self, state, observation):
        self.read.append(observation.samples_read.tolist())
        return state, observation.weights_used


@no_warnings()
def test_a_tiny_decay_leaves_nothing_to_gain_from_repetition():
    options = {"repetition_decay": 1e-300, "domain_sizes": (10,) * 4}
    weights = train(mixture(LearningCurve(**options)), 1, TOTAL).weights
    np.testing.assert_allclose(weights, np.full(4, 0.25))  # the anchor


@pytest.mark.parametrize("ahead", [0, 3])
def test_samples_that_later_steps_will_read_have_not_been_read(ahead):
    reader = Reader()
    controller, drawn = mixture(reader, total=20), 0
    for step in range(1, 21):
        while drawn < min(step + ahead, 20):
            drawn += 1
            controller.draw(drawn, 16)
        controller.observe(step, np.ones(4))
    assert reader.read == [[4 * step] * 4 for step in range(1, 21)]


def test_replay_follows_the_passes_of_the_log():
    log = [
        json.dumps({"event": "start", "mixture": mixture(LearningCurve(**REPEATING)).describe()})
    ]
    controller = mixture(LearningCurve(**REPEATING))
    for step in range(1, TOTAL + 1):
        train(controller, step, step, log=log)
        record = json.loads(log[-1])
        record["cursors"] = dict(zip(NAMES, controller.cursors.tolist(), strict=True))
        log[-1] = json.dumps(record)
    assert replay(read_run_log(log)).largest_difference <= 1e-12
    without = [line.replace('"cursors"', '"unknown"') for line in log]
    with pytest.raises(ReplayError, match="'learning_curve' with these options depends on"):
        replay(read_run_log(without))


def test_a_mixer_that_depends_on_what_was_read_must_be_told():
    mixer, weights = LearningCurve(**REPEATING), np.full(4, 0.25)
    state = mixer.init(NAMES, weights)
    for step in range(1, 121):
        losses = 5.0 - FALLS * math.log(step)
        read = np.full(4, 4 * step)
        state, _ = mixer.update(state, step, losses, weights, samples_read=read)
    for step in range(121, 125):  # the curve has a new point every 25 steps
        state, _ = mixer.update(state, step, losses, weights)
    with pytest.raises(ValueError, match="repetition_decay needs samples_read"):
        mixer.update(state, 125, losses, weights)
    with pytest.raises(ValueError, match="samples_read has 3 numbers, the run has 4 domains"):
        mixer.update(state, 161, np.ones(4), weights, samples_read=[1, 2, 3])


def test_numbers_per_domain_must_be_as_many_as_domains():
    with pytest.raises(ValueError, match="domain_sizes has 2 numbers, the run has 4 domains"):
        mixture(LearningCurve(repetition_decay=15.0, domain_sizes=(5, 5)))
    with pytest.raises(ValueError, match="anchor has 3 numbers, the run has 4 domains"):
        mixture(LearningCurve(anchor=(1, 1, 1)))


def test_options_of_numpy_are_kept_exactly_by_json():
    one = LearningCurve(perplexity_share=np.float16(0.3), exponent=np.float32(0.2))
    again = LearningCurve(**json.loads(json.dumps(one.options())))
    ends = [train(mixture(mixer), 1, 60).weights.tolist() for mixer in (one, again)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("weights", "equivalent"),
    [
        ([5e-324] * 3 + [0.0], [1, 1, 1, 0]),
        ([1e-300] * 3 + [0.0], [1, 1, 1, 0]),
        ([1e308, 0, 0, 0], [1, 0, 0, 0]),
    ],
)
def test_only_the_ratios_of_objective_weights_count(weights, equivalent):
    found, expected = (
        train(mixture(LearningCurve(objective_weights=given)), 1, 60).weights
        for given in (weights, equivalent)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["initial"].__setitem__(0, 0.9), "mixer.initial: must sum to 1"),
        (lambda m: m["weights"].__setitem__(0, 0.9), "mixer.weights: must sum to 1"),
        (
            lambda m: m["sums"][0].__setitem__(0, -1.0),
            r"mixer.sums\[0\]\[0\]: must be a number from 0",
        ),
        (
            lambda m: m["sums"][10].__setitem__(0, 1e15),
            r"mixer.sums\[10\]\[0\]: must be a number from",
        ),
        (
            lambda m: m["block"][1].__setitem__(0, -1.0),
            r"mixer.block\[1\]\[0\]: must be a number from 0",
        ),
    ],
)
def test_a_state_that_no_run_can_have_is_refused(change, message):
    state = train(mixture(), 1, 60).state_dict()
    change(state["mixer"])
    with pytest.raises(ValueError, match=message):
        mixture().load_state_dict(state)


def test_whole_numbers_in_a_state_are_numbers_of_any_size():
    state = train(mixture(), 1, 60).state_dict()
    state["mixer"]["block"][1][0] = 10**20
    assert np.isfinite(train_from(state).weights).all()


def train_from(state):
    resumed = mixture()
    resumed.load_state_dict(state)
    return train(resumed, state["step"] + 1, state["step"] + 12)


def test_a_domain_that_was_not_read_has_no_loss():
    controller = mixture(LearningCurve(repetition_decay=1.0, domain_sizes=(1, 1, 100, 100)))
    for step in range(1, 40):  # the first weights that leave the anchor
        controller.observe(step, 5.0 - FALLS * math.log(step))
    with pytest.raises(ValueError, match=r"domain 0 has a loss at step 40, .* use adopt_draw"):
        controller.observe(40, 5.0 - FALLS * math.log(40))
