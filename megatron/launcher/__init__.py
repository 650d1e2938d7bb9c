"""Starts the processes of a run, watches and ends them; imports neither torch nor deepspeed."""
