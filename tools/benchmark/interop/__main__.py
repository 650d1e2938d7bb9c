#!/usr/bin/env python
"""Prints the interop matrix: families x layouts x directions, with the largest logit difference.

    python -m tools.benchmark.interop
    python -m tools.benchmark.interop --networks llama mistral --layouts "one process" tp2
    python -m tools.benchmark.interop --layouts "one process" --venv folder

A tiny network of each family, with weights far from their first values, is trained for an iteration
and saved on each layout, exported, compared with transformers, and imported again. In the other
direction, a model that transformers made is imported, compared and exported again. With --venv,
transformers 4 in an environment of its own computes the exports of one process too, and saves them
to be imported; the environment is made with pip unless it is there. At the end, a line per family
has its number of rows and the largest difference. The exit code is 1 unless all logits agree to
1e-4 and all ways back give the same bits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron.launcher.rendezvous import LOOPBACK, reserve_port
from megatron.runtime.process_life import PARENT_VARIABLE
from odm.text_table import aligned
from tools.benchmark.synthetic_run import write_random_domains
from tools.benchmark.transformers_4 import python_with_transformers_4, their_result
from tools.hf.verification import MAX_TOKENS

from .checks import (
    TOLERANCE,
    Row,
    check_export,
    check_import,
    import_model,
    our_logits,
    same_parameters,
    write_their_model,
)
from .networks import NETWORKS, VOCAB_SIZE, fields_of, network_shape, write_network, write_tokenizer

REPOSITORY = Path(__file__).resolve().parents[3]

ONE_PROCESS = "one process"
VERSION_4 = "to transformers 4 and back"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    ONE_PROCESS: (1, {}),
    "tp2": (2, {"model_parallel_size": 2}),
    "pp2": (2, {"pipe_parallel_size": 2}),
    "tp2 pp2": (4, {"model_parallel_size": 2, "pipe_parallel_size": 2}),
    "zero1": (2, {"zero_optimization": {"stage": 1}}),
    "zero3": (2, {"zero_optimization": {"stage": 3}}),
}
"""{name: (processes, settings)}"""

_TRAINING: dict[str, Any] = {
    "train_iters": 1,
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01}},
    "lr_decay_style": "constant",
    "mixed_minibatches": True,
    "use_named_train_datasets": True,
    "data_sampling_method": "smoothed_mean",
    "eval_interval": 1000,
    "checkpoint_factor": 1000,
    "finetune": True,
}

Line = tuple[str, str, Row]
"""Network, layout, and what was found."""


def matrix(folder: Path, networks: Sequence[str], layouts: Sequence[str]) -> Iterator[Line]:
    """Yields the rows of all networks on all layouts; ``folder`` must be empty."""
    tokenizer_file = folder / "tokenizer.json"
    write_tokenizer(tokenizer_file)
    starts = {
        name: write_network(folder / name / ONE_PROCESS, fields_of(NETWORKS[name], tokenizer_file))
        for name in networks
    }
    for layout in layouts:
        if layout != ONE_PROCESS:
            _train(folder, starts, layout)
        for name, start in starts.items():
            family, place = NETWORKS[name].family, folder / name / layout
            source = start if layout == ONE_PROCESS else place / "global_step1"
            yield name, layout, check_export(source, place / "export", family)
            if layout == ONE_PROCESS:
                write_their_model(place / "theirs", start, family, tokenizer_file)
                yield name, layout, check_import(place / "theirs", place / "import")


def _train(folder: Path, starts: dict[str, Path], layout: str) -> None:
    """Trains all networks on a layout, one after the other in the same processes."""
    processes, settings = LAYOUTS[layout]
    data = folder / "data"
    if not data.exists():
        write_random_domains(data, num_domains=2, tokens_each=4000, vocab_size=VOCAB_SIZE)
    paths = sorted(str(path.with_suffix("")) for path in data.rglob("*.idx"))
    files = []
    for name, start in starts.items():
        place = folder / name / layout
        place.mkdir(parents=True)
        config = {
            **fields_of(NETWORKS[name], folder / "tokenizer.json"),
            **_TRAINING,
            **settings,
            "global_num_gpus": processes,
            **{f"{split}_data_paths": paths for split in ("train", "valid", "test")},
            "data_cache_dir": str(folder / "cache"),
            "load": str(start.parent),
            "save": str(place),
        }
        files.append(place / "run.yml")
        files[-1].write_text(yaml.safe_dump(config), encoding="utf-8")
    _run_ranks(processes, files, layout)


def _run_ranks(processes: int, files: Sequence[Path], layout: str) -> None:
    """Runs `train_files` on each rank; ends this program if one fails."""
    command = [sys.executable, "-m", "tools.benchmark.interop", "--train", *map(str, files)]
    holder, port = reserve_port(None, print)
    with holder, tempfile.TemporaryFile("w+") as output:
        ranks = [
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    **{"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
                    **{"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)},
                    PARENT_VARIABLE: str(os.getpid()),
                },
                stdout=output,
                stderr=output,
            )
            for rank in range(processes)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            output.seek(0)
            raise SystemExit(f"{layout}: training ended with {codes}:\n{output.read()[-4000:]}")


def train_files(files: Sequence[str]) -> None:
    """What a rank does: trains each file's run, one after the other."""
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron, shutdown
    from megatron.training import pretrain

    for file in files:
        config = resolve(NeoXArgs.from_ymls([file]))
        initialize_megatron(config, handle_signals=False)
        pretrain(config)
    shutdown()


