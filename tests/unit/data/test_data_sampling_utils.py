import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron.data.data_sampling_utils import (
    BaseDataSamplingWeight,
    DynamicDataSamplingWeight,
    EMAWeightUpdater,
    Exp3WeightUpdater,
    NaiveValidationWeightUpdater,
    OdmPaperWeightUpdater,
    SmoothedMeanWeightUpdater,
    UpdateScheduler,
    get_data_sampling_weighter,
    get_weight_updater,
)

NAMES = ["a", "b", "c"]
START = [0.5, 0.3, 0.2]


def test_group_update_of_smoothed_mean_equals_a_step_done_by_hand():
    updater = SmoothedMeanWeightUpdater(NAMES, START, smoothing_factor=0.5)
    returned = updater.group_update(["a", "c"], [1.0, 2.0], 2001)
    eps = math.sqrt(math.log(3) / (3 * 2001))
    share_a = 1 / (1 + math.e)
    expected = [
        eps + (1 - 3 * eps) * share_a,
        eps,
        eps + (1 - 3 * eps) * (1 - share_a),
    ]
    np.testing.assert_allclose(returned, expected, rtol=1e-13)
    assert updater.eps == eps
    assert updater.prev_eps == 1 / 3
    assert updater._probabilities == dict(zip(NAMES, returned, strict=True))
    reward = [0.5 * math.e, 0.0, 0.5 * math.e**2]
    np.testing.assert_allclose(list(updater._estimated_reward.values()), reward, rtol=1e-15)


def test_update_of_smoothed_mean_takes_a_softmax_of_the_perplexity():
    updater = SmoothedMeanWeightUpdater(NAMES, START, smoothing_factor=0.5)
    returned = updater.update("b", 1.0, 2001)
    eps = math.sqrt(math.log(3) / (3 * 2001))
    high = math.exp(0.5 * math.e / 3)
    expected = eps + (1 - 3 * eps) * high / (2 + high)
    assert returned[1] == pytest.approx(expected, rel=1e-13)


def test_weighters_and_updaters_have_the_attributes_of_the_research_code():
    weighter = DynamicDataSamplingWeight(NAMES, START, 10, 2, "exp3", False)
    assert weighter.update_method == "exp3"
    assert weighter.weight_updater.dataset_map == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(ValueError, match="internal_updates: no updater has updates of its own"):
        get_data_sampling_weighter(NAMES, START, 10, 2, "exp3", internal_updates=True)


def test_constant_weights_that_do_not_fit_the_names_are_refused():
    with pytest.raises(ValueError, match="train_data_weights: expected 3 weights"):
        get_data_sampling_weighter(NAMES, [0.5, 0.5])


def test_exp3_divides_the_reward_by_ten_and_by_the_probability():
    updater = Exp3WeightUpdater(NAMES, START)
    updater.group_update(["a", "b"], [2.0, 3.0], 10)
    cumulative = updater._cumulative_estimated_reward
    assert cumulative == pytest.approx({"a": 0.4, "b": 1.0, "c": 0.0}, rel=1e-14)


def test_ema_moves_the_raw_weights():
    updater = EMAWeightUpdater(NAMES, [1.0, 1.0, 2.0])
    assert updater.update("b", 5.0, 3) == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert updater.weights == {"a": 1.0, "b": 3.0, "c": 2.0}


def test_odm_paper_is_the_published_policy_of_the_next_step():
    updater = OdmPaperWeightUpdater(NAMES, [1, 1, 1], smoothing_factor=0.0)
    returned = updater.group_update(NAMES, [1.0, 2.0, 3.0], 50)
    assert updater.prev_eps == math.sqrt(math.log(3) / 150)
    assert updater.eps == math.sqrt(math.log(3) / 153)
    logits = updater.prev_eps * np.array([3.0, 6.0, 9.0])
    share = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(returned, updater.eps + (1 - 3 * updater.eps) * share, rtol=1e-13)


def test_naive_validation_measures_one_batch_of_every_domain_and_restarts_loaders():
    calls = []

    def validation_loss(model, batch, neox_args):
        calls.append((model, batch, neox_args))
        return batch

    updater = NaiveValidationWeightUpdater(
        NAMES,
        START,
        reward_dataloaders={"a": [1.0], "b": [2.0, 4.0], "c": [5.0]},
        neox_args="config",
        validation_loss=validation_loss,
    )
    updater.update(iteration=100, model="model")
    assert calls == [("model", loss, "config") for loss in (1.0, 2.0, 5.0)]
    assert updater._cumulative_estimated_reward == {"a": 0.0, "b": 0.25, "c": 1.0}
    updater.update(iteration=101, model="model")
    assert updater._rewards == {"a": 1.0, "b": 4.0, "c": 5.0}
    assert updater._cumulative_estimated_reward == {"a": 0.0, "b": 1.0, "c": 2.0}


