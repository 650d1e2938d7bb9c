"""Keys that are known and not honoured: one table of key, type, default, verdict and reason."""

from __future__ import annotations

import ast
import functools
import itertools
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import shown

if TYPE_CHECKING:
    from .rules import Draft

_TABLE = """
refused by all: Transformer Engine layers are not part of this version; use bf16
    te_{columnparallel,rowparallel,layernorm_mlp,mha,fp8_mha}=False
part of: Transformer Engine layers
    te_fp8_format:hybrid|e4m3 te_fp8_wgrad=True te_fp8_amax_history_len=1 te_fp8_margin=0
    te_fp8_amax_compute_algo='most_recent'
refused by all: mixture-of-experts models are not part of this version
    moe_num_experts=1|0
part of: moe_num_experts
    moe_{top_k,expert_interval,expert_parallel_size}=1 expert_interval=2 moe_min_capacity=4
    moe_{token_dropping,glu,lbl_in_fp32}=False use_tutel=False moe_use_residual=True
    create_moe_param_group=True enable_expert_tensor_parallelism=False moe_loss_coeff=0.1
    moe_{aux_loss_coeff,z_loss_coeff,jitter_eps}:float moe_type='megablocks'
    moe_{train,eval}_capacity_factor=1.0 moe_router_type='sinkhorn'
refused by all: quantisation and pruning are not part of this version
    compression_training:section
refused when enabled, by all: sparse attention is not part of this version
    sparse_attention:section
refused by all: maximal update parametrisation is not part of this version
    use_mup=False
refused: maximal update parametrisation is not part of this version
    {coord_check,save_base_shapes}=False
part of: use_mup
    mup_{init_scale,attn_temp,output_temp,embedding_mult,rp_embedding_mult}=1.0
    mup_width_scale=2 base_shapes_file:text
part of: gMLP layers
    gmlp_attn_dim:int=64
part of: RWKV layers
    {dim_att,head_size,ffn_dim}:int
part of: Mamba layers
    mamba_{selective_scan,causal_conv,inner_func}_fusion=False mamba_use_bias_in_linears=False
    mamba_use_bias_in_conv=True mamba_selective_fp32_params=True
part of: num_unique_layers
    param_sharing_style='grouped'
no effect: num_kv_heads says whether queries share keys and values
    attention_type:text
no effect: one fused attention operation serves all layers
    scaled_{upper_triang_,}masked_softmax_fusion=False
no effect: attention accumulates in float32
    {apply_query_key_layer_scaling,attention_softmax_in_fp32}=False
no effect: torch's kernels are used
    {layernorm,rmsnorm,bias_dropout,rope}_fusion=False use_flashattn_swiglu=False
no effect: no kernels are compiled; torch's are used
    fused_kernels_build_path:text
no effect: the loss is always computed in float32
    fp16_lm_cross_entropy=False
no effect: frequencies are computed, never stored
    rotary_save_freqs_buffer=False
no effect: first weights are always drawn on the CPU
    use_cpu_initialization=False
no effect: there is no ONNX export
    onnx_safe=False
refused: only next-token training is part of this version
    dataset_impl:gpt2|pairwise|online train_impl:normal|dpo|rm|kto|reinforce
    label_data_paths:texts {train,valid,test}_{label,reward}_data_paths:texts
    {pos,neg}_{train,valid,test}_{label_,}data_paths:texts
    {dpo_fp32,kto_fp32,fp32_reinforce}=True {dpo_beta,kto_beta,kl_div_beta}=0.1
    kto_{un,}desirable_weight=1.0 kl_impl='mse'
    {dpo_reference_free,reinforce_leave_one_out,serve_model_weights}=False
part of: train_impl: reinforce
    online_dataserver_ips:text|texts='localhost' online_dataserver_ports:int|ints=10000
part of: serve_model_weights
    weight_server_port:int|ints=6000
refused: precomputed probabilities serve preference training only
    precompute_model_name:text
refused: documents follow each other without gaps; only 'packed' is supported
    pack_impl:packed|pack_until_overflow|unpacked
part of: pack_impl
    allow_chopped=True
no effect: samples are always full
    short_seq_prob=0.1
no effect: samples are read from memory maps; there are no loader processes
    num_workers=2
no effect: index files are built by the first process that misses them
    use_shared_fs=True
refused: the embedding's gradient is dense
    sparse_gradients=False
refused: the learning rate is set by lr_decay_style, warmup and min_lr
    scheduler:section
refused: DeepSpeed's autotuner does not know this program
    autotuning_run:text
refused when enabled: DeepSpeed's autotuner does not know this program
    autotuning:section
refused when enabled: apex is not supported; use bf16 or fp16
    amp:section
refused when enabled: a growing sequence length is not part of this version
    curriculum_learning:section
refused when enabled: it would replace the mixture; use data_sampling_method
    data_efficiency:section
refused when enabled: batch sizes that follow the machines are not part of this version
    elasticity:section
part of: curriculum_learning
    curriculum_seqlen=0
no effect: DeepSpeed's autotuner does not know this program
    autotuning_config:section
no effect: GPT-NeoX never read it; min_lr is where the decay stops
    decay_lr_to:float
no effect: GPT-NeoX never read it; warmup is the share of the schedule that warms up
    warmup_iters:float
no effect: it is an old name of deepspeed
    deepscale=False deepscale_config:text
no effect: nothing is offloaded to a disk
    aio:section
no effect: the optimizers of this program are tested with ZeRO
    zero_allow_untested_optimizer=True
no effect: checkpoint_activations and checkpoint_num_layers decide
    activation_checkpointing:section
no effect: DeepSpeed's form is always used
    deepspeed_activation_checkpointing=True
no effect: activations are kept or computed again, nothing in between
    {partition_activations,contiguous_checkpointing,checkpoint_in_cpu}=False
    {synchronize_each_layer,profile_backward}=False
no effect: it is computed
    is_pipe_parallel=False dynamic_loss_scale:bool do_{train,valid,test}:bool|int
refused by all: checkpoints of this program load on any layout as they are
    load_universal=False
refused: checkpoints carry checksums instead
    checkpoint_validation_with_forward_pass=False
no effect: the file system of save_copy chooses the size of its parts
    s3_chunk_size=104857600
no effect: checkpoints have a format of their own
    checkpoint:section
refused: Comet is not supported; use TensorBoard or Weights & Biases
    use_comet:bool
part of: use_comet
    comet_{workspace,project,experiment_name}:text comet_tags:list comet_others:section
refused: a running program's object cannot be written in a file
    {comet_experiment,tensorboard_writer,adlr_autoresume_object}:any
refused by all: a running program's object cannot be written in a file
    tokenizer:any
no effect: bits per byte are reported instead
    char_level_ppl=False
no effect: rank 0 logs metrics of all processes
    wandb_init_all_ranks=False
no effect: DeepSpeed's log is silent
    comms_logger:section
no effect: DeepSpeed's log is silent; checkpoints hold configs/resolved.json
    dump_state=False
no effect: the console line follows log_interval
    steps_per_print=10
refused by all: a process group of someone else is not supported
    lazy_mpu_init=False
refused: it belongs to one company's cluster; SIGTERM saves and stops
    adlr_autoresume=False
part of: adlr_autoresume
    adlr_autoresume_interval=1000
no effect: the launcher's environment says it
    {rank,local_rank}:int
no effect: ranks are looked for in every launcher's environment
    {deepspeed_mpi,deepspeed_slurm}=False
no effect: NCCL finds the links itself
    detect_nvlink_pairs=False
"""
"""A verdict, a reason, and below them the keys.

``refused``: when set to anything but the default; ``by all``: by programs that only read a model
too. ``part of``: no effect without what is not supported. A key has its default, from which its
type follows (``|``: a value that asks for nothing either), or its type, and then the default is
null, the first choice, or written behind it. Braces stand for several keys.
"""

