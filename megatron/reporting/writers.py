"""Where a run's metrics go: console, TensorBoard, Weights & Biases."""

from __future__ import annotations

import netrc
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import urlsplit

__all__ = [
    "ConsoleWriter",
    "ScalarWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "drop_standard_output",
    "has_wandb_key",
    "wandb_run_name",
]


_FINISH_SECONDS = 20.0  # well within the launcher's grace period


class ScalarWriter(Protocol):
    """Writes named numbers of an iteration."""

    name: str

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Writes ``values``."""

    def close(self) -> None:
        """Writes what is buffered and closes the writer."""


class ConsoleWriter:
    """Prints a line per logged iteration, and its domains below it.

    Stops printing when the output is closed, as by ``| head``, or its disk is full.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._fixed_columns: int | None = None
        self.failure: str | None = None
        """Why printing has stopped; None while it works."""
        self.on_failure: Callable[[str], None] | None = None
        """Called once, with the reason, when printing stops."""

    def line(self, text: str) -> None:
        """Prints one line and flushes."""
        stream = self._stream or sys.stdout
        if self.failure is not None:
            return
        try:
            stream.write(text + "\n")
            stream.flush()
        except OSError as error:
            self.failure = error.strerror or str(error)
            if stream is sys.stdout:
                drop_standard_output()
            if self.on_failure is not None:
                self.on_failure(self.failure)

    def table(self, heading: str, cells: Mapping[str, str]) -> None:
        """Prints a line, and ``name text`` cells below it in columns as wide as the terminal."""
        if not cells:
            self.line(heading)
            return
        name_width = max(map(len, cells))
        text_width = max(map(len, cells.values()))
        # asked each time, as a terminal may be resized; without a terminal, asking takes longest
        if self._fixed_columns is None and not (self._stream or sys.stdout).isatty():
            self._fixed_columns = _columns()
        width = self._fixed_columns or _columns()
        columns = max(1, (width - 2) // (name_width + text_width + 5))
        entries = [f"{name:<{name_width}}  {text:<{text_width}}" for name, text in cells.items()]
        rows = (entries[start : start + columns] for start in range(0, len(entries), columns))
        lines = ("   " + " | ".join(row).rstrip() for row in rows)
        self.line("\n".join((heading, *lines)))


def drop_standard_output() -> None:
    """Discards everything that is printed from now on, and what is still in the buffer."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _columns() -> int:
    """Columns of the terminal; ``COLUMNS`` or 120 without a terminal."""
    return shutil.get_terminal_size((120, 24)).columns


class TensorBoardWriter:
    """Writes event files for TensorBoard."""

    name = "TensorBoard"

    def __init__(self, folder: str, *, first_iteration: int = 0) -> None:
        """Opens the writer.

        Args:
            folder: Folder of the event files.
            first_iteration: Points of an earlier process beyond it are hidden: these iterations
                were lost.

        Raises:
            ImportError: If the package is missing.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            log_dir=folder, purge_step=first_iteration + 1 if first_iteration else None
        )

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve and flushes."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, iteration)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandbWriter:
    """Sends metrics to Weights & Biases; works offline without an account."""

    name = "Weights & Biases"

    def __init__(
        self, logging_args: Any, *, folder: Path, run_config: Mapping[str, Any], local_rank: int = 0
    ) -> None:
        """Opens a run, or continues the run whose id is in ``folder``.

        Args:
            logging_args: The ``logging`` group of the configuration.
            folder: Folder for wandb's files and for our file with the run's id.
            run_config: The resolved configuration.
            local_rank: Rank on this machine; part of the run's name.

        Raises:
            ImportError: If the package is missing.
        """
        import wandb

        mode = os.environ.get("WANDB_MODE") or (
            "online" if has_wandb_key(logging_args.wandb_host) else "offline"
        )
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "wandb_run_id"
        run_id = note.read_text(encoding="utf-8").strip() if note.is_file() else None
        self._run = wandb.init(
            project=logging_args.wandb_project,
            group=logging_args.wandb_group,
            name=wandb_run_name(logging_args, local_rank=local_rank),
            entity=logging_args.wandb_team,
            dir=str(folder),
            config=dict(run_config),
            mode=mode,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(base_url=logging_args.wandb_host),
        )
        note.write_text(f"{self._run.id}\n", encoding="utf-8")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Passes the numbers to wandb's own process."""
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        """Waits until wandb has sent everything, with a time limit in case the network is down."""
        sender = threading.Thread(target=self._run.finish, daemon=True)
        sender.start()
        sender.join(_FINISH_SECONDS)
        if sender.is_alive():
            raise TimeoutError(f"still sending after {_FINISH_SECONDS:g} s; run `wandb sync`")


def has_wandb_key(host: str) -> bool:
    """Whether the environment or ``~/.netrc`` contains a key for ``host``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(host).netloc or host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_run_name(logging_args: Any, *, local_rank: int) -> str | None:
    """Names a run as the research code does: run name, host and local rank within a group."""
    if not logging_args.wandb_group:
        # the research code dropped a name without a group; a user who gives one wants to see it
        return logging_args.wandb_run_name
    place = f"{socket.gethostname()}-{local_rank}"
    return f"{logging_args.wandb_run_name}-{place}" if logging_args.wandb_run_name else place
