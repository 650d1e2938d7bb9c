"""Checkpoints on disk: format and schema, reading and writing, the lock of a folder."""
