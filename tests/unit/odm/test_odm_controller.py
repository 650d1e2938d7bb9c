import json
import logging
import subprocess
import sys
import timeit
from pathlib import Path

import numpy as np
import pytest

from odm import (
    Ceiling,
    EpochCap,
    Floor,
    MixtureController,
    MixtureSchedule,
    Signal,
    TrustRegion,
    known_mixers,
    make_mixer,
)
from odm.json_data import SchemaError
from odm.saved_state import check_stored_state
from tests.mixers import mixer_for

DOMAINS = ["web", "code", "books", "math"]
PLANTED = np.array([3.0, 1.5, 4.0, 2.0])


def controller(method="smoothed_mean", domains=DOMAINS, constraints=(), seed=11, **options):
    schedule = MixtureSchedule(seed, len(domains))
    mixer = mixer_for(method, len(domains))
    return MixtureController(domains, mixer, schedule, constraints, **options)


def losses_of(draw, step):
    """Losses as a model would give: planted means, falling, only for domains in the batch."""
    counts = draw.counts(len(DOMAINS)) * 128.0
    return Signal.from_means(PLANTED + 1.0 / step, counts)


def train(mixture, steps):
    history = []
    for step in steps:
        draw = mixture.draw(step, 16, run_length=4)
        weights = mixture.observe(step, losses_of(draw, step)).weights_after
        history.append((draw.domains.tobytes(), draw.positions.tobytes(), weights.tobytes()))
    return history


CAP = EpochCap((3, 2.5, 1, 4), (50, 150, 200, 70), total_samples=480)


@pytest.mark.parametrize(
    "constraints", [(), (Floor(0.05), TrustRegion(max_kl=0.02)), (CAP, Floor(1 / 30))]
)
@pytest.mark.parametrize("method", [m for m in known_mixers() if m != "naive_validation"])
def test_stopping_anywhere_and_resuming_through_json_is_bit_exact(method, constraints):
    options = {"warmup_steps": 5, "update_frequency": 2, "initial_weights": [4, 3, 2, 1]}
    whole = controller(method, constraints=constraints, **options)
    expected = train(whole, range(1, 31))
    for stop in range(0, 31, 3):
        first = controller(method, constraints=constraints, **options)
        train(first, range(1, stop + 1))
        text = json.dumps(first.state_dict(), allow_nan=False)
        second = controller(method, constraints=constraints, **options)
        second.load_state_dict(json.loads(text))
        assert train(second, range(stop + 1, 31)) == expected[stop:]
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("method", known_mixers())
def test_a_state_of_any_method_is_checked_alone(method):
    mixture = controller(method)
    mixture.draw(1, 16)
    mixture.observe(1, PLANTED)
    state = json.loads(json.dumps(mixture.state_dict()))
    check_stored_state(state)
    required = mixer_for(method, 4).method.required
    for name in required:
        state["configuration"]["options"][name] = "x"
        with pytest.raises(SchemaError, match=f"^configuration.options: {method}: .*{name}"):
            check_stored_state(state)


def test_updates_happen_strictly_after_warmup_on_multiples_of_the_frequency():
    mixture = controller(warmup_steps=6, update_frequency=3)
    due = [step for step in range(1, 20) if mixture.is_update_due(step)]
    assert due == [9, 12, 15, 18]
    assert controller(warmup_steps=6, update_frequency=1).is_update_due(7)
    assert not controller(warmup_steps=6, update_frequency=1).is_update_due(6)


def test_losses_of_steps_without_an_update_are_discarded():
    one, two = (controller(warmup_steps=10, update_frequency=5) for _ in range(2))
    for step in range(1, 15):
        one.observe(step, PLANTED)
        two.observe(step, PLANTED[::-1])
    one.observe(15, PLANTED)
    two.observe(15, PLANTED)
    np.testing.assert_array_equal(one.weights, two.weights)


def test_initial_weights_are_normalised_for_drawing_and_kept_raw():
    mixture = controller(initial_weights=[4, 3, 2, 1], warmup_steps=100)
    np.testing.assert_allclose(mixture.weights, [0.4, 0.3, 0.2, 0.1], rtol=1e-15)
    assert mixture.initial_weights.tolist() == [4, 3, 2, 1]
    mixture.observe(100, PLANTED)
    np.testing.assert_allclose(mixture.weights, [0.4, 0.3, 0.2, 0.1], rtol=1e-15)


