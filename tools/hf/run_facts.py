"""What a finished run tells about a model: data, mixture, losses and how it was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpoint.format import CheckpointReader, read_content, read_resolved_config
from megatron.checkpoint.schema import CONFIGS, RUN_FILES
from megatron.reporting.run_log import read_run_log
from tools.checkpoints.single_process import find_source

__all__ = ["DomainFacts", "RunFacts", "read_run"]


@dataclass(frozen=True, kw_only=True)
class DomainFacts:
    """One domain; fields are None if the run does not tell."""

    name: str
    weight: float | None = None
    """Its probability in the next iteration."""
    share: float | None = None
    """Its share of all samples drawn so far."""
    epochs: float | None = None
    """Passes over its data."""
    loss: float | None = None
    """Held-out loss, nats per token."""
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run up to one of its checkpoints."""

    iteration: int
    num_parameters: int
    num_tokens: int
    domains: tuple[DomainFacts, ...]
    validation_iteration: int | None
    """Iteration of the losses; None if the run log has no validation up to `iteration`."""
    mixture: Mapping[str, Any]
    """Configuration of the mixture; empty if the checkpoint has none."""
    settings: Mapping[str, Mapping[str, Any]]
    """The resolved configuration, section by section; empty if the checkpoint has none."""
    config_names: tuple[str, ...]
    """Names of the configuration files of the run, YAML and JSON, in the order of its command."""

    def setting(self, section: str, field: str) -> Any:
        """A value of the resolved configuration, or None."""
        return self.settings.get(section, {}).get(field)


def read_run(run: Path, iteration: int | None = None) -> RunFacts:
    """Reads a checkpoint's own files and the run log beside it.

    Args:
        run: Folder of the run (its latest checkpoint, or ``iteration``), or a ``global_step<N>``.
        iteration: Which checkpoint; not given: the latest.

    Raises:
        CheckpointError: If there is no such checkpoint or it cannot be read.
        ValueError: If the run log is damaged.
    """
    folder = find_source(run, iteration)
    state, mixture = (read_content(folder, name) for name in RUN_FILES)
    counters, mixture = state["counters"], mixture or {}
    settings = read_resolved_config(folder) or {}
    step = counters["step"]
    events = _events(folder, settings, step)
    validations = [event for event in events if event["event"] == "validation"]
    validation = validations[-1] if validations else {}
    shapes = [info.shape for info in CheckpointReader(folder).parameters.values()]
    return RunFacts(
        iteration=step,
        num_parameters=sum(math.prod(shape) for shape in shapes),
        num_tokens=counters["consumed_tokens"],
        domains=_domains(mixture, events, validation.get("domains", {})),
        validation_iteration=validation.get("iteration"),
        mixture=mixture.get("configuration", {}),
        settings=settings,
        config_names=_config_names(folder / CONFIGS, state.get("config_files", ())),
    )


def _config_names(folder: Path, in_order: Sequence[str]) -> tuple[str, ...]:
    """Files of the run, in the order of its command line if the checkpoint tells it."""
    names = {path.name for path in folder.glob("*")} - {"resolved.json"}
    return tuple(dict.fromkeys([*(n for n in in_order if n in names), *sorted(names)]))


def _domains(
    mixture: Mapping[str, Any], events: list[dict[str, Any]], held_out: Mapping[str, Any]
) -> tuple[DomainFacts, ...]:
    """Trained domains in the order of the mixture, then those that were only evaluated."""
    names = mixture.get("configuration", {}).get("domains", [])
    weights = dict(zip(names, mixture.get("weights", []), strict=False))
    samples = dict(zip(names, mixture.get("cursors", []), strict=False))
    total = sum(samples.values())
    epoch_sizes: dict[str, int] = next(
        (e["samples_per_epoch"] for e in reversed(events) if e.get("samples_per_epoch")), {}
    )
    return tuple(
        DomainFacts(
            name=name,
            weight=weights.get(name),
            share=samples[name] / total if name in samples and total else None,
            epochs=samples[name] / epoch_sizes[name]
            if name in samples and epoch_sizes.get(name)
            else None,
            loss=held_out.get(name, {}).get("loss"),
            bits_per_byte=held_out.get(name, {}).get("bits_per_byte"),
        )
        for name in dict.fromkeys((*names, *held_out))
    )


def _events(folder: Path, settings: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """Events up to ``step`` of the run log, which is in the run's folder or elsewhere."""
    logged = settings.get("logging", {}).get("log_dir")
    for place in (folder.parent, *([Path(logged)] if logged else [])):
        try:
            events = read_run_log(place)
        except FileNotFoundError:
            continue
        return [event for event in events if event.get("iteration", 0) <= step]
    return []