def transformers_4_rows(folder: Path, networks: Sequence[str], venv: Path) -> Iterator[Line]:
    """Yields a row for each export of one process that `matrix` left in ``folder``.

    Transformers 4 loads the export, computes logits and saves the model; that folder is imported.
    """
    python = python_with_transformers_4(venv)
    for name in networks:
        place = folder / name / ONE_PROCESS
        shape = network_shape(fields_of(NETWORKS[name], folder / "tokenizer.json"))
        num_tokens = min(MAX_TOKENS, shape.max_position_embeddings)
        saved, source = place / "saved_by_4", place / "global_step0"
        theirs = their_result(python, place / "export/hf", num_tokens, folder, saved=saved)
        ours = our_logits(source, theirs["tokens"])
        difference = (ours - theirs["logits"]).abs().max().item()
        is_equal = same_parameters(source, import_model(saved, place / "back_from_4"))
        yield name, ONE_PROCESS, Row(VERSION_4, difference, ours.std().item(), is_equal)


def _cells(line: Line) -> tuple[str, ...]:
    name, layout, row = line
    is_equal = "yes" if row.is_equal else "NO"
    return name, layout, row.direction, f"{row.difference:.1e}", f"{row.spread:.2g}", is_equal


def _print_table(lines: Sequence[Line]) -> None:
    import transformers

    header = ("network", "layout", "direction", "max difference", "logits' spread", "bytes equal")
    print("\n".join(aligned([header, *map(_cells, lines)])))
    print()
    print("\n".join(aligned([("family", "rows", "max difference"), *_by_family(lines)])))
    wrong = [line for line in lines if not line[2].is_right]
    print(
        f"transformers {transformers.__version__}: {len(lines)} rows, {len(wrong)} wrong "
        f"(logits beyond {TOLERANCE:g}, or other bits)"
    )


def _by_family(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """Family, number of rows, largest difference."""
    for family in dict.fromkeys(network.family for network in NETWORKS.values()):
        rows = [row for name, _, row in lines if NETWORKS[name].family == family]
        if rows:
            yield family, str(len(rows)), f"{max(row.difference for row in rows):.1e}"


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        description="Print families x layouts x directions with the largest logit difference."
    )
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--layouts", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--venv", help="environment of transformers 4 (default: not compared)")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where everything agrees."""
    args = get_parser().parse_args(input_args)
    if args.train:
        train_files(args.train)
        return 0
    layouts = args.layouts
    if args.venv and ONE_PROCESS not in layouts:
        layouts = [ONE_PROCESS, *layouts]
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for line in matrix(folder, args.networks, layouts):
            lines.append(line)
            print(", ".join(_cells(line)), flush=True)
        if args.venv:
            for line in transformers_4_rows(folder, args.networks, Path(args.venv).absolute()):
                lines.append(line)
                print(", ".join(_cells(line)), flush=True)
    _print_table(lines)
    return 0 if all(row.is_right for _, _, row in lines) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
