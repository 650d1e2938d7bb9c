"""Distributes requests over data-parallel replicas, and brings the results back to all of them.

lm-eval can give each rank its own documents. But then the few-shot examples of a document depend on
the number of ranks, since each rank has its own stream of random numbers, and lm-eval refuses a
task with fewer documents than ranks. Here every rank sees all requests and computes a share of
them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from megatron.errors import EvaluationStopped, TaskError, UserError
from megatron.mpu import Topology
from megatron.neox_arguments import ConfigError
from megatron.runtime.agreement import agree, gather, problem_of

__all__ = ["agree_on_end", "check_same_requests", "gather_results", "own_share", "run_together"]

_REQUESTS, _END = "requests", "end"
"""The states in which a rank may be when all ranks meet: it has requests to compute, or no more."""


def own_share(
    keys: Sequence[Hashable], costs: Sequence[float], *, rank: int, size: int
) -> list[int]:
    """The requests that one of ``size`` replicas computes; all replicas get about the same cost.

    Args:
        keys: One key per request; requests with equal keys go to the same replica.
        costs: One cost per request, at least 0.
        rank: Number of the replica, from 0.
        size: Number of replicas.

    Returns:
        Numbers of requests, ascending. The shares of all ranks are a partition.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    if size == 1:
        return list(range(len(keys)))
    # the most expensive first; each goes to the replica with the lowest cost so far (Graham 1969)
    ordered = sorted(groups.values(), key=lambda numbers: -sum(costs[n] for n in numbers))
    loads = [(0.0, replica) for replica in range(size)]
    mine: list[int] = []
    for numbers in ordered:
        load, replica = loads[0]
        heapq.heapreplace(loads, (load + sum(costs[n] for n in numbers), replica))
        if replica == rank:
            mine += numbers
    return sorted(mine)


def gather_results(own: Mapping[int, Any] | Exception, topology: Topology) -> list[Any]:
    """Results of all requests in request order, on every rank.

    Args:
        own: Request number -> result, for this rank's share, as plain Python objects; or the
            exception that prevented them.
        topology: Each of its data-parallel replicas contributes a share.

    Raises:
        UserError: On every rank, if one has a request that cannot be answered.
        EvaluationStopped: On every rank, if one was asked to stop.
    """
    is_alone = topology.grid.data == 1
    shares: list[Any] = [own] if is_alone else gather(own, group=topology.data_group)
    for kind in (UserError, EvaluationStopped):
        for share in shares:
            if isinstance(share, kind):
                raise share
    merged = {number: result for share in shares for number, result in share.items()}
    return [merged[number] for number in range(len(merged))]


def check_same_requests(requests: Sequence[Any], what: str, topology: Topology) -> None:
    """Compares the requests of all ranks; all of them call it.

    Raises:
        TaskError: If the requests differ: ranks would wait for each other, or mix up their results.
            Also if another rank has no requests, because the task failed there.
    """
    if topology.grid.size == 1:
        return
    digest = hashlib.sha256(repr(requests).encode()).hexdigest()
    visitors = gather((_REQUESTS, digest))
    problem = next((text for purpose, text in visitors if purpose == _END), None)
    if problem is not None:
        raise TaskError(problem)
    if len(set(visitors)) > 1:
        raise TaskError(
            f"{what}: the ranks were given different requests; use the same tasks, seeds and limit "
            "on all of them, and remove a request cache (use_cache) that a killed run has left"
        )


def agree_on_end(problem: str | None) -> str | None:
    """Tells all ranks how a task has ended here; all of them call it after each task.

    Ranks that still want requests answered learn in `check_same_requests` that the task is over.

    Returns:
        A problem that one of them has; None if all have finished.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return problem
    while True:
        visitors = gather((_END, problem))
        if all(purpose == _END for purpose, _ in visitors):
            return next((text for _, text in visitors if text), None)


def run_together(action: Callable[[], None], *, is_taking_part: bool) -> None:
    """Runs ``action`` on some ranks; all of them call it.

    Raises:
        ConfigError: On all ranks, if ``action`` raises it on one.
    """
    problem = problem_of(action, errors=(ConfigError,)) if is_taking_part else None
    if first := agree(problem):
        raise ConfigError(first)
