"""The benchmark of mixing methods: `tools/benchmark/mixing_quality.py` is its command."""
