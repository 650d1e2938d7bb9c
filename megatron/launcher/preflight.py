"""What would stop a run on this machine before its first step, found without torch.

Only certain problems: the run itself would be refused for each of them, after seconds or minutes.
This module loads quickly and works quickly: it looks at files but does not read them to the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from megatron.checkpoint.foreign import foreign_checkpoint_problem, neox_checkpoint_names
from megatron.checkpoint.remote import file_system_problem
from megatron.data.errors import DataError
from megatron.data.index_header import stored_tokens
from megatron.data.metadata import read_metadata
from megatron.data.splits import SPLITS
from megatron.eval_tasks.requests import task_problems
from megatron.files import is_same_path
from megatron.neox_arguments import ConfigError, RunConfig
from megatron.neox_arguments.deepspeed_json import (
    missing_monitor_problem,
    missing_optimizer_problem,
)
from megatron.neox_arguments.purpose import Purpose, is_training_script, purpose_of
from megatron.neox_arguments.rules.evaluation import nothing_to_evaluate_problem
from megatron.sizing.mixture import describe_mixture
from megatron.tokenizer.errors import TokenizerError
from megatron.tokenizer.file_size import tokenizer_size
from odm.wording import counted

__all__ = ["start_problems"]


def start_problems(
    config: RunConfig, *, has_accelerator: bool, is_valid: bool = True
) -> list[ConfigError]:
    """Returns all problems for which `train.py`, `evaluate.py` or `generate.py` would be refused.

    Args:
        config: The resolved configuration; `user_script` tells what starts. Other scripts are
            not checked.
        has_accelerator: Whether ranks here get one.
        is_valid: Whether the configuration itself has no problem; if it has one, only files are
            checked, and its sections are not used.
    """
    script = config.launch.user_script
    is_training = is_training_script(script)
    if not is_training and purpose_of(script) is not Purpose.READING:
        return []
    problems: list[ConfigError] = []
    size = _vocabulary(config, problems)
    for split, prefix, name in _datasets(config, Path(script or "").name):
        found = _dataset_problems(config, prefix, name, vocab_size=size, trains=split == "train")
        key = "data_path" if config.data.split else f"{split}_data_paths"
        problems += [ConfigError(f"{key}: {problem}", key=key) for problem in found]
    if is_training:
        problems += _split_problems(config)
        problems += _mixture_problems(config) if is_valid and not problems else []
        problems += _precision_problems(config, has_accelerator=has_accelerator)
        problems += _folder_problems(config)
        problems += _overwriting_problems(config)
        if config.evaluation.tasks_interval is not None:
            problems += _task_problems(config)
        for missing in (missing_monitor_problem, missing_optimizer_problem) if is_valid else ():
            problems += [ConfigError(problem)] if (problem := missing(config)) else []
    elif Path(script or "").name == "generate.py":
        problems += _generation_problems(config)
    else:
        problems += [*_evaluation_problems(config), *_task_problems(config)]
    problems += _address_problems(config, is_training=is_training)
    return [*problems, *_checkpoint_problems(config, is_training=is_training)]


def _vocabulary(config: RunConfig, problems: list[ConfigError]) -> int | None:
    """Number of token ids; None if no local file tells it."""
    try:
        kind = config.data.tokenizer_type
        return tokenizer_size(kind, config.data.vocab_file, config.data.merge_file)
    except TokenizerError as error:
        key = "merge_file" if str(error).startswith("merge_file:") else "vocab_file"
        problems.append(ConfigError(_led_by(key, str(error)), key=key))
        return None


def _datasets(config: RunConfig, script: str) -> Iterator[tuple[str, str, str]]:
    """Yields split, prefix and domain of each data set that the program opens, once."""
    if script == "generate.py":
        return
    is_training = script == "train.py"
    names_some = not is_training and (config.evaluation.tasks or config.evaluation.domains)
    measures_none = not config.data.use_named_eval_datasets and config.evaluation.iters < 1
    measures_rewards = is_training and config.mixing.heldout_interval is not None
    is_opened = {
        "train": is_training,
        "valid": not (names_some or measures_none) or measures_rewards,
        "test": not (names_some or measures_none),
    }
    seen = set()
    for split in (split for split in SPLITS if is_opened[split]):
        prefixes = getattr(config.data, f"{split}_paths")
        names = getattr(config.data, f"{split}_domains")
        for prefix, name in zip_longest(prefixes, names):
            if prefix not in seen:
                seen.add(prefix)
                yield split, prefix, name or Path(prefix).parent.name or Path(prefix).name


def _dataset_problems(
    config: RunConfig, prefix: str, name: str, *, vocab_size: int | None, trains: bool
) -> Iterator[str]:
    """Files that are missing or torn, ids that no embedding has, no text for one sample."""
    try:
        tokens, metadata = stored_tokens(prefix), read_metadata(prefix)
    except DataError as error:
        yield str(error)
        return
    needed = config.data.seq_length + 1
    if trains and tokens < needed:
        what = "is shorter than one sample" if tokens else "is empty"
        yield (
            f"{prefix}: domain {name} {what}: {counted(tokens, 'token')}, seq_length needs "
            f"{needed}; use a smaller seq_length, give it text or leave it out"
        )
    if metadata is None or metadata.tokens != tokens or vocab_size is None:
        return
    if metadata.max_token_id >= vocab_size:
        yield (
            f"{prefix}: domain {name} has token id {metadata.max_token_id}, the tokenizer of this "
            f"run has {vocab_size} ids (the data were made with {metadata.tokenizer.type}, "
            f"{metadata.tokenizer.vocab_size} ids); use one tokenizer for both"
        )


def _split_problems(config: RunConfig) -> Iterator[ConfigError]:
    if config.data.split is not None and not config.data.split[0]:
        yield ConfigError(
            f"split: {config.data.split_text!r} leaves no training documents; raise the first "
            "share",
            key="split",
        )


def _mixture_problems(config: RunConfig) -> list[ConfigError]:
    """Weights and limits for which the data are too small."""
    try:
        describe_mixture(config)
    except ConfigError as error:
        return [error]
    return []


def _precision_problems(config: RunConfig, *, has_accelerator: bool) -> list[ConfigError]:
    if config.precision.dtype != "fp16" or has_accelerator:
        return []
    key = config.precision.key
    problem = f"{key}: there is no accelerator for the precision fp16; use bfloat16 or fp32"
    return [ConfigError(problem, key=key)]


def _folder_problems(config: RunConfig) -> Iterator[ConfigError]:
    """Folders that training needs to write and cannot."""
    folders = {"save": config.saving.save_path, "tensorboard_dir": config.logging.tensorboard_dir}
    if not config.logging.is_beside_checkpoints(config.saving.save_path):
        folders["log_dir"] = config.logging.log_dir
    for key, folder in folders.items():
        if folder and (problem := _unwritable(Path(folder))):
            yield ConfigError(
                f"{key}: {folder} cannot be written ({problem}); choose a writable folder", key=key
            )


def _generation_problems(config: RunConfig) -> Iterator[ConfigError]:
    """Prompts that do not exist, and samples that cannot be written."""
    kind = config.generation.kind
    name = config.generation.input_file or ""
    if kind == "input-file" and name and (not os.path.exists(name) or os.path.isdir(name)):
        key = "sample_input_file"
        yield ConfigError(f"{key}: there is no file {name}; name a file of prompts", key=key)
    key, name = "sample_output_file", config.generation.output_file or ""
    if kind != "interactive" and name:
        folder = Path(name).parent
        if not folder.is_dir():
            problem = f"there is no folder {folder}; make it or name another file"
            yield ConfigError(f"{key}: {problem}", key=key)
        elif Path(name).is_dir():
            yield ConfigError(f"{key}: {name} is a folder; name a file", key=key)


def _evaluation_problems(config: RunConfig) -> Iterator[ConfigError]:
    """Nothing to evaluate, unknown domains, results that cannot be written."""
    prefixes = (*config.data.valid_paths, *config.data.test_paths)
    if not (config.evaluation.tasks or config.evaluation.domains or prefixes):
        problem = nothing_to_evaluate_problem(config.evaluation.iters)
        yield ConfigError(problem, key="valid_data_paths")
    names = {*config.data.valid_domains, *config.data.test_domains}
    names |= {Path(prefix).parent.name or Path(prefix).name for prefix in prefixes}
    for entry in config.evaluation.domains or ():
        path = entry.partition("=")[2] or entry
        files = (f"{entry}{end}" for end in ("", ".idx")), (f"{path}{end}" for end in ("", ".idx"))
        if entry not in names and not any(os.path.exists(name) for part in files for name in part):
            listed = ", ".join(sorted(names)) or "none"
            yield ConfigError(
                f"eval_domains: {entry} is neither a domain nor a path of tokenized data; "
                f"known domains: {listed}; for other data write name=path",
                key="eval_domains",
            )
    folder = Path(config.evaluation.results_prefix).parent
    if reason := _unwritable(folder):
        key = "eval_results_prefix"
        yield ConfigError(f"{key}: {folder} cannot be written ({reason}); choose another", key=key)


def _task_problems(config: RunConfig) -> Iterator[ConfigError]:
    """Tasks that do not exist."""
    evaluation = config.evaluation
    for problem in task_problems(evaluation.tasks or (), evaluation.task_paths or ()):
        yield ConfigError(problem, key=problem.partition(":")[0])


def _unwritable(folder: Path) -> str | None:
    if problem := _unusable(folder):
        return problem
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"Not a directory: {nearest}"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"Permission denied: {nearest}"
    return None


def _unusable(path: str | Path) -> str | None:
    """The system's error for a path that can never exist, such as one that is too long."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror
    return None


