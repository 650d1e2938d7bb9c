"""Indexed datasets, the samples of each domain, and the batches of a mixture."""
