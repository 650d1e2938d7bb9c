"""From a corpus to datasets: gather the text, train a tokenizer, tokenize, write the data YAML."""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron.data.errors import DataError
from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.data.metadata import read_metadata
from megatron.files import atomic_writer
from megatron.tokenizer import train_tokenizer
from megatron.tokenizer.errors import DocumentError, TokenizerError
from megatron.tokenizer.tokenizer import TOKENIZER_TYPES, build_tokenizer
from tools import preprocess_data
from tools.corpora.corpus import SPLITS, Corpus, CorpusOptions
from tools.datasets.corpora import DATA_DOWNLOADERS
from tools.datasets.gathering import SplitText, gather

NOTHING = "pass"
SEVERAL_WORKERS_FROM_BYTES = 32_000_000
"""Below, starting worker processes takes longer than they save."""

DEFAULT_VOCAB_SIZE = 4096


@dataclass(frozen=True)
class TokenizerChoice:
    """Which tokenizer the datasets are made with, as `preprocess_data` and YAML files name it."""

    tokenizer_type: str
    vocab_file: str | None
    merge_file: str | None


def get_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of arguments."""
    known = "\n".join(
        f"  {name:<14} {corpus.description}\n{'':<17}licence: {corpus.licence}"
        for name, corpus in DATA_DOWNLOADERS.items()
    )
    parser = argparse.ArgumentParser(
        description="Prepares datasets, one a domain, and the data YAML to train on them.",
        epilog=f"datasets:\n{known}\n  {NOTHING:<14} does nothing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", nargs="?", default="this_machine", choices=[*DATA_DOWNLOADERS, NOTHING]
    )
    parser.add_argument(
        "-t", "--tokenizer", default="HFTokenizer", choices=TOKENIZER_TYPES, metavar="TYPE"
    )
    parser.add_argument(
        "-d",
        "--data-dir",
        default=os.environ.get("DATA_DIR", "./data"),
        help="where <dataset>/ is made (default: the variable DATA_DIR, else ./data)",
    )
    parser.add_argument(
        "-v", "--vocab-file", help="without it HFTokenizer is trained on the training text"
    )
    parser.add_argument("-m", "--merge-file")
    parser.add_argument("--vocab-size", type=int, help="of a tokenizer trained here (default 4096)")
    parser.add_argument(
        "-i", "--input", help="local: the folder or file; hub corpora: a local copy"
    )
    parser.add_argument("--text-key", help="field with the text (default text)")
    parser.add_argument("--domain-key", help="field with the domain; meta.source descends")
    parser.add_argument("--max-domain-mb", type=float, help="most 10^6 bytes of text a domain")
    parser.add_argument("--min-domain-kb", type=float, help="least 10^3 bytes of text a domain")
    parser.add_argument("--on-error", default="fail", choices=["fail", "skip"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(input_args)


def main(input_args: Sequence[str] | None = None) -> Path | None:
    """Prepares a corpus; what an interrupted run finished is kept.

    Returns:
        Path of the data YAML; None for the data set ``pass``.

    Raises:
        DocumentError, TokenizerError, DataError: One line for the user.
    """
    args = get_args(input_args)
    if args.dataset == NOTHING:
        tell("pass: nothing to prepare")
        return None
    folder = Path(args.data_dir) / args.dataset
    corpus = DATA_DOWNLOADERS[args.dataset](corpus_options(args))
    tell(f"{args.dataset}: {corpus.description}; licence: {corpus.licence}")
    texts = gather(corpus, folder / "text", tell=tell)
    _check_splits(texts)
    choice = choose_tokenizer(args, folder, texts)
    prefixes = tokenize_texts(texts, choice, folder=folder, corpus=corpus, args=args)
    path = write_data_yaml(folder / "data.yml", texts, prefixes=prefixes, choice=choice)
    tell(f"ready: ./deepy.py train.py <model>.yml {path}")
    return path


def corpus_options(args: argparse.Namespace) -> CorpusOptions:
    """Collects what the command line says about the text."""
    return CorpusOptions(
        input_path=args.input,
        text_key=args.text_key,
        domain_key=args.domain_key,
        on_error=args.on_error,
        max_domain_bytes=None if args.max_domain_mb is None else round(args.max_domain_mb * 1e6),
        min_domain_bytes=None if args.min_domain_kb is None else round(args.min_domain_kb * 1e3),
        report=tell,
    )


def choose_tokenizer(
    args: argparse.Namespace, folder: Path, texts: list[SplitText]
) -> TokenizerChoice:
    """Takes the tokenizer that the user names, or trains one on the training text.

    Raises:
        TokenizerError: `--vocab-size` together with a tokenizer that is not trained here.
    """
    is_trained_here = args.tokenizer == "HFTokenizer" and args.vocab_file is None
    if not is_trained_here:
        if args.vocab_size is not None:
            raise TokenizerError(
                f"--vocab-size {args.vocab_size}: only a HFTokenizer without --vocab-file is "
                "trained here; leave one of them out"
            )
        return TokenizerChoice(args.tokenizer, args.vocab_file, args.merge_file)
    vocab_file = folder / "tokenizer.json"
    record_path = folder / "tokenizer.record.json"
    vocab_size = args.vocab_size or DEFAULT_VOCAB_SIZE
    trained_on = [
        [text.domain, text.documents, text.text_bytes] for text in texts if text.split == "train"
    ]
    record = {"vocab_size": vocab_size, "trained_on": trained_on}
    if vocab_file.is_file() and _read_json(record_path) == record:
        tell(f"kept the tokenizer {vocab_file}")
    else:
        record_path.unlink(missing_ok=True)
        arguments = ["--json_input_dir", str(folder / "text" / "train")]
        arguments += ["--tokenizer_output_path", str(vocab_file)]
        arguments += ["--tokenizer_type", "BPE", "--vocab_size", str(vocab_size)]
        show_command("megatron/tokenizer/train_tokenizer.py", arguments)
        train_tokenizer.main(train_tokenizer.parse_args(arguments))
        with atomic_writer(record_path) as output:
            output.write(json.dumps(record).encode())
    return TokenizerChoice("HFTokenizer", str(vocab_file), None)


def tokenize_texts(
    texts: list[SplitText],
    choice: TokenizerChoice,
    *,
    folder: Path,
    corpus: Corpus,
    args: argparse.Namespace,
) -> dict[SplitText, str]:
    """Tokenizes each domain and split that is not there yet.

    Returns:
        The path prefix of the dataset of each text.
    """
    fingerprint = build_tokenizer(choice).fingerprint
    prefixes: dict[SplitText, str] = {}
    for text in texts:
        place = folder / text.split / text.domain
        prefixes[text] = str(place / f"{text.domain}_text_document")
        if _is_finished(prefixes[text], text, fingerprint):
            tell(f"kept {prefixes[text]}")
            continue
        for left_over in place.glob("*"):  # of a run that was killed, or of another tokenizer
            left_over.unlink()
        arguments = ["--input", str(text.path), "--output-prefix", str(place / text.domain)]
        arguments += ["--tokenizer-type", choice.tokenizer_type]
        arguments += ["--vocab-file", choice.vocab_file] if choice.vocab_file else []
        arguments += ["--merge-file", choice.merge_file] if choice.merge_file else []
        is_large = text.text_bytes >= SEVERAL_WORKERS_FROM_BYTES
        arguments += ["--append-eod", "--workers", str(args.workers if is_large else 1)]
        show_command("tools/preprocess_data.py", arguments)
        preprocess_data.main(arguments)
    return prefixes


def write_data_yaml(
    path: Path, texts: list[SplitText], *, prefixes: dict[SplitText, str], choice: TokenizerChoice
) -> Path:
    """Writes the YAML that names the datasets of all domains, the same order in every split."""
    settings: dict[str, object] = {}
    for split in SPLITS:
        of_split = [prefixes[text] for text in texts if text.split == split]
        if of_split:
            settings[f"{split}_data_paths"] = of_split
    settings |= {"use_named_train_datasets": True, "use_named_eval_datasets": True}
    settings |= {key: value for key, value in dataclasses.asdict(choice).items() if value}
    settings["data_impl"] = "mmap"
    header = "# Written by prepare_data.py. Relative paths count from where deepy.py is started.\n"
    with atomic_writer(path) as output:
        output.write((header + yaml.safe_dump(settings, sort_keys=False)).encode())
    return path


def show_command(script: str, arguments: list[str]) -> None:
    """Prints a step as the user would type it."""
    tell(f"$ python {script} {shlex.join(arguments)}")


def tell(message: str) -> None:
    """Writes one line for the user; progress bars and messages share stderr."""
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


def _is_finished(prefix: str, text: SplitText, fingerprint: str) -> bool:
    try:
        metadata = read_metadata(prefix)
        if metadata is None or metadata.tokenizer.sha256 != fingerprint:
            return False
        is_same_text = metadata.text_bytes == text.text_bytes
        return is_same_text and len(MMapIndexedDataset(prefix).tokens) == metadata.tokens
    except DataError:
        return False


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
