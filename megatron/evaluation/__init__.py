"""Per-domain losses on held-out text, and models that are loaded from a checkpoint."""
