#!/usr/bin/env python
"""Trains several configurations one after the other in one group of processes.

    python -m torch.distributed.run --nproc_per_node 2 -m tools.benchmark.many_runs a.yml b.yml

Starting processes takes longer than a short run, so matrices of layouts use this.
"""

from __future__ import annotations

import argparse

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.runtime.entry_point import run_program
from megatron.runtime.initialize import initialize_megatron, prepare_process, shutdown


def train_all(files: list[str]) -> None:
    """Trains each configuration to its end; all ranks call it."""
    from megatron.training import pretrain

    for file in files:
        config = resolve(NeoXArgs.from_ymls([file]))
        initialize_megatron(config, handle_signals=False)
        pretrain(config)
    shutdown()


def main(files: list[str]) -> None:
    """Trains ``files`` in a process that has been prepared for training."""
    prepare_process()
    train_all(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="CONFIG", help="one complete run each")
    arguments = parser.parse_args()
    run_program(lambda: main(arguments.files))