def test_naive_validation_says_what_it_lacks():
    with pytest.raises(ValueError, match="needs reward_dataloaders and validation_loss"):
        NaiveValidationWeightUpdater(NAMES, START).update(1, None)
    with pytest.raises(ValueError, match="reward_dataloaders lacks b, c"):
        NaiveValidationWeightUpdater(NAMES, START, {"a": [1.0]})
    empty = NaiveValidationWeightUpdater(
        NAMES, START, {"a": [], "b": [], "c": []}, validation_loss=lambda *given: 1.0
    )
    with pytest.raises(ValueError, match="loader of 'a' is empty"):
        empty.update(1, None)


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema"])
def test_neither_the_callers_list_nor_the_returned_one_is_shared(method):
    start = list(START)
    updater = get_weight_updater(method, NAMES, start)
    returned = updater.group_update(NAMES, [1.0, 2.0, 3.0], 100)
    kept = list(returned)
    returned[0] = 99.0
    assert start == START
    assert list(updater._probabilities.values()) == kept
    following = updater.update("a", 2.0, 101)
    assert sum(following) == pytest.approx(1.0)


def test_the_scheduler_is_strict_about_warmup():
    scheduler = UpdateScheduler(7, 5)
    assert [t for t in range(1, 21) if scheduler.requires_update(t)] == [10, 15, 20]
    assert UpdateScheduler(10, 5).requires_update(10) is False


def test_a_weighter_keeps_raw_weights_until_the_first_update():
    weighter = get_data_sampling_weighter(
        NAMES, [5, 3, 2], warmup_steps=2, update_frequency=1, update_method="smoothed_mean"
    )
    assert isinstance(weighter, DynamicDataSamplingWeight)
    for iteration in (1, 2):
        weighter.group_update(iteration=iteration, dataset_names=NAMES, rewards=[1, 2, 3])
        assert weighter() == [5.0, 3.0, 2.0]
    weighter.group_update(iteration=3, dataset_names=NAMES, rewards=[1, 2, 3])
    assert sum(weighter()) == pytest.approx(1.0)
    assert set(weighter.log()) == {"_probabilities", "_estimated_reward"}
    weighter()[0] = 99.0
    assert weighter()[0] < 1


def test_a_weighter_without_a_method_is_constant():
    weighter = get_data_sampling_weighter(NAMES, START)
    assert type(weighter) is BaseDataSamplingWeight
    weighter.update(1, dataset_name="a", reward=1.0)
    weighter.group_update(1, dataset_names=NAMES, rewards=[1, 2, 3])
    assert weighter() == START
    assert weighter.log() == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: get_weight_updater("smoothed", NAMES, START),
            "unknown method 'smoothed', use one of smoothed_mean",
        ),
        (lambda: SmoothedMeanWeightUpdater(["a"], [1.0]), "needs at least 2 domains"),
        (lambda: SmoothedMeanWeightUpdater(NAMES, START, 1.0), r"must be in \[0, 1\), got 1.0"),
        (lambda: Exp3WeightUpdater(["a", "a"], [1, 1]), "named twice"),
        (lambda: Exp3WeightUpdater(NAMES, [1, 1]), "expected 3 weights"),
        (lambda: UpdateScheduler(0, 0), "update_frequency must be >= 1"),
        (lambda: get_data_sampling_weighter(NAMES, START, 5), "must be 0, got 5 and 0"),
    ],
)
def test_unusable_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["smoothed_mean", "odm_paper", "exp3", "ema"])
@pytest.mark.parametrize(
    ("names", "rewards", "message"),
    [
        (["a", "x"], [1.0, 2.0], "unknown domain 'x', known: a, b, c"),
        (["a", "a"], [1.0, 2.0], "'a' is given twice"),
        (["a"], [1.0, 2.0], "1 name for 2 rewards"),
        (["a"], [math.nan], "loss of 'a' at iteration 9 is nan"),
        (["a"], [math.inf], "loss of 'a' at iteration 9 is inf"),
    ],
)
def test_unusable_rewards_are_refused_and_leave_the_state_alone(method, names, rewards, message):
    updater = get_weight_updater(method, NAMES, START)
    before = dict(updater._probabilities)
    with pytest.raises(ValueError, match=message):
        updater.group_update(names, rewards, 9)
    assert updater._probabilities == before


def test_the_module_loads_neither_torch_nor_deepspeed():
    code = (
        "import sys, megatron.data.data_sampling_utils; "
        "print([name for name in ('torch', 'deepspeed') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
