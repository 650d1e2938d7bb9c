#!/usr/bin/env python
"""Writes a run's average weights as a static configuration, the control of every mixing method.

    python tools/freeze_mixture.py checkpoints/first -o static.yml
    ./deepy.py train.py static.yml

A run may gain only because its average weights are better, not because they moved. The static run
has the same data, seed, order of documents and schedule, and draws each domain with its share of
the samples that the run really drew. ``--uniform`` and ``--natural`` write the twins with equal
weights and with weights in proportion to the sizes of the domains.

The file is whole: it contains everything that the run's own files said. What changes is the method,
the weights, and the folders that the run writes to. Only the checkpoint is read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import yaml

from megatron.checkpoint.format import checkpoint_steps, read_content, read_resolved_config
from megatron.checkpoint.schema import CONFIGS, RUN_FILES
from megatron.errors import CheckpointError, UserError
from megatron.files import describe_error, is_same_path, write_text_atomic
from megatron.launcher.path_argument import path_argument
from megatron.neox_arguments import NeoXArgs, Purpose, RunConfig, resolve
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.schema import read_files
from megatron.neox_arguments.secrets import REDACTED
from odm.wording import counted, shown
from tools.checkpoints.single_process import find_source

KINDS = {
    "frozen": "the run's average weights",
    "uniform": "equal weights",
    "natural": "weights in proportion to the sizes of the domains",
}
"""Kind of control, which ends the name of its save folder -> its weights."""

_KEPT = (
    *("data_sampling_stratified", "data_sampling_min_weight", "data_sampling_max_weight"),
    *("data_sampling_max_epochs", "data_sampling_groups", "mixed_batches", "mixed_minibatches"),
)
"""Keys of mixing that also apply to constant weights: how domains are drawn, and the limits."""

_LEFT_OUT = ("weight_by_num_documents", "weighted_sampler_alpha", "iteration")
_NEW_PLACES = ("log_dir", "tensorboard_dir", "wandb_run_name")
"""What two runs must not share; gets the kind of the control as an ending."""

_FLAGS = (
    *("hostfile", "wandb_group", "wandb_run_name", "wandb_team"),
    *("eval_tasks", "trust_task_code"),
)
"""Keys that a command line may set beside the files, and that matter to how a run is trained."""

_DECISIVE = ("model", "batch", "precision", "optimizer", "schedule", "data", "mixing")
"""Sections that decide what a run learns."""


@dataclass(frozen=True)
class FinishedRun:
    """What a checkpoint knows of the run that saved it."""

    folder: Path
    values: Mapping[str, Any]
    """What its configuration files and its command line said, by key."""
    config: RunConfig
    """The same, resolved by this version of the program."""
    stored: Mapping[str, Any]
    """The configuration as the run resolved it, section by section."""
    world_size: int | None
    iteration: int
    method: str
    drawn: Mapping[str, int]
    """Samples drawn from each domain, in the order of the paths."""
    sizes: Mapping[str, int]
    """Samples per epoch of each domain; all 0 if an early version saved the checkpoint."""
    initial: tuple[float, ...]
    """The run's own weights as it understood them, in the order of the paths."""


