#!/usr/bin/env python
"""Makes a multiple-choice task for evaluate.py from held-out text: what comes next?

    python tools/cloze_task.py data/local/text/test --name my_cloze -o tasks

The folder has one jsonl file per domain, as `prepare_data.py` makes them. Each question shows a
piece of a document and four continuations: what follows there, and what follows elsewhere in three
other documents of the same domain. Guessing gives 0.25.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import yaml

from megatron.data.errors import DataError
from megatron.errors import UserError
from megatron.files import describe_error, is_same_path, write_text_atomic
from megatron.launcher.path_argument import path_argument
from megatron.tokenizer.command_line import add_max_record_mb
from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.file_kinds import is_hidden
from odm.wording import counted

NUM_CHOICES = 4
CHANCE = 1 / NUM_CHOICES
LONGEST_ENDING = 1.5
"""Longest ending, in multiples of the bytes asked for: text without spaces may not end. A byte is
at most one token, so endings fit into the demo's context of 128."""


@dataclass(frozen=True)
class Sizes:
    """Numbers and sizes; pieces end at the next white space."""

    questions_per_domain: int = 32
    context_bytes: int = 240
    ending_bytes: int = 60


@dataclass(frozen=True)
class Passage:
    """A piece of a document and what follows it; the ending begins with white space."""

    domain: str
    document: int
    context: str
    ending: str

    @property
    def rank(self) -> bytes:
        """Orders passages as if by chance, the same way on every run."""
        return hashlib.sha256(f"{self.context}\0{self.ending}".encode()).digest()


@dataclass(frozen=True)
class Question:
    """A line of the task's data."""

    domain: str
    context: str
    choices: tuple[str, ...]
    answer: int


def find_passages(domain: str, documents: Sequence[str], sizes: Sizes) -> list[Passage]:
    """Cuts documents at white space into passages that do not overlap; drops the rest.

    Left out are endings without a letter or digit, and those much longer than asked for.
    """
    found = []
    longest = LONGEST_ENDING * sizes.ending_bytes
    for number, text in enumerate(documents):
        place = 0
        while place < len(text):
            middle = _next_space(text, place, sizes.context_bytes)
            end = _next_space(text, middle, sizes.ending_bytes)
            context, ending = text[place:middle], text[middle:end]
            is_question = end < len(text) and context.strip() and any(map(str.isalnum, ending))
            if is_question and len(ending.encode()) <= longest:
                found.append(Passage(domain, number, context, ending))
            place = end
    return found


def make_questions(passages: Sequence[Passage], sizes: Sizes) -> list[Question]:
    """Picks passages and gives each the endings of three others as wrong choices.

    Wrong endings come from other documents of the same domain, one each. A domain of fewer than
    four documents, or whose documents end alike, takes the rest from other domains.
    """
    by_rank = sorted(passages, key=lambda passage: passage.rank)
    own: dict[str, list[Passage]] = defaultdict(list)
    for passage in by_rank:
        own[passage.domain].append(passage)
    questions = []
    for domain in sorted(own):
        others = [passage for passage in by_rank if passage.domain != domain]
        for passage in own[domain][: sizes.questions_per_domain]:
            wrong = _wrong_endings(passage, own[domain], others)
            if len(wrong) == NUM_CHOICES - 1:
                questions.append(_question(passage, wrong))
    return questions


