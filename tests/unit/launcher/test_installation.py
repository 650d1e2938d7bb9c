"""What a program says where Python, or what is installed in it, is not what it needs."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron.launcher import installation

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder, pattern in ((ROOT, "*.py"), (ROOT / "tools", "*.py"), (ROOT / "tools", "*/*.py"))
    for path in folder.glob(pattern)
    if path.name != "setup.py"
    and path.parent.name not in ("benchmark", "checks")
    and "__main__" in path.read_text()
)


WITHOUT_PACKAGES = {
    f"tools/ckpts/{name}.py": code
    for name, code in {
        "convert_hf_llama_to_neox": 0,
        "convert_hf_to_sequential": 0,
        "convert_neox_to_mamba_ssm": 2,
        "convert_raw_llama_weights_to_neox": 2,
        "merge20b": 2,
    }.items()
}
"""Exit codes of programs whose help, or whose refusal, needs no package."""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin/python")


@pytest.mark.parametrize("program", [*PROGRAMS, "megatron/eval_tasks"])
def test_a_program_without_its_packages_is_one_line(bare_python, program):
    is_demo = program == "tools/demo.py"  # needs nothing for its help, and asks by itself
    command = ["-m", "megatron.eval_tasks"] if program == "megatron/eval_tasks" else [program]
    command += [] if is_demo else ["--help"]
    run = subprocess.run(
        [bare_python, *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if program in WITHOUT_PACKAGES:
        assert run.returncode == WITHOUT_PACKAGES[program], run.stderr
        assert run.stderr.count("\n") == (1 if run.returncode else 0), run.stderr
        return
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert "install" in run.stderr
    if not is_demo:
        name = Path(program).name
        assert run.stderr.startswith(f"{name}: this Python ({bare_python}) lacks ")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("yaml", "requirements/requirements.txt"),
        ("tokenizers.models", "requirements/requirements.txt"),
        ("lm_eval.api", "requirements/requirements-eval.txt"),
        ("wandb", "requirements/requirements-wandb.txt"),
    ],
)
def test_a_package_leads_to_the_requirements_that_bring_it(name, remedy):
    problem = installation.missing_package(ModuleNotFoundError(name=name))
    assert problem is not None
    assert f"lacks {name.partition('.')[0]}; " in problem
    assert remedy in problem


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError(name="megatron.nowhere"),
        ModuleNotFoundError(name="tools.nowhere"),
        ModuleNotFoundError("without a name"),
        ImportError(name="torch"),
        ValueError("x"),
    ],
)
def test_our_own_mistakes_keep_their_traceback(error):
    assert installation.missing_package(error) is None


def test_a_virtual_environment_that_is_there_is_to_be_activated(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "_ROOT", tmp_path)
    assert "pip install 'odm-neox[train]'" in str(installation.missing_packages_problem("no_such"))
    for file in ("requirements/requirements.txt", ".venv/bin/activate"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("")
    problem = str(installation.missing_packages_problem("no_such"))
    assert f"source {tmp_path}/.venv/bin/activate; or pip install -r {tmp_path}/req" in problem
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert "activate" not in str(installation.missing_packages_problem("no_such"))


def test_an_old_python_is_named(monkeypatch, capsys):
    fake = SimpleNamespace(**{**vars(sys), "version_info": (3, 8, 10)})
    monkeypatch.setattr(installation, "sys", fake)
    with pytest.raises(SystemExit) as ended:
        installation.explain_missing_packages()
    assert ended.value.code == 2
    assert "needs Python 3.10 or newer, this is 3.8.10" in capsys.readouterr().err
