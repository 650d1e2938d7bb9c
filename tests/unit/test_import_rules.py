"""The rules of ARCHITECTURE.md, read from the syntax trees: who imports whom, and how long."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("*.py"))
LIBRARY = sorted(
    path
    for name in ("odm", "megatron")
    for path in (ROOT / name).rglob("*.py")
    if not path.is_relative_to(ROOT / "odm/build")  # what `pip install ./odm` leaves
)
TOOLS = sorted((ROOT / "tools").rglob("*.py"))

LEVELS = {
    0: (
        *("megatron", "odm", "neox_arguments", "tokenizer", "launcher", "sizing", "files"),
        *("errors", "fused_kernels"),
    ),
    1: ("mpu",),
    2: ("data",),
    3: ("model",),
    4: (
        "checkpoint",
        "checkpointing",
        "engine",
        "evaluation",
        "hooks",
        "initialize",
        "reporting",
        "runtime",
    ),
    5: ("training", "generation", "text_generation_utils", "eval_tasks"),
}
"""The packages of megatron and its loose modules; a module uses its own level and those below."""

LIGHT_MODULES = {
    "checkpoint.foreign": 0,
    "checkpoint.lock": 0,
    "checkpoint.remote": 0,
    "data.errors": 0,
    "data.index_header": 0,
    "data.metadata": 0,
    "data.shares": 0,
    "data.splits": 0,
    "eval_tasks.old_names": 0,
    "eval_tasks.requests": 0,
    "reporting.run_log": 0,
    "runtime.accelerator": 1,
    "runtime.process_life": 0,
}
"""Modules that the levels below their package use too."""

MAX_LOOSE_MODULES = 6

DEEPSPEED_BELOW_LEVEL_4 = (
    "megatron.runtime.accelerator",
    "megatron.model.pipeline_model",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One imported module."""

    module: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    """Lists the imports of a file, less those that only a type checker follows."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    visit(other)
                continue
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join(filter(None, (*above, child.module)))
                # `from package import module` names a module too
                names = [f"{base}.{alias.name}" for alias in child.names]
                modules = [name if is_module(name) else base for name in names]
                found.extend(Import(name, child.lineno) for name in dict.fromkeys(modules))
            visit(child)

    visit(tree(path))
    return found


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def level_of(module: str) -> int:
    name = module.removeprefix("megatron.")
    for light, level in LIGHT_MODULES.items():
        if is_within(name, light):
            return level
    for level, packages in LEVELS.items():
        if name.split(".")[0] in packages:
            return level
    raise LookupError(f"{module} is in no level")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def places(path: Path, found: list[Import]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{i.line}: imports {i.module}" for i in found]


def broken(files: list[Path], is_wrong) -> list[str]:
    """Lists imports for which ``is_wrong(module, import)`` holds."""
    return [
        place
        for path in files
        for place in places(path, [i for i in imports_of(path) if is_wrong(module_name(path), i)])
    ]


def test_the_lists_of_this_file_name_modules_that_are_there():
    listed = [module for modules in LEVELS.values() for module in modules] + [*LIGHT_MODULES]
    listed = [name if name in ("megatron", "odm") else f"megatron.{name}" for name in listed]
    listed += DEEPSPEED_BELOW_LEVEL_4
    assert [module for module in listed if not is_module(module)] == []


def test_few_modules_of_megatron_are_in_no_package():
    loose = [path.stem for path in (ROOT / "megatron").glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= MAX_LOOSE_MODULES, sorted(loose)


def test_every_package_says_what_is_in_it():
    packages = [path for path in (*LIBRARY, *TOOLS) if path.name == "__init__.py"]
    assert [str(path.parent) for path in packages if not ast.get_docstring(tree(path))] == []
    assert {path.parent for path in (*LIBRARY, *TOOLS)} == {path.parent for path in packages}


def test_every_folder_of_unit_tests_has_the_name_of_a_package():
    folders = {path.parent.name for path in (ROOT / "tests/unit").glob("*/test_*.py")}
    packages = {path.parent.name for path in (ROOT / "megatron").glob("*/__init__.py")}
    assert folders - packages == {"odm", "tools", "oracles"}  # oracles: whole training steps


def test_no_two_modules_import_each_other():
    """Imports inside functions count; those that only a type checker follows do not."""
    files = {module_name(path): path for path in (*LIBRARY, *TOOLS)}
    imported = {
        name: sorted({i.module for i in imports_of(path)} & files.keys() - {name})
        for name, path in files.items()
    }
    assert circles_of(imported) == []


def circles_of(imported: dict[str, list[str]]) -> list[list[str]]:
    """Lists the groups of modules that lead to each other (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in imported[name]:
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for name in imported:
        if name not in order:
            visit(name)
    return circles


def test_a_circle_of_imports_is_found():
    imported = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": []}
    assert circles_of(imported) == [["a", "b", "c"]]


def modules_with_public_names() -> list[str]:
    return [
        module_name(path)
        for path in LIBRARY
        if any(
            isinstance(target, ast.Name) and target.id == "__all__"
            for node in tree(path).body
            if isinstance(node, ast.Assign)
            for target in node.targets
        )
    ]


def test_every_public_name_can_be_imported():
    modules = modules_with_public_names()
    assert "megatron" in modules
    missing = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            if name.startswith("odm.integrations."):  # for a trainer that is not installed here
                continue
            raise
        missing += [f"{name}.{public}" for public in module.__all__ if not hasattr(module, public)]
    assert missing == []


def test_a_module_imports_from_its_own_level_or_below():
    def is_wrong(module: str, found: Import) -> bool:
        ours = found.module.split(".")[0] in ("odm", "megatron")
        return ours and level_of(found.module) > level_of(module)

    assert broken(LIBRARY, is_wrong) == []


def test_level_0_loads_neither_torch_nor_deepspeed():
    def is_wrong(module: str, found: Import) -> bool:
        heavy = found.module.split(".")[0] in ("torch", "deepspeed")
        is_integration = module.startswith("odm.integrations.")  # loaded by those who ask for it
        return level_of(module) == 0 and heavy and not is_integration

    assert broken(LIBRARY, is_wrong) == []


def test_odm_needs_the_standard_library_and_numpy_alone():
    allowed = {*sys.stdlib_module_names, "numpy", "odm"}

    def is_wrong(module: str, found: Import) -> bool:
        is_integration = module.startswith("odm.integrations.")  # loaded by those who ask for it
        return found.module.split(".")[0] not in allowed and not is_integration

    assert broken([path for path in LIBRARY if is_within(module_name(path), "odm")], is_wrong) == []


def test_odm_imports_itself_relatively():
    absolute = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in LIBRARY
        if is_within(module_name(path), "odm")
        for node in ast.walk(tree(path))
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").startswith("odm")
        )
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "odm" for a in node.names))
    ]
    assert absolute == []


