"""Texts that most Linux systems carry: manual pages, documentation, message catalogues."""

import gzip
import hashlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

MANUAL_ROOT = Path("/usr/share/man")
DOCUMENTATION_ROOT = Path("/usr/share/doc")
LOCALE_ROOT = Path("/usr/share/locale")
DOCUMENTATION_NAME = re.compile(r"(readme|news|changelog|faq|todo|\.txt|\.md|\.rst)", re.IGNORECASE)
LONGEST_FILE_BYTES = 1_000_000
CATALOGUE_MAGIC = 0x950412DE
"""First word of a compiled GNU gettext catalogue; its byte order is that of the file."""

ROFF_COMMENT = re.compile(r"^(\.\\\"|'\\\").*\n?", re.MULTILINE)
ROFF_FONT = re.compile(r"\\f(?:[A-Z0-9]|\(..|\[[^]]*\])")
ROFF_MACRO = re.compile(r"^\.([A-Za-z]{1,2})\b[ \t]*", re.MULTILINE)
ROFF_ESCAPES = (
    ("\\-", "-"),
    ("\\&", ""),
    ("\\ ", " "),
    ("\\e", "\\"),
    ("\\(aq", "'"),
    ("\\(bu", "*"),
)


def manual_pages() -> Iterator[str]:
    """Manual pages of sections 1 to 8 in the untranslated edition, most of the markup removed."""
    paths = MANUAL_ROOT.glob("man[1-8]/*")
    for text in _contents(paths):
        if not text.startswith(".so "):  # a link to another page
            yield _plain_manual(text)


def system_documentation() -> Iterator[str]:
    """README, NEWS, change log and text files of the installed system packages."""
    paths = DOCUMENTATION_ROOT.rglob("*")
    yield from _contents(path for path in paths if DOCUMENTATION_NAME.search(path.name))


def translations() -> Iterator[str]:
    """Message catalogues: each message and its translation, a document a catalogue."""
    for path in _in_fair_order(LOCALE_ROOT.glob("*/LC_MESSAGES/*.mo")):
        messages = read_catalogue(path.read_bytes())
        if messages:
            yield "\n\n".join(f"{message}\n{translated}" for message, translated in messages)


def read_catalogue(content: bytes) -> list[tuple[str, str]]:
    """Reads a compiled gettext catalogue; empty where it is damaged or not UTF-8.

    Source: GNU gettext manual, "The Format of GNU MO Files".
    """
    try:
        order = "<" if struct.unpack_from("<I", content)[0] == CATALOGUE_MAGIC else ">"
        magic, _, count, messages_at, translated_at = struct.unpack_from(f"{order}5I", content)
        if magic != CATALOGUE_MAGIC:
            return []
        pairs = []
        for number in range(count):
            texts = []
            for table_at in (messages_at, translated_at):
                length, start = struct.unpack_from(f"{order}2I", content, table_at + 8 * number)
                texts.append(content[start : start + length].decode().replace("\0", "\n"))
            pairs.append((texts[0], texts[1]))
    except (struct.error, UnicodeDecodeError):
        return []
    return [pair for pair in pairs if pair[0] and pair[1]]  # the empty message is the header


def _plain_manual(text: str) -> str:
    text = ROFF_COMMENT.sub("", text)
    text = ROFF_FONT.sub("", text)
    for escape, plain in ROFF_ESCAPES:
        text = text.replace(escape, plain)
    text = ROFF_MACRO.sub(lambda found: "\n" if found[1] in ("SH", "SS", "TP") else "", text)
    return text.strip() + "\n"


def _contents(paths: Iterator[Path]) -> Iterator[str]:
    for path in _in_fair_order(paths):
        try:
            if not path.is_file() or path.is_symlink() or path.stat().st_size > LONGEST_FILE_BYTES:
                continue
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            yield content[:LONGEST_FILE_BYTES].decode("utf-8")
        except (OSError, EOFError, ValueError):
            continue


def _in_fair_order(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())
