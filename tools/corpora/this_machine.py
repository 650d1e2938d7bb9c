"""A small corpus in domains from the text that every machine with this project already has."""

import hashlib
import importlib.metadata
import importlib.util
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from megatron.tokenizer.file_kinds import is_hidden
from tools.corpora.arithmetic import arithmetic_documents
from tools.corpora.corpus import Corpus, LeftOut, Part, TextRecord, pieces
from tools.corpora.system_text import manual_pages, system_documentation, translations

TEST_FOLDERS = {"test", "tests", "testing", "idle_test", "_vendor"}
NOT_PROSE_OR_CODE = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)
COPYRIGHT_LINE = re.compile(
    r"^\W*(copyright|\(c\)|\u00a9).*\d{4}.*$\n?", re.IGNORECASE | re.MULTILINE
)
LONGEST_FILE_BYTES = 1_000_000


class ThisMachine(Corpus):
    """Source code, documentation, licences, headers, arithmetic, and system texts where they are.

    The files of a domain are ordered by a hash of their names: the order is the same on every run,
    and a size limit keeps a fair sample instead of the first letters of the alphabet.
    """

    description: ClassVar[str] = "text that every machine has: sources, docs, licences, headers ..."
    licence: ClassVar[str] = "of the installed software; for use on this machine"
    default_max_domain_bytes: ClassVar[int | None] = 3_000_000
    default_min_domain_bytes: ClassVar[int] = 100_000

    def parts(self) -> list[Part]:
        """One part per domain; domains with too little text on this machine are dropped later."""
        return [_part(name, texts) for name, texts in DOMAINS.items()]


def _part(name: str, texts: Callable[[], Iterator[str]]) -> Part:
    def records(_: LeftOut) -> Iterator[TextRecord]:
        for text in texts():
            for piece in pieces(text):
                yield TextRecord(name, piece)

    return Part(name, records)


def python_source() -> Iterator[str]:
    """Modules of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return _texts_of(_in_fair_order(root, "*.py", without=NOT_PROSE_OR_CODE | TEST_FOLDERS))


def package_source() -> Iterator[str]:
    """Python modules of the installed packages."""
    roots = {Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib")}
    for root in sorted(roots):
        yield from _texts_of(_in_fair_order(root, "*.py", without=TEST_FOLDERS | {"__pycache__"}))


def python_documentation() -> Iterator[str]:
    """The language reference that pydoc shows, then the docstrings of the standard library."""
    try:
        reference = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some systems pack it separately
        reference = {}
    for name in sorted(reference):
        yield reference[name]
    for source in python_source():
        yield "\n\n".join(_docstrings(source))


def package_descriptions() -> Iterator[str]:
    """The long descriptions (README files) of the installed packages."""
    for distribution in _distributions():
        text = "\n".join(distribution.metadata.get_all("Description") or ())
        yield text.encode(errors="replace").decode()  # metadata that is not UTF-8 has surrogates


def licences() -> Iterator[str]:
    """Licence texts of the installed packages, without their copyright lines.

    Without that line, the same licence with another holder is the same text; with it, the licence
    would be in the training data and in the validation data.
    """
    common = Path("/usr/share/common-licenses")
    paths = sorted(path for path in common.glob("*") if path.is_file() and not path.is_symlink())
    paths += [Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"]
    for distribution in _distributions():
        for entry in distribution.files or ():
            if ".dist-info" in entry.parts[0] and LICENCE_NAME.search("/".join(entry.parts[1:])):
                paths.append(Path(str(distribution.locate_file(entry))))
    for text in _texts_of(iter(paths)):
        yield COPYRIGHT_LINE.sub("", text)


def c_headers() -> Iterator[str]:
    """Headers of Python, numpy and torch, and those of the system."""
    roots = [Path(sysconfig.get_paths()["include"]), Path("/usr/include")]
    for package, inside in (("numpy", "_core/include"), ("torch", "include")):
        spec = importlib.util.find_spec(package)
        roots += [
            Path(place) / inside for place in (spec and spec.submodule_search_locations) or ()
        ]
    for root in roots:
        yield from _texts_of(_in_fair_order(root, "*.h", without=set()))


DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "python_source": python_source,
    "python_documentation": python_documentation,
    "package_source": package_source,
    "package_descriptions": package_descriptions,
    "licences": licences,
    "c_headers": c_headers,
    "arithmetic": arithmetic_documents,
    "manual_pages": manual_pages,
    "system_documentation": system_documentation,
    "translations": translations,
}


def _in_fair_order(root: Path, pattern: str, *, without: set[str]) -> Iterator[Path]:
    """Files below a folder in the order of the hash of their names, some folders left out."""
    if not root.is_dir():
        return iter(())
    found = (path for path in root.rglob(pattern) if path.is_file())
    named = ((path.relative_to(root), path) for path in found)
    kept = [
        (name, path)
        for name, path in named
        if not without.intersection(name.parts) and not any(map(is_hidden, name.parts))
    ]
    kept.sort(key=lambda pair: hashlib.sha256(pair[0].as_posix().encode()).digest())
    return (path for _, path in kept)


def _texts_of(paths: Iterator[Path]) -> Iterator[str]:
    """Contents of text files; files that are missing, not UTF-8 or huge are skipped."""
    for path in paths:
        try:
            if path.stat().st_size <= LONGEST_FILE_BYTES:
                yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, each under the line that defines what it describes."""
    import ast

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield f"{_heading(node)}\n{docstring}".lstrip()


def _heading(node: object) -> str:
    import ast

    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{node.name}({ast.unparse(node.args)})"
    return f"class {node.name}" if isinstance(node, ast.ClassDef) else ""


def _distributions() -> list[importlib.metadata.Distribution]:
    found = {str(entry.metadata["Name"]): entry for entry in importlib.metadata.distributions()}
    return [found[name] for name in sorted(found)]
