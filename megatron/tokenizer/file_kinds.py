"""Which kinds of files are supported, recognised by their names, and which names are hidden."""

import os

LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
PLAIN_SUFFIXES = (".txt", ".text")
PROSE_SUFFIXES = (".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".bib", ".html", ".htm")
CODE_SUFFIXES = tuple(
    ".asm .awk .bash .bat .c .cc .clj .cljs .cmake .cpp .cs .css .cu .cuh .cxx .d .dart .el .erl "
    ".ex .exs .f .f90 .fs .go .gradle .groovy .h .hh .hpp .hs .hxx .inl .java .jl .js .jsx .kt "
    ".kts .less .lisp .lua .m .mjs .mk .ml .mli .mm .nim .pas .patch .php .pl .pm .proto .ps1 .py "
    ".pyi .pyx .r .rb .rkt .rs .s .sass .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl "
    ".ts .tsx .v .vb .vhd .vhdl .vim .vue .wat .zig .zsh".split()
)
ONE_DOCUMENT_SUFFIXES = PROSE_SUFFIXES + CODE_SUFFIXES
ARCHIVE_SUFFIXES = (".tar", ".zip")
COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
NEEDS_THE_FILE_ITSELF = (".zip", ".parquet")
"""Kinds that are read from the end of the file: not in compressed form, not in an archive."""

READABLE = (
    ".jsonl, .json, .csv, .tsv, .txt, Markdown, reStructuredText, TeX, HTML, source code, these "
    "plain or with .gz, .zst, .bz2, .xz, in .zip or .tar archives; .parquet"
)

_CONTENT_SUFFIXES = frozenset(
    LINE_SUFFIXES + TABLE_SUFFIXES + PLAIN_SUFFIXES + ONE_DOCUMENT_SUFFIXES + ARCHIVE_SUFFIXES
)
_LONGEST_EXTENSION = 16
_LONGEST_SHOWN = 500


def split_suffixes(name: str) -> tuple[str, str]:
    """Splits a file name into its content suffix and its compression suffix, each may be empty."""
    lowered = name.lower()
    if lowered.endswith(".tgz"):
        return ".tar", ".gz"
    stem, compression = _split_compression(lowered)
    end = os.path.splitext(stem)[1] or (stem if stem.startswith(".") else "")
    return (end if end in _CONTENT_SUFFIXES else ""), compression


def is_readable(name: str) -> bool:
    """Returns whether a file of this name can be opened by `open_streams`."""
    content, compression = split_suffixes(name)
    return content != "" and not (compression and content in NEEDS_THE_FILE_ITSELF)


def is_readable_member(name: str) -> bool:
    """Returns whether the member of an archive of this name is read."""
    content, _ = split_suffixes(name)
    return content != "" and content not in ARCHIVE_SUFFIXES + NEEDS_THE_FILE_ITSELF


def is_one_document(name: str) -> bool:
    """Returns whether a file is prose or source code: one document without fields."""
    return split_suffixes(name)[0] in ONE_DOCUMENT_SUFFIXES


def is_hidden(name: str) -> bool:
    """Returns whether a name is hidden: it begins with a dot, or is a resource fork of macOS.

    Args:
        name: Name of a file or folder, without the folders above it.
    """
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def is_hidden_member(path: str) -> bool:
    """`is_hidden` for any part of the path of an archive's member."""
    return any(map(is_hidden, path.replace("\\", "/").split("/")))


def extension(name: str) -> str:
    """The extension that names a kind of file for a reader, with that of a compression."""
    stem, compression = _split_compression(name.lower())
    end = os.path.splitext(stem)[1] + compression
    if len(end) > _LONGEST_EXTENSION or not end.isprintable() or " " in end:
        return "other"
    return end or "without extension"


def printable(name: str) -> str:
    """A name for a message, on one line and of moderate length, whatever characters it holds."""
    if len(name) > _LONGEST_SHOWN:
        name = f"{name[: _LONGEST_SHOWN - 100]}...{name[-100:]}"
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _split_compression(lowered: str) -> tuple[str, str]:
    compression = next((end for end in COMPRESSION_SUFFIXES if lowered.endswith(end)), "")
    return lowered[: len(lowered) - len(compression)], compression
