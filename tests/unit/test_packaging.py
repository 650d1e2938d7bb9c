"""What an installation promises: extras, make targets, scripts; no file names one machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Runs setup.py with a setup() that only keeps what it is given."""
    setuptools = pytest.importorskip("setuptools")
    kept: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: kept.update(arguments))
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    exec(compile(source, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py"), "__name__": "s"})
    return kept


def requirement_lines(name: str) -> list[str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def modules(top: str) -> list[Path]:
    """Modules of a package, without copies that `pip install ./odm` has left in odm/build."""
    paths = (ROOT / top).rglob("*.py")
    return [path for path in paths if path.relative_to(ROOT / top).parts[0] != "build"]


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def tracked_text_files() -> list[Path]:
    return [path for path in tracked_files() if b"\0" not in path.read_bytes()[:4096]]


def test_the_core_needs_numpy_alone_as_odm_by_itself_does(monkeypatch):
    project = tomllib.loads((ROOT / "odm/pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = setup_arguments(monkeypatch)["install_requires"]
    assert [Requirement(line).name for line in required] == ["numpy"]
    assert required == project["dependencies"]


@pytest.mark.parametrize(
    ("extra", "file_name"),
    [
        ("train", "requirements.txt"),
        ("dev", "requirements-dev.txt"),
        ("eval", "requirements-eval.txt"),
        ("wandb", "requirements-wandb.txt"),
        ("tensorboard", "requirements-tensorboard.txt"),
    ],
)
def test_an_extra_is_its_requirement_file(monkeypatch, extra, file_name):
    assert setup_arguments(monkeypatch)["extras_require"][extra] == requirement_lines(file_name)


def test_every_requirement_file_is_an_extra(monkeypatch):
    extras = setup_arguments(monkeypatch)["extras_require"].values()
    for path in (ROOT / "requirements").glob("requirements*.txt"):
        assert requirement_lines(path.name) in extras, path.name


def test_every_package_of_both_trees_is_installed(monkeypatch):
    packages = set(setup_arguments(monkeypatch)["packages"])
    for top in ("odm", "megatron"):
        for path in modules(top):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            assert package in packages, f"{package} has no __init__.py, so {path.name} is left out"


def test_a_source_distribution_holds_the_repository_and_installs(tmp_path):
    pytest.importorskip("setuptools")
    names = [path.relative_to(ROOT) for path in tracked_files()]
    for name in names:  # setuptools writes into the folder that it packs
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "copy" / name)
    run_setup(tmp_path / "copy", "sdist", "--dist-dir", str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    left_out = {str(name) for name in names if not (unpacked / name).is_file()}
    assert left_out == {".gitignore"}
    run_setup(unpacked, "install_lib", "--install-dir", str(tmp_path / "installed"))
    assert (tmp_path / "installed/odm/mixers/base.py").is_file()


def test_the_library_alone_installs_and_runs_its_readme_without_the_rest(tmp_path):
    pytest.importorskip("setuptools")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "odm", tmp_path / "odm_alone", ignore=ignored)
    # odm/signal.py must not stand for the module of the standard library
    program = "import sys; sys.path.remove(''); import setuptools; setuptools.setup()"
    setup = [sys.executable, "-c", program]
    install = ["-q", "install_lib", "--install-dir", str(tmp_path / "installed")]
    subprocess.run([*setup, *install], cwd=tmp_path / "odm_alone", check=True, timeout=120)
    readme = (ROOT / "odm/README.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    gym = "from odm.gym.__main__ import main; main(['--world', 'homogeneous', '--seeds', '1'])"
    others = "{'torch', 'transformers', 'megatron', 'yaml'} & set(sys.modules)"
    check = f"import sys; assert not {others}, {others}; import odm; print(odm.__file__)"
    for code in (*codes, gym):
        ran = subprocess.run(
            [sys.executable, "-c", f"{code}\n{check}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[-1] == str(tmp_path / "installed/odm/__init__.py")


def run_setup(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "setup.py", "-q", *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_an_image_gets_nothing_that_make_or_a_run_leaves_behind():
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        name = line.strip("/")
        patterns = {name, f"**/{name}", ".*_cache" if name.endswith("_cache") else name}
        assert name == "*.pyc" or patterns & set(left_out), name


def test_every_entry_script_is_installed_and_executable_python(monkeypatch):
    scripts = setup_arguments(monkeypatch)["scripts"]
    assert {"deepy.py", "train.py"} <= set(scripts)
    for name in scripts:
        first_line = (ROOT / name).read_text(encoding="utf-8").splitlines()[0]
        assert first_line == "#!/usr/bin/env python", name
        assert os.access(ROOT / name, os.X_OK), f"{name} is not executable"


def test_the_image_runs_as_a_user_who_owns_home_and_folder():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    instructions = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert instructions.index("USER") > max(
        place for place, name in enumerate(instructions) if name == "RUN"
    )
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user not in ("root", "0")
    text = "\n".join(lines)
    assert f"ENV HOME=/home/{user}" in text
    assert f"--owner {user} --group {user} /workspace/odm-neox" in text
    assert f"COPY --chown={user}:{user} . ." in text


@pytest.mark.parametrize("target", ["install", "install-dev", "demo"])
@pytest.mark.parametrize(
    ("setting", "is_constrained"), [([], True), (["CONSTRAINTS="], False)], ids=["ci's", "newest"]
)
def test_make_installs_what_ci_ran_unless_told_otherwise(tmp_path, target, setting, is_constrained):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}", *setting]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    (install,) = [line for line in finished.stdout.splitlines() if "pip install" in line]
    assert ("-c requirements/constraints.txt" in install) == is_constrained


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint", "docs", "clean"])
def test_make_knows_the_target(target, tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = [
        "make",
        "--dry-run",
        target,
        f"VENV={tmp_path / 'venv'}",
        f"PYTHON3={sys.executable}",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "venv").exists()


def test_make_refuses_an_old_python_in_one_line(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    old = tmp_path / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text(
        "import sys\nsys.version_info = (3, 9)\nsys.version = '3.9.1 (main)'\n"
    )
    command = ["make", "venv", f"VENV={tmp_path / 'venv'}", f"PYTHON3={sys.executable}"]
    environ = {**os.environ, "PYTHONPATH": str(old)}
    finished = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode != 0
    assert "needs Python >= 3.10, got 3.9.1" in finished.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_without_standard_input_and_stops_at_the_first_failure():
    path = ROOT / ".ci/run"
    text = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in text
    assert "</dev/null" in text
    for command in ("make install-dev", "make lint", "make test"):
        assert command in text


def test_the_shebang_of_every_script_names_no_machine():
    for path in tracked_text_files():
        first_line = path.read_bytes().split(b"\n", 1)[0].decode("utf-8", "replace")
        if first_line.startswith("#!"):
            assert first_line.startswith("#!/usr/bin/env "), path


def test_no_file_names_a_folder_of_one_machine_or_a_package_registry():
    # put together here, so that this file does not find itself
    folders = r"(?<![\w./-])/(?:" + "|".join(["ro" + "ot", "wo" + "rk", "ho" + r"me/\w+"]) + r")/"
    hosts = "|".join(
        ["files.python" + r"hosted\.org", "py" + r"pi\.org", "registry." + r"npmjs\.org"]
    )
    pattern = re.compile(f"{folders}|{hosts}")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in tracked_text_files()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_importing_odm_needs_only_the_standard_library_and_numpy():
    allowed = {*sys.stdlib_module_names, "numpy", "odm"}
    for path in modules("odm"):
        if "integrations" in path.parts:  # imports its host lazily
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in allowed, f"{path.name} imports {name}"
