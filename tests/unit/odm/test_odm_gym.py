"""The gym: worlds whose laws are known, runs in them, and what a report says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from odm.gym.__main__ import main
from odm.gym.gates import gates
from odm.gym.laws import START_NATS, CapacityLaws, PowerLaws, memorised_nats, useful_samples
from odm.gym.scores import score
from odm.gym.training import best_static, outcome, train, train_static
from odm.gym.worlds import WORLDS, make_world
from odm.mixers import make_mixer


def uniform(count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)


@pytest.mark.parametrize("name", WORLDS)
def test_losses_begin_high_and_fall_where_something_can_be_learnt(name):
    world = make_world(name)
    weights = uniform(world.num_domains) * world.num_samples
    path = np.array([world.held_out(weights * done, done) for done in np.linspace(0.0, 1.0, 21)])
    assert path.shape == (21, world.num_domains)
    assert (np.diff(path, axis=0) <= 1e-9).all()
    assert (path[0, world.is_scored] > path[-1, world.is_scored] + 0.3).all()
    assert path[0, world.is_scored].max() == pytest.approx(START_NATS, abs=1e-6)
    late = path[10:]
    assert (late[:, world.is_noise].max(axis=0) - late[:, world.is_noise].min(axis=0) < 0.01).all()


def test_a_power_law_has_the_values_of_its_formula():
    laws = PowerLaws(
        np.array([1.0, 0.0]),
        np.array([2.0, 1.0]),
        np.array([0.5, 1.0]),
        np.array([[1.0, 0.5], [0.0, 1.0]]),
        np.array([0.0, 0.1]),
        np.array([5.0, 4.0]),
    )
    # both start at 1/4, from (2 / 4)^2 and 1 / 4; the second has a threshold
    losses = laws.losses(np.array([0.2, 0.8]))
    np.testing.assert_allclose(losses, [1.0 + 2.0 / np.sqrt(0.85), 1.0 / 0.95], rtol=1e-12)


def test_in_a_small_model_noise_takes_capacity_from_text():
    each = np.ones(2)
    laws = CapacityLaws(1.0 * each, each, 0.5, np.array([0.5, 0.001]), 0.3 * each)
    alone, beside = laws.losses(np.array([0.5, 0.0])), laws.losses(np.array([0.5, 0.5]))
    assert beside[0] > alone[0] + 0.3


def test_a_repeated_sample_is_worth_less_and_is_memorised():
    unique = np.array([10.0, np.inf])
    np.testing.assert_array_equal(useful_samples(np.array([10.0, 10.0]), unique), [10.0, 10.0])
    once_more = useful_samples(np.array([20.0, 20.0]), unique)
    np.testing.assert_allclose(once_more, [10.0 + 150.0 * (1 - np.exp(-1 / 15)), 20.0])
    assert useful_samples(np.array([1e9, 0.0]), unique)[0] == pytest.approx(160.0)
    np.testing.assert_allclose(
        memorised_nats(np.array([10.0, 1e9]), unique), [0.0, 0.0], atol=1e-12
    )
    assert memorised_nats(np.array([1e9, 0.0]), unique)[0] == pytest.approx(0.4)


def test_a_run_follows_from_its_seed_and_counts_what_it_read():
    world = replace(make_world("noise_1"), num_steps=300)
    first, again, other = (train(world, "smoothed_mean", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert not np.array_equal(first.samples, other.samples)
    assert first.samples.sum() == world.num_samples
    assert first.noise_share == first.samples[-1] / world.num_samples
    np.testing.assert_array_equal(first.held_out, world.held_out(first.samples))


def test_a_static_method_and_static_weights_are_the_same_run():
    world = replace(make_world("homogeneous"), num_steps=300)
    learner = train(world, make_mixer("static"), seed=3)
    np.testing.assert_array_equal(learner.samples, train_static(world, uniform(10), seed=3).samples)


def test_the_best_mixture_is_that_of_the_public_runs():
    """The headroom that another fit to the same table has: 0.010 nats, or 2.6 % of perplexity."""
    world = make_world("plain")
    base = outcome(world, uniform(13) * world.num_samples, uniform(13))
    best = best_static(world) * world.num_samples
    assert -0.012 < outcome(world, best, best).mean_loss - base.mean_loss < -0.007
    best = best_static(world, perplexity_share=1.0) * world.num_samples
    ratio = outcome(world, best, best).mean_perplexity / base.mean_perplexity
    assert -0.030 < ratio - 1.0 < -0.022


def test_no_mixture_beats_another_where_all_domains_are_alike():
    world = make_world("homogeneous")
    np.testing.assert_allclose(best_static(world), uniform(10), atol=1e-3)


def test_the_best_mixture_reads_no_noise():
    best = best_static(make_world("noise_3"))
    assert best[-3:].max() < 0.01 < best[:-3].min()


def test_scores_are_differences_between_runs_of_one_seed():
    world = replace(make_world("homogeneous"), num_steps=500)
    base = [train_static(world, uniform(10), seed=seed) for seed in (1, 2)]
    same = score(base, base)
    assert (same.loss, same.worst_loss, same.perplexity, same.noise_share) == (0.0, 0.0, 0.0, 0.0)
    skewed = np.array([10.0, *[1.0] * 9])
    worse = score([train_static(world, skewed, seed=seed) for seed in (1, 2)], base)
    assert 0.0 < worse.loss <= worse.worst_loss
    assert 0.0 < worse.perplexity <= worse.worst_perplexity


def test_the_command_prints_a_line_per_world_and_method(capsys):
    assert main(["--mixer", "smoothed_mean", "--world", "noise_1", "--seeds", "1"]) == 0
    header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "world",
        "weights",
        "loss",
        "worst",
        "headroom",
        "ppl",
        "%",
        "worst",
        "noise",
    ]
    assert [line.split("  ")[0].split()[0] for line in lines] == ["noise_1"] * 4
    assert "smoothed_mean" in lines[2]
    assert float(lines[2].split()[-1].rstrip("%")) > 30.0  # it takes noise for what is hard
    assert last.split()[:3] == ["worst", "world", "smoothed_mean"]
    assert last.endswith(" in noise_1")


def test_a_world_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="unknown world 'plane', known: plain, "):
        make_world("plane")


@pytest.mark.parametrize("name", WORLDS)
def test_learning_curve_keeps_its_promises_in_every_world(name):
    """One seed, which was not used to choose its constants; ``--gates`` checks three."""
    found = gates(make_world(name), [1])
    assert len(found) >= 3
    assert [str(gate) for gate in found if not gate.holds] == []


def test_the_command_fails_if_a_promise_is_broken(capsys, monkeypatch):
    monkeypatch.setattr("odm.gym.gates.MAX_MOVE", -1.0)
    assert main(["--gates", "--world", "homogeneous", "--seeds", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["ok", "ok", "FAILED"]


def test_methods_that_learn_from_held_out_losses_get_them():
    world = replace(make_world("noise_1"), num_steps=200)
    assert train(world, "naive_validation", seed=1).samples.sum() == world.num_samples


def test_a_number_of_seeds_below_one_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--option", "exponent=1"], "--option needs --mixer"),
        (["--mixer", "exp3", "--option", "scale"], "--option: must be name=value, got 'scale'"),
        (["--mixer", "exp3", "--option", "scale=1"], "unknown option of exp3 'scale'"),
    ],
)
def test_options_that_no_method_has_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--world", "homogeneous"])
    assert message in capsys.readouterr().err
