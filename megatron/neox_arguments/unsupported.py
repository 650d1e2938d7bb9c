"""Keys that are known and not honoured: one table of type, default, verdict and reason."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from .errors import shown

if TYPE_CHECKING:
    from .rules import Draft


@dataclass(frozen=True)
class Unsupported:
    """A key of GPT-NeoX that this program knows and does not honour."""

    key: str
    type: Any
    default: Any
    verdict: Literal["refused", "refused when enabled", "no effect"]
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


_Rows = Iterator[Unsupported]


def _refused(
    reason: str, *, harmless: tuple[Any, ...] = (), network: bool = False, **keys: Any
) -> _Rows:
    """Rows of keys that are refused when they are set to anything but their default.

    Each key has its default, from which its type follows; or its type, then the default is null or
    the first of several choices; or both.
    """
    for key, form in keys.items():
        kind, default = _type_and_default(form)
        yield Unsupported(key, kind, default, "refused", reason, harmless, network)


def _sections(*, network: bool = False, **reasons: str) -> _Rows:
    """Rows of sections that are refused when they are enabled."""
    for key, reason in reasons.items():
        kind = dict[str, Any] | None
        yield Unsupported(key, kind, None, "refused when enabled", reason, (), network)


def _no_effect(reason: str, **keys: Any) -> _Rows:
    """Rows of keys that change no result: a note says so where they are set."""
    for key, form in keys.items():
        yield Unsupported(key, *_type_and_default(form), "no effect", reason)


def _part_of(parent: str, **keys: Any) -> _Rows:
    """Rows of keys that mean nothing without what this program does not support."""
    return _no_effect(f"it belongs to {parent}, which this version does not support", **keys)


def _type_and_default(form: Any) -> tuple[Any, Any]:
    if form is Any:
        return Any, None
    if isinstance(form, tuple):
        return form
    if get_origin(form) is Literal:
        return form, get_args(form)[0]
    if isinstance(form, type) or get_origin(form) in (list, dict, Union, types.UnionType):
        return form | None, None
    return type(form), form


_MOE = "moe_num_experts"
_NO_NEXT_TOKEN = "only next-token training is part of this version"
_LATER = "held-out rewards are not part of this version; rewards are training losses"
_NO_TUNER = "DeepSpeed's autotuner does not know this program"
_NO_OBJECT = "a running program's object cannot be written in a file"
_NO_MUP = "maximal update parametrisation is not part of this version"
_SETS = ("train", "valid", "test")
_Section = dict[str, Any]

_ALL: tuple[_Rows, ...] = (
    # the network
    _refused(
        "Transformer Engine layers are not part of this version; use bf16",
        network=True,
        **dict.fromkeys(("te_columnparallel", "te_rowparallel", "te_layernorm_mlp"), False),
        te_mha=False,
        te_fp8_mha=False,
    ),
    _part_of(
        "Transformer Engine layers",
        te_fp8_format=Literal["hybrid", "e4m3"],
        te_fp8_wgrad=True,
        te_fp8_amax_history_len=1,
        te_fp8_amax_compute_algo="most_recent",
        te_fp8_margin=0,
    ),
    _refused(
        "mixture-of-experts models are not part of this version",
        harmless=(0,),
        network=True,
        moe_num_experts=1,
    ),
    _part_of(
        _MOE,
        **dict.fromkeys(("moe_top_k", "moe_expert_interval", "moe_expert_parallel_size"), 1),
        **dict.fromkeys(("use_tutel", "moe_token_dropping", "moe_glu", "moe_lbl_in_fp32"), False),
        **dict.fromkeys(("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_jitter_eps"), float),
        **dict.fromkeys(("create_moe_param_group", "moe_use_residual"), True),
        **dict.fromkeys(("moe_train_capacity_factor", "moe_eval_capacity_factor"), 1.0),
        enable_expert_tensor_parallelism=False,
        expert_interval=2,
        moe_loss_coeff=0.1,
        moe_router_type="sinkhorn",
        moe_min_capacity=4,
        moe_type="megablocks",
    ),
    _refused(
        "sparse attention is not part of this version",
        harmless=({},),
        network=True,
        sparsity_config=_Section,
    ),
    _refused(
        "quantisation and pruning are not part of this version",
        harmless=({},),
        network=True,
        compression_training=_Section,
    ),
    _sections(
        network=True,
        sparse_attention="sparse attention is not part of this version",
        soft_prompt_tuning="training prompts is not part of this version",
    ),
    _refused(_NO_MUP, network=True, use_mup=False),
    _refused(_NO_MUP, coord_check=False, save_base_shapes=False),
    _part_of(
        "use_mup",
        **{f"mup_{k}": 1.0 for k in ("init_scale", "attn_temp", "output_temp", "embedding_mult")},
        mup_rp_embedding_mult=1.0,
        mup_width_scale=2,
        base_shapes_file=str,
    ),
    _refused("queries and keys are not normalised", network=True, use_qk_layernorm=False),
    _refused("learned positions start at 0", network=True, opt_pos_emb_offset=0),
    _part_of("pos_emb: rpe", rpe_num_buckets=32, rpe_max_distance=128),
    _part_of("gMLP layers", gmlp_attn_dim=(int | None, 64)),
    _part_of("RWKV layers", dim_att=int, head_size=int, ffn_dim=int),
    _part_of(
        "Mamba layers",
        **{f"mamba_{k}_fusion": False for k in ("selective_scan", "causal_conv", "inner_func")},
        mamba_use_bias_in_linears=False,
        mamba_use_bias_in_conv=True,
        mamba_selective_fp32_params=True,
    ),
    _part_of("num_unique_layers", param_sharing_style="grouped"),
    _no_effect("num_kv_heads says whether queries share keys and values", attention_type=str),
    _no_effect(
        "one fused attention operation serves all layers",
        scaled_upper_triang_masked_softmax_fusion=False,
        scaled_masked_softmax_fusion=False,
    ),
    _no_effect(
        "attention accumulates in float32",
        apply_query_key_layer_scaling=False,
        attention_softmax_in_fp32=False,
    ),
    _no_effect(
        "torch's kernels are used",
        **dict.fromkeys(("layernorm_fusion", "rmsnorm_fusion", "bias_dropout_fusion"), False),
        rope_fusion=False,
        use_flashattn_swiglu=False,
    ),
    _no_effect("no kernels are compiled; torch's are used", fused_kernels_build_path=str),
    _no_effect("the loss is always computed in float32", fp16_lm_cross_entropy=False),
    _no_effect("frequencies are computed, never stored", rotary_save_freqs_buffer=False),
    _no_effect("first weights are always drawn on the CPU", use_cpu_initialization=False),
    _no_effect("there is no ONNX export", onnx_safe=False),
    # losses other than that of the next token
    _refused(
        _NO_NEXT_TOKEN,
        dataset_impl=Literal["gpt2", "pairwise", "online"],
        train_impl=Literal["normal", "dpo", "rm", "kto", "reinforce"],
        label_data_paths=list[str],
        **{f"{k}_{what}_data_paths": list[str] for k in _SETS for what in ("label", "reward")},
        **{
            f"{side}_{k}_{what}data_paths": list[str]
            for side in ("pos", "neg")
            for k in _SETS
            for what in ("", "label_")
        },
        **dict.fromkeys(("dpo_fp32", "kto_fp32", "fp32_reinforce"), True),
        **dict.fromkeys(("dpo_beta", "kto_beta", "kl_div_beta"), 0.1),
        **dict.fromkeys(("kto_desirable_weight", "kto_undesirable_weight"), 1.0),
        **dict.fromkeys(("dpo_reference_free", "reinforce_leave_one_out"), False),
        serve_model_weights=False,
        kl_impl="mse",
    ),
    _part_of(
        "train_impl: reinforce",
        online_dataserver_ips=(str | list[str], "localhost"),
        online_dataserver_ports=(int | list[int], 10000),
    ),
    _part_of("serve_model_weights", weight_server_port=(int | list[int], 6000)),
    _refused("precomputed probabilities serve preference training only", precompute_model_name=str),
    # data and mixing
    _refused(
        _LATER,
        validation_based_reward=False,
        batch_normalized_reward=False,
        scale_by_reward_loss_diff=False,
    ),
    _refused(
        "documents follow each other without gaps; only 'packed' is supported",
        pack_impl=Literal["packed", "pack_until_overflow", "unpacked"],
    ),
    _part_of("pack_impl", allow_chopped=True),
    _refused("the length of a run is train_iters", train_epochs=int),
    _no_effect("samples are always full", short_seq_prob=0.1),
    _no_effect("samples are read from memory maps; there are no loader processes", num_workers=2),
    _no_effect("index files are built by the first process that misses them", use_shared_fs=True),
    # optimizer, precision and DeepSpeed
    _refused("8-bit optimizers are not part of this version", use_bnb_optimizer=False),
    _refused("the embedding's gradient is dense", sparse_gradients=False),
    _refused(
        "the learning rate is set by lr_decay_style, warmup and min_lr",
        harmless=({},),
        scheduler=_Section,
    ),
    _refused(_NO_TUNER, autotuning_run=str),
    _sections(
        autotuning=_NO_TUNER,
        amp="apex is not supported; use bf16 or fp16",
        curriculum_learning="a growing sequence length is not part of this version",
        data_efficiency="it would replace the mixture; use data_sampling_method",
        elasticity="batch sizes that follow the machines are not part of this version",
    ),
    _part_of("curriculum_learning", curriculum_seqlen=0),
    _no_effect(_NO_TUNER, autotuning_config=_Section),
    _no_effect("GPT-NeoX never read it; min_lr is where the decay stops", decay_lr_to=float),
    _no_effect(
        "GPT-NeoX never read it; warmup is the share of the schedule that warms up",
        warmup_iters=float,
    ),
    _no_effect("it is an old name of deepspeed", deepscale=False, deepscale_config=str),
    _no_effect("nothing is offloaded to a disk", aio=_Section),
    _no_effect(
        "the optimizers of this program are tested with ZeRO", zero_allow_untested_optimizer=True
    ),
    _no_effect(
        "checkpoint_activations and checkpoint_num_layers decide", activation_checkpointing=_Section
    ),
    _no_effect("DeepSpeed's form is always used", deepspeed_activation_checkpointing=True),
    _no_effect(
        "activations are kept or computed again, nothing in between",
        **dict.fromkeys(("partition_activations", "contiguous_checkpointing"), False),
        **dict.fromkeys(("checkpoint_in_cpu", "synchronize_each_layer"), False),
        profile_backward=False,
    ),
    _no_effect("it is computed", is_pipe_parallel=False, dynamic_loss_scale=bool),
    _no_effect("it is computed", **dict.fromkeys(("do_train", "do_valid", "do_test"), bool | int)),
    # saving
    _refused(
        "checkpoints of this program load on any layout as they are",
        network=True,
        load_universal=False,
    ),
    _refused("checkpoints carry checksums instead", checkpoint_validation_with_forward_pass=False),
    _refused("checkpoints are written to a folder; copy them with a tool of your own", s3_path=str),
    _part_of("s3_path", s3_chunk_size=104_857_600),
    _no_effect("checkpoints have a format of their own", checkpoint=_Section),
    # logging
    _refused(
        "Comet is not supported; use TensorBoard or Weights & Biases",
        harmless=(False,),
        use_comet=bool,
    ),
    _part_of(
        "use_comet",
        **dict.fromkeys(("comet_workspace", "comet_project", "comet_experiment_name"), str),
        comet_tags=list[Any],
        comet_others=_Section,
    ),
    _refused(_NO_OBJECT, **dict.fromkeys(("comet_experiment", "tensorboard_writer"), Any)),
    _refused(
        "the gradient noise scale is not part of this version", log_gradient_noise_scale=False
    ),
    _part_of(
        "log_gradient_noise_scale",
        gradient_noise_scale_n_batches=5,
        gradient_noise_scale_cpu_offload=False,
    ),
    _refused(
        "the share of the peak is not reported in this version", peak_theoretical_tflops=float
    ),
    _no_effect(
        "statistics of single parameters are not part of this version",
        **dict.fromkeys(("log_grad_norm", "log_grad_pct_zeros", "log_param_norm"), False),
        log_optimizer_states=False,
    ),
    _no_effect(
        "profiling is not part of this version",
        memory_profiling=False,
        memory_profiling_path=str,
        profile=False,
        profile_step_start=10,
        profile_step_stop=12,
    ),
    _no_effect("bits per byte are reported instead", char_level_ppl=False),
    _no_effect("rank 0 logs metrics of all processes", wandb_init_all_ranks=False),
    _no_effect("DeepSpeed's log is silent", comms_logger=_Section),
    _no_effect(
        "DeepSpeed's log is silent; checkpoints hold configs/resolved.json", dump_state=False
    ),
    _no_effect("the console line follows log_interval", steps_per_print=10),
    # processes
    _refused(_NO_OBJECT, network=True, tokenizer=Any),
    _refused("a process group of someone else is not supported", network=True, lazy_mpu_init=False),
    _refused("it belongs to one company's cluster; SIGTERM saves and stops", adlr_autoresume=False),
    _refused(_NO_OBJECT, adlr_autoresume_object=Any),
    _part_of("adlr_autoresume", adlr_autoresume_interval=1000),
    _no_effect("the launcher's environment says it", rank=int, local_rank=int),
    _no_effect(
        "ranks are looked for in every launcher's environment",
        deepspeed_mpi=False,
        deepspeed_slurm=False,
    ),
    _no_effect("NCCL finds the links itself", detect_nvlink_pairs=False),
)

UNSUPPORTED: Mapping[str, Unsupported] = {row.key: row for rows in _ALL for row in rows}


def check_unsupported(draft: Draft) -> None:
    """Refuses keys that cannot be honoured, and notes those that have no effect."""
    for row in UNSUPPORTED.values():
        if row.is_of_network:
            _refuse(draft, row)
    with draft.training_rules():
        for row in UNSUPPORTED.values():
            if not row.is_of_network:
                _refuse(draft, row)
    for key, row in UNSUPPORTED.items():
        if row.verdict == "no effect" and key in draft.given and row.is_asked_for(draft[key]):
            draft.notes.append(f"'{key}' has no effect: {row.reason}")


def _refuse(draft: Draft, row: Unsupported) -> None:
    value = draft[row.key]
    if row.verdict == "no effect" or not row.is_asked_for(value):
        return
    if row.verdict == "refused":
        problem = f"{row.key}: {shown(value)} is not supported: {row.reason}; remove the key"
    else:
        problem = f"{row.key} is not supported: {row.reason}; remove the section"
    draft.issues.add(row.key, problem)
