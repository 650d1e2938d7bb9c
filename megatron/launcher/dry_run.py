"""What ``deepy.py train.py ... --dry-run`` prints: stages, memory, and how to lower it."""

from __future__ import annotations

from dataclasses import replace

from megatron.neox_arguments import RunConfig
from megatron.sizing.memory import MemoryPlan, StageMemory, estimate_memory, memory_plan, savings
from megatron.sizing.stages import BLOCK, network_layers, stage_parameters
from odm.wording import counted

__all__ = ["describe_run"]

_COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations", "loss", "total")


def describe_run(config: RunConfig) -> str:
    """Text of several lines: the plan of stages, memory per rank, changes that would lower it.

    Raises:
        ConfigError: If ``pipe_partition_method`` cannot be applied.
    """
    plan = memory_plan(config)
    memories = estimate_memory(plan)
    return "\n".join(
        [
            _header(plan),
            "stages:" if plan.pipe > 1 else "layers:",
            *_stage_lines(plan, config.layout.world_size),
            "estimated memory per rank, in MiB:",
            *_memory_table(memories),
            *_saving_lines(plan, max(memory.total for memory in memories)),
        ]
    )


def _header(plan: MemoryPlan) -> str:
    shape = plan.shape
    unpadded = replace(shape, padded_vocab_size=shape.vocab_size)
    logical = network_layers(unpadded, tensor_parallel=1)
    padding = shape.padded_vocab_size - shape.vocab_size
    return (
        f"model: {stage_parameters(logical):,} parameters; vocabulary {shape.vocab_size} "
        f"({plan.vocabulary.source}) and {counted(padding, 'row')} of padding"
    )


def _stage_lines(plan: MemoryPlan, world_size: int) -> list[str]:
    layers = plan.layers
    lines = []
    for stage, places in enumerate(plan.stages):
        names = [layers[place].name for place in places]
        blocks = [place for place in places if layers[place].name == BLOCK]
        parts = [name for name in dict.fromkeys(names) if not name.startswith("_")]
        if blocks:
            span = f"{blocks[0]}..{blocks[-1]} ({len(blocks)})" if len(blocks) > 1 else blocks[0]
            parts = [f"{BLOCK} {span}" if name == BLOCK else name for name in parts]
        where = _ranks(stage, world_size // plan.pipe) if plan.pipe > 1 else "every rank"
        lines.append(f"  {where}: {', '.join(parts) or 'nothing'}")
    return lines


def _ranks(stage: int, count: int) -> str:
    first = stage * count
    last = first + count - 1
    return f"stage {stage} " + (f"(rank {first})" if count == 1 else f"(ranks {first}..{last})")


def _memory_table(memories: tuple[StageMemory, ...]) -> list[str]:
    header = ["stage", "parameters", *_COLUMNS]
    rows = [
        [str(m.stage), f"{m.parameters:,}", *(_mib(getattr(m, name)) for name in _COLUMNS)]
        for m in memories
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (header, *rows)
    ]


def _saving_lines(plan: MemoryPlan, fullest: int) -> list[str]:
    found = savings(plan)
    if not found:
        return []
    lines = [
        f"  {text}: {_mib(size)} ({100 * (size - fullest) / fullest:+.0f} %)"
        for text, size in found
    ]
    return [f"to lower the {_mib(fullest)} of the fullest rank:", *lines]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f}"