def write_task(folder: Path, name: str, questions: Sequence[Question]) -> Path:
    """Writes ``<name>.jsonl`` and ``<name>.yaml``, which names the first by its full path.

    Returns:
        The YAML file, which lm-eval and evaluate.py read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    lines = (json.dumps(asdict(question), ensure_ascii=False) for question in questions)
    write_text_atomic(data, "".join(f"{line}\n" for line in lines))
    path = folder / f"{name}.yaml"
    write_text_atomic(path, yaml.safe_dump(task_settings(name, data), sort_keys=False))
    return path


def task_settings(name: str, data: Path) -> dict[str, Any]:
    """The task as lm-eval describes tasks."""
    metric = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data.resolve())},
            "cache_dir": str(data.resolve().parent / ".cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", **metric}, {"metric": "acc_norm", **metric}],
        "metadata": {"version": 1.0, "chance": CHANCE},
    }


def read_documents(folder: Path, **settings: Any) -> dict[str, list[str]]:
    """Reads ``<domain>.jsonl`` files with a ``text`` a line; settings are of `DocumentReader`.

    Raises:
        DataError: If there are none.
        DocumentError: If a line is something else.
    """
    found = sorted(folder.glob("*.jsonl"))
    paths = [path for path in found if not is_hidden(path.name)]
    if not paths:
        raise DataError(
            f"{folder}: there is no <domain>.jsonl here; give the folder text/test that "
            "prepare_data.py made"
        )
    if len(paths) < len(found):
        print(
            f"left out {counted(len(found) - len(paths), 'hidden file')} of {folder}",
            file=sys.stderr,
        )
    readers = {path.stem: DocumentReader([str(path)], **settings) for path in paths}
    return {domain: [doc.texts[0] for doc in reader] for domain, reader in readers.items()}


def make_task(
    texts: Mapping[str, Sequence[str]], *, folder: Path, name: str, sizes: Sizes
) -> tuple[Path, list[Question]]:
    """Makes the files of a task from documents of domains.

    Raises:
        DataError: If the text is too little for a question.
    """
    passages = [
        passage
        for domain, documents in texts.items()
        for passage in find_passages(domain, documents, sizes)
    ]
    questions = make_questions(passages, sizes)
    if not questions:
        shortest = sizes.context_bytes + sizes.ending_bytes
        raise DataError(
            f"{name}: no question from {counted(sum(map(len, texts.values())), 'document')}; give "
            f"at least four documents of more than {shortest} bytes, or ask for shorter pieces "
            "with --context-bytes and --ending-bytes"
        )
    return write_task(folder, name, questions), questions


def _next_space(text: str, place: int, num_bytes: int) -> int:
    """The first white space with at least ``num_bytes`` between ``place`` and it, or the end."""
    remaining = num_bytes
    while place < len(text) and not (remaining <= 0 and text[place].isspace()):
        remaining -= len(text[place].encode())
        place += 1
    return place


def _wrong_endings(
    passage: Passage, same_domain: Sequence[Passage], others: Sequence[Passage]
) -> list[str]:
    """Endings of different other documents; the choice depends only on the passage."""
    chosen: dict[tuple[str, int], str] = {}
    for candidates in (same_domain, others):
        start = int.from_bytes(passage.rank[:8], "big") % max(1, len(candidates))
        for candidate in (*candidates[start:], *candidates[:start]):
            document = (candidate.domain, candidate.document)
            is_own = document == (passage.domain, passage.document)
            is_known = candidate.ending in (passage.ending, *chosen.values())
            if len(chosen) < NUM_CHOICES - 1 and not (is_own or is_known or document in chosen):
                chosen[document] = candidate.ending
    return list(chosen.values())


def _question(passage: Passage, wrong: Sequence[str]) -> Question:
    answer = passage.rank[-1] % NUM_CHOICES
    choices = (*wrong[:answer], passage.ending, *wrong[answer:])
    return Question(passage.domain, passage.context, choices, answer)


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Make a multiple-choice task from held-out text.")
    parser.add_argument("text", type=path_argument, help="folder of <domain>.jsonl files")
    parser.add_argument("--name", default="cloze", help="name of the task (default: cloze)")
    parser.add_argument(
        "-o", "--output", type=path_argument, default=Path("tasks"), help="folder to write"
    )
    parser.add_argument("--on-error", default="fail", choices=["fail", "skip"])
    add_max_record_mb(parser)
    for field, default in asdict(Sizes()).items():
        flag = f"--{field.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"default: {default}")
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the command; returns 2 after one line on standard error if the input is wrong."""
    args = get_parser().parse_args(input_args)
    sizes = Sizes(**{field: getattr(args, field) for field in asdict(Sizes())})
    try:
        for field, value in asdict(sizes).items():
            if value < 1:
                flag = f"--{field.replace('_', '-')}"
                raise UserError(f"{flag}: must be at least 1, got {value}; leave it out")
        if is_same_path(args.text, args.output):
            raise UserError(
                f"-o {args.output}: is the folder of the text, whose files the task would replace "
                "or become; name another folder"
            )
        texts = read_documents(
            args.text,
            on_error=args.on_error,
            max_record_bytes=args.max_record_bytes,
            report=lambda line: print(line, file=sys.stderr),
        )
        path, questions = make_task(texts, folder=args.output, name=args.name, sizes=sizes)
    except (UserError, OSError) as error:
        print(describe_error(error), file=sys.stderr)
        return 2
    domains = len({question.domain for question in questions})
    print(
        f"wrote {path}: {counted(len(questions), 'question')} from {counted(domains, 'domain')}, "
        f"chance {CHANCE}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
