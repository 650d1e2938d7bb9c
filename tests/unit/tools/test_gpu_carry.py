"""The folder of packages that a machine with a GPU may lack."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.benchmark import gpu_session
from tools.benchmark.gpu_carry import install_missing, pack, packages_of


def write_wheel(folder: Path, name: str) -> None:
    """A wheel of one module, which knows its own name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_packages_come_with_what_they_need_and_torch_stays():
    found = packages_of(["deepspeed>=0.1", "pytest"], python="3.12", without=["torch", "numpy"])
    names = [package.split("==")[0] for package in found]
    assert {"deepspeed", "hjson", "pytest", "pluggy"} <= set(names)
    assert not {"torch", "numpy", "sympy", "tomli"} & set(names)  # tomli: for older Pythons
    assert all(package.split("==")[1] for package in found)


def test_source_is_built_and_kept_if_it_fits_every_python(tmp_path):
    calls: list[list[str]] = []

    def pip(arguments: Sequence[str]) -> tuple[int, str]:
        calls.append(list(arguments))
        name = arguments[-1].split("==")[0]
        if arguments[0] == "wheel":
            tag = "cp311-cp311-linux_x86_64" if name == "compiled" else "py3-none-any"
            (tmp_path / f"{name}-1.0-{tag}.whl").touch()
        return (0, "") if arguments[0] == "wheel" or name == "wheel" else (1, "no wheel")

    problems = pack(["wheel==1.0", "pure==1.0", "compiled==1.0"], tmp_path, python="3.12", pip=pip)
    assert [wheel.name for wheel in tmp_path.iterdir()] == ["pure-1.0-py3-none-any.whl"]
    assert problems == [
        "compiled==1.0: compiled-1.0-cp311-cp311-linux_x86_64.whl fits this machine's Python alone"
    ]
    assert [call[0] for call in calls] == ["download"] * 3 + ["wheel", "download", "wheel"]
    assert calls[0][calls[0].index("--python-version") + 1] == "3.12"


def test_wheels_come_in_one_call_and_deepspeed_is_built(tmp_path):
    calls: list[list[str]] = []

    def pip(arguments: Sequence[str]) -> tuple[int, str]:
        calls.append(list(arguments))
        return 0, ""

    assert pack(["a==1", "deepspeed==2", "b==3"], tmp_path, python="3.12", pip=pip) == []
    assert [call[0] for call in calls] == ["download", "wheel"]
    assert calls[0][-2:] == ["a==1", "b==3"]
    assert calls[1][-1] == "deepspeed==2"


def test_only_what_is_missing_is_installed_and_children_find_it(tmp_path, monkeypatch):
    for name in ("carried_by_a_test", "numpy"):
        write_wheel(tmp_path / "carry", name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert install_missing(tmp_path / "carry", tmp_path / "target") == ["carried-by-a-test"]
    assert importlib.import_module("carried_by_a_test").NAME == "carried_by_a_test"
    assert not (tmp_path / "target/numpy.py").exists()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "target"), "elsewhere"]
    child = [sys.executable, "-c", "import carried_by_a_test as c; print(c.NAME)"]
    assert subprocess.run(child, capture_output=True, check=True, text=True).stdout.strip()


def test_a_folder_without_wheels_is_one_line(tmp_path, capsys):
    assert gpu_session.main(["--dry", "--carry", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"gpu_session: --carry: {tmp_path} has no wheels; pack it with tools.benchmark.gpu_carry"
    ]


def test_a_machine_without_deepspeed_is_told_how_to_carry_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "deepspeed" or None)
    assert gpu_session.main(["--dry"]) == 2
    assert "deepspeed is not installed" in capsys.readouterr().err
