"""How much memory each kind of rank will need, from the configuration alone.

Standard library only: `deepy.py --dry-run` prints it before anything heavy is loaded. The formulas
are in the docstrings. Not counted: the libraries themselves, the data, sums over ranks in flight,
float32 copies of gradients inside an optimizer step, and what an allocator leaves unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

from megatron.neox_arguments import RunConfig
from megatron.sizing.loss_chunks import chunk_tokens
from megatron.sizing.model_shape import ModelShape, model_shape
from megatron.sizing.stages import (
    BLOCK,
    PlannedLayer,
    network_layers,
    plan_stages,
    stage_parameters,
)
from megatron.tokenizer.file_size import tokenizer_file_size

__all__ = ["MemoryPlan", "StageMemory", "Vocabulary", "estimate_memory", "memory_plan", "savings"]

_ASSUMED_VOCABULARY = 50_304


@dataclass(frozen=True)
class Vocabulary:
    """Number of tokens, and its source."""

    size: int
    source: str


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Everything that the estimate depends on."""

    shape: ModelShape
    vocabulary: Vocabulary
    pipe: int
    data: int
    model: int
    partition_method: str
    zero_stage: int
    parameter_bytes: int
    """Bytes of a weight, gradient or activation: 4 or 2."""
    num_moments: float
    """Float32 moments of a parameter; two of 8 bits are half a one."""
    bucket_elements: int
    """Size of DeepSpeed's buffer for sums of gradients, used with ZeRO."""
    overlap_comm: bool
    max_live_parameters: int
    micro_batch_size: int
    num_micro_batches: int
    seq_length: int
    sequence_parallel: bool
    checkpoint_num_layers: int
    """Number of blocks in a recomputed stretch; 0 keeps all activations."""
    hidden_dropout: bool

    @property
    def layers(self) -> tuple[PlannedLayer, ...]:
        """The list of layers that the stages share."""
        return network_layers(self.shape, tensor_parallel=self.model)

    @property
    def stages(self) -> tuple[range, ...]:
        """Positions in `layers` of each stage."""
        return plan_stages(self.layers, num_stages=self.pipe, method=self.partition_method)


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    """Float32 master weights and moments."""
    buffers: int
    """DeepSpeed's buffers: buckets of gradients, and with ZeRO 3 gathered weights."""
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All bytes."""
        parts = (self.weights, self.gradients, self.optimizer, self.buffers)
        return sum(parts) + self.activations + self.loss


def memory_plan(config: RunConfig) -> MemoryPlan:
    """Takes what the estimate needs from a resolved configuration."""
    vocabulary = _vocabulary(config)
    divisor = lcm(config.model.make_vocab_size_divisible_by, config.layout.model_parallel_size)
    padded = _round_up(vocabulary.size, divisor)
    zero: dict[str, Any] = dict(config.layout.zero_options)
    return MemoryPlan(
        shape=model_shape(config, vocab_size=vocabulary.size, padded_vocab_size=padded),
        vocabulary=vocabulary,
        pipe=config.layout.pipe_parallel_size,
        data=config.layout.data_parallel_size,
        model=config.layout.model_parallel_size,
        partition_method=config.layout.pipe_partition_method,
        zero_stage=config.layout.zero_stage,
        parameter_bytes=4 if config.precision.dtype == "fp32" else 2,
        num_moments=_num_moments(config),
        bucket_elements=int(zero["reduce_bucket_size"]),
        overlap_comm=bool(zero["overlap_comm"]),
        max_live_parameters=int(zero.get("stage3_max_live_parameters", 1_000_000_000)),
        micro_batch_size=config.batch.micro_batch_size,
        num_micro_batches=config.batch.gradient_accumulation_steps,
        seq_length=config.data.seq_length,
        sequence_parallel=config.layout.sequence_parallel,
        checkpoint_num_layers=config.model.checkpoint_num_layers,
        hidden_dropout=config.model.hidden_dropout > 0,
    )


def _num_moments(config: RunConfig) -> float:
    if config.optimizer.use_bnb_optimizer:
        return 0.5
    momentum = bool(config.optimizer.options.get("momentum"))
    return {"adam": 2, "lion": 1, "sgd": int(momentum)}[config.optimizer.type]


def _vocabulary(config: RunConfig) -> Vocabulary:
    """The tokenizer's size if a small file tells it, else that of the configuration."""
    kind = config.data.tokenizer_type
    size = tokenizer_file_size(kind, config.data.vocab_file, config.data.merge_file)
    if size is not None:
        return Vocabulary(size, f"of {kind}")
    if config.data.padded_vocab_size:
        return Vocabulary(config.data.padded_vocab_size, "padded_vocab_size")
    return Vocabulary(_ASSUMED_VOCABULARY, "assumed: no tokenizer file tells it")


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def estimate_memory(plan: MemoryPlan) -> tuple[StageMemory, ...]:
    """Estimates the bytes on a rank of each pipeline stage; ranks of a stage are alike.

    With P parameters on a rank, e bytes each and d data-parallel ranks:

    ========  ==========  =========  ========================  ============================
    ZeRO      weights     gradients  master weights, moments   buffers
    ========  ==========  =========  ========================  ============================
    0 (fp32)  4 P         4 P        4 P a moment              none
    1         e P         e P        4 P / d (1 + moments)     ``reduce_bucket_size`` e
    2         e P         e P / d    4 P / d (1 + moments)     ``reduce_bucket_size`` e
    3         e P / d     e P / d    4 P / d (1 + moments)     and min(P, max. live) e
    ========  ==========  =========  ========================  ============================

    ``overlap_comm`` doubles the bucket of ZeRO 1 and 2. Activations: see `activation_bytes`; loss:
    see `loss_bytes`.
    """
    layers = plan.layers
    return tuple(
        _stage_memory(plan, layers, stage, places) for stage, places in enumerate(plan.stages)
    )


