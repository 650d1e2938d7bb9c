"""The YAML file that names prepared datasets, and what they were made from."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron.data.splits import SPLITS
from megatron.files import write_text_atomic
from tools.datasets.gathering import SplitText

CONTENT_LINE = "# Content: sha256 "
"""Begins the line of the data YAML that changes with the text and the tokenizer."""


@dataclass(frozen=True)
class TokenizerChoice:
    """Which tokenizer the datasets are made with, as `preprocess_data` and YAML files name it."""

    tokenizer_type: str
    vocab_file: str | None
    merge_file: str | None
    tokenizer_adds_special_tokens: bool = False


def content_digest(texts: list[SplitText], tokenizer_sha256: str) -> str:
    """Digest of text and tokenizer: if either changes, the digest changes."""
    parts = [[text.split, text.domain, text.sha256] for text in texts]
    return hashlib.sha256(json.dumps([tokenizer_sha256, parts]).encode()).hexdigest()


def content_of(path: Path) -> str | None:
    """The digest in a data YAML; None if there is no file, or one of an earlier version."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    found = (line for line in lines if line.startswith(CONTENT_LINE))
    return next(found, CONTENT_LINE).removeprefix(CONTENT_LINE) or None


def write_data_yaml(
    path: Path,
    texts: list[SplitText],
    *,
    prefixes: dict[SplitText, str],
    choice: TokenizerChoice,
    content: str,
) -> None:
    """Writes the YAML that names the datasets of all domains, the same order in every split."""
    settings: dict[str, object] = {}
    for split in SPLITS:
        of_split = [prefixes[text] for text in texts if text.split == split]
        if of_split:
            settings[f"{split}_data_paths"] = of_split
    settings |= {"use_named_train_datasets": True, "use_named_eval_datasets": True}
    settings |= {key: value for key, value in dataclasses.asdict(choice).items() if value}
    settings["data_impl"] = "mmap"
    header = "# Written by prepare_data.py. Relative paths start where deepy.py is started.\n"
    header += f"{CONTENT_LINE}{content}\n"
    write_text_atomic(path, header + yaml.safe_dump(settings, sort_keys=False))
