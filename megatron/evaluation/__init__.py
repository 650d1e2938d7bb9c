"""Losses on held-out text, per domain, and models that are read from a checkpoint."""
