"""Bytes and arithmetic of one kernel, from the tensors that an operation reads and writes.

Caches are left out: each kernel reads its inputs from memory and writes its results there. A view
costs nothing, an expanded dimension is read once. Only products and attention have arithmetic; all
else is bound by memory. Operations that torch computes by several passes on a GPU have their
number in `_PASSES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Access", "Kernel", "kernel_of", "product_flops"]


@dataclass(frozen=True)
class Access:
    """A tensor that a kernel reads or writes."""

    storage: int
    """Number of its memory."""
    nbytes: int
    numel: int
    row: int
    """Elements of its last dimension."""


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU."""

    name: str
    role: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    flops: float = 0.0
    """Operations of products and attention, recomputed scores included."""
    model_flops: float = 0.0
    """Operations that the model needs: without those that attention computes again."""
    launches: int = 1
    is_fusible: bool = False
    """Whether a compiler can join it with its neighbours."""
    reduces: bool = False
    """Whether a result depends on a whole row."""
    is_repeated: bool = False
    """Whether it belongs to activations that are computed again."""

    @property
    def nbytes(self) -> int:
        """Bytes that are read or written."""
        return sum(access.nbytes for access in (*self.reads, *self.writes))

    def seconds(self, *, peak: float, bandwidth: float) -> float:
        """The roofline: the longer of arithmetic and memory."""
        return max(self.flops / peak, self.nbytes / bandwidth)


_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"),
    *("lift_fresh", "_local_scalar_dense", "_record_function_enter_new", "_record_function_exit"),
    *("_unsafe_view", "view", "_reshape_alias", "record_stream"),
}
_WRITES_ONLY = {
    *("zeros", "ones", "full", "fill_", "zero_", "arange", "scalar_tensor", "zeros_like"),
    *("new_zeros", "new_full", "new_ones", "ones_like", "full_like", "normal_", "uniform_"),
}
_LOOKUPS = {"embedding": 0, "index": 0, "gather": 0, "index_select": 0}
"""Reads as many elements of this argument as the result has."""
_SCATTERS = {"scatter_add_", "index_add_", "index_put_"}
"""Read and write as many elements of the first argument as they add."""
_PASSES: dict[str, tuple[int, int, int]] = {
    # launches, reads of the input, and writes of temporary tensors of its size, which are read too
    "logsumexp": (4, 2, 2),  # largest; subtract; exponential in place; sum
    "_softmax": (1, 3, 0),  # largest, sum, result
}
_NOT_FUSIBLE = {"embedding_dense_backward", "_fused_adamw_", "sort", "_fused_sgd_"}
_REDUCTIONS = {
    *("sum", "mean", "amax", "logsumexp", "_softmax", "native_layer_norm", "linalg_vector_norm"),
    *("native_layer_norm_backward", "_fused_rms_norm", "_fused_rms_norm_backward", "rsqrt", "dot"),
}
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}


def product_flops(name: str, args: tuple[Any, ...]) -> float:
    """Operations of a matrix product, a multiplication and an addition counting two; else 0."""
    places = _PRODUCTS.get(name)
    if places is None:
        return 0.0
    left, right = (args[place] for place in places)
    return 2.0 * math.prod(left.shape) * right.shape[-1]


class Storages:
    """Numbers of memories; keeps them alive, so that no number is given twice."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []

    def access(self, tensor: Tensor, *, times: float = 1.0) -> Access:
        """The access to a tensor, ``times`` its elements."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            number = self._numbers[storage._cdata] = len(self._kept)
            self._kept.append(storage)
        dims = zip(tensor.shape, tensor.stride(), strict=True)
        numel = int(math.prod(size for size, stride in dims if stride or size == 0))
        row = tensor.shape[-1] if tensor.dim() else 1
        return Access(number, int(numel * tensor.element_size() * times), numel, row)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in arguments or results, also those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def kernel_of(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    *,
    role: str,
    at: Storages,
    is_repeated: bool = False,
) -> Kernel | None:
    """The kernel of an operation; None if it launches none."""
    schema = getattr(func, "_schema", None)
    if schema is None:  # an operator that calls functions; its parts are recorded
        return None
    name = func.__name__.split(".")[0]
    results = list(tensors_in([result]))
    if name in _FREE or not any(tensor.is_meta for tensor in results + list(tensors_in(args))):
        return None
    written, read = _arguments(schema, args, kwargs)
    if not written and _is_view(results, read):
        return None
    if name == "_fused_adamw_":  # gradients are declared as written, for a loss scale inside
        grads = list(tensors_in([args[1]]))
        read += grads
        written = [t for t in written if all(t is not g for g in grads)]
    reads, writes = read + written, written or results
    if name in _WRITES_ONLY:
        reads = []
    elif name == "copy_":
        reads = [args[1]]
    flops = product_flops(name, args)
    launches, more_reads, temporary = _PASSES.get(name, (1, 1, 0))
    accesses = [at.access(t) for t in reads if t.is_meta]
    if name in _LOOKUPS or name in _SCATTERS:
        whole = args[_LOOKUPS.get(name, 0)]
        sample = results[0] if name in _LOOKUPS else args[3 if name != "index_put_" else 2]
        share = min(1.0, sample.numel() / max(1, whole.numel()))
        accesses = [at.access(t, times=share if t is whole else 1.0) for t in reads if t.is_meta]
        found = [at.access(t, times=share if t is whole else 1.0) for t in writes]
    else:
        found = [at.access(t) for t in writes]
    if name in _PASSES:
        again = more_reads - 1 + 2 * temporary
        accesses += [at.access(args[0])] * again
    return Kernel(
        name,
        role,
        tuple(accesses),
        tuple(found),
        flops=flops,
        model_flops=flops,
        launches=launches,
        is_fusible=not flops and name not in _NOT_FUSIBLE and not name.startswith("_foreach"),
        reduces=name in _REDUCTIONS,
        is_repeated=is_repeated,
    )


def _arguments(
    schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that an operation writes, and those that it only reads."""
    written: list[Tensor] = []
    read: list[Tensor] = []
    for place, argument in enumerate(schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        (written if is_written else read).extend(tensors_in([value]))
    return written, read


def _is_view(results: list[Tensor], read: list[Tensor]) -> bool:
    own = {tensor.untyped_storage()._cdata for tensor in read}
    return bool(results) and all(t.untyped_storage()._cdata in own for t in results)


def attention_kernel(
    name: str,
    reads: Iterable[Tensor],
    writes: Iterable[Tensor],
    *,
    flops: float,
    model_flops: float,
    at: Storages,
    is_repeated: bool,
) -> Kernel:
    """A call of fused attention, which keeps no scores."""
    own = tuple(at.access(t) for t in reads), tuple(at.access(t) for t in writes)
    return Kernel(
        name, "attention", *own, flops=flops, model_flops=model_flops, is_repeated=is_repeated
    )
