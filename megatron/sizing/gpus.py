"""Peak arithmetic and memory bandwidth of GPUs, as their maker states them.

Sources, all for dense matrices (half of the figures "with sparsity"): NVIDIA A100 data sheet
(June 2021), NVIDIA H100 data sheet (SXM, PCIe; NVL: product brief), NVIDIA H200 data sheet,
NVIDIA Blackwell data sheet (B200 in HGX).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.neox_arguments import RunConfig

__all__ = ["GPUS", "Gpu", "gpu_of_device", "peak_flops"]


@dataclass(frozen=True)
class Gpu:
    """A GPU's peaks."""

    name: str
    half_tflops: float
    """Matrix products in bfloat16 and float16 with float32 sums, 10^12 operations per second."""
    single_tflops: float
    """Float32 without tensor cores, 10^12 operations per second."""
    bandwidth: float
    """Bytes per second between memory and cores."""

    def peak(self, precision: str) -> float:
        """Operations per second in ``fp32``, ``fp16`` or ``bfloat16``."""
        return 1e12 * (self.single_tflops if precision == "fp32" else self.half_tflops)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 312.0, 19.5, 2.039e12),
        Gpu("A100-40GB", 312.0, 19.5, 1.555e12),
        Gpu("A100-PCIe", 312.0, 19.5, 1.935e12),
        Gpu("H100", 989.4, 66.9, 3.35e12),
        Gpu("H100-PCIe", 756.0, 51.0, 2.0e12),
        Gpu("H100-NVL", 835.5, 60.0, 3.9e12),
        Gpu("H200", 989.4, 66.9, 4.8e12),
        Gpu("B200", 2250.0, 75.0, 7.7e12),
    )
}
"""By name. A100, H100 and H200 alone are the SXM modules, with 80 GB or more."""

_DEVICE_NAMES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("H100", "PCIE"), "H100-PCIe"),
    (("H100", "NVL"), "H100-NVL"),
    (("H100",), "H100"),
    (("H200",), "H200"),
    (("A100", "40GB"), "A100-40GB"),
    (("A100", "PCIE"), "A100-PCIe"),
    (("A100",), "A100"),
    (("B200",), "B200"),
)
"""Words of the name that the driver reports, which all must occur -> name here; first match."""


def gpu_of_device(device_name: str) -> Gpu | None:
    """Finds a GPU by the name that the driver reports, such as "NVIDIA H100 80GB HBM3"."""
    words = device_name.upper().replace("-", " ").split()
    for needed, name in _DEVICE_NAMES:
        if all(any(word.startswith(need) for word in words) for need in needed):
            return GPUS[name]
    return None


def peak_flops(config: RunConfig, device_name: str) -> float | None:
    """Peak operations per second of a device in the run's precision; None if nobody knows it.

    Args:
        config: ``peak_theoretical_tflops`` comes before the table.
        device_name: Name that the driver reports.
    """
    if config.logging.peak_theoretical_tflops is not None:
        return 1e12 * config.logging.peak_theoretical_tflops
    gpu = gpu_of_device(device_name)
    return None if gpu is None else gpu.peak(config.precision.dtype)
