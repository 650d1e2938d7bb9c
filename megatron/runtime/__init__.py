"""A process and its surroundings: device, groups, signals, agreement of ranks, exit codes."""