_TYPES: Mapping[str, Any] = {
    **{"bool": bool, "int": int, "float": float, "text": str, "any": Any, "list": list[Any]},
    **{"section": dict[str, Any], "texts": list[str], "ints": list[int]},
}


@dataclass(frozen=True)
class Unsupported:
    """A key of GPT-NeoX that this program knows and does not honour."""

    key: str
    type: Any
    default: Any
    verdict: str
    """`refused`, `refused when enabled` or `no effect`."""
    reason: str
    harmless: tuple[Any, ...] = ()
    """Values of a refused key beside the default that ask for nothing."""
    is_of_network: bool = False
    """A program that only reads a model could not honour it either."""

    def is_asked_for(self, value: Any) -> bool:
        """Tells whether a value asks for something that is not there."""
        if self.verdict == "refused when enabled":
            return bool(value) and bool(value.get("enabled", True))
        return value is not None and value != self.default and value not in self.harmless


def _rows() -> Iterator[Unsupported]:
    verdict = reason = ""
    for line in _TABLE.strip().splitlines():
        if not line.startswith(" "):
            verdict, reason = line.split(": ", 1)
            continue
        for word in line.split():
            names, mark, form = re.split(r"([:=])", word, maxsplit=1)
            kind, default, *harmless = _declared(form) if mark == ":" else _literals(form)
            row = {"type": kind, "default": default, "verdict": "no effect", "reason": reason}
            if verdict == "part of":
                row["reason"] = f"it belongs to {reason}, which this version does not support"
            elif verdict != "no effect":
                row["verdict"] = re.sub(",? by all$", "", verdict)
                row |= {"harmless": (*harmless,), "is_of_network": verdict.endswith("by all")}
            for key in _expanded(names):
                yield Unsupported(key=key, **row)


