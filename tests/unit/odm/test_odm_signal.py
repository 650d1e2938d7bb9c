import numpy as np
import pytest

from odm import Signal


def signal(loss_sum=(6.0, 0.0, 4.0), tokens=(3.0, 0.0, 2.0)):
    zeros = np.zeros(len(tokens))
    return Signal(np.array(loss_sum), zeros, np.array(tokens), (np.array(tokens) > 0).astype(float))


def test_mean_loss_is_token_weighted_and_nan_where_absent():
    np.testing.assert_array_equal(signal().mean_loss(), [2.0, np.nan, 2.0])


def test_a_present_domain_may_have_loss_zero():
    np.testing.assert_array_equal(signal(loss_sum=(0.0, 0.0, 4.0)).mean_loss(), [0.0, np.nan, 2.0])


def test_merge_adds_all_sums():
    merged = signal().merge(signal(loss_sum=(0.0, 8.0, 0.0), tokens=(0.0, 4.0, 0.0)))
    np.testing.assert_array_equal(merged.mean_loss(), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(merged.token_count, [3.0, 4.0, 2.0])
    np.testing.assert_array_equal(merged.sample_count, [1.0, 1.0, 1.0])


def test_from_means_ignores_what_stands_at_absent_domains():
    built = Signal.from_means([2.0, np.nan], [3, 0])
    np.testing.assert_array_equal(built.loss_sum, [6.0, 0.0])
    np.testing.assert_array_equal(built.mean_loss(), [2.0, np.nan])


def test_planted_losses_are_attributed_to_their_domains_over_mixed_micro_batches():
    rng = np.random.default_rng(3)
    planted = np.array([1.0, 2.5, 4.0, 7.0])
    total = Signal(*np.zeros((4, 4)))
    for _ in range(5):  # micro-batches of 6 samples, 8 tokens each
        domains = rng.integers(0, 3, size=6)  # domain 3 never occurs
        per_token = np.repeat(planted[domains], 8)
        tokens = np.repeat(domains, 8)
        total = total.merge(
            Signal(
                np.bincount(tokens, per_token, minlength=4),
                np.bincount(tokens, per_token**2, minlength=4),
                np.bincount(tokens, minlength=4),
                np.bincount(domains, minlength=4),
            )
        )
    np.testing.assert_allclose(total.mean_loss()[:3], planted[:3], rtol=1e-15)
    assert np.isnan(total.mean_loss()[3])
    assert total.sample_count.sum() == 30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_domains_are_dropped_and_named(bad):
    kept, dropped = signal(loss_sum=(bad, 0.0, 4.0)).drop_nonfinite()
    assert dropped.tolist() == [0]
    np.testing.assert_array_equal(kept.mean_loss(), [np.nan, np.nan, 2.0])
    np.testing.assert_array_equal(kept.sample_count, [0.0, 0.0, 1.0])


def test_dropping_nothing_returns_the_signal_itself():
    given = signal()
    kept, dropped = given.drop_nonfinite()
    assert kept is given
    assert dropped.size == 0


def test_fields_are_copies_that_cannot_be_written():
    loss_sum = np.array([6.0, 0.0, 4.0])
    built = signal(loss_sum=loss_sum)
    loss_sum[0] = 99.0
    assert built.loss_sum[0] == 6.0
    with pytest.raises(ValueError, match="read-only"):
        built.loss_sum[0] = 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([1.0, 2.0], [0, 0], [1, 0], [1, 0]), "domain 1 has token_count 0 but loss_sum 2"),
        (([1.0], [0, 0], [1, 1], [1, 1]), r"loss_sum has shape \(1,\)"),
        (([1.0], [0], [-1], [1]), "token_count must be finite and >= 0"),
        (([1.0], [0], [1], [np.nan]), "sample_count must be finite"),
        ((1.0, 0.0, 1.0, 1.0), r"must have shape \(K,\)"),
    ],
)
def test_inconsistent_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Signal(*(np.array(field, dtype=float) for field in fields))


def test_merging_different_numbers_of_domains_is_refused():
    with pytest.raises(ValueError, match="cannot merge 3 domains with 1"):
        signal().merge(Signal(*np.zeros((4, 1))))


def test_sums_of_a_trainer_are_taken_as_they_are_and_copied():
    table = np.array([[6.0, np.nan], [20.0, np.inf], [3.0, 2.0], [1.0, 1.0]])
    built = Signal.from_sums(table)
    table[:] = -1.0
    np.testing.assert_array_equal(built.mean_loss(), [2.0, np.nan])
    np.testing.assert_array_equal(built.sample_count, [1.0, 1.0])
    finite, dropped = built.drop_nonfinite()
    assert dropped.tolist() == [1]
    np.testing.assert_array_equal(finite.token_count, [3.0, 0.0])


@pytest.mark.parametrize("shape", [(4,), (3, 2), (4, 0), (4, 2, 1)])
def test_a_table_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(4, K\)"):
        Signal.from_sums(np.zeros(shape))
