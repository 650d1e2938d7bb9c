"""Copies of checkpoints at an address: fetched before a run, and made in the background."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from megatron.checkpoint.format import checkpoint_steps, latest_step, step_folder
from megatron.checkpoint.lock import lock_save_folder
from megatron.checkpoint.remote import RemoteError, RemoteFolder
from megatron.errors import CheckpointError
from megatron.files import is_same_path
from megatron.neox_arguments import RunConfig
from megatron.runtime.agreement import agree, problem_of

__all__ = ["BackgroundCopies", "fetch_checkpoint", "open_copies"]

_DELAYS_S = (1.0, 5.0, 25.0, 60.0)
_MANY_WAITING = 3

Tell = Callable[[str], None]


class BackgroundCopies:
    """Copies checkpoints one after the other in a thread; never raises an error.

    Args:
        remote: Where to copy them.
        warn: Called by the thread with a message when an attempt has failed.
        tell: Called by the thread with a message when a checkpoint has been copied.
        delays_s: Seconds before each further attempt.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        *,
        warn: Tell,
        tell: Tell,
        delays_s: tuple[float, ...] = _DELAYS_S,
    ) -> None:
        self.remote = remote
        self._warn, self._tell, self._delays_s = warn, tell, delays_s
        self._waiting: deque[tuple[int, Path]] = deque()
        self._changed = threading.Condition()
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, step: int, folder: Path) -> None:
        """Copies a complete checkpoint after those that wait already."""
        with self._changed:
            if (step, folder) not in self._waiting:
                self._waiting.append((step, folder))
            count = len(self._waiting)
            self._changed.notify_all()
        if count >= _MANY_WAITING:
            self._warn(
                f"{self.remote.key}: {count} checkpoints wait to be copied to "
                f"{self.remote.address}; they stay on this disk until then"
            )
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
            self._thread.start()

    def add_if_missing(self, step: int, folder: Path) -> None:
        """Copies a checkpoint unless the address has it, or one that is later."""
        try:
            last = self.remote.latest()
        except RemoteError as error:
            self._warn(f"{error}; {folder.name} is copied again")
            last = None
        if last is None or last < step:
            self.add(step, folder)

    def is_waiting(self, step: int) -> bool:
        """Whether a checkpoint is being copied or will be, so that it must not be deleted."""
        with self._changed:
            return any(step == waiting for waiting, _ in self._waiting)

    def wait(self) -> None:
        """Waits until nothing is left to copy; what fails now is tried again without a delay."""
        self._is_ending.set()
        with self._changed:
            if self._waiting:
                self._tell(f"copying {self._waiting[-1][1].name} to {self.remote.address}")
            self._changed.wait_for(lambda: not self._waiting)
        self._is_ending.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                step, folder = self._waiting[0]
            try:
                self._copy(step, folder)
            except Exception as error:  # a bug here must not make a run wait forever
                self._warn(f"{folder}: was not copied ({type(error).__name__})")
            finally:
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()

    def _copy(self, step: int, folder: Path) -> None:
        done: set[str] = set()
        for attempt, delay in enumerate((*self._delays_s, None), 1):
            try:
                self.remote.upload(step, folder, done=done)
            except RemoteError as error:
                after = "trying again" if delay is not None else f"{folder} is complete; copy it"
                self._warn(f"attempt {attempt} to copy {folder.name} failed: {error}; {after}")
            else:
                self._tell(f"copied {folder.name} to {self.remote.address}")
                return
            if delay is not None:
                self._is_ending.wait(delay)


def open_copies(config: RunConfig, *, step: int, warn: Tell, tell: Tell) -> BackgroundCopies | None:
    """Opens the address of ``save_copy``; all ranks call it.

    Args:
        config: The resolved configuration.
        step: Iteration at which the run begins.
        warn: Called by a thread with a message when an attempt to copy has failed.
        tell: Called by a thread with a message when a checkpoint has been copied.

    Returns:
        The copies on rank 0; None on others, and if nothing is copied.

    Raises:
        CheckpointError: On every rank, if the address cannot be read, or has checkpoints that the
            run would replace.
    """
    address, saving = config.saving.save_copy, config.saving
    if address is None:
        return None
    goes_back = saving.iteration == 0 and not saving.finetune and _loads_what_it_saves(config)
    copies: list[BackgroundCopies] = []

    def open_first() -> None:
        remote = RemoteFolder("save_copy", address)
        last = remote.latest() or 0
        if step == 0 and last > 0 and not goes_back:
            raise RemoteError(
                f"save_copy: {address} contains checkpoints up to iteration {last}, which this run "
                "would replace, because it begins at iteration 0; set load to the address to "
                "continue them, or name another one"
            )
        copies.append(BackgroundCopies(remote, warn=warn, tell=tell))

    _on_first_rank(open_first)
    return copies[0] if copies else None


def fetch_checkpoint(config: RunConfig, tell: Tell, *, for_training: bool = False) -> None:
    """Copies the checkpoint that an address in ``load`` has into ``load_path``; all ranks call it.

    What is newer on this machine is used as it is: a run may have ended before it was copied.

    Args:
        config: The resolved configuration.
        tell: Prints a message for the user, on rank 0.
        for_training: Whether this process has locked ``save`` and will copy checkpoints to
            ``save_copy``, which is then tried.

    Raises:
        CheckpointError: On every rank, if an address is wrong, or has no checkpoint and the run may
            not begin without.
    """

    def fetch() -> None:
        if for_training and config.saving.save_copy is not None:
            RemoteFolder("save_copy", config.saving.save_copy).check_writable()
        if config.saving.load_copy is not None and config.saving.load_path is not None:
            _fetch(config, tell, is_locked=for_training and _loads_what_it_saves(config))

    if config.saving.save_copy is not None or config.saving.load_copy is not None:
        _on_first_rank(fetch)


def _fetch(config: RunConfig, tell: Tell, *, is_locked: bool) -> None:
    address, folder = config.saving.load_copy, Path(config.saving.load_path or "")
    assert address is not None
    remote, step = RemoteFolder("load", address), config.saving.iteration
    here, newest = checkpoint_steps(folder), latest_step(folder)
    if step is None:
        step = remote.latest()
        if newest in here and newest is not None and newest >= (step or 0):
            tell(f"load: {step_folder(folder, newest)} is used; {address} has nothing newer")
            return
    elif step in here:
        return
    if step is None:
        if _loads_what_it_saves(config):
            return
        raise RemoteError(f"load: no checkpoint at {address}; correct the address or remove load")
    with contextlib.ExitStack() as held:
        if not is_locked:
            held.enter_context(lock_save_folder(folder))
        tell(f"load: copying global_step{step} from {address} to {folder}")
        remote.download(step, folder)


def _loads_what_it_saves(config: RunConfig) -> bool:
    save, load = config.saving.save_path, config.saving.load_path
    return save is not None and load is not None and is_same_path(save, load)


def _on_first_rank(action: Callable[[], None]) -> None:
    """Runs ``action`` on rank 0; raises its error on every rank."""
    errors = (RemoteError, CheckpointError, OSError)
    problem = problem_of(action, errors=errors) if dist.get_rank() == 0 else None
    if first := agree(problem):
        raise CheckpointError(first)
