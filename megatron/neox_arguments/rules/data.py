"""Data paths, weights, domain names and the mixing method."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import PurePath

from megatron.data.splits import SPLITS
from odm.methods import METHODS, Method
from odm.wording import counted

from ..purpose import Purpose
from ..sections import Batch, Data, Mixing, TrainWeighting
from .by_domain import NEEDS_NAMES, wrong_sum
from .domain_numbers import resolve_domain_numbers
from .draft import Draft
from .held_out import resolve_reward
from .limits import resolve_limits
from .mixing_notes import note_unused_settings
from .objective import resolve_objective
from .train_weights import KEY, resolve_weighting, schedule_points, weights_of_file

HELD_OUT_PATHS = ("valid_data_paths", "test_data_paths")
HELD_OUT_LIMITS = ("max_validation_samples_per_dataset", "max_test_samples_per_dataset")
RULES_OF_SIZE = ("natural", "temperature", "unimax")
"""Rules whose weights follow from the sizes of the datasets."""
UNKNOWN = Method()
"""In the place of a method whose name is a problem already."""


def resolve_data(draft: Draft) -> Data:
    """Returns paths, weights and names of the three sets, and how text becomes samples."""
    paths = _paths(draft)
    weights = {name: _weights(draft, name, paths[name]) for name in ("valid", "test")}
    domains = _all_domains(draft, paths)
    with draft.training_rules():
        weighting = resolve_weighting(draft, domains["train"])
        weights["train"] = _train_weights(draft, weighting, paths["train"], domains["train"])
    is_split_off = _is_split_off(draft)
    if is_split_off:  # what is held out is weighted as the rest
        held_out: dict[str, tuple[float, ...]] = {
            name: weights["train"] for name in SPLITS if not draft[f"{name}_data_weights"]
        }
        weights |= held_out
    split = _split(draft) if draft["data_path"] or is_split_off else None
    if draft["data_impl"] in ("cached", "lazy"):
        draft.notes.append(
            f"data_impl {draft['data_impl']} is read as mmap: files are memory-mapped"
        )
    for name in SPLITS:
        key = f"{name}_data_weights"
        if draft[key] and draft["weight_by_num_documents"]:
            draft.note_no_effect(key, "weight_by_num_documents computes the weights")
        elif draft[key] and draft["use_named_eval_datasets"] and name != "train":
            draft.note_no_effect(key, "use_named_eval_datasets evaluates each dataset by itself")
    _note_held_out(draft, is_split_off=is_split_off)
    has_tokenizer = draft["vocab_file"] or draft["tokenizer_type"] == "CharLevelTokenizer"
    if draft.is_set("padded_vocab_size") and has_tokenizer:
        draft.note_no_effect("padded_vocab_size", "it is computed from the tokenizer")
    return draft.section(
        Data,
        split=split,
        split_text=draft["split"],
        seq_length=_seq_length(draft),
        train_weighting=weighting,
        **{f"{name}_paths": paths[name] for name in SPLITS},
        **{f"{name}_weights": weights[name] for name in SPLITS},
        **{f"{name}_domains": domains[name] for name in SPLITS},
    )


def _seq_length(draft: Draft) -> int:
    length, positions = draft["seq_length"], draft["max_position_embeddings"] or 1
    if length in (None, draft["max_position_embeddings"]):  # that key has issues of its own
        return max(positions, 1)
    if length < 1:
        draft.refuse("seq_length", f"must be at least 1, got {length}")
    elif positions < length:
        problem = f"must be at least seq_length {length}, got {positions}"
        draft.refuse("max_position_embeddings", problem)
    return max(length, 1)


def _paths(draft: Draft) -> dict[str, tuple[str, ...]]:
    listed = [name for name in _sets_in_use(draft) if draft[f"{name}_data_paths"]]
    if draft["data_path"] and listed:
        problem = f"and {listed[0]}_data_paths are both set; keep one of the two ways"
        draft.refuse("data_path", problem)
    elif draft["data_path"]:
        return {name: (draft["data_path"],) for name in SPLITS}
    elif _is_split_off(draft):
        return {name: tuple(draft["train_data_paths"]) for name in SPLITS}
    return {name: tuple(draft[f"{name}_data_paths"] or ()) for name in SPLITS}


def _is_split_off(draft: Draft) -> bool:
    """Whether `split` divides each of the training datasets: it is written, and no other text."""
    others = [key for key in ("data_path", *HELD_OUT_PATHS) if draft[key]]
    return bool(draft["train_data_paths"]) and draft.is_set("split") and not others


def _note_held_out(draft: Draft, *, is_split_off: bool) -> None:
    """Notes what becomes of held-out text where that may not be what was meant."""
    named = [key for key in HELD_OUT_PATHS if draft[key]]
    if named and draft.is_set("split"):
        draft.note_no_effect("split", f"{named[0]} names the held-out text")
    if draft["train_data_paths"] and not named and not is_split_off:
        draft.notes.append(
            "there is no held-out text, so nothing is measured on it; set valid_data_paths, or "
            "split to divide each dataset of train_data_paths"
        )
    if draft.is_set("eval_iters") and (draft["data_path"] or named or is_split_off):
        _note_eval_iters(draft)


def _note_eval_iters(draft: Draft) -> None:
    """Notes where the number that was written does not mean what GPT-NeoX makes of it."""
    written = f"eval_iters {draft['eval_iters']}"
    limits = [key for key in HELD_OUT_LIMITS if draft[key] is not None]
    if not draft["eval_iters"]:
        draft.notes.append(f"{written}: training measures nothing on held-out text")
    elif draft["use_named_eval_datasets"] and limits:
        draft.notes.append(f"{written} is not used where {' or '.join(limits)} is set")
    elif draft["use_named_eval_datasets"]:
        draft.notes.append(
            f"{written}: each held-out dataset is measured on that many global batches at most"
        )


def _sets_in_use(draft: Draft) -> tuple[str, ...]:
    """Sets that the program opens: the training data of a model that is read may be gone."""
    return SPLITS if draft.purpose is Purpose.TRAINING else ("valid", "test")


def _train_weights(
    draft: Draft, weighting: TrainWeighting, paths: Sequence[str], domains: Sequence[str]
) -> tuple[float, ...]:
    """Weights of the training data; none if they follow from sizes, which are not known here."""
    if isinstance(draft[KEY], list) or draft[KEY] is None:
        return _weights(draft, "train", paths)
    if weighting.rule in RULES_OF_SIZE:
        return ()
    if weighting.rule in ("file", "schedule"):
        return weights_of_file(draft, weighting, domains)
    return (1.0,) * len(paths)


def _weights(draft: Draft, name: str, paths: Sequence[str]) -> tuple[float, ...]:
    key = f"{name}_data_weights"
    written = draft[key]
    if written is None:
        return (1.0,) * len(paths)
    if draft["data_path"]:
        draft.refuse(key, f"has no meaning with data_path; use {name}_data_paths")
    elif len(written) != len(paths):
        there = f"{name}_data_paths has {len(paths)}"
        draft.refuse(key, f"has {counted(len(written), 'value')}, {there}; make them equal")
    elif not all(math.isfinite(weight) and weight >= 0 for weight in written):
        draft.refuse(key, f"must be finite and at least 0, got {written}")
    elif problem := wrong_sum(written):
        draft.refuse(key, problem)
    return tuple(float(weight) for weight in written)


def _split(draft: Draft) -> tuple[float, float, float]:
    """Reads shares such as `969, 30, 1`; missing ones are 0."""
    text = draft["split"]
    try:
        numbers = [float(part) for part in re.split(r"[,/]", text)]
    except ValueError:
        numbers = []
    total = sum(numbers)
    is_good = 1 <= len(numbers) <= 3 and all(n >= 0 for n in numbers) and 0 < total < math.inf
    if not is_good:
        draft.refuse("split", f"must be up to three shares such as '969, 30, 1', got {text!r}")
        return (1.0, 0.0, 0.0)
    numbers += [0.0] * (3 - len(numbers))
    return (numbers[0] / total, numbers[1] / total, numbers[2] / total)


def _all_domains(draft: Draft, paths: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Names the datasets of each set, or leaves the names empty where nobody needs them."""
    has_names = bool(draft["data_domain_names"])
    trains_named = draft["use_named_train_datasets"] or bool(draft["data_sampling_method"])
    named: dict[str, bool] = dict.fromkeys(SPLITS, draft["use_named_eval_datasets"] or has_names)
    named["train"] = trains_named or has_names
    domains: dict[str, tuple[str, ...]] = dict.fromkeys(SPLITS, ())
    of_train = _is_split_off(draft)  # all three have the datasets, and so the names, of training
    for name in filter(named.__getitem__, _sets_in_use(draft)):
        if draft["data_path"]:
            advice = "for named datasets or a mixing method set train_data_paths"
            draft.refuse("data_path", f"is one dataset without domains; {advice}")
        else:
            domains[name] = _domains(draft, "train" if of_train else name, paths[name])
    return domains


