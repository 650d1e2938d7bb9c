"""The device that this process computes on; nothing else in the project names a kind of device.

Wraps ``deepspeed.accelerator``, which is loaded by the first call and not by the import, so that
`prepare_environment` can still choose the device.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron.launcher.devices import count_devices

if TYPE_CHECKING:
    import torch

__all__ = [
    "backend",
    "device",
    "device_count",
    "device_name",
    "flush_subnormals",
    "is_cpu",
    "keep_freed_memory",
    "name",
    "pinned",
    "prepare_environment",
    "records_allocations",
    "rng_state",
    "seed_everything",
    "set_device",
    "set_rng_state",
    "start_recording_allocations",
    "supports",
    "write_allocations",
]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def prepare_environment() -> None:
    """Prepares a machine without GPUs: DeepSpeed's CPU accelerator, large pages, short waits.

    Call it before torch and deepspeed are imported, which read the variables that it sets, unless
    the user has set them. Without it DeepSpeed guesses, warns, and may pick a GPU that torch cannot
    use.
    """
    if count_devices(os.environ) == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # torch then asks Linux for 2 MiB pages for large tensors, whose products miss fewer
        # addresses; `tools/benchmark/step_throughput.py` runs as our programs do
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        # a thread of GNU OpenMP that waits for another one tries 300,000 times before it sleeps; if
        # other programs need the cores, it keeps the other thread from running all the while
        # (`tools/benchmark/busy_machine.py`)
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@lru_cache(maxsize=1)
def _accelerator() -> Any:
    prepare_environment()
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()


def name() -> str:
    """Returns the kind of device: ``cpu``, ``cuda`` ..."""
    return str(_accelerator().device_name())


def label() -> str:
    """Returns what a rank computes on, for messages: ``GPU``, ``CPU process``, ``XPU`` ..."""
    kind = name()
    return {"cuda": "GPU", "cpu": "CPU process"}.get(kind, kind.upper())


def device_name() -> str:
    """Returns the model of the device as its driver reports it; ``cpu`` on a CPU."""
    if name() != "cuda":
        return name()
    import torch

    return torch.cuda.get_device_name(device())


def is_cpu() -> bool:
    """Returns whether this process computes on the CPU."""
    return name() == "cpu"


def device(local_rank: int | None = None) -> torch.device:
    """Returns the device of this process, or of another local rank on this machine."""
    import torch

    if is_cpu():
        return torch.device("cpu")
    index = (
        _accelerator().current_device()
        if local_rank is None
        else local_rank % max(1, device_count())
    )
    return torch.device(name(), index)


def set_device(local_rank: int) -> None:
    """Makes the ``local_rank``-th device that of this process; nothing to do on a CPU."""
    if not is_cpu():
        _accelerator().set_device(local_rank % max(1, device_count()))


def device_count() -> int:
    """Returns the number of devices that this process sees; on a CPU 1, whatever its sockets."""
    return 1 if is_cpu() else int(_accelerator().device_count())


def backend() -> str:
    """Returns torch.distributed's backend for this device: ``gloo`` on a CPU."""
    return "gloo" if is_cpu() else str(_accelerator().communication_backend_name())


def supports(precision: str) -> bool:
    """Returns whether the device trains in ``fp32``, ``fp16`` or ``bfloat16``."""
    if precision == "fp32":
        return True
    if precision == "fp16":
        return not is_cpu() and bool(_accelerator().is_fp16_supported())
    return bool(_accelerator().is_bf16_supported())


def records_allocations() -> bool:
    """Returns whether the device can record its allocations."""
    return name() == "cuda"


def start_recording_allocations(most: int) -> None:
    """Records the newest ``most`` allocations from now on."""
    import torch

    torch.cuda.memory._record_memory_history(max_entries=most)


def write_allocations(path: str) -> None:
    """Writes the recorded allocations, for pytorch.org/memory_viz, and stops recording."""
    import torch

    torch.cuda.memory._dump_snapshot(path)
    torch.cuda.memory._record_memory_history(enabled=None)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy in page-locked memory, from which a GPU copies while it computes.

    On a CPU, where nothing is copied, returns the tensor itself.
    """
    return tensor if is_cpu() else tensor.pin_memory()


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors on a CPU, as a GPU's allocator does.

    Otherwise each activation above 128 KiB is mapped and zeroed by the kernel at every step:
    `tools/benchmark/step_throughput.py` measures against a loop without it. A no-op without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


def flush_subnormals(is_on: bool = True) -> None:
    """Makes a CPU take numbers below 1.2e-38 (2.3e-308 in float64) for 0.

    Arithmetic on them is many times slower there, and training produces them: probabilities of a
    confident model, and moments of a token that did not occur for hundreds of steps. Call it before
    the first operation of torch, whose threads inherit the mode of the thread that starts them.
    """
    import torch

    torch.set_flush_denormal(is_on)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy, torch and the device; numpy takes ``seed`` modulo 2**32."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if not is_cpu():
        _accelerator().manual_seed_all(seed)


def rng_state() -> dict[str, torch.Tensor]:
    """Returns the states of all random generators as tensors: a checkpoint contains no pickle.

    Returns:
        ``python`` int64 (626,): 625 words and the version; ``python_gauss`` float64 (0,) or (1,);
        ``numpy`` int64 (626,): 624 words, position, has_gauss; ``numpy_gauss`` float64 (1,);
        ``torch`` uint8; ``device`` uint8, absent on a CPU.
    """
    import torch

    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    _, numpy_words, position, has_gauss, numpy_gauss = numpy_state
    state = {
        "python": torch.tensor([*words, version], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*map(int, numpy_words), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy_gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if not is_cpu():
        state["device"] = _accelerator().get_rng_state()
    return state


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Restores what `rng_state` returned; on a CPU the ``device`` state of a GPU is ignored."""
    import torch

    *words, version = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    *numpy_words, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(
        (
            "MT19937",
            np.array(numpy_words, dtype=np.uint32),
            position,
            has_gauss,
            float(state["numpy_gauss"][0]),
        )
    )
    torch.set_rng_state(state["torch"].cpu())
    if not is_cpu() and "device" in state:
        _accelerator().set_rng_state(state["device"].cpu())
