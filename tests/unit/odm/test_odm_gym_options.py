"""What the gym gives to methods that cannot do without losses or a matrix."""

import numpy as np
import pytest

from odm.gym.__main__ import main
from odm.gym.required_options import required_options
from odm.gym.worlds import make_world
from odm.methods import METHODS

NEEDY = [name for name, method in METHODS.items() if method.required]


def test_reference_losses_are_those_at_the_end_of_a_uniform_run():
    world = make_world("noise_1")
    losses = required_options("doremi", world)["reference_losses"]
    everything = world.held_out(np.full(world.num_domains, world.num_samples))
    assert losses[-1] == pytest.approx(9.0, abs=1e-3)  # noise
    assert (np.array(losses)[:-1] > everything[:-1]).all()


def test_the_matrix_tells_what_training_on_a_row_gives_to_a_column():
    world = make_world("late")
    matrix = np.array(required_options("skill_graph", world)["transfer_matrix"])
    late = world.domains.index("late_1")
    assert matrix[:, late].min() > 0  # it learns from all domains
    assert matrix[late, :late].max() == 0  # and teaches none of them


def test_a_world_without_transfer_has_the_identity():
    matrix = required_options("skill_graph", make_world("capacity"))["transfer_matrix"]
    np.testing.assert_array_equal(matrix, np.eye(len(matrix)))


def test_the_worth_of_repetition_is_judged_by_the_text_that_a_world_has():
    world = make_world("tiny")
    assert required_options("learning_curve", world) == {}
    given = {"repetition_decay": 15}
    sizes = required_options("learning_curve", world, given)["domain_sizes"]
    assert sizes[:2] == [round(0.02 * world.num_samples)] * 2
    assert sizes[2:] == [world.num_samples] * (world.num_domains - 2)


def test_the_command_runs_methods_that_need_options_when_they_are_named(capsys):
    arguments = ["--mixer", *NEEDY, "--world", "homogeneous", "--seeds", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in NEEDY)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("x", "--option: must be name=value, got 'x'"),
        ("exponent=" + "[" * 100_000, "--option 'exponent': is nested too deep"),
        ("exponent=abc", "learning_curve: exponent must be a number in (0, 1], got 'abc'"),
        ("anchor={}", "learning_curve: anchor must be one finite number per domain, got {}"),
        (
            "anchor=[1,2]",
            "learning_curve: anchor has 2 numbers, the run has 13 domains; give one per domain",
        ),
        (
            f"anchor={[1] * 13}",
            "learning_curve: anchor has 13 numbers, the run has 14 domains; give one per domain",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_one_line_before_any_world_is_run(capsys, option, problem):
    with pytest.raises(SystemExit, match="2"):
        main(["--mixer", "learning_curve", "--option", option, "--world", "plain", "noise_1"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].endswith(f"error: {problem}")


def test_an_option_that_is_given_twice_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--mixer", "learning_curve", "--option", "exponent=1", "exponent=0.5"])
    assert capsys.readouterr().err.endswith("--option 'exponent': is given twice; give it once\n")


def test_a_flag_that_is_repeated_adds_to_what_was_given_before(capsys):
    request = ["--mixer", "learning_curve", "--seeds", "1"]
    together = [*request, "--world", "plain", "noise_1"]
    together += ["--option", "exponent=1", "max_ratio=6"]
    apart = [*request, "--world", "plain", "--world", "noise_1", "--mixer", "learning_curve"]
    apart += ["--option", "exponent=1", "--option", "max_ratio=6"]
    printed = []
    for arguments in (together, apart):
        assert main(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    with pytest.raises(SystemExit, match="2"):
        main([*apart, "--option", "exponent=0.5"])
    assert "is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--mixer", "ado"], ["--option", "exponent=1"]])
def test_gates_take_no_other_method_or_options(capsys, more):
    with pytest.raises(SystemExit, match="2"):
        main(["--gates", "--world", "plain", *more])
    assert "--gates checks learning_curve with its defaults" in capsys.readouterr().err