def read_run(path: Path, iteration: int | None = None) -> FinishedRun:
    """Reads a run's newest checkpoint, or that of an iteration.

    Raises:
        UserError: If there is no checkpoint, or it has no configuration files or no domains.
    """
    folder = find_source(path, iteration)
    state, mixture = (read_content(folder, name) for name in RUN_FILES)
    stored = read_resolved_config(folder)
    names = state.get("config_files") or []
    if stored is None or not names:
        raise CheckpointError(
            f"{folder}/{CONFIGS}: has no configuration files, so there is nothing to copy; a run "
            "that was started with YAML files has them"
        )
    kept = {path.name: path for path in (folder / CONFIGS).iterdir()}
    missing = [name for name in names if name not in kept]
    if missing:
        raise CheckpointError(
            f"{folder}/{CONFIGS}: lacks {shown(missing[0])}, which state.json names; the "
            "checkpoint is damaged"
        )
    values = dict(read_files([kept[name] for name in names]).values)
    values |= {key: value for key, value in _flags(stored).items() if key not in values}
    world_size = stored.get("layout", {}).get("world_size")
    world_size = world_size if type(world_size) is int and world_size > 0 else None
    config = _resolved(values, world_size)
    domains = config.data.train_domains
    if mixture is None:
        raise CheckpointError(f"{folder}/mixture.json: is null; it does not tell what was drawn")
    if len(domains) < 2:
        raise UserError(
            f"{folder}: the run has {counted(len(domains), 'named domain')}, mixing needs at least "
            "2; see train_data_paths and use_named_train_datasets"
        )
    configuration = mixture["configuration"]
    drawn = dict(zip(configuration["domains"], mixture["cursors"], strict=True))
    sizes = state.get("samples_per_epoch") or dict.fromkeys(domains, 0)
    if not set(drawn) == set(sizes) == set(domains):
        raise CheckpointError(
            f"{folder}: mixture.json and state.json have the domains {sorted({*drawn, *sizes})}, "
            f"the files in {CONFIGS} {sorted(domains)}; they belong to different checkpoints"
        )
    raw = configuration.get("initial_weights", [1.0] * len(domains))
    weights = dict(zip(configuration["domains"], raw, strict=True))
    return FinishedRun(
        folder=folder,
        values=values,
        config=config,
        stored=stored,
        world_size=world_size,
        iteration=state["counters"]["step"],
        method=configuration["method"],
        drawn={name: drawn[name] for name in domains},
        sizes={name: sizes[name] for name in domains},
        initial=tuple(weights[name] for name in domains),
    )


def control_weights(run: FinishedRun, kind: str) -> list[float]:
    """The weights of a control, one per domain.

    Raises:
        UserError: If the run has none of this kind.
    """
    if kind == "uniform":
        return [1.0] * len(run.drawn)
    if kind == "natural" and not all(run.sizes.values()):
        raise CheckpointError(
            f"{run.folder}: state.json has no samples_per_epoch, an early version wrote it; "
            "--natural needs a newer checkpoint"
        )
    if kind == "frozen" and run.method == "static":
        raise UserError(
            f"{run.folder}: the weights of this run are static already; to compare it with others, "
            "use --uniform or --natural"
        )
    counts = list((run.sizes if kind == "natural" else run.drawn).values())
    if not sum(counts):
        raise UserError(
            f"{run.folder}: nothing has been drawn up to iteration {run.iteration}; freeze a later "
            "checkpoint"
        )
    return [count / sum(counts) for count in counts]


def control_values(run: FinishedRun, kind: str, *, save: str | None = None) -> dict[str, Any]:
    """The configuration of a control, by key.

    Args:
        run: The run to control.
        kind: One of `KINDS`.
        save: Its folder for checkpoints; None: that of the run with the kind as an ending.

    Raises:
        UserError: If there are no such weights, or the folder has checkpoints.
    """
    weights = control_weights(run, kind)
    folder = f"{run.config.saving.save_path}-{kind}" if save is None else save
    places = (Path(folder), *Path(folder).parents)
    if not folder.strip() or any(place.exists() and not place.is_dir() for place in places):
        raise _no_folder(folder)
    if checkpoint_steps(Path(folder)):
        raise UserError(f"{folder}: contains checkpoints; name another folder with --save")
    values = {
        key: value
        for key, value in run.values.items()
        if key not in _LEFT_OUT and (field_table()[key].section != "mixing" or key in _KEPT)
    }
    values["data_sampling_method"] = "static"
    values["train_data_weights"] = weights
    values["save"] = folder
    if values.get("load") and not values.get("finetune"):
        values["load"] = folder  # an empty one is a fresh start; a killed control continues
    values |= {key: f"{values[key]}-{kind}" for key in _NEW_PLACES if values.get(key)}
    config = _resolved(values, run.world_size)
    for split in ("valid", "test"):  # documents split off are weighted as those of training
        before, now = (getattr(c.data, f"{split}_weights") for c in (run.config, config))
        if before != now and not config.data.use_named_eval_datasets:
            values[f"{split}_data_weights"] = list(before or run.initial)  # empty: from a rule
    _resolved(values, run.world_size)  # raises an error rather than write what cannot be trained
    return values


def _no_folder(save: str) -> UserError:
    return UserError(f"--save: {shown(save)} is no folder; name one for the checkpoints")