def test_the_callers_arrays_are_neither_kept_nor_changed():
    initial = np.array([4.0, 3.0, 2.0, 1.0])
    mixture = controller("static", initial_weights=initial)
    initial[0] = 100.0
    mixture.weights[0] = 0.0
    decision = mixture.observe(1, PLANTED)
    for array in (decision.weights_after, decision.weights_before, decision.proposal):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0
    np.testing.assert_allclose(mixture.weights, [0.4, 0.3, 0.2, 0.1], rtol=1e-15)


def test_a_hard_domain_gets_more_of_the_batch_than_an_easy_one():
    mixture = controller()
    train(mixture, range(1, 301))
    drawn = np.zeros(4)
    for step in range(301, 401):
        draw = mixture.draw(step, 64)
        drawn += draw.counts(4)
        mixture.observe(step, losses_of(draw, step))
    assert drawn.argsort().tolist() == PLANTED.argsort().tolist()
    np.testing.assert_allclose(drawn / drawn.sum(), mixture.weights, atol=0.02)


def test_a_static_mixture_is_the_same_object_with_constant_weights():
    mixture = controller("static", initial_weights=[4, 3, 2, 1])
    train(mixture, range(1, 20))
    np.testing.assert_allclose(mixture.weights, [0.4, 0.3, 0.2, 0.1], rtol=1e-15)
    assert mixture.cursors.sum() == 19 * 16


def test_one_domain_works_with_the_static_mixer():
    mixture = controller("static", domains=["all"])
    assert mixture.draw(1, 4).positions.tolist() == [0, 1, 2, 3]
    assert mixture.observe(1, [2.0]).weights_after.tolist() == [1.0]


def test_a_step_without_any_tokens_leaves_the_weights_alone():
    mixture = controller()
    mixture.observe(50, PLANTED)
    before = mixture.weights
    decision = mixture.observe(51, Signal(*np.zeros((4, 4))))
    np.testing.assert_array_equal(decision.weights_after, before)
    assert not decision.updated


def test_the_audit_record_explains_the_last_decision():
    mixture = controller(constraints=[Floor(0.1), Ceiling(0.5)])
    before = mixture.weights
    decision = mixture.observe(500, [3.0, 1.0, 6.0, np.nan])
    after = mixture.weights
    record = decision.to_dict()
    assert record == mixture.last_decision
    json.dumps(record, allow_nan=False)
    assert record["step"] == 500
    assert record["updated"] is True
    assert record["weights_before"] == before.tolist()
    assert record["weights_after"] == after.tolist()
    assert record["losses"] == [3.0, 1.0, 6.0, None]
    assert record["proposal"] != record["weights_after"]
    assert record["constraints"] == {
        "order": ["floor", "ceiling"],
        "floor": [],
        "ceiling": [2],
    }


def test_constraints_hold_from_the_first_draw():
    mixture = controller(constraints=[Floor(0.1)], initial_weights=[97, 1, 1, 1], warmup_steps=9)
    assert mixture.weights.min() == pytest.approx(0.1)
    mixture.observe(1, PLANTED)
    assert mixture.weights.min() == pytest.approx(0.1)


@pytest.mark.parametrize("method", ["exp3", "odm_paper"])
def test_rewards_are_divided_by_the_weights_that_drew_the_step(method):
    # Reading ahead: step 101 is drawn before step 100 has been observed.
    ahead = controller(method)
    ahead.draw(100, 8)
    ahead.draw(101, 8)
    used_for_both = ahead.weights
    ahead.observe(100, PLANTED)
    result = ahead.observe(101, PLANTED[::-1]).weights_after
    mixer = make_mixer(method)
    state = mixer.init(DOMAINS, np.ones(4))
    state, _ = mixer.update(state, 100, PLANTED, used_for_both)
    _, expected = mixer.update(state, 101, PLANTED[::-1], used_for_both)
    np.testing.assert_array_equal(result, expected)


def test_a_saved_state_leaves_out_plans_that_were_read_ahead():
    plain, ahead = controller("static"), controller("static")
    plain.draw(1, 8)
    plain.observe(1, PLANTED)
    for step in (1, 2, 3):
        ahead.draw(step, 8)
    ahead.observe(1, PLANTED)
    assert ahead.state_dict(completed_step=1)["cursors"] == plain.cursors.tolist()
    assert ahead.state_dict()["cursors"] == ahead.cursors.tolist() != plain.cursors.tolist()


