#!/usr/bin/env python
"""Trains a model: ``./deepy.py train.py model.yml data.yml``; runs under torchrun and alone too."""

from __future__ import annotations

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.neox_arguments import NeoXArgs, require_training_data, resolve
from megatron.runtime.entry_point import run_program
from megatron.runtime.initialize import initialize_megatron, prepare_process, shutdown


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> None:
    """Reads the configuration and trains.

    Args:
        input_args: Command line without the program's name; None reads ``sys.argv``.
        overwrite_values: Fields that win over the files.
    """
    prepare_process()
    neox_args = NeoXArgs.consume_neox_args(overwrite_values=overwrite_values, input_args=input_args)
    config = resolve(neox_args)
    require_training_data(config)
    from megatron.training import pretrain  # imports torch: errors above need not wait for it

    initialize_megatron(config)
    pretrain(config)
    shutdown()


if __name__ == "__main__":
    run_program(main)