def test_data_knows_nothing_of_model_parallelism_devices_and_deepspeed():
    refused = ("megatron.mpu", "megatron.runtime.accelerator", "deepspeed", "torch.distributed")

    def is_wrong(module: str, found: Import) -> bool:
        return is_within(module, "megatron.data") and any(
            is_within(found.module, name) for name in refused
        )

    assert broken(LIBRARY, is_wrong) == []


def test_deepspeed_is_named_in_few_places():
    def is_wrong(module: str, found: Import) -> bool:
        allowed = level_of(module) >= 4 or module in DEEPSPEED_BELOW_LEVEL_4
        return found.module.split(".")[0] == "deepspeed" and not allowed

    assert broken(LIBRARY, is_wrong) == []


def test_nobody_imports_scripts_and_tools():
    names = {path.stem for path in SCRIPTS} | {"tools", "tests"}

    def is_wrong(module: str, found: Import) -> bool:
        return found.module.split(".")[0] in names

    assert broken(LIBRARY, is_wrong) == []


def test_only_the_accelerator_names_a_kind_of_device():
    def names_cuda(node: ast.AST) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value == "cuda" or node.value.startswith("cuda:")
        return (isinstance(node, ast.Attribute) and node.attr == "cuda") or (
            isinstance(node, ast.Name) and node.id == "cuda"
        )

    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in (*LIBRARY, *TOOLS, *SCRIPTS)
        if module_name(path) != "megatron.runtime.accelerator"
        for node in ast.walk(tree(path))
        if names_cuda(node)
    ]
    assert found == []


def test_a_file_stays_under_400_lines():
    long = {
        str(path.relative_to(ROOT)): count
        for path in (*LIBRARY, *TOOLS, *SCRIPTS)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) >= MAX_FILE_LINES
    }
    assert long == {}


def test_a_function_stays_under_60_lines():
    long = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": lines
        for path in (*LIBRARY, *TOOLS, *SCRIPTS)
        for node in functions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) >= MAX_FUNCTION_LINES
    }
    assert long == {}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize(
    ("module", "refused"),
    [
        ("odm", ("torch", "deepspeed", "megatron", "yaml")),
        ("megatron", ("torch", "deepspeed", "numpy")),
        ("megatron.neox_arguments", ("torch", "deepspeed", "numpy")),
        ("megatron.tokenizer", ("torch", "deepspeed", "transformers", "tokenizers")),
        ("megatron.launcher.command", ("torch", "deepspeed", "numpy", "tokenizers")),
        ("megatron.launcher.preflight", ("torch", "deepspeed", "numpy", "tokenizers")),
        ("megatron.launcher.rank_discovery", ("torch", "deepspeed")),
        ("megatron.reporting.run_log", ("torch", "deepspeed")),
    ],
)
def test_importing_a_light_module_loads_nothing_heavy(module, refused):
    code = (
        f"import sys; import {module}\n"
        f"print(*(name for name in {refused!r} if name in sys.modules))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
