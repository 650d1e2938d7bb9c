"""Each requirement file says the same as its Poetry pair, and is read line by line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
FILES = sorted(REQUIREMENTS.glob("requirements*.txt"))


def requirement_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def lower_bounds(path: Path) -> dict[str, str]:
    """Name in lower case -> what follows the first ``==`` or ``>=``."""
    bounds = {}
    for line in requirement_lines(path):
        name, _, bound = re.split(r"(==|>=)", line, maxsplit=1)
        bounds[name.lower()] = bound
    return bounds


def test_there_are_requirement_files_for_what_neox_users_install():
    names = {path.stem for path in FILES}
    wanted = ("dev", "tensorboard", "wandb", "flashattention", "onebitadam")
    assert names >= {"requirements", *(f"requirements-{name}" for name in wanted)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_is_one_plain_requirement_with_a_lower_bound_or_a_pin(path):
    for line in requirement_lines(path):
        requirement = Requirement(line)
        assert requirement.url is None
        assert not requirement.extras
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators & {"==", ">="}, f"{path.name}: {line} has no lower bound"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_poetry_file_names_the_same_dependencies_at_their_lower_bound(path):
    pair = path.with_name(path.name.replace("requirements", "pyproject", 1)).with_suffix(".toml")
    dependencies = tomllib.loads(pair.read_text(encoding="utf-8"))["tool"]["poetry"]["dependencies"]
    assert dependencies.pop("python") == ">=3.10"
    assert {name.lower(): bound for name, bound in dependencies.items()} == lower_bounds(path)


def constraints() -> list[Requirement]:
    return [Requirement(line) for line in requirement_lines(REQUIREMENTS / "constraints.txt")]


def test_constraints_are_exact_versions_of_no_build_and_pass_python_3_10_over():
    pins = constraints()
    assert len(pins) > 50
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version  # torch's +cpu would forbid every GPU
        assert not pin.extras
        assert pin.marker is not None
        assert [pin.marker.evaluate({"python_version": v}) for v in ("3.10", "3.11", "3.13")] == [
            False,
            True,
            True,
        ]
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(set(names)) == len(names)
    assert not {"odm", "odm-neox"} & set(names)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_what_ci_installs_is_constrained_to_a_version_that_is_allowed(name):
    pins = {canonicalize_name(pin.name): str(next(iter(pin.specifier))) for pin in constraints()}
    for line in requirement_lines(REQUIREMENTS / name):
        requirement = Requirement(line)
        version = pins[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(version), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_torch_is_pinned_wherever_it_is_named(path):
    for line in requirement_lines(path):
        if Requirement(line).name == "torch":
            assert line == "torch==2.13.0"


def test_a_file_whose_packages_bring_torch_pins_it():
    for name in ("requirements.txt", "requirements-eval.txt", "requirements-dev.txt"):
        assert "torch==2.13.0" in requirement_lines(REQUIREMENTS / name)
