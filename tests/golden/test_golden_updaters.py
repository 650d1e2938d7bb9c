"""The released research code's numbers, to 1e-12, for every recorded update."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron.data.data_sampling_utils import get_data_sampling_weighter, get_weight_updater

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/golden/updaters.json"
if not GOLDEN.exists():
    pytest.skip("the folder `shared` is not beside the checkout", allow_module_level=True)
TRACES = json.loads(GOLDEN.read_text())
TOLERANCE = 1e-12


def _case_name(case):
    return "-".join(str(case[key]) for key in ("updater", "mode", "K", "smoothing_factor")) + (
        f"-from{case['first_iteration']}"
    )


def _wrapper_name(case):
    return f"{case['method']}-warmup{case['warmup_steps']}-every{case['update_frequency']}"


def _options(case):
    return (
        {} if case["smoothing_factor"] is None else {"smoothing_factor": case["smoothing_factor"]}
    )


def _as_list(value):
    return list(value.values()) if isinstance(value, dict) else value


def _assert_state(updater, state):
    for field, expected in state.items():
        actual = _as_list(getattr(updater, field))
        if expected is None:
            assert actual is None, field
        else:
            np.testing.assert_allclose(
                actual, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=field
            )


@pytest.mark.parametrize("case", TRACES["cases"], ids=_case_name)
def test_updater_reproduces_every_field_of_every_step(case):
    weights = list(case["initial_weights"])
    updater = get_weight_updater(case["updater"], case["names"], weights, **_options(case))
    _assert_state(updater, case["initial_state"])
    for step in case["steps"]:
        inputs = {key: step[key] for key in step if key not in ("returned", "state")}
        returned = getattr(updater, case["mode"])(**inputs)
        np.testing.assert_allclose(returned, step["returned"], rtol=TOLERANCE, atol=TOLERANCE)
        _assert_state(updater, step["state"])
    assert weights == case["initial_weights"], "the caller's list was written to"


@pytest.mark.parametrize("case", TRACES["wrapper_cases"], ids=_wrapper_name)
def test_weighter_reproduces_warmup_frequency_and_weights(case):
    weights = list(case["initial_weights"])
    weighter = get_data_sampling_weighter(
        case["names"],
        weights,
        case["warmup_steps"],
        case["update_frequency"],
        case["method"],
        **_options(case),
    )
    for step in case["steps"]:
        iteration = step["iteration"]
        np.testing.assert_allclose(
            weighter(), step["weights_used_for_draw"], rtol=TOLERANCE, atol=TOLERANCE
        )
        is_due = weighter.update_scheduler.requires_update(iteration)
        assert is_due == step["requires_update"], iteration
        weighter.group_update(
            iteration, dataset_names=step["dataset_names"], rewards=step["rewards"]
        )
        np.testing.assert_allclose(
            weighter(), step["weights_after"], rtol=TOLERANCE, atol=TOLERANCE
        )
    assert weights == case["initial_weights"], "the caller's list was written to"


@pytest.mark.parametrize("case", TRACES["wrapper_cases"], ids=_wrapper_name)
def test_controller_draws_from_the_recorded_weights(case):
    from odm import MixtureController, MixtureSchedule, make_mixer

    names = case["names"]
    controller = MixtureController(
        names,
        make_mixer(case["method"], **_options(case)),
        MixtureSchedule(1, len(names)),
        initial_weights=case["initial_weights"],
        warmup_steps=case["warmup_steps"],
        update_frequency=case["update_frequency"],
    )
    for step in case["steps"]:
        recorded = np.array(step["weights_used_for_draw"])
        np.testing.assert_allclose(
            controller.weights, recorded / recorded.sum(), rtol=TOLERANCE, atol=TOLERANCE
        )
        losses = np.full(len(names), np.nan)
        for name, reward in zip(step["dataset_names"], step["rewards"], strict=True):
            losses[names.index(name)] = reward
        controller.observe(step["iteration"], losses)
