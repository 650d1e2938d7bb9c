"""Tokenizes text files into the memory-mapped datasets that training reads.

python tools/preprocess_data.py --input corpus.jsonl.zst --tokenizer-type HFTokenizer \
    --vocab-file tokenizer.json --append-eod --output-prefix data/corpus --workers 8
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from megatron.launcher.installation import explain_missing_packages

    explain_missing_packages()

import numpy as np

from megatron.data.indexed_dataset import (
    MMapIndexedDatasetBuilder,
    data_file_path,
    index_file_path,
    make_builder,
)
from megatron.data.metadata import (
    DatasetMetadata,
    TokenizerIdentity,
    metadata_path,
    write_metadata,
)
from megatron.launcher.path_argument import not_empty
from megatron.launcher.single_flag import SingleFlag
from megatron.tokenizer.abstract import AbstractTokenizer
from megatron.tokenizer.command_line import add_max_record_mb, exit_code
from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import READABLE
from megatron.tokenizer.inputs import split_at_commas
from megatron.tokenizer.progress import TextProgress
from megatron.tokenizer.tokenizer import TOKENIZER_TYPES
from odm.wording import counted
from tools.datasets.added_tokens import added_tokens_lines
from tools.datasets.encoding import Batch, EncodedTexts, Encoder, EncoderSettings
from tools.datasets.left_overs import locked_temporaries, remove_left_overs
from tools.datasets.workers import encode_in_order

BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 1 << 20
"""A batch ends at either. The reader cuts, so the cuts do not depend on the number of workers."""


@dataclass(frozen=True)
class KeySummary:
    """What was written for one key."""

    prefix: str
    metadata: DatasetMetadata
    num_empty: int


def get_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    _add_input(parser)
    tokenizer = parser.add_argument_group("tokenizer")
    tokenizer.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    vocabulary = "tokenizer.json, vocab.json, .model, name ..."
    tokenizer.add_argument("--vocab-file", type=not_empty, help=vocabulary)
    merges = "merges.txt of GPT2BPETokenizer"
    tokenizer.add_argument("--merge-file", type=not_empty, help=merges)
    tokenizer.add_argument("--append-eod", action="store_true", help="end each document with eod")
    tokenizer.add_argument(
        "--add-special-tokens",
        action="store_true",
        help="add to each document what transformers adds with this tokenizer, such as <s>; "
        "then train with tokenizer_adds_special_tokens: true",
    )
    tokenizer.add_argument("--ftfy", action="store_true", help="repair mojibake before tokenizing")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output-prefix",
        required=True,
        type=not_empty,
        help="writes <prefix>_<key>_document.{bin,idx,meta.json}",
    )
    output.add_argument("--dataset-impl", default="mmap", choices=["lazy", "cached", "mmap"])
    runtime = parser.add_argument_group("runtime")
    runtime.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    runtime.add_argument(
        "--log-interval", type=int, default=100, help="documents between progress updates"
    )
    args = parser.parse_args(input_args)
    if args.workers < 1:
        parser.error(f"argument --workers: must be at least 1, got {args.workers}")
    return args


def _add_input(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("input")
    text.add_argument(
        "--input",
        required=True,
        type=not_empty,
        action=SingleFlag,
        advice="separate several by commas",
        help="files, folders or archives, separated by commas (an existing path may contain them); "
        f"supported: {READABLE}; other files of a folder are counted at the end",
    )
    text.add_argument(
        "--jsonl-keys",
        "--text-key",
        nargs="+",
        action="extend",
        help="fields of JSON records or columns of tables with text (default text); one dataset "
        "per field",
    )
    text.add_argument(
        "--num-docs", type=int, help="expected number of documents, checked at the end"
    )
    text.add_argument(
        "--on-error",
        default="fail",
        choices=["fail", "skip"],
        help="at a malformed record: end with its place, or report and count it",
    )
    add_max_record_mb(text)


def main(input_args: Sequence[str] | None = None) -> list[KeySummary]:
    """Tokenizes as the arguments say.

    Returns:
        One summary per key.

    Raises:
        DocumentError, TokenizerError, DataError: One line for the user; nothing is left behind.
    """
    args = get_args(input_args)
    keys = list(dict.fromkeys(args.jsonl_keys or ["text"]))
    prefixes = [f"{args.output_prefix}_{key}_document" for key in keys]
    for prefix in prefixes:
        _check_output(prefix)
    settings = EncoderSettings(
        tokenizer_type=args.tokenizer_type,
        vocab_file=args.vocab_file,
        merge_file=args.merge_file,
        append_eod=args.append_eod,
        tokenizer_adds_special_tokens=args.add_special_tokens,
        use_ftfy=args.ftfy,
    )
    reader = DocumentReader(
        split_at_commas(args.input),
        keys=keys,
        on_error=args.on_error,
        report=_tell,
        max_record_bytes=args.max_record_bytes,
    )
    encoder = Encoder(settings)
    tokenizer = encoder.tokenizer
    _tell(
        f"{tokenizer.name}: {tokenizer.vocab_size} tokens, end of document {tokenizer.eod}"
        + "".join(f"; {line}" for line in added_tokens_lines(tokenizer))
    )
    label = f"tokenizing {Path(args.output_prefix).name}"
    with (
        _OutputSet(prefixes, tokenizer, impl=args.dataset_impl) as outputs,
        TextProgress(
            label, total_bytes=reader.total_bytes, log_interval=args.log_interval
        ) as progress,
    ):
        encoded = encode_in_order(
            _batches(reader), encoder, settings=settings, workers=args.workers
        )
        with contextlib.closing(encoded):  # ends the workers before the outputs are given up
            for texts in encoded:
                outputs.add(texts)
                progress.update(
                    len(texts[0].lengths) + texts[0].num_empty,
                    text_bytes=sum(key.text_bytes for key in texts),
                    bytes_read=reader.bytes_read,
                )
        if not reader.documents:  # that no token was found ends the run: say what was not read
            _tell_left_out(reader)
        summaries = outputs.finalize()
    _tell_summary(summaries, reader, progress, expected=args.num_docs)
    return summaries


def _batches(reader: DocumentReader) -> Iterator[Batch]:
    batch: Batch = []
    characters = 0
    for document in reader:
        batch.append(document.texts)
        characters += sum(map(len, document.texts))
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _OutputSet:
    """The datasets of all keys: they appear together at the end, or none is left."""

    def __init__(self, prefixes: list[str], tokenizer: AbstractTokenizer, *, impl: str):
        self._prefixes = prefixes
        self._tokenizer = tokenizer
        self._text_bytes = [0] * len(prefixes)
        self._num_empty = [0] * len(prefixes)
        self._impl = impl
        self._stack = contextlib.ExitStack()
        self._builders: list[MMapIndexedDatasetBuilder] = []

    def __enter__(self) -> "_OutputSet":
        with contextlib.ExitStack() as stack:
            for prefix in self._prefixes:
                data = Path(data_file_path(prefix))
                data.parent.mkdir(parents=True, exist_ok=True)
                remove_left_overs(data, tell=_tell)
                builder = make_builder(data, self._impl, self._tokenizer.vocab_size)
                self._builders.append(stack.enter_context(builder))
                stack.enter_context(locked_temporaries(data))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, texts: tuple[EncodedTexts, ...]) -> None:
        for place, (builder, encoded) in enumerate(zip(self._builders, texts, strict=True)):
            ends = np.cumsum(encoded.lengths)
            for first, last in zip(ends - encoded.lengths, ends, strict=True):
                builder.add_item(encoded.tokens[first:last])
                builder.end_document()
            self._text_bytes[place] += encoded.text_bytes
            self._num_empty[place] += encoded.num_empty

    def finalize(self) -> list[KeySummary]:
        for builder, prefix in zip(self._builders, self._prefixes, strict=True):
            if builder.num_documents == 0:
                raise DocumentError(
                    f"{prefix}: no document has any token; check --input and --jsonl-keys"
                )
        summaries = [self._summary(place) for place in range(len(self._prefixes))]
        named: list[str] = []
        try:
            for builder, summary in zip(self._builders, summaries, strict=True):
                # An old description must not stand beside new tokens, were this to end half-way.
                metadata_path(summary.prefix).unlink(missing_ok=True)
                builder.finalize(index_file_path(summary.prefix))
                named.append(summary.prefix)
                write_metadata(summary.prefix, summary.metadata)
        except BaseException:
            for prefix in named:
                for path in (data_file_path(prefix), index_file_path(prefix)):
                    Path(path).unlink(missing_ok=True)
                metadata_path(prefix).unlink(missing_ok=True)
            raise
        return summaries

    def _summary(self, place: int) -> KeySummary:
        builder, tokenizer = self._builders[place], self._tokenizer
        metadata = DatasetMetadata(
            documents=builder.num_documents,
            tokens=builder.num_tokens,
            text_bytes=self._text_bytes[place],
            max_token_id=builder.max_token_id,
            tokenizer=TokenizerIdentity(
                tokenizer.name, tokenizer.vocab_size, tokenizer.fingerprint
            ),
        )
        return KeySummary(self._prefixes[place], metadata, self._num_empty[place])


def _check_output(prefix: str) -> None:
    """Refuses an output of which one half exists: nobody can say what the other half was."""
    data, index = Path(data_file_path(prefix)), Path(index_file_path(prefix))
    if data.exists() != index.exists():
        half, missing = (data, index) if data.exists() else (index, data)
        raise DocumentError(
            f"{half}: exists without {missing.name}, a half dataset is not overwritten; "
            "remove it or choose another --output-prefix"
        )
    folder = data.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DocumentError(f"{folder}: cannot be written; choose another --output-prefix")


def _tell_summary(
    summaries: list[KeySummary],
    reader: DocumentReader,
    progress: TextProgress,
    *,
    expected: int | None,
) -> None:
    for summary in summaries:
        metadata = summary.metadata
        parts = [
            counted(metadata.documents, "document"),
            counted(metadata.tokens, "token"),
            f"{metadata.text_bytes / 1e6:.2f} MB of text",
            f"{metadata.text_bytes / metadata.tokens:.2f} bytes/token",
            f"{progress.seconds:.1f} s, {progress.megabytes_per_second:.1f} MB/s",
        ]
        if summary.num_empty:
            parts.append(f"{counted(summary.num_empty, 'empty document')} left out")
        _tell(f"{summary.prefix}: {', '.join(parts)}")
    if reader.problems:
        _tell(f"{counted(reader.problems, 'record')} skipped, {reader.documents} read")
    if expected is not None and expected != reader.documents:
        _tell(
            f"--num-docs {expected} was given, but the number of documents read is "
            f"{reader.documents}"
        )
    _tell_left_out(reader)


def _tell_left_out(reader: DocumentReader) -> None:
    for line in reader.left_out.lines():
        _tell(line)


def _tell(message: str) -> None:
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
