"""Finds the text files behind what a user names: paths, lists with commas, folders."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import READABLE, is_hidden, is_one_document, is_readable
from megatron.tokenizer.left_out import HIDDEN, WITHOUT_FIELDS, LeftOutFiles

_LONGEST_PATH = 4096
_SPECIAL_FILE = "not a regular file"


def split_at_commas(text: str) -> list[str]:
    """Splits a list of paths at its commas, but not inside the name of an existing path.

    If the list can be split in several ways, each path is the longest that exists. White space
    around a path is dropped, unless it belongs to an existing name.
    """
    pieces = text.split(",")
    paths = []
    start = 0
    while start < len(pieces):
        path, end = pieces[start].strip(), start + 1
        candidate = pieces[start]
        for stop in range(start + 1, len(pieces) + 1):
            for name in (candidate, candidate.strip()):
                if name and os.path.exists(name):
                    path, end = name, stop
                    break
            if stop == len(pieces) or len(candidate) > _LONGEST_PATH:
                break
            candidate += f",{pieces[stop]}"
        paths.append(path)
        start = end
    return paths


def expand_inputs(
    paths: list[str], left_out: LeftOutFiles, *, has_fields: bool = False
) -> list[Path]:
    """Lists the files behind paths; a folder stands for its readable files, sorted, recursively.

    Args:
        paths: Files and folders.
        left_out: Counts the files of folders that are not read.
        has_fields: Several fields are wanted: files of prose and code in folders have none.

    Raises:
        DocumentError: A path is empty, does not exist, has an unknown suffix or cannot be listed,
            or a folder contains nothing.
    """
    files: list[Path] = []
    for given in paths:
        if not given:
            raise DocumentError(
                "an input has no name (one comma too many?); give . for the current folder"
            )
        path = Path(given)
        if os.path.isdir(path):
            files.extend(_readable_files_below(path, left_out, has_fields=has_fields))
        elif not os.path.exists(path):
            raise DocumentError(f"{path}: no such file or folder; check the path")
        elif not is_readable(path.name):
            raise DocumentError(f"{path}: unknown kind of file; give {READABLE}")
        else:
            files.append(path)
    if not files:
        raise DocumentError(f"no input given; give {READABLE}")
    return files


def _readable_files_below(folder: Path, left_out: LeftOutFiles, *, has_fields: bool) -> list[Path]:
    listing = list_folder(folder)
    left_out.add(listing.left_out)
    if has_fields:
        for path in filter(lambda path: is_one_document(path.name), listing.readable):
            left_out.count(WITHOUT_FIELDS, str(path))
    found = [path for path in listing.readable if not (has_fields and is_one_document(path.name))]
    if not found:
        found_instead = "; ".join(listing.left_out.lines())
        raise DocumentError(
            f"{folder}: the folder contains no readable file; give {READABLE}"
            + (f" ({found_instead})" if found_instead and not has_fields else "")
        )
    return found


@dataclass
class FolderListing:
    """The files below a folder, sorted, and what of them is not read."""

    files: list[Path] = field(default_factory=list)
    readable: list[Path] = field(default_factory=list)
    left_out: LeftOutFiles = field(default_factory=LeftOutFiles)


def files_below(folder: Path) -> list[Path]:
    """Lists all files below a folder, sorted, hidden ones left out; see `list_folder`."""
    return list_folder(folder).files


def list_folder(folder: Path) -> FolderListing:
    """Lists the files below a folder; what is hidden is counted and not looked into.

    `Path.rglob` leaves out folders without permission and folders behind links. Here the first is
    an error, and a folder is read once, however many links lead to it.

    Raises:
        DocumentError: A folder cannot be listed, or a readable name is a link to nothing.
    """
    listing = FolderListing()
    paths: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        true_path = os.path.realpath(root)
        if true_path in seen:  # else a link to a folder above would never end
            folders.clear()
            continue
        seen.add(true_path)
        for name in sorted(filter(is_hidden, (*folders, *names))):
            listing.left_out.count(HIDDEN, str(Path(root, name)))
        paths += [Path(root, name) for name in names if not is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))
    for path in sorted(paths):
        _sort_in(path, listing)
    return listing


def _sort_in(path: Path, listing: FolderListing) -> None:
    if os.path.isfile(path):
        listing.files.append(path)
        if not is_readable(path.name):
            listing.left_out.count_kind(str(path))
        elif not _describes_tokens(path.name):
            listing.readable.append(path)
    elif is_readable(path.name) and not os.path.exists(path):
        raise DocumentError(f"{path}: a link to a file that is not there; fix or remove it")
    else:
        listing.left_out.count_kind(str(path), kind=_SPECIAL_FILE)


def _describes_tokens(name: str) -> bool:
    """Returns whether a file is the sidecar that our own tokenizing writes beside its output."""
    return name.endswith("_document.meta.json")


def _refuse_folder(error: OSError) -> None:
    raise DocumentError(f"{error.filename}: cannot be listed ({error.strerror}); check it")
