"""Addresses of files elsewhere, ``s3://bucket/folder``, as fsspec takes them; here only as text."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
LOCAL_FOLDERS = "checkpoints"


def is_address(text: str) -> bool:
    """Tells whether a text is meant as an address and not as a folder."""
    return "://" in text


def address_problem(text: str) -> str | None:
    """What is wrong with an address, without repeating a password in it; None if nothing is."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return "must be an address such as s3://bucket/folder"
    protocol, rest = match[1].lower(), match[2]
    if "@" in rest.partition("/")[0] and ":" in rest.partition("@")[0]:
        return (
            f"contains a password ({protocol}://...@...); remove it, and give it to the file "
            "system by its environment variables or its own configuration file"
        )
    if "?" in rest or "#" in rest:
        return f"contains ? or # ({protocol}://...); name a folder, without parameters"
    if not rest.strip("/"):
        return f"{protocol}:// names no folder; write it behind the slashes"
    if protocol in ("file", "local") and not rest.startswith("/"):
        return f"{text} is not absolute; write {protocol}:///folder, or the folder alone"
    return None


def local_folder_of(address: str) -> str:
    """The folder in which checkpoints of an address are on this machine.

    Its last part is that of the address, with eight digits that tell addresses apart.
    """
    tidy = address.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePath(tidy).name)
    digest = hashlib.sha256(tidy.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{LOCAL_FOLDERS}/{name}-{digest[:8]}"
