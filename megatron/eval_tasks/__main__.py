"""``python -m megatron.eval_tasks``: lm-eval's command with the model ``neox``."""

from megatron.entry_point import run_program
from megatron.eval_tasks.command import main

if __name__ == "__main__":
    run_program(main)