def train_ahead(mixture, first, last, *, saved_after=None):
    """As `train`, with the plan of the next step always drawn; returns plans and a saved state."""
    plans, saved = {first: mixture.draw(first, 16)}, None
    for step in range(first, last + 1):
        plans[step + 1] = mixture.draw(step + 1, 16)
        mixture.observe(step, losses_of(plans[step], step))
        if step == saved_after:
            saved = mixture.state_dict(completed_step=step)
    return {
        step: (plan.domains.tobytes(), plan.positions.tobytes()) for step, plan in plans.items()
    }, saved


@pytest.mark.parametrize("constraints", [(), (CAP, Floor(1 / 30))])
def test_plans_that_were_read_ahead_are_drawn_again_alike(constraints):
    whole = controller(constraints=constraints)
    expected, saved = train_ahead(whole, 1, 28, saved_after=20)
    resumed = controller(constraints=constraints)
    resumed.load_state_dict(json.loads(json.dumps(saved)))
    assert resumed.state_dict() == saved  # also when it is saved again before anything is drawn
    plans, _ = train_ahead(resumed, 21, 28)
    assert plans == {step: plan for step, plan in expected.items() if step > 20}
    assert resumed.weights.tobytes() == whole.weights.tobytes()


def test_plans_of_a_saved_run_are_of_later_steps_and_forgotten_once_they_are_past():
    _, saved = train_ahead(controller(), 1, 6, saved_after=3)
    assert saved["planned"].keys() == {"4"}
    resumed = controller()
    resumed.load_state_dict(saved)
    train(resumed, [4])
    assert resumed.state_dict()["planned"] == {}
    saved["planned"]["3"] = saved["planned"].pop("4")
    with pytest.raises(ValueError, match="planned: a key: must be a step after 3"):
        controller().load_state_dict(saved)


def test_numbers_of_numpy_become_json():
    mixture = MixtureController(
        DOMAINS,
        make_mixer("smoothed_mean", smoothing_factor=np.float32(0.5)),
        MixtureSchedule(np.int64(1), np.int64(4)),
        [EpochCap(np.float64(3), np.array([50] * 4), np.int64(300)), TrustRegion(np.float32(0.5))],
        warmup_steps=np.int64(1),
    )
    for step in np.arange(1, 4):
        mixture.draw(step, np.int64(8))
        mixture.observe(step, PLANTED)
    mixture.load_state_dict(json.loads(json.dumps(mixture.state_dict())))


def test_a_trainer_that_never_observes_keeps_its_cursors():
    mixture = controller("static")
    for step in range(1, 2001):
        mixture.draw(step, 2)
    assert sum(mixture.state_dict()["cursors"]) == 4000