def _stage_memory(
    plan: MemoryPlan, layers: Sequence[PlannedLayer], stage: int, places: range
) -> StageMemory:
    size, zero = plan.parameter_bytes, plan.zero_stage
    own = layers[places.start : places.stop]
    count = stage_parameters(own)
    if plan.shape.pos_emb == "rpe" and any(layer.name == BLOCK for layer in own):
        count += plan.shape.rpe_num_buckets * plan.shape.num_attention_heads // plan.model
    prompt = plan.shape.soft_prompt
    trained = count if prompt is None else prompt.num_tokens * plan.shape.hidden_size
    share, trained_share = -(-count // plan.data), -(-trained // plan.data)
    partitioned = trained_share if zero else trained
    is_last = stage == plan.pipe - 1
    return StageMemory(
        stage=stage,
        parameters=count,
        weights=size * (share if zero == 3 else count),
        gradients=size * (trained_share if zero >= 2 else trained),
        optimizer=int(4 * partitioned * (plan.num_moments + (1 if zero else 0))),
        buffers=size * _buffer_elements(plan, count),
        activations=activation_bytes(plan, layers, stage, places),
        loss=loss_bytes(plan) if is_last else 0,
    )


def _buffer_elements(plan: MemoryPlan, count: int) -> int:
    if plan.zero_stage == 0:
        return 0
    if plan.zero_stage == 3:
        return plan.bucket_elements + min(count, plan.max_live_parameters)
    return plan.bucket_elements * (2 if plan.overlap_comm else 1)


def block_bytes(plan: MemoryPlan) -> int:
    """Bytes that one block keeps of one micro-batch for its backward pass.

    For n tokens of e bytes, hidden size h, t tensor-parallel ranks, and u = t with sequence
    parallelism, else 1:

    - the residual stream at the norms: n h e / u, twice with a sequential residual;
    - their results, read by the matrix products: n h e a norm;
    - queries, keys, values n (heads + 2 kv_heads) head_dim e / t, the attention's result
      n heads head_dim e / t, twice where documents are hidden from each other (a CPU joins their
      results), and its normalisers n heads 4 / t; with a norm of queries and keys also the three
      as they were before it;
    - in the MLP 2 n f e / t for the inner width f, or 4 n f e / t when gated;
    - with dropout, two masks of n h / u bytes.

    No (s, s) matrix is among them: attention runs in pieces. Torch's CPU kernels keep a little
    more: repeated keys and values for grouped heads, and n h e an rmsnorm.
    """
    shape, tp = plan.shape, plan.model
    tokens = plan.micro_batch_size * plan.seq_length
    cut = tp if plan.sequence_parallel else 1
    residuals = 1 if shape.gpt_j_residual else 2
    query_size = shape.num_attention_heads * shape.head_dim
    inner = shape.mlp_inner_size * (4 if shape.is_gated_mlp else 2)
    elements = (
        shape.hidden_size * residuals // cut
        + shape.hidden_size * shape.num_norms
        + (
            shape.qkv_size * (1 if shape.qk_norm == "none" else 2)
            + query_size * (2 if shape.reset_attention_mask else 1)
            + inner
        )
        // tp
    )
    masks = 2 * shape.hidden_size // cut if plan.hidden_dropout else 0
    normalisers = 4 * shape.num_attention_heads // tp
    return tokens * (elements * plan.parameter_bytes + normalisers + masks)


def activation_bytes(
    plan: MemoryPlan, layers: Sequence[PlannedLayer], stage: int, places: range
) -> int:
    """Bytes of activations that a stage holds at its peak.

    ``m = min(stages - stage, micro-batches)`` micro-batches are in flight on a pipeline, 1 without
    one. Each keeps its blocks' activations (see `block_bytes`), or of a recomputed stretch only its
    input n h e / u; the longest stretch exists once more while it is recomputed. A stage that is
    not the last keeps its m results, n h e / u each; the last one the final norm's input and
    result. DeepSpeed cuts stretches from the stage's first layer on and recomputes only those that
    consist of blocks.
    """
    in_flight = min(plan.pipe - stage, plan.num_micro_batches) if plan.pipe > 1 else 1
    tokens = plan.micro_batch_size * plan.seq_length
    whole = tokens * plan.shape.hidden_size * plan.parameter_bytes
    border = whole // (plan.model if plan.sequence_parallel else 1)
    names = [layers[place].name for place in places]
    if plan.pipe == 1:
        names = [name for name in names if name == BLOCK]
    step = plan.checkpoint_num_layers or max(1, len(names))
    kept = recomputed = 0
    for start in range(0, len(names), step):
        stretch = names[start : start + step]
        blocks = stretch.count(BLOCK) * block_bytes(plan)
        if plan.checkpoint_num_layers and stretch.count(BLOCK) == len(stretch):
            kept += border
            recomputed = max(recomputed, blocks)
        else:
            kept += blocks
    edge = border + whole if stage == plan.pipe - 1 else border * in_flight
    return kept * in_flight + recomputed + edge


def loss_bytes(plan: MemoryPlan) -> int:
    """The one-pass loss: a chunk of float32 logits, and both gradients that it makes.

    A chunk has a GPU's `chunk_tokens` (a CPU's has fewer) of v / t logits; the gradient of the
    unembedding is a float32 (v / t, h) matrix, that of the hidden states (n, h).
    """
    shape = plan.shape
    tokens = plan.micro_batch_size * plan.seq_length
    rows = shape.padded_vocab_size // plan.model
    logits = 4 * rows * min(tokens, chunk_tokens(rows, "gpu"))
    hidden = tokens * shape.hidden_size * plan.parameter_bytes
    return logits + 4 * rows * shape.hidden_size + hidden


def savings(plan: MemoryPlan, *, limit: int = 3) -> list[tuple[str, int]]:
    """The single changes that lower the fullest rank most, with the bytes that it then has."""
    now = _fullest(plan)
    outcomes = [(text, _fullest(changed)) for text, changed in _changes(plan)]
    better = sorted((item for item in outcomes if item[1] < now), key=lambda item: item[1])
    return better[:limit]


def _fullest(plan: MemoryPlan) -> int:
    return max(memory.total for memory in estimate_memory(plan))


def _changes(plan: MemoryPlan) -> list[tuple[str, MemoryPlan]]:
    """Changes of one key that the configuration's rules would accept."""
    found: list[tuple[str, MemoryPlan]] = []
    micro, steps, shape = plan.micro_batch_size, plan.num_micro_batches, plan.shape
    if micro % 2 == 0:
        changed = replace(plan, micro_batch_size=micro // 2, num_micro_batches=steps * 2)
        found.append((f"train_micro_batch_size_per_gpu: {micro // 2}", changed))
    if not plan.checkpoint_num_layers:
        found.append(("checkpoint_activations: true", replace(plan, checkpoint_num_layers=1)))
    if plan.parameter_bytes == 4:
        changed = replace(plan, parameter_bytes=2, zero_stage=max(1, plan.zero_stage))
        found.append(("precision: bfloat16", changed))
    if plan.zero_stage and plan.bucket_elements > 50_000_000:
        text = "zero_optimization.reduce_bucket_size: 50000000"
        found.append((text, replace(plan, bucket_elements=50_000_000)))
    if plan.data > 1:
        for stage in range(plan.zero_stage + 1, 2 if plan.pipe > 1 else 4):
            text = f"zero_optimization.stage: {stage}"
            found.append((text, replace(plan, zero_stage=stage)))
    if plan.model > 1 and not plan.sequence_parallel and plan.seq_length % plan.model == 0:
        found.append(("sequence_parallel: true", replace(plan, sequence_parallel=True)))
    if plan.data % 2 == 0:
        halved = replace(plan, data=plan.data // 2, num_micro_batches=steps * 2)
        cut = 2 * plan.model
        if not any(
            size % cut
            for size in (shape.num_attention_heads, shape.num_kv_heads, shape.mlp_inner_size)
        ):
            padded = replace(shape, padded_vocab_size=_round_up(shape.padded_vocab_size, cut))
            found.append((f"model_parallel_size: {cut}", replace(halved, model=cut, shape=padded)))
        if shape.num_layers >= 2 * plan.pipe and plan.zero_stage < 2:
            text = f"pipe_parallel_size: {2 * plan.pipe}"
            found.append((text, replace(halved, pipe=2 * plan.pipe)))
    return found
