"""Keys that are known but not honoured: refused with the reason, or noted as a hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .fields import field_table

if TYPE_CHECKING:
    from .rules import Draft


@dataclass(frozen=True)
class Retired:
    """Why a key is not honoured, and values beside the default that change nothing."""

    reason: str
    harmless: tuple[Any, ...] = ()


_NO_MOE = "mixture-of-experts models are not part of this version"
_NO_TE = "Transformer Engine layers are not part of this version; use bf16"
_NO_RUNTIME = "a running program's object cannot be written in a file"
_NO_MUP = "maximal update parametrisation is not part of this version"
_NO_COMET = "Comet is not supported; use TensorBoard or Weights & Biases"
_NO_PREFERENCE = "only next-token training is part of this version"
_LATER = "held-out rewards are not part of this version; rewards are training losses"

REFUSED: Mapping[str, Retired] = {
    "autotuning_run": Retired("DeepSpeed's autotuner does not know this program"),
    "scheduler": Retired("the learning rate is set by lr_decay_style, warmup and min_lr", ({},)),
    "sparse_gradients": Retired("the embedding's gradient is dense"),
    "sparsity_config": Retired("sparse attention is not part of this version", ({},)),
    "compression_training": Retired("quantisation and pruning are not part of this version", ({},)),
    "load_universal": Retired("checkpoints of this program load on any layout as they are"),
    "te_columnparallel": Retired(_NO_TE),
    "te_rowparallel": Retired(_NO_TE),
    "te_layernorm_mlp": Retired(_NO_TE),
    "te_mha": Retired(_NO_TE),
    "te_fp8_mha": Retired(_NO_TE),
    "use_bnb_optimizer": Retired("8-bit optimizers are not part of this version"),
    "tokenizer": Retired(_NO_RUNTIME),
    "tensorboard_writer": Retired(_NO_RUNTIME),
    "comet_experiment": Retired(_NO_RUNTIME),
    "adlr_autoresume_object": Retired(_NO_RUNTIME),
    "lazy_mpu_init": Retired("a process group of someone else is not supported"),
    "adlr_autoresume": Retired("it belongs to one company's cluster; SIGTERM saves and stops"),
    "validation_based_reward": Retired(_LATER),
    "batch_normalized_reward": Retired(_LATER),
    "scale_by_reward_loss_diff": Retired(_LATER),
    "moe_num_experts": Retired(_NO_MOE, (0, 1)),
    "use_comet": Retired(_NO_COMET, (False,)),
    "log_gradient_noise_scale": Retired("the gradient noise scale is not part of this version"),
    "checkpoint_validation_with_forward_pass": Retired("checkpoints carry checksums instead"),
    "s3_path": Retired("checkpoints are written to a folder; copy them with a tool of your own"),
    "pack_impl": Retired("documents follow each other without gaps; only 'packed' is supported"),
    "dataset_impl": Retired(_NO_PREFERENCE),
    "train_impl": Retired(_NO_PREFERENCE),
    "train_epochs": Retired("the length of a run is train_iters"),
    "precompute_model_name": Retired("precomputed probabilities serve preference training only"),
    "use_mup": Retired(_NO_MUP),
    "coord_check": Retired(_NO_MUP),
    "save_base_shapes": Retired(_NO_MUP),
    "peak_theoretical_tflops": Retired("the share of the peak is not reported in this version"),
}
"""Keys that are refused when they are set to anything but their default or a harmless value."""

SECTIONS: Mapping[str, str] = {
    "amp": "apex is not supported; use bf16 or fp16",
    "curriculum_learning": "a growing sequence length is not part of this version",
    "autotuning": "DeepSpeed's autotuner does not know this program",
    "data_efficiency": "it would replace the mixture; use data_sampling_method",
    "elasticity": "batch sizes that follow the machines are not part of this version",
    "sparse_attention": "sparse attention is not part of this version",
    "soft_prompt_tuning": "training prompts is not part of this version",
}
"""Sections that are refused when they are enabled."""

NETWORK = frozenset(
    (
        *("te_columnparallel", "te_rowparallel", "te_layernorm_mlp", "te_mha", "te_fp8_mha"),
        *("moe_num_experts", "sparsity_config", "sparse_attention", "soft_prompt_tuning"),
        *("use_mup", "compression_training", "load_universal", "tokenizer", "lazy_mpu_init"),
    )
)
"""Refused keys that a program that only reads a model could not honour either."""

_ACTIVATIONS = "activations are kept or computed again, nothing in between"
_COMPUTED = "it is computed"
_NO_DETAIL = "statistics of single parameters are not part of this version"
_NO_PROFILE = "profiling is not part of this version"
_FUSED = "one fused attention operation serves all layers"
HINTS: Mapping[str, str] = {
    "scaled_upper_triang_masked_softmax_fusion": _FUSED,
    "scaled_masked_softmax_fusion": _FUSED,
    "apply_query_key_layer_scaling": "attention accumulates in float32",
    "attention_softmax_in_fp32": "attention accumulates in float32",
    "bias_dropout_fusion": "torch's kernels are used",
    "fp16_lm_cross_entropy": "the loss is always computed in float32",
    "rope_fusion": "torch's kernels are used",
    "layernorm_fusion": "torch's kernels are used",
    "rmsnorm_fusion": "torch's kernels are used",
    "use_flashattn_swiglu": "torch's kernels are used",
    "rotary_save_freqs_buffer": "frequencies are computed, never stored",
    "num_workers": "samples are read from memory maps; there are no loader processes",
    "detect_nvlink_pairs": "NCCL finds the links itself",
    "fused_kernels_build_path": "no kernels are compiled; torch's are used",
    "onnx_safe": "there is no ONNX export",
    "attention_type": "num_kv_heads says whether queries share keys and values",
    "decay_lr_to": "GPT-NeoX never read it; min_lr is where the decay stops",
    "warmup_iters": "GPT-NeoX never read it; warmup is the share of the schedule that warms up",
    "autotuning_config": "DeepSpeed's autotuner does not know this program",
    "deepscale": "it is an old name of deepspeed",
    "deepscale_config": "it is an old name of deepspeed",
    "wandb_init_all_ranks": "rank 0 logs metrics of all processes",
    "dump_state": "DeepSpeed's log is silent; checkpoints hold configs/resolved.json",
    "comms_logger": "DeepSpeed's log is silent",
    "aio": "nothing is offloaded to a disk",
    "zero_allow_untested_optimizer": "the optimizers of this program are tested with ZeRO",
    "steps_per_print": "the console line follows log_interval",
    "activation_checkpointing": "checkpoint_activations and checkpoint_num_layers decide",
    "checkpoint": "checkpoints have a format of their own",
    "deepspeed_activation_checkpointing": "DeepSpeed's form is always used",
    "short_seq_prob": "samples are always full",
    "partition_activations": _ACTIVATIONS,
    "contiguous_checkpointing": _ACTIVATIONS,
    "checkpoint_in_cpu": _ACTIVATIONS,
    "synchronize_each_layer": _ACTIVATIONS,
    "profile_backward": _ACTIVATIONS,
    "rank": "the launcher's environment says it",
    "local_rank": "the launcher's environment says it",
    "is_pipe_parallel": _COMPUTED,
    "do_train": _COMPUTED,
    "do_valid": _COMPUTED,
    "do_test": _COMPUTED,
    "dynamic_loss_scale": _COMPUTED,
    "deepspeed_mpi": "ranks are looked for in every launcher's environment",
    "deepspeed_slurm": "ranks are looked for in every launcher's environment",
    "use_cpu_initialization": "first weights are always drawn on the CPU",
    "use_shared_fs": "index files are built by the first process that misses them",
    "char_level_ppl": "bits per byte are reported instead",
    "log_grad_norm": _NO_DETAIL,
    "log_grad_pct_zeros": _NO_DETAIL,
    "log_param_norm": _NO_DETAIL,
    "log_optimizer_states": _NO_DETAIL,
    "memory_profiling": _NO_PROFILE,
    "memory_profiling_path": _NO_PROFILE,
    "profile": _NO_PROFILE,
    "profile_step_start": _NO_PROFILE,
    "profile_step_stop": _NO_PROFILE,
}
"""Keys that change no result: noted once when they are set."""

PARENTS: Mapping[str, str] = {
    "mamba_": "Mamba layers",
    "te_fp8_": "Transformer Engine layers",
    "moe_": "moe_num_experts",
    "comet_": "use_comet",
    "mup_": "use_mup",
    "gradient_noise_scale_": "log_gradient_noise_scale",
    "rpe_": "pos_emb: rpe",
    "dim_att": "RWKV layers",
    "head_size": "RWKV layers",
    "ffn_dim": "RWKV layers",
    "online_dataserver_": "train_impl: reinforce",
    "weight_server_port": "serve_model_weights",
    "use_tutel": "moe_num_experts",
    "create_moe_param_group": "moe_num_experts",
    "enable_expert_tensor_parallelism": "moe_num_experts",
    "expert_interval": "moe_num_experts",
    "base_shapes_file": "use_mup",
    "gmlp_attn_dim": "gMLP layers",
    "param_sharing_style": "num_unique_layers",
    "curriculum_seqlen": "curriculum_learning",
    "adlr_autoresume_interval": "adlr_autoresume",
    "s3_chunk_size": "s3_path",
    "allow_chopped": "pack_impl",
}
"""Starts of keys that mean nothing without what this program does not support: noted when set."""


def check_retired(draft: Draft) -> None:
    """Refuses keys that cannot be honoured, and notes those that are hints."""
    for key in (*REFUSED, *SECTIONS):
        if key in NETWORK:
            _refuse(draft, key)
    with draft.training_rules():
        for key in (*REFUSED, *SECTIONS):
            if key not in NETWORK:
                _refuse(draft, key)
        for field in field_table().values():
            value = draft[field.name]
            is_changed = value is not None and value != field.default
            if field.group == "preference" and is_changed and hint_about(field.name) is None:
                problem = f"{field.name} is not supported: {_NO_PREFERENCE}; remove it"
                draft.issues.add(field.name, problem)
    _note_hints(draft)


def _refuse(draft: Draft, key: str) -> None:
    value = draft[key]
    if not is_asked_for(key, value):
        return
    if key in SECTIONS:
        problem = f"{key} is not supported: {SECTIONS[key]}; remove the section"
    else:
        reason = REFUSED[key].reason
        problem = f"{key}: {_show(value)} is not supported: {reason}; remove the key"
    draft.issues.add(key, problem)


def _note_hints(draft: Draft) -> None:
    for key, field in field_table().items():
        if key in draft.given and draft[key] not in (None, field.default):
            if hint := hint_about(key):
                draft.notes.append(f"'{key}' has no effect: {hint}")


def is_asked_for(key: str, value: Any) -> bool:
    """Tells whether a value of a refused key or section asks for what is not there."""
    if key in SECTIONS:
        return bool(value) and bool(value.get("enabled", True))
    is_default = value is None or value == field_table()[key].default
    return not is_default and value not in REFUSED[key].harmless


def refusal_about(key: str) -> str | None:
    """Returns why a key or section is refused when it asks for something, or None."""
    return REFUSED[key].reason if key in REFUSED else SECTIONS.get(key)


def hint_about(key: str) -> str | None:
    """Returns why a key has no effect, or None when it has one (or is refused)."""
    if key in HINTS or key in REFUSED:
        return HINTS.get(key)
    for start, parent in PARENTS.items():
        if key.startswith(start):
            return f"it belongs to {parent}, which this version does not support"
    return None


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
