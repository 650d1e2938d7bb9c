"""What the documents name exists: links, keys of YAML blocks, scripts with flags, imports, names.

tests/distributed/test_readme_commands.py runs README; these look at all documents without running.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "configs/README.md", "odm/README.md", "requirements/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"(?:\./|python -m |python )(?:deepy\.py|tools[\w./]*|prepare_data\.py)[^`\n]*"
)

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the documents are not in an installed package"
)


def blocks(*languages: str) -> list[tuple[Path, str]]:
    return [
        (path, body)
        for path in DOCUMENTS
        for language, body in FENCE.findall(path.read_text(encoding="utf-8"))
        if language in languages
    ]


def anchors(path: Path) -> set[str]:
    """Anchors as GitHub makes them of headings, and those that are written out."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal), target


@pytest.mark.parametrize(
    ("path", "body"), blocks("yaml"), ids=lambda value: getattr(value, "name", "")
)
def test_every_key_of_a_configuration_is_known(path, body):
    reference = (ROOT / "configs/neox_arguments.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^- \*\*(\w+)\*\*", reference, re.MULTILINE))
    keys = yaml.safe_load(body).keys()
    if "task" not in keys:  # a task of lm-eval
        assert keys <= known, keys - known


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENTS if COMMAND.search(path.read_text(encoding="utf-8"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_script_is_there_and_knows_its_flags(path):
    source = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("tools", "megatron")
        for file in sorted((ROOT / folder).rglob("*.py"))
    )
    for command in COMMAND.findall(path.read_text(encoding="utf-8")):
        words = shlex.split(command, comments=True)
        if words[:2] == ["python", "-m"]:
            script = words[2].replace(".", "/") + ".py"
        else:
            script = words[1] if words[0] == "python" else words[0]
        package = ROOT / script.removesuffix(".py") / "__main__.py"
        assert (ROOT / script).is_file() or package.is_file(), command
        for flag in (word for word in words if word.startswith("--") and word != "--help"):
            assert f'"{flag}"' in source, f"{flag} in: {command}"


@pytest.mark.parametrize(
    ("path", "body"), blocks("python"), ids=lambda value: getattr(value, "name", "")
)
def test_every_import_of_an_example_works(path, body):
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] == "transformers":
                pytest.importorskip("transformers")
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def is_defined(name: str) -> bool:
    """Tells whether a dotted name is a package, a module, or defined in one; imports nothing."""
    path = ROOT
    parts = name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if not parts:
        return (path / "__init__.py").is_file()
    module = path / f"{parts[0]}.py"
    if module.is_file():
        parts.pop(0)
    else:
        module = path / "__init__.py"
    body = ast.parse(module.read_text(encoding="utf-8")).body
    body = [inner for node in body for inner in (node.body if isinstance(node, ast.If) else [node])]
    for part in parts:
        found = next((node for node in body if part in _names_of(node)), None)
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def _names_of(node: ast.stmt) -> set[str]:
    """The names that a statement defines or imports."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_and_function_that_a_document_names_is_defined(path):
    names = re.findall(r"`((?:megatron|odm|tools)(?:\.\w+)+)`", path.read_text(encoding="utf-8"))
    if path.name != "CHANGELOG.md":
        assert [name for name in names if not is_defined(name)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_folder_of_the_code_that_a_document_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    places = re.findall(r"`((?:megatron|odm|tools|tests)/(?:\w+/)*(?:\w+\.py)?)`", text)
    example = "odm/mixers/inverse.py"  # docs/mixing.md lets its reader write it
    if path.name != "CHANGELOG.md":
        assert [name for name in places if not (ROOT / name).exists() and name != example] == []


def test_the_tour_names_what_each_of_its_steps_is_done_by():
    tour = (ROOT / "docs/codebase.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| \d+ \|.*$", tour, re.MULTILINE)
    assert len(steps) == 11
    assert all(re.search(r"`(?:megatron|odm|tools)\.", step) for step in steps)


def test_the_mixer_that_a_document_shows_can_be_used(tmp_path, monkeypatch):
    from odm import MixtureController, MixtureSchedule, Signal, make_mixer
    from odm.mixers import base

    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    (body,) = [body for path, body in blocks("python") if path.name == "mixing.md"]
    (tmp_path / "inverse.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("inverse")
    controller = MixtureController(["a", "b"], make_mixer("inverse"), MixtureSchedule(7, 2))
    for step in range(1, 4):
        controller.draw(step, num_slots=4)
        controller.observe(step, Signal.from_means([1.0, 3.0], [4, 4]))
    assert controller.weights.tolist() == pytest.approx([0.75, 0.25])
    again = MixtureController(["a", "b"], make_mixer("inverse"), MixtureSchedule(7, 2))
    again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert again.weights.tolist() == controller.weights.tolist()


def test_the_page_of_metrics_names_the_fields_that_are_logged():
    from megatron.reporting.records import CURVES, TrainRecord

    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    logged = {field.name for field in dataclasses.fields(TrainRecord) if not field.metadata}
    assert [name for name in logged if f"`{name}`" not in text] == []
    assert [curve for curve in CURVES.values() if not re.search(rf"`{curve}[`/]", text)] == []
    source = (ROOT / "megatron/reporting/announcement.py").read_text(encoding="utf-8")
    (info,) = (
        [ast.literal_eval(key) for key in node.value.keys if key is not None]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and _names_of(node) == {"info"}
        if isinstance(node.value, ast.Dict)
    )
    (row,) = re.findall(r"^\| `start`, `resume` \| (.*)$", text, re.MULTILINE)
    of_layout = {"pipe", "data", "model"}
    assert set(re.findall(r"`(\w+)`", row)) == {*info, "iteration", "time", *of_layout}


def test_the_page_of_metrics_names_the_estimate_of_each_method():
    from odm.methods import METHODS
    from odm.mixers.base import Mixer

    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `train/<estimate>/<domain>` .*$", text, re.MULTILINE)
    written = {
        name: curve
        for curve, names in re.findall(r"`(\w+)` \(([^)]+)\)", row)
        for name in re.findall(r"`(\w+)`", names)
    }
    kinds = {
        name: next(
            kind
            for kind in vars(importlib.import_module(f"odm.mixers.{name}")).values()
            if isinstance(kind, type) and issubclass(kind, Mixer) and kind.name == name
        )
        for name in METHODS
    }
    assert written == {name: kind.curve.fget(kind) for name, kind in kinds.items() if kind.estimate}


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new))


def test_the_mixer_that_a_document_shows_trains_after_the_steps_that_it_lists(tmp_path):
    for name in ("odm", "megatron", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("build"))
    (body,) = [body for path, body in blocks("python") if path.name == "mixing.md"]
    body = body.replace("from odm.mixers.base", "from .base").replace("from odm.", "from ..")
    (tmp_path / "odm" / "mixers" / "inverse.py").write_text(body)
    (row,) = re.findall(r"the row `(.*)` in the table", (ROOT / "docs" / "mixing.md").read_text())
    table = tmp_path / "odm" / "methods.py"
    _replace(table, '    "static": ', f'    {row}\n    "static": ')

    code = """if True:
        from megatron.data.data_utils import build_controller
        from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
        from megatron.data.data_sampling_utils import get_weight_updater
        from odm import Signal

        def configure(domains):
            paths = [f"d/{name}/text" for name in domains]
            data = {f"{split}_data_paths": paths for split in ("train", "valid", "test")}
            keys = {"data_sampling_method": "inverse", "user_script": "train.py"}
            return resolve(NeoXArgs.from_ymls(["configs/cpu.yml"], {**data, **keys}), world_size=1)

        try:
            configure(["a"])
        except ConfigError as error:
            print(error)
        mixture = build_controller(
            configure(["a", "b"]), ["a", "b"], [1.0, 1.0], samples_per_epoch=[9, 9]
        )
        mixture.draw(1, num_slots=4)
        mixture.observe(1, Signal.from_means([1.0, 3.0], [4, 4]))
        print(mixture.weights.tolist(), mixture.mixer_state()[mixture.mixer.estimate])
        updater = get_weight_updater("inverse", ["a", "b"], [1.0, 1.0])
        updater.group_update(["a", "b"], [1.0, 3.0], 1)
        print({name: getattr(updater, name) for name in updater.vars_to_log})
    """
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    refusal, learned, logged = run.stdout.splitlines()
    assert "data_sampling_method inverse needs at least 2 domains" in refusal
    assert learned == "[0.75, 0.25] [1.0, 3.0]"
    assert logged == "{'_probabilities': {'a': 0.75, 'b': 0.25}, '_loss': {'a': 1.0, 'b': 3.0}}"
