"""Arithmetic about a model before it exists: parameters, memory, FLOPs, pipeline stages."""
