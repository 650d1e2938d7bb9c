"""Uploads a folder to the Hub in one commit; no message contains the token."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import UserError

__all__ = ["CARD_NAME", "Upload", "UploadError", "files_of", "read_token", "scrub", "upload"]

CARD_NAME = "README.md"
_TOKEN_PATTERN = re.compile(r"\b(hf|api)_[A-Za-z0-9_-]{6,}")
_REASONS = {
    401: "the token is not accepted; set HF_TOKEN, log in with `hf auth login`, or correct "
    "--token_file",
    403: "the token may not write there; make one with write access, or correct --repo_id",
    404: "not found; correct --repo_id or HF_ENDPOINT",
}


class UploadError(UserError):
    """An upload that did not happen; one line, without the token."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What goes where."""

    repo_id: str
    """``name`` (of the token's owner) or ``owner/name``."""
    files: dict[str, Path]
    """{path in the repository: file}."""
    card: Callable[[str], str] | None
    """Makes the text of README.md from ``owner/name``; None if `files` has one."""
    private: bool | None
    """Whether a new repository is private; None for the Hub's default."""
    message: str
    """Message of the commit."""


def files_of(folder: Path) -> dict[str, Path]:
    """All files below a folder by their path in it, less hidden and temporary ones.

    Raises:
        UploadError: If there is none, or a link leads to a folder or out of ``folder``: other files
            of this machine must not be published.
    """
    if not folder.is_dir():
        raise UploadError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if _is_left_out(parts):
            continue
        if path.is_symlink() and not _stays_inside(path, folder):
            raise UploadError(
                f"{path}: is a link to {os.readlink(path)}, which is no file in {folder} "
                "that goes along; put a copy of the file in its place, or remove the link"
            )
        if path.is_file():
            files["/".join(parts)] = path
    if not files:
        raise UploadError(f"{folder}: contains no files to upload")
    return files


def _stays_inside(link: Path, folder: Path) -> bool:
    """Returns whether a link leads to a file below ``folder`` that is not left out itself."""
    target, top = Path(os.path.realpath(link)), Path(os.path.realpath(folder))
    if not (target.is_file() and target.is_relative_to(top)):
        return False
    return not _is_left_out(target.relative_to(top).parts)


def _is_left_out(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part.endswith(".tmp") for part in parts)


def read_token(token_file: Path | None) -> str:
    """The token of a file, or the one that huggingface_hub finds: HF_TOKEN or a saved login.

    Raises:
        UploadError: If there is none.
    """
    if token_file is None:
        token = _hub().get_token()
        if not token:
            raise UploadError(
                "no token: set HF_TOKEN, log in with `hf auth login`, or use --token_file"
            )
        return token
    try:
        words = token_file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UploadError(f"--token_file: {token_file}: {reason}") from None
    if len(words) != 1:
        raise UploadError(f"--token_file: {token_file}: must contain one token and nothing else")
    return words[0]


def upload(job: Upload, *, token: str, endpoint: str | None, say: Callable[[str], None]) -> str:
    """Makes the repository unless it is there, and commits all files at once.

    Args:
        job: What is uploaded, and where.
        token: Token of the Hub; no message contains it.
        endpoint: Address of the Hub; None for huggingface_hub's own.
        say: Receives a message for each step.

    Returns:
        The address of the repository.

    Raises:
        UploadError: If anything goes wrong. The original error is left out on purpose, since
            its text or its traceback might show the token.
    """
    hub = _hub()
    api = hub.HfApi(endpoint=endpoint, token=token)
    place = api.endpoint
    try:
        owner = api.whoami()["name"]
        repo_id = job.repo_id if "/" in job.repo_id else f"{owner}/{job.repo_id}"
        place = f"{api.endpoint}/{repo_id}"
        repository = api.create_repo(repo_id, private=job.private, exist_ok=True)
        say(f"uploading to {repository} as {owner}")
        additions: list[Any] = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
            for name, path in job.files.items()
        ]
        if job.card is not None:
            text = job.card(repo_id).encode()
            additions.append(hub.CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=text))
        api.create_commit(repo_id, additions, commit_message=job.message)
    except Exception as error:
        reason = scrub(_reason(error), token)
    else:
        return str(repository)
    raise UploadError(scrub(f"{place}: {reason}", token))


def scrub(text: str, token: str) -> str:
    """Takes the token, and whatever looks like one, out of a text."""
    return _TOKEN_PATTERN.sub("<token>", text.replace(token, "<token>") if token else text)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REASONS:
        return f"{_REASONS[status]} (HTTP {status})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines) or type(error).__name__
    if status is not None:
        return f"HTTP {status}: {text}"
    is_about_names = type(error).__name__ == "HFValidationError"
    advice = "correct --repo_id" if is_about_names else "check the network and HF_ENDPOINT"
    return f"{text}; {advice}"


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UploadError(
            "the package huggingface_hub is not installed; pip install huggingface_hub"
        ) from None
    return huggingface_hub