def _domains(draft: Draft, name: str, paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    key, given = f"{name}_data_paths", draft["data_domain_names"]
    if given is not None and (name == "train" or len(given) == len(paths)):
        if len(given) != len(paths):
            there = f"{key} has {counted(len(paths), 'path')}"
            draft.refuse(
                "data_domain_names", f"has {counted(len(given), 'name')}, {there}; make them equal"
            )
            return ()
        names, key = list(given), "data_domain_names"
    else:
        names = [PurePath(path).parent.name for path in paths]
    if name == "train" or key != "data_domain_names":
        _check_names(draft, key, names, paths)
    return tuple(names)


def _check_names(draft: Draft, key: str, names: Sequence[str], paths: Sequence[str]) -> None:
    """Checks names that ``key`` gave: its own, or those of the folders of its paths."""
    is_written = key == "data_domain_names"
    first: dict[str, str] = {}
    for domain, path in zip(names, paths, strict=True):
        if not domain and is_written:
            draft.refuse(key, f"contains an empty name, for {path}; write one")
        elif not domain:
            problem = f"{path!r} is in no folder that could name its domain; set data_domain_names"
            draft.issues.add(key, f"{key}: {problem}")
        elif domain in first:
            advice = "give each its own name" if is_written else "set data_domain_names"
            both = f"{domain!r} names two datasets: {first[domain]} and {path}"
            draft.issues.add(key, f"{key}: {'' if is_written else 'domain '}{both}; {advice}")
        first.setdefault(domain, path)


def resolve_mixing(draft: Draft, data: Data, batch: Batch) -> Mixing:
    """Returns the mixing method and how many consecutive samples share a domain."""
    domains, method = data.train_domains, _method(draft, data.train_weighting)
    facts = METHODS.get(method or "static", UNKNOWN)
    learns = facts.learns
    _check_sampling_keys(draft, method, learns=learns)
    note_unused_settings(draft, method, facts)
    if draft["data_sampling_guard"] and not learns:
        reason = f"but {method or 'no data_sampling_method'} learns none"
        problem = f"compares learnt weights with the initial ones, {reason}"
        draft.refuse("data_sampling_guard", f"{problem}; remove it or set a method that learns")
    if learns and len(domains) < 2 and not draft["data_path"]:
        problem = f"{method} needs at least 2 domains, train_data_paths has {len(domains)}"
        draft.refuse("data_sampling_method", f"{problem}; add domains or remove the method")
    if learns and draft["weight_by_num_documents"]:
        problem = f"fixes the weights, data_sampling_method {method} learns them; keep one"
        draft.refuse("weight_by_num_documents", problem)
    points = schedule_points(
        draft,
        data.train_weighting,
        domains,
        tokens_per_iteration=max(1, batch.train_batch_size * data.seq_length),
    )
    weights = data.train_weights or (1.0,) * len(domains)
    content = data.train_weighting.content if points else None
    return draft.section(
        Mixing,
        method=method or "static",
        run_length=_run_length(draft, batch, is_named=bool(domains)),
        **resolve_domain_numbers(draft, domains, facts),
        points=points,
        interpolation=(content or {}).get("interpolation", "constant"),
        **resolve_objective(draft, domains),
        **resolve_reward(draft, method or "static", facts, data, batch),
        **resolve_limits(draft, domains, [drawn for _, drawn in points] or [weights]),
    )


def _run_length(draft: Draft, batch: Batch, *, is_named: bool) -> int:
    """Consecutive samples that share a domain."""
    draft.keep_one("mixed_batches", "mixed_minibatches")
    if not is_named:
        for key in ("mixed_minibatches", "mixed_batches"):
            if draft[key] and draft["train_data_paths"]:
                draft.refuse(key, NEEDS_NAMES)
        return 1
    if draft["mixed_minibatches"]:
        return batch.micro_batch_size
    return 1 if draft["mixed_batches"] else batch.train_batch_size


def _method(draft: Draft, weighting: TrainWeighting) -> str | None:
    """The method as written, or `schedule` if the weights are one."""
    method = draft["data_sampling_method"]
    if weighting.rule != "schedule":
        if method == "schedule":
            problem = f"schedule needs {KEY}: {{schedule: FILE}}; add it"
            draft.refuse("data_sampling_method", problem)
        return method
    if method not in (None, "static", "schedule"):
        both = f"fixes the weights, data_sampling_method {method} learns them"
        draft.refuse(f"{KEY}.schedule", f"{both}; remove one of the two")
    if draft["weight_by_num_documents"]:
        problem = f"and {KEY}.schedule both fix the weights; keep one"
        draft.refuse("weight_by_num_documents", problem)
    return "schedule"


def _check_sampling_keys(draft: Draft, method: str | None, *, learns: bool) -> None:
    frequency, warmup = draft["data_sampling_update_frequency"], draft["data_sampling_warmup_steps"]
    if learns and frequency == 0:  # below: a broken bound
        problem = f"must be at least 1 for {method}, got 0"
        draft.refuse("data_sampling_update_frequency", problem)
    if method is None and warmup > 0:
        problem = f"is {warmup} but there is no data_sampling_method; set one"
        draft.refuse("data_sampling_warmup_steps", problem)
