"""Encodes batches in several processes, with the results in order.

Each worker process has a pipe of its own, and a thread here that feeds it. A worker that dies
closes its pipe, so nobody waits for it; a worker whose parent dies reads the end of its pipe and
exits.
(`concurrent.futures.ProcessPoolExecutor` shares one queue: a worker that is killed while it reads
leaves a lock behind, and the run hangs.)
"""

import contextlib
import multiprocessing
import os
import queue
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from megatron.tokenizer.errors import DocumentError
from tools.datasets.encoding import Batch, EncodedTexts, Encoder, EncoderSettings

BATCHES_IN_FLIGHT_PER_WORKER = 3
"""Enough that no worker waits for the reader, few enough that memory stays small."""

SECONDS_TO_LEAVE = 5.0

Encoded = tuple[EncodedTexts, ...]


def encode_in_order(
    batches: Iterable[Batch], encoder: Encoder, *, settings: EncoderSettings, workers: int
) -> Generator[Encoded, None, None]:
    """Encodes batches; the results come in the order of the batches for any number of workers.

    Args:
        batches: Read as a stream, a few batches ahead.
        encoder: Used directly where one process is enough.
        settings: Settings from which the workers build their own encoders.
        workers: Number of processes that tokenize; 1 means this one.

    Raises:
        DocumentError: A worker died (out of memory, or killed).
    """
    if workers <= 1:
        yield from map(encoder.encode, batches)
        return
    with _WorkerPool(settings, workers) as pool:
        waiting: deque[Future[Encoded]] = deque()
        for batch in batches:
            waiting.append(pool.submit(batch))
            if len(waiting) >= workers * BATCHES_IN_FLIGHT_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _WorkerPool:
    """Worker processes, each behind a pipe; leaving the context ends them at once."""

    def __init__(self, settings: EncoderSettings, workers: int):
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._processes: list[BaseProcess] = []
        self._threads = ThreadPoolExecutor(workers)
        context = multiprocessing.get_context("spawn")
        try:
            with _interrupts_blocked():
                for _ in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
                    process.start()
                    self._processes.append(process)
                    theirs.close()  # the worker's end is then the only one: its death is seen
                    self._free.put(ours)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, batch: Batch) -> "Future[Encoded]":
        return self._threads.submit(self._encode, batch)

    def _encode(self, batch: Batch) -> Encoded:
        worker = self._free.get()  # there are as many threads as workers: never waits
        try:
            worker.send(batch)
            result = worker.recv()
        except (EOFError, OSError) as error:
            raise DocumentError(
                "a worker process died, perhaps for lack of memory; try fewer --workers"
            ) from error
        finally:
            self._free.put(worker)
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        for process in self._processes:
            process.terminate()  # also ends the threads that wait for an answer
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.join(SECONDS_TO_LEAVE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes = []
        while not self._free.empty():
            self._free.get().close()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Child processes started here ignore Ctrl-C, even while they import; the parent handles it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start, inside ours, would let interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(parent: Connection, settings: EncoderSettings) -> None:
    """Answers batches until the pipe ends; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # N workers use N cores
    encoder: Encoder | None = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            batch = parent.recv()
            result: Encoded | Exception
            try:
                encoder = encoder or Encoder(settings)
                result = encoder.encode(batch)
            except Exception as error:
                result = error
            parent.send(result)
