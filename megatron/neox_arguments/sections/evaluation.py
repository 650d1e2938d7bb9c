"""What is done with a trained model: evaluation and generation."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from ..declarations import ONLY_TRAINING, Bound, Key, above, at_least, each, in_range

Kind = Literal["unconditional", "input-file", "interactive"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out losses and lm-eval tasks, during training and after it."""

    interval: Annotated[int, Key("eval_interval"), at_least(1), ONLY_TRAINING] = 1000
    """Iterations from one validation to the next."""

    iters: Annotated[int, Key("eval_iters"), at_least(0)] = 100
    """Global batches of one evaluation. Datasets without names share them by their weights. Each
    named dataset is measured on so many at most, but only where the number is written and
    `max_validation_samples_per_dataset` (for test data `max_test_samples_per_dataset`) is not set.
    0: training measures nothing on held-out text."""

    named_iters: int | None
    """`eval_iters` where it was written: it limits named held-out data too. None: it was not."""

    domains: Annotated[
        list[str] | None,
        Key("eval_domains"),
        each("names of domains, or name=path", re.compile("[^=]+(=.+)?", re.DOTALL).fullmatch),
    ] = None
    """What `evaluate.py` measures losses on: names of configured domains, and `name=path` for other
    tokenized data, a prefix or a folder of them. Not set: all configured domains, or none beside
    `eval_tasks`."""

    tasks: Annotated[list[str] | None, Key("eval_tasks")] = None
    """lm-eval tasks, groups and tags by name or pattern, and YAML files of your own. Run by
    `evaluate.py`, and by training with `eval_harness_interval`."""

    tasks_interval: Annotated[
        int | None, Key("eval_harness_interval"), at_least(1), ONLY_TRAINING
    ] = None
    """Iterations from one run of `eval_tasks` to the next while training; they are run at the end
    too. Not set: training runs none."""

    task_paths: Annotated[list[str] | None, Key("eval_task_paths")] = None
    """Folders with your own lm-eval task files (`.yaml`), at any depth. Their names win over
    lm-eval's."""

    trust_task_code: bool = False
    """Lets task files of your own run the Python code that they name (`!function`, a class, a
    metric that is fetched). Read it first: it can do all that you can."""

    num_fewshot: Annotated[int | None, Key("eval_num_fewshot"), at_least(0)] = None
    """Solved examples before each question of a task. Not set: what the task says, else 0. A task
    whose own file says 0 keeps it."""

    task_limit: Annotated[int | None, Key("eval_task_limit"), at_least(1)] = None
    """Questions of each task at most. Not set: all."""

    seed: Annotated[int | None, Key("eval_seed"), at_least(0)] = None
    """Seed of an evaluation: which examples are shown, and random numbers. Not set: 1234, whatever
    the `seed` of the run."""

    bootstrap_iters: Annotated[int, Key("eval_bootstrap_iters"), at_least(0)] = 10_000
    """Resamples behind the standard error of a metric without a formula. 0: no standard errors."""

    log_samples: Annotated[bool, Key("eval_log_samples")] = False
    """Writes every question with its answers and scores, one JSON Lines file a task."""

    batch_tokens: Annotated[int | None, Key("eval_batch_tokens"), at_least(1)] = None
    """Tokens of one forward pass of a task at most, padding included; a longer question stands
    alone. Not set: chosen for the device."""

    apply_chat_template: Annotated[bool, Key("eval_apply_chat_template")] = False
    """Puts questions into the tokenizer's chat template."""

    system_instruction: Annotated[str | None, Key("eval_system_instruction")] = None
    """Text before each question; the system's turn with `eval_apply_chat_template`."""

    results_prefix: Annotated[str, Key("eval_results_prefix")] = ""
    """Starts the names of the evaluation's result files, folders included; they are made."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How text is generated."""

    kind: Annotated[Kind, Key("text_gen_type", Kind | None)]
    """`unconditional`, `input-file` or `interactive`. Not set: `input-file` when there is a
    `sample_input_file`, else `unconditional`."""

    temperature: Annotated[float, at_least(0)] = 0.0
    """Divides the logits. 0 always takes the most likely token, whatever `top_k`, `top_p` and
    `min_p` say."""

    top_p: Annotated[float, in_range("[0, 1]")] = 0.0
    """Samples from the smallest set of tokens with at least this probability, in [0, 1]. 0 and 1
    switch it off."""

    top_k: Annotated[int, at_least(0)] = 0
    """Samples from this many most likely tokens. 0 switches it off."""

    min_p: Annotated[float, in_range("[0, 1]")] = 0.0
    """Samples from tokens with at least this share of the most likely one's probability, in [0, 1].
    0 switches it off."""

    repetition_penalty: Annotated[float, above(0, "1 switches it off")] = 1.0
    """Divides the positive logits of tokens that the text holds already, the prompt included, and
    multiplies the negative ones. 1 switches it off."""

    stop_strings: Annotated[list[str] | None, each("texts that are not empty", bool)] = None
    """Texts that end a sample; they are left out of it, and may lie across tokens."""

    stop_tokens: Annotated[
        list[int] | None, each("token ids of at least 0", lambda token: token >= 0)
    ] = None
    """Token ids that end a sample, beside the end of a document."""

    batch_size: Annotated[int, Key("generation_batch_size"), at_least(1)] = 8
    """Prompts that are continued together. It does not change the samples."""

    return_logits: bool = False
    """Writes the logits of generated tokens with the samples."""

    maximum_tokens: Annotated[int, at_least(1)] = 64
    """Tokens to generate at most. The model's context may end a sample sooner."""

    prompt_end: Annotated[str, Bound("at least one character", bool, "'\\n' is usual")] = "\n"
    """Ends a prompt in a file or on the console."""

    input_file: Annotated[str | None, Key("sample_input_file")] = None
    """File of prompts, separated by `prompt_end`. `-i` sets it, and `text_gen_type: input-file`."""

    output_file: Annotated[str | None, Key("sample_output_file")] = "samples.txt"
    """File that gets one JSON object per sample; it ends in `.part` until all are there. Empty or
    null prints instead."""

    num_samples: Annotated[int, at_least(1)] = 1
    """Samples of unconditional generation."""

    recompute: bool = False
    """Computes the whole sequence for every token instead of keeping keys and values."""
