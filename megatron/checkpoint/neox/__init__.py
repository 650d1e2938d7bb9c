"""Reads checkpoints as GPT-NeoX and DeepSpeed write them; nothing here writes one."""
