"""From a corpus to datasets: gather the text, train a tokenizer, tokenize, write the data YAML."""

import argparse
import json
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from megatron.data.errors import DataError
from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.data.metadata import read_metadata
from megatron.data.splits import SPLITS
from megatron.files import write_text_atomic
from megatron.launcher.path_argument import not_empty
from megatron.launcher.single_flag import SingleFlag
from megatron.tokenizer import train_tokenizer
from megatron.tokenizer.command_line import add_max_record_mb
from megatron.tokenizer.errors import DocumentError, TokenizerError
from megatron.tokenizer.file_kinds import READABLE
from megatron.tokenizer.records import DEFAULT_LIMIT_BYTES
from megatron.tokenizer.tokenizer import TOKENIZER_TYPES, build_tokenizer
from tools import preprocess_data
from tools.corpora.corpus import CorpusOptions
from tools.corpora.elsewhere import ELSEWHERE, elsewhere_problem
from tools.corpora.registry import DATA_DOWNLOADERS
from tools.datasets.added_tokens import added_tokens_lines
from tools.datasets.data_yaml import (
    TokenizerChoice,
    content_digest,
    content_of,
    write_data_yaml,
)
from tools.datasets.gathering import SplitText, gather
from tools.datasets.shown_commands import option, step_command, training_command

NOTHING = "pass"
DEFAULT = "this_machine"
SEVERAL_WORKERS_FROM_BYTES = 32_000_000
"""Below this size, starting worker processes takes longer than they save."""

DEFAULT_VOCAB_SIZE = 4096

FOLDER_HELP = f"""\
what your folder may contain:
{textwrap.fill(READABLE, 90, initial_indent="  ", subsequent_indent="  ")}
  Each line of .jsonl and each row of .csv, .tsv or .parquet is a document (--text-key names the
  field or column). Each file of prose or code is a document. A .txt is cut at blank lines. Names
  that begin with a dot and __MACOSX are left out. The last lines count what is left out."""

JSON_ESCAPE_BYTES = 6
"""Most bytes that a byte of text takes in the gathered .jsonl files."""


