"""Learning curves fitted online, against numpy's own least squares and known noise."""

import json
import math

import numpy as np
import pytest

from odm.curves import NUM_ROWS, CurveSums, LossPoints, middle_of_block


def fitted(losses, counts, *, window=1.0, block=10):
    """Sums over steps 1, 2, ... of losses and counts, shape (steps, K), in blocks."""
    sums = CurveSums.empty(losses.shape[1], window=window)
    for start in range(0, len(losses), block):
        points = LossPoints.of_step(losses[start], counts[start])
        for step in range(start + 1, start + block):
            points = points.plus(LossPoints.of_step(losses[step], counts[step]))
        sums = sums.add(middle_of_block(start + 1, start + block), points)
    return sums


def test_a_fit_is_the_weighted_least_squares_of_all_points():
    rng = np.random.default_rng(3)
    losses, counts = rng.uniform(1, 5, (200, 2)), rng.integers(0, 4, (200, 2)).astype(float)
    fit = fitted(losses, counts, window=0.7).fit()
    middles = np.array([middle_of_block(start + 1, start + 10) for start in range(0, 200, 10)])
    for k in range(2):
        blocks = counts[:, k].reshape(20, 10)
        means = (blocks * losses[:, k].reshape(20, 10)).sum(1) / blocks.sum(1)
        forgetting = np.exp((middles - middles[-1]) / 0.7)
        weights = np.sqrt(blocks.sum(1) * forgetting)
        slope, intercept = np.polyfit(middles, means, 1, w=weights)
        assert fit.slope[k] == pytest.approx(slope, rel=1e-10)
        assert fit.level(middles[-1])[0][k] == pytest.approx(intercept + slope * middles[-1])
        assert fit.level(9.0)[0][k] == pytest.approx(intercept + slope * 9.0)


def test_standard_errors_are_those_of_repeated_runs():
    rng = np.random.default_rng(4)
    runs, now = 3000, math.log(500)
    counts = rng.poisson(2.0, (300, runs)).astype(float)
    noise = 0.4 * rng.standard_normal((300, runs)) / np.sqrt(np.maximum(counts, 1.0))
    x = np.repeat([middle_of_block(s + 1, s + 10) for s in range(0, 300, 10)], 10)
    fit = fitted(5.0 - 0.3 * x[:, None] + noise, counts).fit()
    level, level_error = fit.level(now)
    for z in ((fit.slope + 0.3) / fit.slope_error, (level - 5.0 + 0.3 * now) / level_error):
        assert abs(z.mean()) < 0.1
        assert z.std() == pytest.approx(1.0, abs=0.07)


def test_a_domain_without_points_is_unknown_and_stays_so():
    counts = np.ones((40, 3)) * [1.0, 0.0, 1.0]
    counts[3:, 2] = 0.0  # three steps are too few for an error
    fit = fitted(np.full((40, 3), 2.0), counts).fit()
    assert np.isfinite(fit.slope_error).tolist() == [True, False, False]
    assert fit.slope.tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(fit.mean).tolist() == [False, True, False]
    level, error = fit.level(8.0)
    assert level[0] == 2.0
    assert np.isnan(level[1])
    assert np.isinf(error[1:]).all()


def test_old_points_are_forgotten_at_a_constant_rate_in_the_logarithm():
    steps = np.arange(1, 4001)
    early = np.where(steps < 1000, 9.0, 3.0 - 0.5 * np.log(steps / 4000))
    fit = fitted(early[:, None], np.ones((4000, 1)), window=0.1).fit()
    assert fit.slope[0] == pytest.approx(-0.5, abs=0.01)
    assert fitted(early[:, None], np.ones((4000, 1)), window=2.0).fit().slope[0] < -1.0


def test_repeated_measurements_have_larger_errors_and_the_same_line():
    rng = np.random.default_rng(5)
    one, four = (CurveSums.empty(1, window=1.0) for _ in range(2))
    for step in range(1, 60):
        points = LossPoints.of_step(rng.uniform(2, 3, 1), np.ones(1))
        one, four = one.add(math.log(step), points), four.add(math.log(step), points, repeats=4.0)
    assert four.fit().slope == one.fit().slope
    np.testing.assert_allclose(four.fit().slope_error, 2.0 * one.fit().slope_error, rtol=1e-12)


def test_sums_survive_json_to_the_bit_and_forget_domains():
    sums = fitted(np.random.default_rng(6).uniform(1, 5, (50, 3)), np.ones((50, 3)))
    rows = json.loads(json.dumps(sums.to_rows(), allow_nan=False))
    assert len(rows) == NUM_ROWS
    again = CurveSums.from_rows(rows, window=1.0)
    assert again.to_rows() == sums.to_rows()
    assert again.fit().slope.tobytes() == sums.fit().slope.tobytes()
    forgotten = sums.forget(np.array([False, True, False])).fit()
    assert np.isinf(forgotten.slope_error).tolist() == [False, True, False]
    assert forgotten.slope[[0, 2]].tolist() == sums.fit().slope[[0, 2]].tolist()
