"""Reads the rows of .parquet files, a few at a time, through pyarrow where it is installed."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import IO, Any

from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import printable
from megatron.tokenizer.parquet_pages import largest_pages
from megatron.tokenizer.records import Row, no_column, too_large

BUFFER_BYTES = 1 << 20
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""Errors that nonsense in a header leads to."""

PAGE_LIMITS = 4
"""A page is decompressed as a whole and has many rows: its limit is this many records."""

_MOST_ROWS = 256


def check_pyarrow(name: str) -> None:
    """Refuses a .parquet file at once if pyarrow is not installed.

    Raises:
        DocumentError: Tells what to install.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DocumentError(
            f"{name}: reading .parquet needs the package pyarrow; "
            "pip install -r requirements/requirements-parquet.txt"
        )


def parquet_rows(
    source: IO[bytes], keys: Sequence[str], *, name: str, limit_bytes: int
) -> Iterator[Row]:
    """Yields the rows, numbered from 1, with the columns of the keys (``meta.source`` descends).

    A value of more bytes than the limit is yielded as a problem.

    Args:
        source: The file; it can be sought in.
        keys: Names of columns.
        name: Name of the file, for messages.
        limit_bytes: Maximum size of a value.

    Raises:
        DocumentError: The file is damaged, or has pages that are too large.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names = file.schema_arrow.names
        missing = [key for key in keys if not _has_column(file.schema_arrow, key)]
        if missing:
            yield 1, no_column(missing[0], names)
            return
        number = 0
        for group, page_bytes in enumerate(largest_pages(source, keys)):
            if page_bytes > PAGE_LIMITS * limit_bytes:
                raise _page_too_large(name, page_bytes, PAGE_LIMITS * limit_bytes)
            # a dictionary may hold a value once that many rows have: this holds each row's own
            rows = max(1, min(_MOST_ROWS, limit_bytes // max(1, page_bytes)))
            for batch in file.iter_batches(
                rows, row_groups=[group], columns=list(keys), use_threads=False
            ):
                for place in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch, place, limit_bytes)
    except DocumentError:
        raise
    except (pyarrow.ArrowException, *DAMAGE) as error:
        reason = printable((str(error) or type(error).__name__).splitlines()[0])
        raise DocumentError(
            f"{name}: damaged or truncated file ({reason}); fetch it again"
        ) from error


def _has_column(schema: Any, key: str) -> bool:
    """Finds a column, or a field inside one."""
    import pyarrow

    if schema.get_field_index(key) >= 0:
        return True
    head, dot, rest = key.partition(".")
    place = schema.get_field_index(head)
    if not dot or place < 0 or not pyarrow.types.is_struct(schema.field(place).type):
        return False
    return _has_column(schema.field(place).type, rest)


def _row(batch: Any, place: int, limit_bytes: int) -> dict[str, Any] | ValueError:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = column[place].as_py()
            # older writers do not say that their bytes are text
            row[name] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            return ValueError(f"invalid UTF-8 in column {name!r} at byte {error.start}")
        # a character is four bytes at most
        if isinstance(value, str) and 4 * len(value) > limit_bytes < len(value.encode()):
            return too_large(limit_bytes)
    return row


def _page_too_large(name: str, page_bytes: int, limit_bytes: int) -> DocumentError:
    return DocumentError(
        f"{name}: has a page of {page_bytes / 1e6:.4g} MB, which must be read as a whole; at most "
        f"{limit_bytes / 1e6:.4g} MB are allowed ({PAGE_LIMITS} times --max-record-mb); raise "
        "--max-record-mb, or write the file with smaller pages"
    )
