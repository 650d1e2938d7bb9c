#!/usr/bin/env python
"""Packs the Python packages that `gpu_session` needs into one folder, for a machine without them.

    python -m tools.benchmark.gpu_carry FOLDER [--python 3.12] [--without numpy matplotlib]
    python -m tools.benchmark.gpu_session --carry FOLDER        # on the machine with the GPU

The folder gets wheels of the versions that are installed here: the requirements of a training run,
transformers and pytest, with all that they need. torch is left out, with what only torch needs: it
has to fit the driver of the GPU, so it must be on the machine, as must a C++ compiler. Nothing else
has to be carried, since the session makes its data and configurations itself.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

__all__ = ["install_missing", "pack", "packages_of"]

ROOT = Path(__file__).resolve().parents[2]
MORE = ("transformers", "pytest", "pytest-timeout")
"""What the session compares with and tests with, beside the requirements of a run."""
LEFT_OUT = ("torch",)
SOURCE_ONLY = ("deepspeed",)
"""Published without a wheel."""
PLATFORMS = tuple(
    f"{name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
)

Pip = Callable[[Sequence[str]], tuple[int, str]]
"""Runs pip with arguments; returns its exit code and what it wrote to standard error."""


def _pip(arguments: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def packages_of(requirements: Sequence[str], *, python: str, without: Sequence[str]) -> list[str]:
    """``name==version`` of all installed packages that ``requirements`` need, in turn.

    Args:
        requirements: Lines of a file of requirements.
        python: Version of the Python that they are for, such as 3.12.
        without: Names that are left out, with what only they need.

    Raises:
        importlib.metadata.PackageNotFoundError: If one is not installed here.
    """
    environment = {"python_version": python, "extra": ""}
    found: dict[str, str] = {canonicalize_name(name): "" for name in without}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = f"{name}=={Version(distribution.version).public}"
        waiting += distribution.requires or []
    return sorted(package for package in found.values() if package)


def pack(packages: Sequence[str], folder: Path, *, python: str, pip: Pip = _pip) -> list[str]:
    """Puts a wheel of each package into ``folder``; returns one line per package that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    target = ["--python-version", python, "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = ["download", "--only-binary=:all:", *target, "-d", str(folder), "--no-deps"]
    built = [package for package in packages if package.split("==")[0] in SOURCE_ONLY]
    others = [package for package in packages if package not in built]
    if others and pip([*download, *others])[0] == 0:
        others = []
    problems = []
    for package in [*built, *others]:
        common = ["--no-deps", package]
        if package in others and pip([*download, package])[0] == 0:
            continue
        # what is built here must fit every Python
        known = set(folder.glob("*.whl"))
        code, text = pip(["wheel", "--no-build-isolation", "-w", str(folder), *common])
        for wheel in set(folder.glob("*.whl")) - known:
            if not wheel.name.endswith("-none-any.whl"):
                wheel.unlink()
                code, text = 1, f"{wheel.name} fits this machine's Python alone"
        if code != 0:
            problems.append(f"{package}: {(text.strip().splitlines() or ['pip failed'])[-1]}")
    return problems


def install_missing(folder: Path, target: Path, *, pip: Pip = _pip) -> list[str]:
    """Installs those wheels of ``folder`` into ``target`` whose packages this Python lacks.

    This process and those that it starts then find them.

    Returns:
        The names of the packages.

    Raises:
        ValueError: With one line, if the folder has no wheels, or pip does not install them.
    """
    wheels = {parse_wheel_filename(wheel.name)[0]: wheel for wheel in folder.glob("*.whl")}
    if not wheels:
        raise ValueError(f"--carry: {folder} has no wheels; pack it with tools.benchmark.gpu_carry")
    here = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    missing = sorted(wheels.keys() - here)
    if missing:
        paths = [str(wheels[name]) for name in missing]
        code, text = pip(["install", "--no-index", "--no-deps", "--target", str(target), *paths])
        if code != 0:
            reason = (text.strip().splitlines() or ["pip failed"])[-1]
            raise ValueError(f"--carry: pip could not install from {folder}: {reason}")
        sys.path.append(str(target))
        rest = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(target), *([rest] if rest else [])])
    return list(missing)


def main(argv: Sequence[str] | None = None) -> int:
    """Packs the folder; returns 1 if a package has no wheel."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, help="version of the machine's Python")
    parser.add_argument("--without", nargs="+", default=[], help="packages that the machine has")
    args = parser.parse_args(argv)
    lines = (ROOT / "requirements/requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    packages = packages_of([*wanted, *MORE], python=args.python, without=[*LEFT_OUT, *args.without])
    problems = pack(packages, args.folder, python=args.python)
    for problem in problems:
        print(f"gpu_carry: {problem}", file=sys.stderr)
    wheels = list(args.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{args.folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB, for Python {args.python}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
