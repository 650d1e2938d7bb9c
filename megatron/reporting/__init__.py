"""What a run reports: console lines, the run log, TensorBoard and W&B."""
