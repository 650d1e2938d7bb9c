import numpy as np
import pytest

from odm.power_laws import EXPONENTS, fit_power_laws

STEPS = np.arange(100.0, 2001.0, 60.0)
LAST = np.log(STEPS / 2000.0)


def curve(floor, scale, exponent):
    """Losses with ``scale`` nats above the floor at step 2000."""
    return floor + scale * (STEPS / 2000.0) ** -exponent


def fit(*curves, counts=None):
    losses = np.array(curves).T
    return fit_power_laws(LAST, losses, np.ones_like(losses) if counts is None else counts)


def test_known_laws_are_recovered():
    laws = fit(curve(2.0, 1.0, 0.5), curve(0.3, 0.2, 0.08), curve(0.0, 3.0, 0.25))
    np.testing.assert_allclose(laws.exponent, [0.5, 0.08, 0.25], rtol=3e-3)
    np.testing.assert_allclose(laws.reducible, [1.0, 0.2, 3.0], rtol=4e-3)
    np.testing.assert_allclose(laws.floor, [2.0, 0.3, 0.0], atol=6e-3)
    np.testing.assert_allclose(laws.exponent * laws.reducible, [0.5, 0.016, 0.75], rtol=3e-3)


def test_the_slope_of_noisy_curves_is_found():
    rng = np.random.default_rng(1)
    clean = curve(1.5, 0.8, 0.3)
    laws = fit(*(clean * (1 + 1e-3 * rng.standard_normal(clean.size)) for _ in range(50)))
    np.testing.assert_allclose((laws.exponent * laws.reducible).mean(), 0.24, rtol=0.01)


def test_a_loss_that_does_not_fall_has_nothing_to_reduce():
    laws = fit(np.full(STEPS.size, 9.0), 2.0 + STEPS / 1000.0)
    assert laws.reducible.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(laws.floor, [9.0, laws.floor[1]], rtol=1e-12)


def test_a_curve_that_falls_faster_than_any_law_has_no_floor_below_zero():
    laws = fit(10.0 - 4.5 * STEPS / 1000.0)
    assert laws.floor[0] == 0.0
    assert EXPONENTS[0] <= laws.exponent[0] <= EXPONENTS[1]
    assert laws.reducible[0] > 0


def test_points_that_do_not_count_have_no_effect():
    right = curve(2.0, 1.0, 0.4)
    counts = np.arange(right.size) % 3 != 0
    with_wrong = np.where(counts, right, 50.0)[:, None]
    found = fit_power_laws(LAST, with_wrong, counts[:, None].astype(float))
    expected = fit_power_laws(LAST[counts], right[counts, None], np.ones((counts.sum(), 1)))
    for name in ("floor", "reducible", "exponent"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e-3, 1e300])
def test_losses_of_any_size_are_fitted_alike(size):
    plain, scaled = fit(curve(2.0, 1.0, 0.4)), fit(size * curve(2.0, 1.0, 0.4))
    np.testing.assert_allclose(scaled.exponent, plain.exponent, rtol=1e-9)
    np.testing.assert_allclose(scaled.reducible / size, plain.reducible, rtol=1e-6)


def test_a_law_does_not_depend_on_the_other_domains():
    curves = [curve(2.0, 1.0, 0.5), curve(0.3, 0.2, 0.08), curve(0.0, 3.0, 0.25)]
    together = fit(*curves)
    for place, alone in enumerate(map(fit, curves)):
        for name in ("floor", "reducible", "exponent"):
            expected = getattr(alone, name)[0]
            assert getattr(together, name)[place] == pytest.approx(expected, rel=1e-9), name
