"""Generation and evaluation, and the mixture-of-experts keys that GPT-NeoX keeps in this class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTextgen:
    """How text is generated and which tasks are evaluated."""

    text_gen_type: str | None = None
    """`unconditional`, `input-file` or `interactive`. Not set: `input-file` when there is a
    `sample_input_file`, else `unconditional`."""

    temperature: float = 0.0
    """Divides the logits. 0 always takes the most likely token, whatever `top_k`, `top_p` and
    `min_p` say."""

    top_p: float = 0.0
    """Samples from the smallest set of tokens with at least this probability, in [0, 1]. 0 and 1
    switch it off."""

    top_k: int = 0
    """Samples from this many most likely tokens. 0 switches it off."""

    min_p: float = 0.0
    """Samples from tokens with at least this share of the most likely one's probability, in [0, 1].
    0 switches it off."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that the text holds already, the prompt included, and
    multiplies the negative ones. 1 switches it off."""

    stop_strings: list[str] | None = None
    """Texts that end a sample; they are left out of it, and may lie across tokens."""

    stop_tokens: list[int] | None = None
    """Token ids that end a sample, beside the end of a document."""

    generation_batch_size: int = 8
    """Prompts that are continued together. It does not change the samples."""

    return_logits: bool = False
    """Writes the logits of generated tokens with the samples."""

    maximum_tokens: int = 64
    """Tokens to generate at most. The model's context may end a sample sooner."""

    prompt_end: str = "\n"
    """Ends a prompt in a file or on the console."""

    sample_input_file: str | None = None
    """File of prompts, separated by `prompt_end`. `-i` sets it, and `text_gen_type: input-file`."""

    sample_output_file: str | None = "samples.txt"
    """File that gets one JSON object a sample; it ends in `.part` until all are there. Empty or
    null prints instead."""

    num_samples: int = 1
    """Samples of unconditional generation."""

    recompute: bool = False
    """Computes the whole sequence for every token instead of keeping keys and values."""

    eval_results_prefix: str = ""
    """Starts the names of the evaluation's result files, folders included; they are made."""

    eval_tasks: list[str] | None = None
    """lm-eval tasks, groups and tags by name or pattern, and YAML files of your own. Run by
    `evaluate.py`, and by training with `eval_harness_interval`."""

    eval_task_paths: list[str] | None = None
    """Folders with your own lm-eval task files (`.yaml`), at any depth. Their names win over
    lm-eval's."""

    trust_task_code: bool = False
    """Lets task files of your own run the Python code that they name (`!function`, a class, a
    metric that is fetched). Read it first: it can do all that you can."""

    eval_num_fewshot: int | None = None
    """Solved examples before each question of a task. Not set: what the task says, else 0. A task
    whose own file says 0 keeps it."""

    eval_task_limit: int | None = None
    """Questions of each task at most. Not set: all."""

    eval_seed: int | None = None
    """Seed of an evaluation: which examples are shown, and random numbers. Not set: 1234, whatever
    the `seed` of the run."""

    eval_bootstrap_iters: int = 10_000
    """Resamples behind the standard error of a metric without a formula. 0: no standard errors."""

    eval_log_samples: bool = False
    """Writes every question with its answers and scores, one JSON Lines file a task."""

    eval_batch_tokens: int | None = None
    """Tokens of one forward pass of a task at most, padding included; a longer question stands
    alone. Not set: chosen for the device."""

    eval_apply_chat_template: bool = False
    """Puts questions into the tokenizer's chat template."""

    eval_system_instruction: str | None = None
    """Text before each question; the system's turn with `eval_apply_chat_template`."""

    eval_domains: list[str] | None = None
    """What `evaluate.py` measures losses on: names of configured domains, and `name=path` for other
    tokenized data, a prefix or a folder of them. Not set: all configured domains, or none beside
    `eval_tasks`."""
