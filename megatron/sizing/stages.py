"""Which layers sit on which pipeline stage, and their sizes, without building anything.

Standard library only. The stages are those that DeepSpeed's ``PipelineModule`` makes from the list
of layers in `megatron.model.pipeline_model`; tests compare both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from megatron.neox_arguments import ConfigError
from megatron.sizing.model_shape import ModelShape

__all__ = ["BLOCK", "PlannedLayer", "network_layers", "plan_stages", "stage_parameters"]

BLOCK = "TransformerLayer"
"""Class name of a block."""


@dataclass(frozen=True)
class PlannedLayer:
    """An entry of the list of layers that a pipeline cuts."""

    name: str
    """Class or function, as DeepSpeed's ``type:`` rule sees it."""
    parameters: int
    """On one tensor-parallel rank, vocabulary padding included."""
    is_tied: bool = False
    """Whether it shares its matrix with the other tied layer; a stage with both has it once."""


def network_layers(shape: ModelShape, *, tensor_parallel: int) -> tuple[PlannedLayer, ...]:
    """The layers ``0 .. num_layers + 4`` with their sizes on one tensor-parallel rank."""
    table = shape.padded_vocab_size // tensor_parallel * shape.hidden_size
    positions = shape.max_position_embeddings * shape.hidden_size
    embedding = table + (positions if shape.pos_emb == "learned" else 0)
    bottom = PlannedLayer("Embedding", embedding, is_tied=not shape.no_weight_tying)
    passing = PlannedLayer("_pass_through", 0)
    prompt = passing
    if shape.soft_prompt is not None:
        prompt = PlannedLayer("SoftPrompt", shape.soft_prompt.num_tokens * shape.hidden_size)
    block = PlannedLayer(BLOCK, _block_parameters(shape, tensor_parallel))
    top = PlannedLayer("PipelineOutputLayer", table) if shape.no_weight_tying else bottom
    blocks = (block,) * shape.num_layers
    final_norm = PlannedLayer("FinalNorm", _norm_parameters(shape, shape.hidden_size))
    return (bottom, prompt, *blocks, passing, final_norm, top)


def stage_parameters(layers: Sequence[PlannedLayer]) -> int:
    """Parameters of a stage: tied layers count once."""
    tied = [layer.parameters for layer in layers if layer.is_tied]
    return sum(layer.parameters for layer in layers if not layer.is_tied) + sum(tied[:1])


def _norm_parameters(shape: ModelShape, width: int) -> int:
    """Parameters of a norm over vectors of this width."""
    if shape.norm == "non_parametric_layernorm":
        return 0
    if shape.norm == "scalenorm":
        return 1
    has_bias = shape.norm == "layernorm" and shape.use_bias_in_norms
    return width * (2 if has_bias else 1)


def _block_parameters(shape: ModelShape, tensor_parallel: int) -> int:
    hidden = shape.hidden_size
    context = shape.num_attention_heads * shape.head_dim // tensor_parallel
    fused_attention = shape.qkv_size // tensor_parallel
    inner = shape.mlp_inner_size // tensor_parallel
    fused_inner = inner * (2 if shape.is_gated_mlp else 1)
    total = (fused_attention + context + fused_inner + inner) * hidden
    if shape.use_bias_in_attn_linear:
        total += fused_attention
    if shape.use_bias_in_attn_output:
        total += hidden
    if shape.qk_norm == "head":
        total += 2 * _norm_parameters(shape, shape.head_dim)
    elif shape.qk_norm == "neox":
        total += _norm_parameters(shape, context)
    if shape.use_bias_in_mlp:
        total += fused_inner + hidden
    return total + shape.num_norms * _norm_parameters(shape, shape.hidden_size)


def plan_stages(
    layers: Sequence[PlannedLayer], *, num_stages: int, method: str
) -> tuple[range, ...]:
    """Cuts the list of layers as ``pipe_partition_method`` says.

    Args:
        layers: Layers of the network, as `network_layers` returns them.
        num_stages: Pipeline stages.
        method: ``uniform``, ``parameters`` or ``type:REGEX``; capitals do not matter.

    Returns:
        The places in the list that each stage holds.

    Raises:
        ConfigError: For another method, or a pattern that is wrong or matches no layer.
    """
    if num_stages == 1:
        return (range(len(layers)),)
    kind, _, pattern = method.lower().partition(":")
    if kind == "uniform" and not pattern:
        bounds = _uniform_bounds(len(layers), num_stages)
    elif kind == "parameters" and not pattern:
        bounds = _balanced_bounds([layer.parameters for layer in layers], num_stages)
    elif kind == "type" and pattern:
        bounds = _balanced_bounds(_matches(layers, pattern.partition(":")[0]), num_stages)
    else:
        raise ConfigError(
            f"pipe_partition_method: '{method}' is unknown; use type:REGEX, parameters or uniform"
        )
    return tuple(range(*pair) for pair in pairwise(bounds))


def _matches(layers: Sequence[PlannedLayer], pattern: str) -> list[int]:
    try:
        matcher = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(
            f"pipe_partition_method: '{pattern}' is no regular expression ({error})"
        ) from None
    found = [int(bool(matcher.search(layer.name))) for layer in layers]
    if not any(found):
        names = ", ".join(dict.fromkeys(layer.name for layer in layers))
        raise ConfigError(
            f"pipe_partition_method: '{pattern}' matches none of the layers {names}; use "
            "type:transformer"
        )
    return found


def _uniform_bounds(count: int, num_parts: int) -> list[int]:
    """Parts of nearly one length; the first ones take what is left over."""
    if count <= num_parts:
        return [min(part, count) for part in range(num_parts + 1)]
    size, rest = divmod(count, num_parts)
    return [part * size + min(part, rest) for part in range(num_parts + 1)]


def _balanced_bounds(weights: Sequence[int], num_parts: int) -> list[int]:
    """Contiguous parts with a small distance between the heaviest and the lightest.

    For every prefix and number of parts the best cut so far is extended by one part; of equally
    good cuts the one with the shortest last part is kept. It is not always the best of all cuts,
    and has to be the one that DeepSpeed's ``partition_balanced`` finds.
    """
    count = len(weights)
    if count <= num_parts:
        return _uniform_bounds(count, num_parts)
    sums = [0, *accumulate(weights)]
    # of the prefix that ends at each place: heaviest part, lightest part
    extremes = [(total, total) for total in sums]
    last_starts: list[list[int]] = [[0] * (count + 1)]
    for part in range(1, num_parts):
        longer, starts = list(extremes), [0] * (count + 1)
        for end in range(part + 1, count + 1):
            total, best = sums[end], float("inf")
            for start in range(part, end):
                last = total - sums[start]
                heaviest, lightest = extremes[start]
                heaviest, lightest = max(heaviest, last), min(lightest, last)
                if heaviest - lightest <= best:
                    best, starts[end] = heaviest - lightest, start
                    longer[end] = (heaviest, lightest)
        extremes = longer
        last_starts.append(starts)
    bounds = [count]
    for starts in reversed(last_starts):
        bounds.append(starts[bounds[-1]])
    return bounds[::-1]
