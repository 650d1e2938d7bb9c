"""``python -m megatron.eval_tasks``: lm-eval's command with the model ``neox``."""

if __name__ == "__main__":
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

from megatron.eval_tasks.command import main
from megatron.runtime.entry_point import run_program

if __name__ == "__main__":
    run_program(main)