def changed_settings(run: FinishedRun) -> list[str]:
    """Settings whose meaning has changed since the run, as ``section.field``.

    Its files then do not say what the run was: another version of this program had other defaults.
    """
    now = json.loads(json.dumps(run.config.to_dict()))
    return [
        f"{section}.{name}"
        for section in _DECISIVE
        for name, value in now[section].items()
        if value != run.stored.get(section, {}).get(name, value)
    ]


def _flags(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line of the run may have said beside its files."""
    values = {}
    for key in _FLAGS:
        field = field_table()[key]
        value = stored.get(field.section, {}).get(field.answer)
        if value and value != field.default:
            values[key] = value
    return values


def _resolved(values: Mapping[str, Any], world_size: int | None) -> RunConfig:
    return resolve(NeoXArgs.from_dict(values), world_size, purpose=Purpose.TRAINING)


def _text(values: Mapping[str, Any], run: FinishedRun, kind: str, output: Path) -> str:
    comments = (
        f"A control of the run in {run.folder.parent.name}: {KINDS[kind]}.",
        f"Written by tools/freeze_mixture.py from its checkpoint of iteration {run.iteration}.",
        f"Train it with: ./deepy.py train.py {output.name}",
    )
    lines = [  # a name may contain the end of a line, which would end the comment
        "".join(letter if letter.isprintable() else "?" for letter in comment)
        for comment in comments
    ]
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
        dict(values), sort_keys=False, allow_unicode=True, width=100
    )


def _table(run: FinishedRun, weights: Sequence[float]) -> list[str]:
    total, width = sum(weights), max(map(len, run.drawn))
    lines = [f"{'domain'.ljust(width)}  weight  drawn by the run"]
    for (name, count), weight in zip(run.drawn.items(), weights, strict=True):
        lines.append(f"{name.ljust(width)}  {weight / total:6.4f}  {count:,} samples")
    return lines


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        description="Write a run's average weights as a static configuration."
    )
    parser.add_argument(
        "run", type=path_argument, help="save folder of a run, or a global_step<N> in it"
    )
    parser.add_argument(
        "-o", "--output", type=path_argument, help="YAML file to write (static.yml)"
    )
    kind = parser.add_mutually_exclusive_group()
    for flag in ("--uniform", "--natural"):
        name = flag.lstrip("-")
        kind.add_argument(
            flag, dest="kind", action="store_const", const=name, help=f"use {KINDS[name]}"
        )
    parser.add_argument("--save", help="save folder of the new run (default: the run's + the kind)")
    parser.add_argument("--iteration", type=int, help="checkpoint to read (default: the latest)")
    parser.set_defaults(kind="frozen")
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = get_parser().parse_args(input_args)
    output = args.output or Path("static.yml" if args.kind == "frozen" else f"{args.kind}.yml")
    try:
        if os.path.lexists(output):  # also a link to nothing, which would be replaced
            raise UserError(f"{output}: exists already; remove it or name another file with -o")
        run = read_run(args.run, args.iteration)
        values = control_values(run, args.kind, save=args.save)
        if is_same_path(output, values["save"]):
            raise _no_folder(values["save"])
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(output, _text(values, run, args.kind, output))
    except (UserError, OSError) as error:
        print(f"freeze_mixture.py: {describe_error(error)}", file=sys.stderr)
        return 2
    for line in _table(run, values["train_data_weights"]):
        print(line)
    last = run.config.schedule.train_iters
    if args.kind == "frozen" and run.iteration < last:
        print(
            f"note: the average is that of {run.iteration} of the run's "
            f"{counted(last, 'iteration')}"
        )
    saving = run.config.saving
    is_own = saving.load_path is None or is_same_path(saving.load_path, saving.save_path or "")
    if not (is_own or saving.finetune):
        print(f"note: the run continued one of {saving.load_path}; this one begins at iteration 0")
    for name in changed_settings(run):
        print(f"note: {name} had another value in the run; check it in {output}")
    if REDACTED in yaml.safe_dump(values):
        print(f"note: checkpoints have no secrets; write those of {output} yourself ({REDACTED})")
    print(f"wrote {output}; its checkpoints go to {values['save']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
