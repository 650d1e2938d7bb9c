"""Trains a byte-level BPE tokenizer on text files.

python megatron/tokenizer/train_tokenizer.py --json_input_dir FOLDER_OR_FILE \
    --tokenizer_output_path tokenizer.json --vocab_size 4096
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from megatron.files import write_text_atomic
from megatron.tokenizer.abstract import END_OF_DOCUMENT, PADDING
from megatron.tokenizer.command_line import add_max_record_mb, exit_code
from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError, TokenizerError
from megatron.tokenizer.file_kinds import READABLE
from megatron.tokenizer.progress import TextProgress
from odm.wording import counted

SPECIAL_TOKENS = (END_OF_DOCUMENT, PADDING)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or a list of arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json_input_dir", required=True, help=f"folder (or one file) of {READABLE}"
    )
    parser.add_argument(
        "--tokenizer_output_path",
        required=True,
        help="the tokenizer.json to write; empty: train, but write nothing",
    )
    parser.add_argument("--tokenizer_type", default="BPE", choices=["BPE"])
    parser.add_argument("-v", "--vocab_size", type=int, default=52000)
    parser.add_argument(
        "--text_key",
        "--text-key",
        default="text",
        help="field of a JSON record, or column of a table, with the text",
    )
    parser.add_argument("--on-error", default="fail", choices=["fail", "skip"])
    add_max_record_mb(parser)
    return parser.parse_args(input_args)


def train_byte_level_bpe(texts: Iterator[str], vocab_size: int, *, show_progress: bool) -> Any:
    """Trains NFKC-normalised byte-level BPE; ``<|endoftext|>`` is id 0, ``<|padding|>`` id 1.

    All 256 bytes are in the vocabulary, so that no text is ever unknown.

    Returns:
        A `tokenizers.Tokenizer`; its vocabulary is smaller than asked for if the text is small.

    Raises:
        TokenizerError: `vocab_size` has no room for the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"--vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens), got {vocab_size}"
        )
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def main(args: argparse.Namespace) -> Any:
    """Trains on the texts that `args` (of `parse_args`) names and writes the tokenizer.

    Returns:
        The trained `tokenizers.Tokenizer`.
    """
    _check_apart(args.json_input_dir, args.tokenizer_output_path)
    reader = DocumentReader(
        [args.json_input_dir],
        keys=[args.text_key],
        on_error=args.on_error,
        max_record_bytes=args.max_record_bytes,
        cut_text=lambda block: iter((block,)),  # a .txt may be of any size: its cuts do not matter
    )
    with TextProgress("reading text", total_bytes=reader.total_bytes) as progress:
        tokenizer = train_byte_level_bpe(
            _texts(reader, progress), args.vocab_size, show_progress=sys.stderr.isatty()
        )
    left_out = reader.left_out.lines()
    if not progress.text_bytes:
        sys.stderr.write("".join(f"{line}\n" for line in left_out))
        raise DocumentError(
            f"{args.json_input_dir}: contains no text to train on; check --text_key"
        )
    size = tokenizer.get_vocab_size()
    told = f"{counted(progress.documents, 'document')}, {progress.text_bytes / 1e6:.1f} MB"
    told += f", {size} tokens"
    if reader.problems:
        told += f", {counted(reader.problems, 'record')} skipped"
    if size < args.vocab_size:
        told += f" (the text is too small for {args.vocab_size})"
    if args.tokenizer_output_path:
        output = Path(args.tokenizer_output_path)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(output, tokenizer.to_str(pretty=True))
        told += f" -> {args.tokenizer_output_path}"
    else:
        told += "; not written, --tokenizer_output_path is empty"
    lines = [f"trained tokenizer: {told}", *left_out]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return tokenizer


def _check_apart(source: str, output: str) -> None:
    """The tokenizer must not replace the text, nor a file that is read as text."""
    if not output or not os.path.exists(output):
        return
    given, target = os.path.realpath(source), os.path.realpath(output)
    if os.path.commonpath([given, target]) == given:
        raise DocumentError(
            f"--tokenizer_output_path: {output} is part of the text in {source}, and would be "
            "replaced; name another file"
        )


def _texts(reader: DocumentReader, progress: TextProgress) -> Iterator[str]:
    for document in reader:
        text = document.texts[0]
        progress.update(1, text_bytes=len(text.encode()), bytes_read=reader.bytes_read)
        yield text


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(parse_args())))
