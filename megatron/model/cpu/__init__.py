"""Kernels that only a CPU needs: float32 matrix products and attention."""
