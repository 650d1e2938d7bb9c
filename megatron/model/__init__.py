"""The network: layers, loss and pipeline stages, for every layout of ranks."""
