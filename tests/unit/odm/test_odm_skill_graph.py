import json
import math

import numpy as np
import pytest

from odm import make_mixer
from odm.held_out import HeldOut

MATRIX = [[1.0, 0.5], [0.0, 1.0]]


def test_updates_equal_those_done_by_hand():
    # A (2, 1) = (2.5, 1): odds e^(0.2 * 1.5). Then A (2 + 1, 1 + 1) = (4, 2): odds e^(0.2 * 2). The
    # window of two leaves the first out: A (1 + 1, 1 + 2) = (3.5, 3): odds e^(0.2 * 0.5).
    mixer = make_mixer("skill_graph", transfer_matrix=MATRIX, window=2)
    state, used = mixer.init(["a", "b"], [1.0, 1.0]), [0.5, 0.5]
    for step, losses, exponent in (
        (1, [2.0, 1.0], 0.3),
        (2, [1.0, 1.0], 0.4),
        (3, [1.0, 2.0], 0.1),
    ):
        state, used = mixer.update(state, step, losses, used)
        np.testing.assert_allclose(used[0], 1 / (1 + math.exp(-exponent)), rtol=1e-14)
    assert state["pull"] == [3.5, 3.0]


def test_the_initial_weights_are_the_prior():
    mixer = make_mixer("skill_graph", transfer_matrix=[[0.0, 0.0], [0.0, 0.0]])
    state, weights = mixer.init(["a", "b"], [3.0, 1.0]), [0.5, 0.5]
    for step in range(1, 5):
        state, weights = mixer.update(state, step, [2.0, 5.0], weights)
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-15)


def test_a_domain_gains_from_the_loss_of_those_that_it_teaches():
    mixer = make_mixer("skill_graph", transfer_matrix=[[1.0, 1.0], [0.0, 0.5]])
    state = mixer.init(["teacher", "pupil"], [1.0, 1.0])
    _, low = mixer.update(state, 1, [1.0, 1.0], [0.5, 0.5])
    _, high = mixer.update(state, 1, [1.0, 4.0], [0.5, 0.5])
    assert high[0] > low[0] > 0.5


def test_absent_domains_count_with_their_last_loss_or_the_mean_of_the_others():
    mixer = make_mixer("skill_graph", transfer_matrix=np.eye(3).tolist(), window=3)
    state, used = mixer.init(["a", "b", "c"], np.ones(3)), np.full(3, 1 / 3)
    state, _ = mixer.update(state, 1, [2.0, np.nan, 4.0], used)
    state, _ = mixer.update(state, 2, [np.nan, 1.0, np.nan], used)
    assert state["losses"] == [[2.0, 3.0, 4.0], [2.0, 1.0, 4.0]]


def test_held_out_losses_replace_training_losses_where_they_are_given():
    mixer = make_mixer("skill_graph", transfer_matrix=np.eye(2).tolist())
    state, used = mixer.init(["a", "b"], np.ones(2)), [0.5, 0.5]
    state, _ = mixer.update(state, 1, [2.0, 3.0], used)
    held_out = HeldOut.from_means([1.5, np.nan], step=2)
    state, _ = mixer.update(state, 2, [9.0, 9.0], used, held_out=held_out)
    assert state["losses"] == [[2.0, 3.0], [1.5, 3.0]]


def test_options_are_json_data_that_make_the_same_mixer():
    mixer = make_mixer("skill_graph", transfer_matrix=np.array(MATRIX).tolist(), step_size=0.5)
    options = mixer.options()
    assert json.loads(json.dumps(options)) == options
    assert make_mixer("skill_graph", **options) == mixer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs transfer_matrix, a list of K numbers per domain"),
        ({"transfer_matrix": [[1.0], [2.0]]}, r"as many columns as rows, got 2 rows of \[1\]"),
        (
            {"transfer_matrix": [[1.0, 2.0], [3.0]]},
            r"as many columns as rows, got 2 rows of \[1, 2",
        ),
        (
            {"transfer_matrix": [[1.0, math.inf], [3.0, 1.0]]},
            r"transfer_matrix\[0\] must be finite numbers, got \[1.0, inf\]",
        ),
        (
            {"transfer_matrix": MATRIX, "window": 0},
            "window must be a whole number from 1 on, got 0",
        ),
        ({"transfer_matrix": MATRIX, "step_size": -1}, "step_size must be above 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^skill_graph: (transfer_matrix must have )?{message}"):
        make_mixer("skill_graph", **options)


def test_a_matrix_for_other_domains_is_refused():
    with pytest.raises(ValueError, match="transfer_matrix is for 2 domains, the run has 3"):
        make_mixer("skill_graph", transfer_matrix=MATRIX).init(["a", "b", "c"], np.ones(3))
