"""Compares mixing methods in worlds of known learning curves.

    python -m odm.gym                              all methods that learn, all worlds, without
                                                   those that need losses or a matrix
    python -m odm.gym --mixer smoothed_mean --world plain noise_1 --seeds 5
    python -m odm.gym --mixer learning_curve --option exponent=1
    python -m odm.gym --gates                      what learning_curve promises; 1 if a check fails

One line per world and method: how far the run ends from one with uniform weights that drew from
the same seed, on average over the seeds. Negative numbers are better than uniform. Below each
method is its mean, frozen: static weights that read as much of each domain. At the end, the world
in which each method did worst.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..methods import METHODS
from ..mixers import Mixer, make_mixer
from ..other_method import parse_options
from .gates import gates
from .required_options import required_options
from .scores import Score, best_scores, method_scores, uniform_runs
from .worlds import WORLDS, World, make_world


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    methods = [
        name for name, method in METHODS.items() if method.learns and method.signal != "held_out"
    ]
    parser = argparse.ArgumentParser(
        prog="python -m odm.gym", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--mixer",
        nargs="+",
        action="extend",
        choices=methods,
        help="methods, with their default options; not set: all that need no losses or matrix",
    )
    parser.add_argument(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="options of the methods of --mixer; a value is JSON, or else text",
    )
    parser.add_argument("--world", nargs="+", action="extend", choices=list(WORLDS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (%(default)s)")
    parser.add_argument(
        "--gates", action="store_true", help="check what learning_curve promises, and nothing else"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if options.gates and (options.mixer or options.option):
        parser.error("--gates checks learning_curve with its defaults; leave out --mixer, --option")
    worlds = [make_world(name) for name in dict.fromkeys(options.world or WORLDS)]
    seeds = range(1, options.seeds + 1)
    if options.gates:
        return _check(worlds, seeds)
    names = options.mixer or [name for name in methods if not METHODS[name].required]
    names = list(dict.fromkeys(names))
    try:
        given = parse_options(options.option)
        if given and not options.mixer:
            raise ValueError("--option needs --mixer; name the methods that have these options")
        for name, world in itertools.product(names, worlds):
            mixer = _mixer(name, given, world)
            mixer.init(world.domains, np.ones(world.num_domains))
    except ValueError as error:
        parser.error(str(error))
    _compare(worlds, names, given, seeds)
    return 0


def _mixer(name: str, given: Mapping[str, Any], world: World) -> Mixer:
    """A method with the given options, and with what it cannot do without in a world."""
    return make_mixer(name, **{**required_options(name, world, given), **given})


def _check(worlds: Sequence[World], seeds: Sequence[int]) -> int:
    is_right = True
    for world in worlds:
        for gate in gates(world, seeds):
            _print(str(gate))
            is_right = is_right and gate.holds
    return 0 if is_right else 1


def _compare(
    worlds: Sequence[World], names: Sequence[str], given: Mapping[str, Any], seeds: Sequence[int]
) -> None:
    _print(
        f"{'world':<12} {'weights':<22} {'loss':>8} {'worst':>8} {'headroom':>8} "
        f"{'ppl %':>7} {'worst':>7} {'noise':>6}"
    )
    worst: dict[str, tuple[float, str]] = {}
    for world in worlds:
        base = uniform_runs(world, seeds)
        for_loss, for_perplexity = best_scores(world, base)
        _print(_line(world.name, "best for loss", for_loss, for_loss.loss))
        _print(_line(world.name, "best for perplexity", for_perplexity, for_loss.loss))
        for name in names:
            found, frozen = method_scores(world, _mixer(name, given, world), base, seeds)
            _print(_line(world.name, name, found, for_loss.loss))
            _print(_line(world.name, "  its mean, frozen", frozen, for_loss.loss))
            worst[name] = max(worst.get(name, (found.loss, world.name)), (found.loss, world.name))
    for name, (loss, where) in worst.items():
        _print(f"{'worst world':<12} {name:<22} {loss:+8.4f} in {where}")


def _line(world: str, weights: str, found: Score, headroom: float) -> str:
    share = f"{100 * found.loss / headroom:7.0f}%" if headroom < -1e-5 else f"{'-':>8}"
    return (
        f"{world:<12} {weights:<22} {found.loss:+8.4f} {found.worst_loss:+8.4f} {share} "
        f"{100 * found.perplexity:+7.2f} {100 * found.worst_perplexity:+7.2f} "
        f"{100 * found.noise_share:5.1f}%"
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
