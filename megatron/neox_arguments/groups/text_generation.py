"""Generation and evaluation, and the mixture-of-experts keys that GPT-NeoX keeps in this class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTextgen:
    """How text is generated and which tasks are evaluated."""

    text_gen_type: str | None = None
    """`unconditional`, `input-file` or `interactive`. Not set: `input-file` when there is a
    `sample_input_file`, else `unconditional`."""

    precompute_model_name: str | None = None
    """Belongs to `text_gen_type: precompute`, which this program refuses."""

    temperature: float = 0.0
    """Divides the logits. 0 with `top_k` and `top_p` 0 always takes the most likely token."""

    top_p: float = 0.0
    """Samples from the smallest set of tokens with at least this probability, in [0, 1]. 0 switches
    it off."""

    top_k: int = 0
    """Samples from this many most likely tokens. 0 switches it off."""

    return_logits: bool = False
    """Writes the logits of generated tokens with the samples."""

    maximum_tokens: int = 64
    """Tokens to generate at most."""

    prompt_end: str = "\n"
    """Ends a prompt in a file or on the console."""

    sample_input_file: str | None = None
    """File of prompts, separated by `prompt_end`."""

    sample_output_file: str | None = "samples.txt"
    """File that gets one JSON object a sample. Empty or null prints instead."""

    num_samples: int = 1
    """Samples of unconditional generation."""

    recompute: bool = False
    """Computes the whole sequence for every token instead of keeping keys and values."""

    eval_results_prefix: str = ""
    """Starts the name of the evaluation's result file."""

    eval_tasks: list[str] | None = None
    """Names or patterns of lm-eval tasks."""

    eval_task_paths: list[str] | None = None
    """Folders with your own lm-eval task files."""

    eval_num_fewshot: int = 0
    """Solved examples before each question of an evaluation."""

    eval_task_limit: int | None = None
    """Questions of each task at most. Not set: all."""

    moe_num_experts: int = 1
    """Experts of a mixture-of-experts block. More than 1 is refused."""

    moe_top_k: int = 1
    """Belongs to `moe_num_experts`."""

    use_tutel: bool = False
    """Belongs to `moe_num_experts`."""

    moe_loss_coeff: float = 0.1
    """Belongs to `moe_num_experts`."""

    moe_aux_loss_coeff: float | None = None
    """Belongs to `moe_num_experts`."""

    moe_z_loss_coeff: float | None = None
    """Belongs to `moe_num_experts`."""

    moe_router_type: str | None = None
    """Belongs to `moe_num_experts`."""

    moe_train_capacity_factor: float = 1.0
    """Belongs to `moe_num_experts`."""

    moe_eval_capacity_factor: float = 1.0
    """Belongs to `moe_num_experts`."""

    moe_min_capacity: int = 4
    """Belongs to `moe_num_experts`."""

    moe_token_dropping: bool = False
    """Belongs to `moe_num_experts`."""

    create_moe_param_group: bool = True
    """Belongs to `moe_num_experts`."""

    moe_use_residual: bool = True
    """Belongs to `moe_num_experts`."""

    moe_expert_parallel_size: int = 1
    """Belongs to `moe_num_experts`."""

    moe_type: str = "megablocks"
    """Belongs to `moe_num_experts`."""

    moe_glu: bool = False
    """Belongs to `moe_num_experts`."""

    moe_lbl_in_fp32: bool = False
    """Belongs to `moe_num_experts`."""

    moe_jitter_eps: float | None = None
    """Belongs to `moe_num_experts`."""

    enable_expert_tensor_parallelism: bool = False
    """Belongs to `moe_num_experts`."""
