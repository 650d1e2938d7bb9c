"""Which part of a training step takes the time: torch's profile by what operators belong to.

An operator belongs to the first part whose rule holds, judged by its own name and by the names of
the operators, autograd functions and ranges around it. Our step and plain loops over transformers'
models are judged by the same rules; what each does in a way of its own (our rotation, their
separate one) is named in `_AUTOGRAD_FUNCTIONS`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["OPTIMIZER_RANGE", "part_of", "seconds_by_part", "table"]

OPTIMIZER_RANGE = "engine and optimizer"
"""Name of the range, for ``record_function``, around optimizer and engine."""

PRODUCTS, ATTENTION, ATTENTION_REST = "products of weights", "products in attention", "attention"
LOSS, ROTATION, NORMS = "passes over the logits", "rotation", "norms"
ACTIVATIONS, CASTS, REST = "activations", "copies and casts", "other operators"
ENGINE_COPIES, ENGINE = f"{OPTIMIZER_RANGE}: copies and casts", OPTIMIZER_RANGE
OUTSIDE = "between operators"
PARTS = (
    *(PRODUCTS, ATTENTION, ATTENTION_REST, LOSS, NORMS, ROTATION, ACTIVATIONS, CASTS),
    *(ENGINE_COPIES, ENGINE, REST, OUTSIDE),
)
"""Parts in the order of the table."""

_AUTOGRAD_FUNCTIONS = {
    "_CausalAttention": ATTENTION_REST,
    "_ChunkedCrossEntropy": LOSS,
    "_RotateInPlace": ROTATION,
}
"""Parts of our own differentiable functions; their gradients' names begin alike."""

_ATTENTION, _LOSS = "scaled_dot_product", ("log_softmax", "nll_loss", "cross_entropy")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise")
_COPIES = ("copy_", "_to_copy", "clone", "cat")
_ACTIVATIONS = ("gelu", "gelu_backward", "silu", "silu_backward")
_EVALUATES = "autograd::engine::evaluate_function: "


def seconds_by_part(step: Callable[[], None], steps: int = 3) -> dict[str, float]:
    """Seconds per step of each part in `PARTS`, over some steps under torch's profiler."""
    import torch

    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - start
    taken = _microseconds(profiler.events())
    parts = {part: taken[part] / 1e6 / steps for part in PARTS}
    parts[OUTSIDE] = max(0.0, seconds / steps - sum(parts.values()))
    return parts


def table(sides: dict[str, dict[str, float]]) -> str:
    """Milliseconds and shares of each part, a column per side."""
    lines = [f"  {'ms per step, under the profiler':36}" + "".join(f"{side:>20}" for side in sides)]
    totals = {side: sum(parts.values()) for side, parts in sides.items()}
    for part in PARTS:
        cells = (
            f"{parts[part] * 1e3:12.1f} ({parts[part] / totals[side]:4.0%})"
            for side, parts in sides.items()
        )
        lines.append(f"  {part:36}" + "".join(f"{cell:>20}" for cell in cells))
    sums = "".join(f"{total * 1e3:12.1f} (100%)".rjust(20) for total in totals.values())
    return "\n".join([*lines, f"  {'step':36}{sums}"])


def _microseconds(events: Iterable[Any]) -> Counter[str]:
    """Time of each part; an event's own time leaves out that of the operators inside it."""
    taken: Counter[str] = Counter()
    for event in events:
        names = list(_names(event))
        if names[0] != OPTIMIZER_RANGE:  # its own time is Python's
            taken[part_of(names)] += event.self_cpu_time_total
    return taken


def _names(event: Any) -> Iterator[str]:
    """The name of an event, then those of the events around it, the innermost first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def part_of(names: list[str]) -> str:
    """The part of an operator: its name, then those of what is around it, the innermost first."""
    own = names[0].rpartition("::")[2]
    is_product = own in _PRODUCTS
    for name in names:
        plain = name.removeprefix(_EVALUATES).removesuffix("Backward")
        part = _AUTOGRAD_FUNCTIONS.get(plain)
        if part is None and _ATTENTION in name.lower().replace("scaleddotproduct", _ATTENTION):
            part = ATTENTION_REST
        if part == ATTENTION_REST:
            return ATTENTION if is_product else ATTENTION_REST
        if part == LOSS or any(word in name for word in _LOSS):
            return PRODUCTS if is_product else LOSS
        if part is not None:
            return part
    if is_product:
        return PRODUCTS
    is_copy = own in _COPIES
    if _is_of_engine(names):
        return ENGINE_COPIES if is_copy else ENGINE
    if "norm" in own:
        return NORMS
    if own in _ACTIVATIONS:
        return ACTIVATIONS
    return CASTS if is_copy else REST


def _is_of_engine(names: list[str]) -> bool:
    """Whether an operator belongs to the optimizer, or handles gradients that are complete."""
    for name in names:
        if name.endswith("AccumulateGrad"):
            return True
        if name.startswith(_EVALUATES):
            return False
    return OPTIMIZER_RANGE in names