@pytest.mark.parametrize("step", [1, 50])
def test_nonfinite_losses_are_refused_by_name_in_warmup_too(step):
    mixture = controller(warmup_steps=10)
    before = mixture.state_dict()
    signal = Signal(*np.array([[1, np.nan, 2, 0], [0] * 4, [1, 1, 1, 0], [1, 1, 1, 0.0]]))
    with pytest.raises(ValueError, match=f"domain 'code' at step {step} is nan.*drop_nonfinite"):
        mixture.observe(step, signal)
    assert mixture.state_dict() == before
    mixture.observe(step, signal.drop_nonfinite()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["web", "code", "books", "law"]}, r"only the state has \['math'\]"),
        ({"domains": ["code", "web", "books", "math"]}, "the order was .*'web', 'code'.* now "),
        ({"domains": DOMAINS[:3]}, r"\['math'\]"),
        ({"method": "exp3"}, "method 'smoothed_mean', this run uses 'exp3'"),
    ],
)
def test_a_state_of_another_mixture_is_refused_with_the_difference(options, message):
    saved = controller()
    train(saved, range(1, 4))
    other = controller(**options)
    before = other.state_dict()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())
    assert other.state_dict() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.update(schema_version=2), "schema_version: is 2, this version supports 1"),
        (lambda s: s.update(schema_version=True), "schema_version: is True"),
        (lambda s: s.pop("cursors"), "lacks cursors"),
        (lambda s: s["configuration"].pop("domains"), r"lacks configuration\.domains"),
        (lambda s: s.update(configuration=None), "configuration: must be an object, got None"),
        (lambda s: s["configuration"].update(domains=["a", "a"]), "configuration.*named twice"),
        (lambda s: s["configuration"].update(initial_weights=[0] * 4), "all weights are 0"),
        (lambda s: s["configuration"].update(update_frequency=0), r"update_frequency.*got 0"),
        (lambda s: s["mixer"].update(eps="much"), r"mixer\.eps: .*'much'"),
        (lambda s: s["mixer"].update(eps=2.0**63), r"mixer\.eps: .*from 0.* to 0\.25, got 9\.2"),
        (lambda s: s["mixer"].update(estimated_reward=[9.0] * 4), r"prev_eps: is null, but"),
        (lambda s: s["mixer"].update(estimated_reward=[1.0, np.nan, 0, 0]), r"reward\[1\].*nan"),
        (lambda s: s["mixer"].update(estimated_reward={}), r"mixer\.estimated_reward: .* a list"),
        (lambda s: s["mixer"].pop("eps"), r"lacks mixer\.eps"),
        (lambda s: s["mixer"].update(beta=1.0), r"mixer\.'beta': not a field"),
        (lambda s: s["mixer"]["estimated_reward"].pop(), r"estimated_reward: must have 4 values"),
        (lambda s: s["cursors"].pop(), "cursors: must have 4 values, got 3"),
        (lambda s: s["cursors"].append(0), "cursors: must have 4 values, got 5"),
        (lambda s: s.update(cursors=[1, 2, 3, -1]), r"cursors\[3\]: .*got -1"),
        (lambda s: s.update(cursors=[1, 2, 3, True]), r"cursors\[3\]: .*got True"),
        (lambda s: s.update(cursors=[1, 2, 3, 2**63]), r"cursors\[3\]: .*from 0"),
        (lambda s: s.update(cursors=[2**61] * 4), "cursors: must sum to"),
        (lambda s: s["weights"].pop(), "weights: must have 4 values, got 3"),
        (lambda s: s.update(weights={}), "weights: must be a list, got {}"),
        (lambda s: s.update(weights=[5.0, 1.0, 1.0, 1.0]), r"weights\[0\]: .* to 1, got 5"),
        (lambda s: s.update(weights=[0.5, 0.2, 0.2, 0.2]), "weights: must sum to 1, got 1.1"),
        (
            lambda s: s.update(weights=[0.4, 0.3, 0.2, 0.1]),
            "weights: does not follow from proposal",
        ),
        (lambda s: s.update(step=None), "step: must be a whole number from 0 .*got None"),
        (lambda s: s.update(planned={"9": [1.0]}), r"planned\.9: must have 4 values"),
        (lambda s: s.update(planned=-1), "planned: must be an object, got -1"),
        (lambda s: s.update(planned={"0": [0.25] * 4}), "planned: a key: must be a step"),
        (lambda s: s.update(planned={"1_0": [0.25] * 4}), "planned: a key: must be a step"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage, message):
    state = controller().state_dict()
    damage(state)
    target = controller()
    train(target, range(1, 4))
    before = target.state_dict()
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    assert target.state_dict() == before


WITH_REWARDS = {
    "smoothed_mean": "estimated_reward",
    "odm_paper": "estimated_reward",
    "exp3": "cumulative_estimated_reward",
}


@pytest.mark.parametrize(("method", "field"), [*WITH_REWARDS.items(), ("ema", "weights")])
def test_numbers_that_cannot_be_of_one_state_are_refused(method, field):
    mixture = controller(method)
    train(mixture, range(1, 31))
    for name in {field, "eps"} & mixture.state_dict()["mixer"].keys():
        state = mixture.state_dict()
        value = state["mixer"][name]
        state["mixer"][name] = value * 1.02 if name != field else [value[0] + 9, *value[1:]]
        with pytest.raises(ValueError, match="state: proposal: does not follow from mixer"):
            controller(method).load_state_dict(state)


def test_a_state_of_either_way_of_sharing_loads_whatever_the_option_is_now():
    for share in ("linear", "softmax"):
        mixture = MixtureController(
            DOMAINS, make_mixer("smoothed_mean", share=share), MixtureSchedule(11, 4)
        )
        train(mixture, range(1, 31))
        other = controller()
        other.load_state_dict(mixture.state_dict())
        controller().load_state_dict(other.state_dict())
        assert other.weights.tolist() == mixture.weights.tolist()


def test_changed_options_are_taken_from_the_new_run_and_said(caplog):
    saved = controller(seed=11).state_dict()
    mixture = controller(seed=12, update_frequency=4)
    with caplog.at_level(logging.WARNING, logger="odm"):
        mixture.load_state_dict(saved)
    assert mixture.update_frequency == 4
    assert "seed was 11, now 12" in caplog.text
    assert "update_frequency was 1, now 4" in caplog.text


