"""What a compiler would make of a list of kernels: a stated model, not a measurement.

- In the blocks and in the loss, operations between two products (or calls of attention) become one
  kernel: elementwise operations, norms, their reductions.
- It reads each memory from outside once, and writes only what a later kernel or the backward pass
  uses. What is made and used inside costs nothing.
- If it reduces rows that are longer than `LONGEST_ROW`, such as logits, it reads them twice: for
  the sums, and for the result.
- Embedding, per-domain sums and the optimizer stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmark.planning.costs import Access, Kernel

__all__ = ["FUSED_ROLES", "LONGEST_ROW", "fused"]

FUSED_ROLES = frozenset(
    (
        *("norms", "attention products", "rotation and heads", "MLP products", "activation"),
        *("residual", "loss"),
    )
)
LONGEST_ROW = 16_384
"""Elements of a row that stay in a multiprocessor between two passes."""


def fused(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels after fusion, in their order."""
    last_read = {a.storage: place for place, k in enumerate(kernels) for a in k.reads}
    result: list[Kernel] = []
    run: list[Kernel] = []
    for place, kernel in enumerate(kernels):
        if kernel.is_fusible and kernel.role in FUSED_ROLES:
            run.append(kernel)
            continue
        result += _joined(run, end=place, last_read=last_read)
        run = []
        result.append(kernel)
    return result + _joined(run, end=len(kernels), last_read=last_read)


def _joined(run: list[Kernel], *, end: int, last_read: dict[int, int]) -> list[Kernel]:
    """One kernel for each role of a run whose results are used outside."""
    if not run:
        return []
    made: set[int] = set()
    reads: dict[int, Access] = {}
    writes: dict[int, Access] = {}
    for kernel in run:
        for access in kernel.reads:
            if access.storage not in made:
                _keep_largest(reads, access)
        for access in kernel.writes:
            made.add(access.storage)
            _keep_largest(writes, access)
    # what nobody in the list reads later is a result of the step, such as a gradient
    needed = [a for a in writes.values() if last_read.get(a.storage, end) >= end]
    taken = list(reads.values())
    if any(kernel.reduces for kernel in run):
        taken += [access for access in taken if access.row > LONGEST_ROW]
    main = max(run, key=lambda kernel: kernel.nbytes)
    return [Kernel(f"fused({len(run)})", main.role, tuple(taken), tuple(needed), is_fusible=True)]


def _keep_largest(accesses: dict[int, Access], access: Access) -> None:
    known = accesses.get(access.storage)
    if known is None or known.nbytes < access.nbytes:
        accesses[access.storage] = access


def passes_over(kernels: Sequence[Kernel], *, rows: int, width: int) -> float:
    """How often matrices of logits (rows, width) are read or written, in float32 copies of one.

    They are told from other tensors of their size, such as weights, by the kernel that writes them.
    """
    numel = rows * width
    logits = {
        access.storage
        for kernel in kernels
        for access in kernel.writes
        if access.numel == numel and access.row == width
    }
    moved = sum(
        access.nbytes
        for kernel in kernels
        for access in (*kernel.reads, *kernel.writes)
        if access.storage in logits
    )
    return moved / (numel * 4)
