"""Everything that a run reports: the run log, the console, TensorBoard, Weights & Biases.

Rank 0 writes; on other ranks every method returns at once. The run log is written first, and always
if the run has a log folder. If a writer fails, one warning reports it, and training continues
without the writer.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron.neox_arguments import ConfigError
from megatron.reporting.records import TrainRecord, train_scalars
from megatron.reporting.run_log import RUN_LOG_NAME, RunLogFile, read_run_log
from megatron.reporting.writers import (
    ConsoleWriter,
    ScalarWriter,
    TensorBoardWriter,
    WandbWriter,
    has_wandb_key,
)

__all__ = ["RunLogger", "print_rank_0", "read_run_log"]

logger = logging.getLogger(__name__)


class RunLogger:
    """Writes the events of a run, on rank 0."""

    def __init__(
        self,
        config: Any,
        rank: int,
        *,
        train_iters: int | None = None,
        flops_per_token: float | None = None,
        device_kind: str = "GPU",
        peak_flops: float | None = None,
        console: ConsoleWriter | None = None,
        keeps_log: bool = True,
    ) -> None:
        """Opens the run log; the other writers open at `start` or `resume`.

        Args:
            config: The resolved configuration; ``logging`` and ``layout`` are used.
            rank: Global rank of this process; only rank 0 writes.
            train_iters: Last iteration, for the console's ``n/N`` and the remaining time.
            flops_per_token: From ``megatron.sizing.flops``; without it no FLOPS are logged.
            device_kind: Kind of device that a rank computes on, for the console.
            peak_flops: Peak operations per second of a device; without it no MFU is logged.
            console: Stream to print to instead of standard output.
            keeps_log: False only prints; for programs that use a run but are not one.

        Raises:
            ConfigError: If the log folder cannot be written.
        """
        self._config = config
        self._is_writer = rank == 0
        self._train_iters = train_iters
        self._flops_per_token = flops_per_token
        self._device_kind = device_kind
        self._peak_flops = peak_flops
        self._console = console or ConsoleWriter()
        self._console.on_failure = self._note_silent_console
        self._began = time.perf_counter()
        self._file: RunLogFile | None = None
        self._writers: list[ScalarWriter] = []
        folder = config.logging.log_dir
        if self._is_writer and keeps_log and folder is not None:
            try:
                self._file = RunLogFile(Path(folder) / RUN_LOG_NAME)
            except OSError as error:
                raise ConfigError(
                    f"log_dir: cannot write the run log in {folder} ({error.strerror}); set "
                    "log_dir or save to a writable folder"
                ) from None

    def start(self, info: Mapping[str, Any]) -> None:
        """Logs that training begins at iteration 0; ``info`` describes the run."""
        self._open_writers(0)
        self._append({"event": "start", "iteration": 0, "time": time.time(), **info})

    def resume(self, iteration: int, info: Mapping[str, Any] | None = None) -> None:
        """Logs that training continues after ``iteration``; lines beyond it no longer count."""
        self._open_writers(iteration)
        self._append(
            {"event": "resume", "iteration": iteration, "time": time.time(), **(info or {})}
        )

    def join(self) -> None:
        """Opens the writers for a program that adds results to a run without training it.

        Existing curves of the run are kept, and Weights & Biases gets a separate run.
        """
        self._open_writers(0, wandb_folder="evaluation")

    def train(self, record: TrainRecord) -> None:
        """Logs a training iteration."""
        if not self._is_writer:
            return
        flops_per_second = None
        if self._flops_per_token is not None:
            flops_per_second = (
                record.tokens_per_second * self._flops_per_token / self._config.layout.world_size
            )
            if self._peak_flops is not None:
                record = dataclasses.replace(record, mfu=flops_per_second / self._peak_flops)
        self._append(record.event())
        if self._writers:
            scalars = train_scalars(record, flops_per_second=flops_per_second)
            self._scalars(record.iteration, scalars)
        self._print_train(record, flops_per_second)

    def update(self, iteration: int, fields: Mapping[str, Any]) -> None:
        """Logs an update of the mixture: the mixer's proposal and what became of it."""
        self._append({"event": "update", "iteration": iteration, **fields})

    def statistics(self, iteration: int, values: Mapping[str, float | Mapping[str, float]]) -> None:
        """Logs the noise scale, and statistics of single parameters.

        Args:
            iteration: Training iterations done.
            values: ``noise_scale`` -> value, or GPT-NeoX's name of a statistic -> parameter ->
                value.
        """
        self._append({"event": "statistics", "iteration": iteration, **values})
        scalars: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                scalars |= {f"{name}/{parameter}": x for parameter, x in value.items()}
            else:
                scalars[f"train/{name}"] = value
        self._scalars(iteration, scalars)

    def evaluation(
        self, split: str, iteration: int, results: Mapping[str, Any], averages: Mapping[str, float]
    ) -> None:
        """Logs losses on held-out data.

        Args:
            split: ``validation``, ``test``, or ``datasets`` for data that are not the run's.
            iteration: Training iterations done.
            results: Domain -> `DomainResult`.
            averages: Name, such as ``avg_lm_loss`` -> value.
        """
        if not self._is_writer:
            return
        domains = {name: dataclasses.asdict(result) for name, result in results.items()}
        self._append(
            {"event": split, "iteration": iteration, "domains": domains, "averages": averages}
        )
        values: dict[str, float] = {f"{split}/{name}": value for name, value in averages.items()}
        for name, result in results.items():
            values[f"{split}/lm_loss/{name}"] = result.loss
            values[f"{split}/lm_loss_ppl/{name}"] = result.perplexity
            if result.standard_error is not None:
                values[f"{split}/lm_loss_standard_error/{name}"] = result.standard_error
            if result.bits_per_byte is not None:
                values[f"{split}/bits_per_byte/{name}"] = result.bits_per_byte
        self._scalars(iteration, values)
        shown = " | ".join(f"{name}: {value:.4f}" for name, value in averages.items())
        tokens = sum(result.num_tokens for result in results.values())
        self._console.table(
            f" {split} at iteration {iteration} on {tokens:,} tokens | {shown}",
            {name: _evaluation_cell(result) for name, result in results.items()},
        )

    def held_out(
        self,
        iteration: int,
        fields: Mapping[str, Mapping[str, float | None]],
        *,
        seconds: float,
        share_of_time: float,
    ) -> None:
        """Logs a measurement of the losses that a mixture learns from.

        Args:
            iteration: Training iterations done.
            fields: Field of `odm.HeldOut` -> domain -> value.
            seconds: Wall time of the measurement.
            share_of_time: This time as a share of it and the steps since the measurement before.
        """
        if not self._is_writer:
            return
        cost = {"seconds": seconds, "share_of_time": share_of_time}
        self._append({"event": "held_out", "iteration": iteration, **cost, **fields})
        losses = {name: v for name, v in fields["mean_loss"].items() if v is not None}
        values = {f"held_out/lm_loss/{name}": loss for name, loss in losses.items()}
        self._scalars(iteration, {**values, "held_out/share_of_time": share_of_time})
        mean = sum(losses.values()) / len(losses)
        self.say(
            f" held-out losses at iteration {iteration} | mean: {mean:.4f} | "
            f"{seconds * 1000:.0f} ms, {share_of_time:.2%} of the training time since the last"
        )

    def tasks(
        self, iteration: int, results: Mapping[str, Mapping[str, float]], *, table: str
    ) -> None:
        """Logs scores on lm-eval tasks.

        Args:
            iteration: Training iterations done.
            results: Task -> metric -> value.
            table: The results as a table, for the console.
        """
        self._append({"event": "tasks", "iteration": iteration, "results": results})
        self._scalars(
            iteration,
            {
                f"test/{task}/{metric}": value
                for task, metrics in results.items()
                for metric, value in metrics.items()
            },
        )
        self.say(f" tasks at iteration {iteration}\n{table}")

    def save(self, iteration: int, folder: str) -> None:
        """Logs a finished checkpoint."""
        self._append({"event": "save", "iteration": iteration, "folder": folder})
        self.say(f" saved {folder}")

    def stop(self, iteration: int, reason: str) -> None:
        """Logs the end of the run, and closes the writers and the run log."""
        self._append(
            {"event": "stop", "iteration": iteration, "reason": reason, "time": time.time()}
        )
        self.say(f" stopped after iteration {iteration}: {reason}")
        self.close()

    def warning(self, message: str, *, iteration: int | None = None) -> None:
        """Logs and prints something that the user should know."""
        where = {} if iteration is None else {"iteration": iteration}
        self._append({"event": "warning", **where, "message": message})
        self.say(f" warning: {message}")

    def say(self, text: str) -> None:
        """Prints a line on rank 0."""
        if self._is_writer:
            self._console.line(text)

    def close(self) -> None:
        """Closes the writers and the run log; may be called twice."""
        writers, self._writers = self._writers, []
        for writer in writers:
            self._guard(writer.name, writer.close)
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _note_silent_console(self, reason: str) -> None:
        message = f"printing to the console failed and is switched off ({reason})"
        self._append({"event": "warning", "message": message})

    def _append(self, event: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.append(event)
        except OSError as error:
            self._close_file()
            self.say(
                f" warning: the run log cannot be written any more ({error.strerror}); "
                "training continues without it"
            )

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._writers = [
            writer
            for writer in self._writers
            if self._guard(writer.name, partial(writer.scalars, iteration, values))
        ]

    def _open_writers(self, iteration: int, *, wandb_folder: str = "") -> None:
        if not self._is_writer or self._writers:
            return
        args = self._config.logging
        if self._config.logging.tensorboard_dir:
            self._open(
                "TensorBoard",
                lambda: TensorBoardWriter(
                    self._config.logging.tensorboard_dir, first_iteration=iteration
                ),
            )
        wants_wandb = (
            has_wandb_key(self._config.logging.wandb_host)
            if self._config.logging.use_wandb is None
            else self._config.logging.use_wandb
        )
        if wants_wandb:
            folder = Path(self._config.logging.log_dir or "wandb") / wandb_folder
            self._open(
                "Weights & Biases",
                lambda: WandbWriter(args, folder=folder, run_config=self._config.to_dict()),
            )

    def _open(self, name: str, make: Callable[[], ScalarWriter]) -> None:
        def add() -> None:
            self._writers.append(make())

        self._guard(name, add)

    def _guard(self, name: str, action: Callable[[], None]) -> bool:
        """Runs ``action`` of a writer; a failure becomes a warning and does not end the run."""
        try:
            action()
        except ImportError as error:
            package = {"TensorBoard": "tensorboard", "Weights & Biases": "wandb"}[name]
            self.warning(f"{name}: {error}; pip install -r requirements/requirements-{package}.txt")
            return False
        except Exception as error:
            self.warning(f"{name} failed and is switched off: {type(error).__name__}: {error}")
            return False
        return True

    def _print_train(self, record: TrainRecord, flops_per_second: float | None) -> None:
        progress = str(record.iteration)
        if self._train_iters:
            left = (self._train_iters - record.iteration) * record.step_seconds
            progress = f"{record.iteration}/{self._train_iters} | time left: {_duration(left)}"
        parts = [
            f"samples/sec: {record.samples_per_second:.3f}",
            f"iteration {progress}",
            f"elapsed time per iteration (ms): {record.seconds * 1000:.1f}",
            f"tokens/sec: {record.tokens_per_second:.0f}",
            f"learning rate: {record.learning_rate:.3E}",
        ]
        if flops_per_second is not None:
            parts.append(
                f"approx flops per {self._device_kind}: {_with_unit(flops_per_second)}FLOPS"
            )
        if record.mfu is not None:
            parts.append(f"MFU: {record.mfu:.1%}")
        parts.append(f"lm_loss: {record.lm_loss:.6E}")
        if record.loss_scale is not None:
            parts.append(f"loss scale: {record.loss_scale:.1f}")
        parts.append(f"number of skipped iterations: {record.skipped_iterations:3d}")
        parts.append(f"number of nan iterations: {record.nan_iterations:3d}")
        self._console.table(
            f" {' | '.join(parts)} |",
            {name: _train_cell(name, record) for name in record.weights},
        )


def print_rank_0(*values: object) -> None:
    """Prints a line on rank 0; before the process group exists, the launcher's RANK decides."""
    if int(os.environ.get("RANK", "0")) == 0:
        ConsoleWriter().line(" ".join(map(str, values)))


def _train_cell(name: str, record: TrainRecord) -> str:
    loss = record.mean_losses.get(name)
    shown_loss = "   -  " if loss is None else f"{loss:6.3f}"
    epochs = record.epochs.get(name)
    shown_epochs = "" if epochs is None else f" {epochs:6.2f} ep"
    return f"{record.weights[name]:6.1%} {shown_loss}{shown_epochs}"


def _evaluation_cell(result: Any) -> str:
    bits = "" if result.bits_per_byte is None else f" {result.bits_per_byte:.3f} bits/byte"
    error = "" if result.standard_error is None else f" +- {result.standard_error:.4f}"
    tokens = f"({result.num_tokens:,} tokens)"
    perplexity = _plain(result.perplexity)
    return f"lm_loss {result.loss:.4f}{error} ppl {perplexity}{bits} {tokens}"


def _plain(value: float) -> str:
    """Four digits or more, without an exponent: 1.234e+04 is hard to compare by eye."""
    return f"{value:.0f}" if 1e3 <= value < 1e9 else f"{value:.4g}"


def _with_unit(value: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.1f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