def _expanded(names: str) -> Iterator[str]:
    """`{a,b}_c` as `a_c` and `b_c`."""
    parts = (part.split(",") for part in re.split(r"[{}]", names))
    yield from map("".join, itertools.product(*parts))


def _literals(form: str) -> list[Any]:
    """Returns type, default and harmless values of `1|0`."""
    default, *harmless = map(ast.literal_eval, form.split("|"))
    return [type(default), default, *harmless]


def _declared(form: str) -> list[Any]:
    """Returns type, default and harmless values of `text|texts='a'`, or of the choices `a|b`."""
    kinds, _, default = form.partition("=")
    names = kinds.split("|")
    if names[0] not in _TYPES:
        return [Literal[tuple(names)], names[0]]
    union: Any = functools.reduce(operator.or_, (_TYPES[name] for name in names))
    if union is Any:
        return [Any, None]
    if default:
        return [union, ast.literal_eval(default)]
    harmless: dict[str, list[Any]] = {"bool": [False], "section": [{}]}
    return [union | None, None, *harmless.get(kinds, [])]


UNSUPPORTED: Mapping[str, Unsupported] = {row.key: row for row in _rows()}


def check_unsupported(draft: Draft) -> None:
    """Refuses keys that cannot be honoured, and notes those that have no effect."""
    asked_for = [row for row in UNSUPPORTED.values() if row.is_asked_for(draft[row.key])]
    for row in asked_for:
        if row.verdict == "no effect" and row.key in draft.given:
            draft.note_no_effect(row.key, row.reason)
        elif row.is_of_network:
            _refuse(draft, row)
    with draft.training_rules():
        for row in asked_for:
            if row.verdict != "no effect" and not row.is_of_network:
                _refuse(draft, row)


def _refuse(draft: Draft, row: Unsupported) -> None:
    if row.verdict == "refused":
        problem = f"{shown(draft[row.key])} is not supported: {row.reason}; remove the key"
        draft.issues.add(row.key, f"{row.key}: {problem}")
    else:
        draft.refuse(row.key, f"is not supported: {row.reason}; remove the section")
