import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "odm/README.md").read_text()


def test_the_examples_of_the_readme_print_what_it_says():
    codes = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    expected = [re.findall("`(.*?)`", line) for line in re.findall(r"It prints (.*)", README)]
    assert len(codes) == len(expected) == 2
    for code, lines in zip(codes, expected, strict=True):
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        printed = result.stdout.splitlines()
        assert printed == lines[: len(printed)]
        assert printed


def test_the_gym_prints_what_the_readme_shows():
    ((command, expected),) = re.findall(r"```\n\$ ([^\n]*)\n(.*?)```", README, flags=re.DOTALL)
    program, *arguments = command.split()
    assert program == "python"
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == expected


def test_the_benchmark_of_mixing_refuses_arguments_without_a_meaning():
    command = [sys.executable, "-m", "tools.benchmark.mixing_overhead", "--domains", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr


def test_the_readme_has_a_row_for_every_method():
    import odm

    for name in odm.known_mixers():
        assert re.search(rf"^\| `{name}`", README, flags=re.MULTILINE), name


def test_the_package_imports_only_itself_numpy_and_the_standard_library():
    import ast

    allowed = {"numpy", *sys.stdlib_module_names}
    for path in sorted((ROOT / "odm").rglob("*.py")):
        if "integrations" in path.parts or "build" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {(node.module or "").split(".")[0]}
            else:
                continue
            assert names <= allowed, f"{path}: {names - allowed}"