def get_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of arguments."""
    known = "\n".join(
        f"  {name:<14} {corpus.description}\n{'':<17}licence: {corpus.licence}"
        for name, corpus in DATA_DOWNLOADERS.items()
    )
    parser = argparse.ArgumentParser(
        description="Prepares datasets, one per domain, and the data YAML to train on them.",
        epilog=f"datasets:\n{known}\n  {NOTHING:<14} does nothing\n\n{FOLDER_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_dataset(parser)
    parser.add_argument(
        "-t", "--tokenizer", default="HFTokenizer", choices=TOKENIZER_TYPES, metavar="TYPE"
    )
    parser.add_argument(
        "-d",
        "--data-dir",
        type=not_empty,
        default=os.environ.get("DATA_DIR") or "./data",
        help="folder in which <dataset>/ is made (default: the variable DATA_DIR, else ./data)",
    )
    parser.add_argument(
        "-v",
        "--vocab-file",
        type=not_empty,
        help="without it, HFTokenizer is trained on the training text",
    )
    parser.add_argument("-m", "--merge-file", type=not_empty)
    parser.add_argument(
        "--add-special-tokens",
        action="store_true",
        help="add to each document what transformers adds with this tokenizer, such as <s>",
    )
    parser.add_argument(
        "--vocab-size", type=int, help="size of a tokenizer trained here (default 4096)"
    )
    parser.add_argument(
        "-i",
        "--input",
        type=not_empty,
        action=SingleFlag,
        advice="put them into one folder",
        help="local: the folder or file; hub corpora: a local copy",
    )
    parser.add_argument("--text-key", help="field or column with the text (default text)")
    parser.add_argument("--domain-key", help="field with the domain; meta.source descends")
    parser.add_argument("--max-domain-mb", type=float, help="most 10^6 bytes of text per domain")
    parser.add_argument("--min-domain-kb", type=float, help="least 10^3 bytes of text per domain")
    parser.add_argument("--on-error", default="fail", choices=["fail", "skip"])
    add_max_record_mb(parser)
    parser.set_defaults(max_record_bytes=None)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(input_args)
    _check_numbers(parser, args)
    return args


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    listed = [*DATA_DOWNLOADERS, NOTHING]
    parser.add_argument(
        "dataset",
        nargs="?",
        choices=[*listed, *ELSEWHERE],
        metavar=f"{{{','.join(listed)}}}",
        help=f"what to prepare (default: {DEFAULT})",
    )


def _check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    limits = {"max_domain_mb": 1e-6, "min_domain_kb": 0, "workers": 1}
    for name, least in {**limits, "vocab_size": train_tokenizer.SMALLEST_VOCABULARY}.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:  # also nan
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"argument {flag}: must be at least {least:g} and finite, got {value:g}")


def main(input_args: Sequence[str] | None = None) -> Path | None:
    """Prepares a corpus; what earlier runs made from the same text is kept.

    Returns:
        Path of the data YAML; None for the data set ``pass``.

    Raises:
        DocumentError, TokenizerError, DataError: With a one-line message.
    """
    args = get_args(input_args)
    if args.dataset is None:
        args.dataset = DEFAULT
        tell(
            f"no dataset is named: preparing {DEFAULT} ({DATA_DOWNLOADERS[DEFAULT].description}); "
            "GPT-NeoX would download enwik8: prepare_data.py enwik8 tells how to get it"
        )
    if args.dataset in ELSEWHERE:
        raise DocumentError(elsewhere_problem(args.dataset))
    if args.dataset == NOTHING:
        tell("pass: nothing to prepare")
        return None
    folder = Path(args.data_dir) / args.dataset
    check_arguments(args, folder)
    args.max_record_bytes = args.max_record_bytes or DEFAULT_LIMIT_BYTES
    corpus = DATA_DOWNLOADERS[args.dataset](corpus_options(args))
    choice = named_tokenizer(args)
    tell(f"{args.dataset}: {corpus.description}; licence: {corpus.licence}")
    texts, left_out = gather(corpus, folder / "text", tell=tell)
    _check_splits(texts)
    if choice is None:
        choice = train_own_tokenizer(
            folder,
            texts,
            args.vocab_size or DEFAULT_VOCAB_SIZE,
            max_record_bytes=args.max_record_bytes,
        )
    tokenizer_sha256 = build_tokenizer(choice).fingerprint
    prefixes = tokenize_texts(
        texts,
        choice,
        folder=folder,
        tokenizer_sha256=tokenizer_sha256,
        workers=args.workers,
        max_record_bytes=args.max_record_bytes,
    )
    path = folder / "data.yml"
    content = content_digest(texts, tokenizer_sha256)
    if content_of(path) not in (None, content):
        tell(
            f"{path}: text or tokenizer have changed; a checkpoint of the old ones would continue "
            "with the new ones: give the next run another save folder"
        )
    write_data_yaml(path, texts, prefixes=prefixes, choice=choice, content=content)
    if left_out.records:
        tell(f"unusable records skipped in all: {left_out.records}")
    for line in left_out.files.lines():
        tell(line)
    tell(f"ready: {training_command(path)}")
    return path


def check_arguments(args: argparse.Namespace, folder: Path) -> None:
    """Refuses arguments without effect, and an input inside the output or the reverse.

    Raises:
        DocumentError: Names the argument.
    """
    if args.dataset == "this_machine":
        given = {"--input": args.input, "--text-key": args.text_key}
        given["--domain-key"] = args.domain_key
        if args.max_record_bytes is not None:
            given["--max-record-mb"] = f"{args.max_record_bytes / 1e6:g}"
        for flag, value in given.items():
            if value is not None:
                raise DocumentError(
                    f"{flag} {value}: this_machine does not read your own text; name the dataset: "
                    "prepare_data.py local ..."
                )
    if args.input is not None:
        _check_apart(Path(args.input), folder)


def _check_apart(given: Path, folder: Path) -> None:
    """Output must not be read as input the next time, and the user's text must not be removed."""
    source, target = (Path(os.path.realpath(path)) for path in (given, folder))  # also of loops
    if source.is_relative_to(target):
        raise DocumentError(
            f"--input {given}: is inside {folder}, whose files are written and removed here; "
            "move the text elsewhere or choose another --data-dir"
        )
    if source.is_dir() and target.is_relative_to(source):
        raise DocumentError(
            f"--input {given}: {folder} would be written inside it and read as text the "
            "next time; choose another --data-dir"
        )


def corpus_options(args: argparse.Namespace) -> CorpusOptions:
    """Collects what the command line says about the text."""
    return CorpusOptions(
        input_path=args.input,
        text_key=args.text_key,
        domain_key=args.domain_key,
        on_error=args.on_error,
        max_record_bytes=args.max_record_bytes,
        max_domain_bytes=None if args.max_domain_mb is None else round(args.max_domain_mb * 1e6),
        min_domain_bytes=None if args.min_domain_kb is None else round(args.min_domain_kb * 1e3),
        report=tell,
    )


def named_tokenizer(args: argparse.Namespace) -> TokenizerChoice | None:
    """The tokenizer that the user names, loaded once, so that an error comes at once.

    Returns:
        None if one is to be trained on the training text.

    Raises:
        TokenizerError: Arguments that do not go together, or files that are no tokenizer.
    """
    if args.tokenizer == "HFTokenizer" and args.vocab_file is None:
        if args.merge_file is not None:
            raise TokenizerError(
                f"--merge-file {args.merge_file}: a HFTokenizer has no merges apart from its "
                "--vocab-file; leave it out, or use -t GPT2BPETokenizer with -v vocab.json"
            )
        if args.add_special_tokens:
            raise TokenizerError(
                "--add-special-tokens: a tokenizer that is trained here adds none; leave it out, "
                "or give a tokenizer.json with -v"
            )
        return None
    if args.vocab_size is not None:
        raise TokenizerError(
            f"--vocab-size {args.vocab_size}: only a HFTokenizer without --vocab-file is "
            "trained here; leave one of them out"
        )
    choice = TokenizerChoice(
        args.tokenizer,
        args.vocab_file,
        args.merge_file,
        tokenizer_adds_special_tokens=args.add_special_tokens,
    )
    for line in added_tokens_lines(build_tokenizer(choice)):
        tell(f"{args.vocab_file or args.tokenizer}: {line}")
    return choice


