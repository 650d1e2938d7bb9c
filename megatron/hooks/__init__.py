"""What happens around training steps: logging, evaluation, checkpoints."""
