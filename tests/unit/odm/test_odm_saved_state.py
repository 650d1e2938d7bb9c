"""States as the first versions saved them: they load, and the run goes on to the bit."""

import json
import logging

import numpy as np
import pytest

from odm import Floor, MixtureController, MixtureSchedule, TrustRegion, make_mixer

DOMAINS = ["web", "code", "math"]
LEARNT = json.loads("""{
  "schema_version": 1,
  "configuration": {
    "domains": ["web", "code", "math"], "method": "smoothed_mean",
    "options": {"smoothing_factor": 0.9, "share": "linear"},
    "initial_weights": [4.0, 3.0, 2.0], "warmup_steps": 2, "update_frequency": 1,
    "constraints": [
      {"name": "floor", "minimum": 0.05},
      {"name": "trust_region", "max_kl": 0.02, "max_total_variation": null}
    ],
    "seed": 11, "stratified": false
  },
  "step": 9,
  "weights": [0.48236420817351555, 0.2589664867663861, 0.2586693050600983],
  "proposal": [0.48236420817351555, 0.2589664867663861, 0.2586693050600983],
  "mixer": {
    "eps": 0.20171599843528723, "prev_eps": 0.21395212555110993,
    "estimated_reward": [12.521733953106386, 2.554355804500232, 2.5410963924222503]
  },
  "cursors": [27, 25, 20],
  "planned": {"10": [0.4652846293912842, 0.2648338444430596, 0.26988152616565636]}
}""")
"""Saved after step 9 of a trainer that had drawn step 10."""

GOES_ON = [
    ([2, 0, 2, 0, 2, 2, 2, 0], [20, 27, 21, 28, 22, 23, 24, 29]),
    ([0, 0, 1, 0, 0, 1, 2, 0], [30, 31, 25, 32, 33, 26, 25, 34]),
    ([2, 0, 2, 0, 0, 0, 1, 0], [26, 35, 27, 36, 37, 38, 27, 39]),
]
"""Domains and positions that the version which saved the state drew in steps 10 to 12."""

WEIGHTS = [
    [0.4892700354122068, 0.25254009961949836, 0.25818986496829477],
    [0.49504542363886284, 0.24702627881944844, 0.2579282975416888],
    [0.5058654829073567, 0.24345567083689187, 0.25067884625575143],
]
"""What it had learnt after each of them."""


def losses(step):
    return [3.0 + 1 / step, 1.5 + 0.5 / step, np.nan if step % 3 == 0 else 2.0]


def make_mixture(method="smoothed_mean", constraints=(), initial_weights=(4, 3, 2), **options):
    return MixtureController(
        DOMAINS,
        make_mixer(method),
        MixtureSchedule(11, 3),
        constraints,
        initial_weights=initial_weights,
        **options,
    )


LIMITS = [Floor(0.05), TrustRegion(max_kl=0.02)]


def test_a_run_goes_on_as_the_version_that_saved_it_did():
    mixture = make_mixture(constraints=LIMITS, warmup_steps=2)
    mixture.load_state_dict(LEARNT)
    for step, (plan, weights) in enumerate(zip(GOES_ON, WEIGHTS, strict=True), start=10):
        draw = mixture.draw(step, 8)
        assert (draw.domains.tolist(), draw.positions.tolist()) == plan
        assert mixture.observe(step, losses(step)).weights_after.tolist() == weights
    assert mixture.state_dict()["mixer"] == {
        "eps": 0.17469117899470082,
        "prev_eps": 0.18245898573320857,
        "estimated_reward": [15.089219207430851, 3.1331008439835633, 3.462208736658846],
    }


def test_what_it_saves_is_the_same_and_the_number_of_updates():
    mixture = make_mixture(constraints=LIMITS, warmup_steps=2)
    mixture.load_state_dict(LEARNT)
    saved = mixture.state_dict()
    assert saved.pop("updates") > 0
    assert saved == LEARNT


def fresh_state(method, mixer, **configuration):
    weights = [0.4444444444444444, 0.3333333333333333, 0.2222222222222222]
    described = {**LEARNT["configuration"], "constraints": [], "method": method, **configuration}
    return {
        **LEARNT,
        **{"configuration": described, "step": 3, "planned": {}, "cursors": [12, 7, 5]},
        **{"weights": weights, "proposal": weights, "mixer": mixer},
    }


NOTHING_LEARNT = {"eps": 0.3333333333333333, "prev_eps": None, "estimated_reward": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("method", "mixer", "options"),
    [
        ("static", {"weights": [4.0, 3.0, 2.0]}, {}),
        ("smoothed_mean", NOTHING_LEARNT, {"warmup_steps": 50}),
    ],
)
def test_other_initial_weights_count_where_an_early_state_has_not_learnt(method, mixer, options):
    mixture = make_mixture(method, initial_weights=(1, 1, 2), **options)
    mixture.load_state_dict(fresh_state(method, mixer, **options))
    assert mixture.weights.tolist() == [0.25, 0.25, 0.5]
    assert mixture.cursors.tolist() == [12, 7, 5]
    assert mixture.state_dict()["updates"] == 0


def test_they_do_not_where_it_has(caplog):
    mixture = make_mixture(constraints=LIMITS, warmup_steps=2, initial_weights=(1, 1, 2))
    with caplog.at_level(logging.WARNING, logger="odm"):
        mixture.load_state_dict(LEARNT)
    assert mixture.weights.tolist() == LEARNT["weights"]
    assert "initial_weights was [4.0, 3.0, 2.0], now [1.0, 1.0, 2.0]; without" in caplog.text


def test_updates_are_counted_and_static_weights_never_are():
    for method, counted in (("smoothed_mean", 3), ("static", 0)):
        mixture = make_mixture(method, warmup_steps=2)
        for step in range(1, 6):
            mixture.draw(step, 8)
            mixture.observe(step, losses(step))
        assert mixture.state_dict()["updates"] == counted
        again = make_mixture(method, warmup_steps=2)
        again.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
        assert again.state_dict() == mixture.state_dict()