def _address_problems(config: RunConfig, *, is_training: bool) -> Iterator[ConfigError]:
    """File systems that are not installed; nothing is connected to."""
    addresses = {"load": config.saving.load_copy}
    if is_training:
        addresses["save_copy"] = config.saving.save_copy
    for key, address in addresses.items():
        if address is not None and (problem := file_system_problem(address)):
            yield ConfigError(f"{key}: {problem}", key=key)


def _checkpoint_problems(config: RunConfig, *, is_training: bool) -> Iterator[ConfigError]:
    """A checkpoint that is asked for and missing; training may start without one."""
    load, save, step = config.saving.load_path, config.saving.save_path, config.saving.iteration
    is_finetuning = is_training and config.saving.finetune
    if load is None:
        if not is_training:
            yield ConfigError("load: is not set; set it to the checkpoint folder of the model")
        elif is_finetuning or step is not None:
            key = "finetune" if is_finetuning else "iteration"
            yield ConfigError(
                f"{key}: needs load, which is not set; set load to the folder of the checkpoints, "
                f"or remove {key}",
                key=key,
            )
        return
    if config.saving.load_copy is not None:
        return  # what is there is found out when the run starts
    if problem := _unusable(load):
        yield ConfigError(f"load: {load}: {problem}; correct the path", key="load")
        return
    names = _checkpoint_names(load)
    if not names and (foreign := foreign_checkpoint_problem(Path(load))):
        yield ConfigError(f"load: {foreign}", key="load")
    elif step is not None and f"global_step{step}" not in names:
        found = ", ".join(sorted(name.removeprefix("global_step") for name in names)) or "none"
        yield ConfigError(
            f"load: {load}: no checkpoint of iteration {step}; found: {found}", key="load"
        )
    elif not names and not (is_training and save is not None and is_same_path(load, save)):
        yield ConfigError(
            f"load: no checkpoint in {load}; correct the path"
            + (", or remove load to start from scratch" if is_training else ""),
            key="load",
        )


def _checkpoint_names(folder: str) -> set[str]:
    ours = {path.parent.name for path in Path(folder).glob("global_step*/index.json")}
    return ours | neox_checkpoint_names(Path(folder))


def _overwriting_problems(config: RunConfig) -> Iterator[ConfigError]:
    """Checkpoints in `save` that a run from iteration 0 would replace."""
    save, is_finetuning = config.saving.save_path, config.saving.finetune
    if save is None or (config.saving.load_path is not None and not is_finetuning):
        return
    if _unusable(save):  # told with the folders
        return
    names = _checkpoint_names(save) - {"global_step0"}
    if names:
        way = "set load to it and remove finetune" if is_finetuning else "set load to it"
        yield ConfigError(
            f"save: {save} contains {counted(len(names), 'checkpoint')}, which this run would "
            f"replace, for it begins at iteration 0; {way} to continue them, or name another "
            "folder",
            key="save",
        )


def _led_by(key: str, problem: str) -> str:
    return problem if problem.startswith(f"{key}:") else f"{key}: {problem}"