def resumed(saved, caplog, **options):
    mixture = controller(**options)
    with caplog.at_level(logging.WARNING, logger="odm"):
        mixture.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    return mixture


@pytest.mark.parametrize(
    "options", [{"method": "static"}, {"method": "smoothed_mean", "warmup_steps": 50}]
)
def test_new_initial_weights_count_after_a_resume_while_nothing_has_been_learnt(options, caplog):
    saved = controller(initial_weights=[4, 3, 2, 1], **options)
    train(saved, range(1, 21))
    mixture = resumed(saved, caplog, initial_weights=[1, 1, 1, 7], **options)
    assert "initial_weights was [4.0, 3.0, 2.0, 1.0], now [1.0, 1.0, 1.0, 7.0]" in caplog.text
    assert mixture.weights.tolist() == [0.1, 0.1, 0.1, 0.7]
    assert mixture.cursors.tolist() == saved.cursors.tolist()
    train(mixture, range(21, 31))
    assert mixture.weights.tolist() == [0.1, 0.1, 0.1, 0.7]


def test_new_initial_weights_are_said_to_be_late_once_the_weights_follow_the_losses(caplog):
    saved = controller(initial_weights=[4, 3, 2, 1])
    train(saved, range(1, 21))
    mixture = resumed(saved, caplog, initial_weights=[1, 1, 1, 7])
    assert "now [1.0, 1.0, 1.0, 7.0]; without effect" in caplog.text
    assert mixture.weights.tolist() == saved.weights.tolist()


def test_new_limits_hold_from_the_first_draw_after_a_resume(caplog):
    saved = controller(initial_weights=[97, 1, 1, 1], warmup_steps=100)
    train(saved, range(1, 6))
    mixture = resumed(
        saved, caplog, initial_weights=[97, 1, 1, 1], warmup_steps=100, constraints=[Floor(0.1)]
    )
    np.testing.assert_allclose(mixture.weights, [0.7, 0.1, 0.1, 0.1], rtol=1e-12)
    lifted = resumed(mixture, caplog, initial_weights=[97, 1, 1, 1], warmup_steps=100)
    assert lifted.weights.tolist() == saved.weights.tolist()


def test_a_state_that_cannot_keep_new_limits_is_refused_and_changes_nothing():
    state = controller("ema").state_dict()
    state["mixer"]["weights"] = state["proposal"] = state["weights"] = [1.0, 0.0, 0.0, 0.0]
    target = controller("ema", constraints=[Ceiling(0.5)])
    train(target, range(1, 4))
    before = target.state_dict()
    with pytest.raises(ValueError, match=r"positive weight to 0\.5"):
        target.load_state_dict(state)
    assert target.state_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be .* at least 0, got -1"),
        ({"update_frequency": 0}, "update_frequency must be .* at least 1, got 0"),
        ({"initial_weights": [1, 2]}, "initial_weights: expected 4 weights"),
        ({"method": "smoothed"}, "unknown method 'smoothed'"),
        ({"constraints": [Floor(0.3)]}, "lower bounds sum to 1.2"),
    ],
)
def test_a_controller_that_cannot_work_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        controller(**options)


def test_a_schedule_for_another_number_of_domains_is_refused():
    with pytest.raises(ValueError, match="schedule is for 3 domains, the list has 4"):
        MixtureController(DOMAINS, "static", MixtureSchedule(1, 3))


def test_importing_odm_loads_neither_torch_nor_deepspeed_nor_megatron():
    code = (
        "import sys, odm, odm.replay; "
        "print([n for n in ('torch', 'deepspeed', 'megatron', 'transformers') if n in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_step_of_ten_domains_costs_well_under_a_millisecond():
    names = [f"d{i}" for i in range(10)]
    mixture = MixtureController(names, "smoothed_mean", MixtureSchedule(1, 10))
    signal = Signal.from_means(np.linspace(2, 4, 10), np.full(10, 512))
    steps = iter(range(1, 10**9))

    def one_step():
        step = next(steps)
        mixture.draw(step, 64)
        mixture.observe(step, signal)

    seconds = min(timeit.repeat(one_step, number=100, repeat=5)) / 100
    assert seconds < 1e-3  # 100 us on a quiet core
