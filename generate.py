#!/usr/bin/env python
"""Samples text from a checkpoint: ``./deepy.py generate.py model.yml text_generation.yml``."""

from __future__ import annotations

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.neox_arguments import NeoXArgs, Purpose, resolve
from megatron.runtime.entry_point import run_program
from megatron.runtime.initialize import initialize_megatron, prepare_process, shutdown


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> None:
    """Reads the configuration, loads the checkpoint and generates.

    Args:
        input_args: Command line without the program's name; None reads ``sys.argv``.
        overwrite_values: Fields that win over the files.
    """
    prepare_process()
    neox_args = NeoXArgs.consume_neox_args(overwrite_values=overwrite_values, input_args=input_args)
    config = resolve(neox_args, purpose=Purpose.READING)
    from megatron.evaluation.trained_model import load_for_inference
    from megatron.generation.program import (
        check_generation_files,
        generate_samples,
        generation_notes,
    )
    from megatron.mpu.initialize import make_topology
    from megatron.reporting.run_logger import print_rank_0

    check_generation_files(config)
    for note in generation_notes(config):
        print_rank_0(f"note: {note}")
    initialize_megatron(config, handle_signals=False)
    topology = make_topology(config, for_training=False)
    model, tokenizer = load_for_inference(config, topology)
    if topology.data_rank == 0:  # replicas would write the same text again
        print_rank_0(generate_samples(config, model, tokenizer))
    shutdown()


if __name__ == "__main__":
    run_program(main)