def train_own_tokenizer(
    folder: Path, texts: list[SplitText], vocab_size: int, *, max_record_bytes: int
) -> TokenizerChoice:
    """Trains a tokenizer on the training text, unless this was done with the same text."""
    vocab_file = folder / "tokenizer.json"
    record_path = folder / "tokenizer.record.json"
    trained_on = [[text.domain, text.sha256] for text in texts if text.split == "train"]
    record = {"vocab_size": vocab_size, "trained_on": trained_on}
    if vocab_file.is_file() and _read_json(record_path) == record:
        tell(f"kept the tokenizer {vocab_file}")
    else:
        record_path.unlink(missing_ok=True)
        arguments = option("--json_input_dir", folder / "text" / "train")
        arguments += option("--tokenizer_output_path", vocab_file)
        arguments += ["--tokenizer_type", "BPE", "--vocab_size", str(vocab_size)]
        arguments += _record_limit(texts, max_record_bytes)
        tell(step_command("megatron/tokenizer/train_tokenizer.py", arguments))
        train_tokenizer.main(train_tokenizer.parse_args(arguments))
        write_text_atomic(record_path, json.dumps(record))
    return TokenizerChoice("HFTokenizer", str(vocab_file), None)


def tokenize_texts(
    texts: list[SplitText],
    choice: TokenizerChoice,
    *,
    folder: Path,
    tokenizer_sha256: str,
    workers: int,
    max_record_bytes: int,
) -> dict[SplitText, str]:
    """Tokenizes each domain and split that is missing or was made from something else.

    Returns:
        The path prefix of the dataset of each text.
    """
    prefixes: dict[SplitText, str] = {}
    for text in texts:
        place = folder / text.split / text.domain
        prefix = prefixes[text] = str(place / f"{text.domain}_text_document")
        if _is_finished(prefix, text, tokenizer_sha256):
            tell(f"kept {prefix}")
            continue
        for left_over in place.glob("*"):  # of a run that was killed, or of another text
            left_over.unlink()
        arguments = option("--input", text.path)
        arguments += option("--output-prefix", place / text.domain)
        arguments += ["--tokenizer-type", choice.tokenizer_type]
        arguments += option("--vocab-file", choice.vocab_file) if choice.vocab_file else []
        arguments += option("--merge-file", choice.merge_file) if choice.merge_file else []
        arguments += ["--add-special-tokens"] if choice.tokenizer_adds_special_tokens else []
        is_large = text.text_bytes >= SEVERAL_WORKERS_FROM_BYTES
        arguments += ["--append-eod", "--workers", str(workers if is_large else 1)]
        arguments += _record_limit([text], max_record_bytes)
        tell(step_command("tools/preprocess_data.py", arguments))
        preprocess_data.main(arguments)
        write_text_atomic(_text_digest_path(prefix), text.sha256)
    return prefixes


def _record_limit(texts: Sequence[SplitText], max_record_bytes: int) -> list[str]:
    """A limit that accepts all gathered records, which are larger as JSON than as text.

    None if no file is large enough to contain such a record.
    """
    if all(text.path.stat().st_size < DEFAULT_LIMIT_BYTES for text in texts):
        return []
    return ["--max-record-mb", f"{(JSON_ESCAPE_BYTES * max_record_bytes + 1000) / 1e6:.6f}"]


def tell(message: str) -> None:
    """Writes one message for the user; progress bars and messages share stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _check_splits(texts: list[SplitText]) -> None:
    """Every split has every domain, so that the lists of paths correspond."""
    domains = {text.domain for text in texts}
    for split in SPLITS:
        present = {text.domain for text in texts if text.split == split}
        if not present and split == "test":
            tell("no test split in this corpus: data.yml names none")
        elif present != domains:
            raise DocumentError(
                f"{split}: no text for the domain {sorted(domains - present)[0]!r}; "
                "give every domain text in every split"
            )


def _text_digest_path(prefix: str) -> Path:
    """File beside the data with the digest of their text, written last."""
    return Path(f"{prefix}.text.sha256")


def _is_finished(prefix: str, text: SplitText, tokenizer_sha256: str) -> bool:
    try:
        metadata = read_metadata(prefix)
        if metadata is None or metadata.tokenizer.sha256 != tokenizer_sha256:
            return False
        is_same_text = _text_digest_path(prefix).read_text(encoding="ascii") == text.sha256
        return is_same_text and len(MMapIndexedDataset(prefix).tokens) == metadata.tokens
    except (DataError, OSError, UnicodeDecodeError):
        return False


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
