"""What one rank of many does at a start, without the other ranks: the real functions on fake files.

``python -m tools.benchmark.scale_simulation`` prints, per rank and in all, bytes read and
written, file operations, memory and seconds of the processor, for 8 to 4,096 ranks of data
parallelism with ZeRO 3 and models of 160M to 20B parameters. ``--row NAME`` prints single rows:

- ``values``: a new run: the model is built, and this rank's part of the initial values is drawn
- ``index``: the index of a checkpoint of so many ranks is read and checked
- ``check``: this rank's part of the files of a checkpoint is checked
- ``load``: this rank reads weights and moments that were saved on the same ranks
- ``reload``: the same, saved on twice as many ranks
- ``save``: without ZeRO, the first rank copies and writes what it owns of weights and moments
- ``report``: the first rank combines what all report about their files; read is what it receives
- ``delete``: this rank deletes its share of an old checkpoint
- ``data``: the data sets of a run are opened (``--documents``, ``--domains``), again from a cache

The file of a rank is sparse. A large model is measured with fewer blocks, and bytes, memory and
seconds are multiplied by the share of its elements that were left out (``index`` is always whole).
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.checkpoint.format import CheckpointReader
from megatron.checkpoint.index import index_entry, parameter_info
from megatron.checkpoint.loading import open_weights
from megatron.checkpoint.pruning import delete_share
from megatron.checkpoint.runs import rank_file
from megatron.checkpoint.snapshot import combine_reports, take_snapshot, write_snapshot
from megatron.checkpoint.verification import verify
from megatron.data.data_utils import build_train_source
from megatron.data.indexed_dataset import MMapIndexedDatasetBuilder
from megatron.model.gpt2_model import GPT2Model
from megatron.model.init_functions import fill_range
from megatron.model.parameters import allocate, spec_of
from megatron.model.random_numbers import NumberStream
from megatron.mpu import RankGrid
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.sizing.model_shape import ModelShape, model_shape
from tools.benchmark.sparse_checkpoint import KINDS, own_range, write_sparse_checkpoint

__all__ = ["Cost", "main", "measure"]

MODELS = {"160M": (12, 768, 12), "1.4B": (24, 2048, 16), "20B": (44, 6144, 64)}
"""Name -> blocks, width, heads; 50,432 tokens."""
_OF_FIRST_RANK = ("save", "report")
_ELEMENTS_MEASURED = 40_000_000
_VOCABULARY = 50432
_SEED = 1234


@dataclass
class Cost:
    """What one rank did."""

    read: float = 0.0
    """Bytes of files."""
    written: float = 0.0
    """Bytes of files."""
    operations: int = 0
    """Files opened, looked at, listed or deleted."""
    memory: float = 0.0
    """Bytes that stay, and the most that was needed beside them."""
    seconds: float = 0.0
    """Of the processor."""

    def scaled(self, factor: float) -> Cost:
        """The cost with ``factor`` times as many elements."""
        return replace(
            self,
            read=self.read * factor,
            written=self.written * factor,
            memory=self.memory * factor,
            seconds=self.seconds * factor,
        )


@contextlib.contextmanager
def measure() -> Iterator[Cost]:
    """Counts what the block does to files, and measures it."""
    cost, patched = Cost(), contextlib.ExitStack()

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            cost.operations += 1
            return original(*args, **kwargs)

        setattr(owner, name, call)
        patched.callback(setattr, owner, name, original)

    for owner, name in (
        *((os, name) for name in ("stat", "listdir", "scandir", "open", "unlink")),
        *((builtins, "open"), (io, "open")),
    ):
        counted(owner, name)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _resident("VmRSS"), time.process_time()
    read, written = _bytes_moved()
    cost.operations = 0  # what was needed to measure does not count
    with patched:
        yield cost
    cost.seconds = time.process_time() - began
    cost.memory = max(0, _resident("VmHWM") - before)
    read_now, written_now = _bytes_moved()
    cost.read, cost.written = read_now - read, written_now - written


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _bytes_moved() -> tuple[int, int]:
    """Bytes that this process has read and written."""
    words = Path("/proc/self/io").read_text().split()
    return int(words[1]), int(words[3])


def _config(name: str, *, blocks: int | None = None, **more: Any) -> Any:
    layers, hidden, heads = MODELS[name]
    settings = {
        "num_layers": layers if blocks is None else blocks,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "pos_emb": "rotary",
        "train_iters": 10,
        "train_micro_batch_size_per_gpu": 1,
        **more,
    }
    return resolve(NeoXArgs.from_dict(settings))


def _shape(name: str, blocks: int | None = None) -> ModelShape:
    config = _config(name, blocks=blocks)
    return model_shape(config, vocab_size=_VOCABULARY, padded_vocab_size=_VOCABULARY)


def _elements(model: GPT2Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _measured_model(name: str, ranks: int) -> tuple[GPT2Model, float]:
    """A model of some of the blocks, and how many times as many elements all of them have."""
    layers = MODELS[name][0]
    whole = _elements(GPT2Model(_shape(name), seed=None))
    one = _elements(GPT2Model(_shape(name, 1), seed=None))
    each = (whole - one) // (layers - 1)
    fitting = 1 + int((_ELEMENTS_MEASURED * ranks - one) // each)
    model = GPT2Model(_shape(name, max(1, min(layers, fitting))), seed=None)
    return model, whole / _elements(model)


def _values(name: str, ranks: int) -> Cost:
    model, factor = _measured_model(name, ranks)
    kept = []
    with measure() as cost:
        GPT2Model(_shape(name), seed=None)
        for key, parameter in model.named_parameters():
            offset, length = own_range(parameter.numel(), ranks, ranks // 2)
            own = torch.empty(length, dtype=torch.bfloat16)
            numbers = NumberStream(_SEED, key)
            fill_range(own, spec_of(parameter), numbers, tp_rank=0, offset=offset)
            kept.append(own)
    return _at_least(cost, kept).scaled(factor)


def _at_least(cost: Cost, kept: list[Tensor]) -> Cost:
    """The cost with at least the memory of what stays, which may have been free before."""
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return replace(cost, memory=max(cost.memory, held))


def _index(name: str, ranks: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        model = GPT2Model(_shape(name), seed=None)
        write_sparse_checkpoint(Path(folder) / "c", model, ranks, range(0))
        with measure() as cost:
            CheckpointReader(Path(folder) / "c")
    return cost


def _check(name: str, ranks: int) -> Cost:
    model, factor = _measured_model(name, ranks)
    rank = ranks // 2
    with tempfile.TemporaryDirectory() as folder:
        write_sparse_checkpoint(Path(folder) / "c", model, ranks, range(rank, rank + 1))
        with measure() as cost:
            verify(Path(folder) / "c", part=rank, num_parts=ranks, reads_tensors=False)
    return cost.scaled(factor)


def _load(name: str, ranks: int, *, saved_on: int) -> Cost:
    model, factor = _measured_model(name, ranks)
    rank = ranks // 2
    topology: Any = SimpleNamespace(
        rank=rank, model_rank=0, grid=RankGrid(pipe=1, data=ranks, model=1)
    )
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        files = _files_of_range(model, ranks, rank, saved_on)
        write_sparse_checkpoint(Path(folder) / "c", model, saved_on, files)
        with measure() as cost:
            weights = open_weights(model, Path(folder) / "c", topology)
            for key, parameter in model.named_parameters():
                offset, length = own_range(parameter.numel(), ranks, rank)
                for kind in KINDS:
                    own, spec = torch.empty(length), spec_of(parameter)
                    weights.copy_into(own, key, spec, offset=offset, kind=kind)
                    kept.append(own)
    return _at_least(cost, kept).scaled(factor)


def _files_of_range(model: GPT2Model, ranks: int, rank: int, saved_on: int) -> set[int]:
    """Numbers of the files that have elements of this rank; small parameters are in the first."""
    files: set[int] = set()
    for parameter in model.parameters():
        offset, length = own_range(parameter.numel(), ranks, rank)
        size = -(-parameter.numel() // saved_on)
        files.update(range(offset // size, -(-(offset + length) // size)) if length else ())
    return files


def _save(name: str, ranks: int) -> Cost:
    """Of a model that fits without ZeRO: moments and weights in float32."""
    model = GPT2Model(_shape(name), seed=None)
    for parameter in model.parameters():
        allocate(parameter)
    states = {p: {kind: torch.zeros_like(p) for kind in KINDS[1:]} for p in model.parameters()}
    engine = SimpleNamespace(
        module=model,
        optimizer=SimpleNamespace(state=states),
        zero_optimization_stage=lambda: 0,
    )
    grid = RankGrid(pipe=1, data=ranks, model=1)
    topology: Any = SimpleNamespace(rank=0, data_rank=0, model_rank=0, grid=grid)
    with tempfile.TemporaryDirectory() as folder, measure() as cost:
        snapshot = take_snapshot(engine, topology, moment_names=KINDS[1:], with_random_state=True)
        write_snapshot(snapshot, Path(folder))
    return cost


def _report(name: str, ranks: int) -> Cost:
    """With gloo or NCCL, as `reduce_at_first` does it."""
    model = GPT2Model(_shape(name), seed=None)

    def report_of(rank: int) -> dict[str, Any]:
        entries = {}
        for key, parameter in model.named_parameters():
            offset, length = own_range(parameter.numel(), ranks, rank)
            if length:
                entries[key] = index_entry(parameter_info(spec_of(parameter), 1))
                entries[key]["fragments"].append((rank_file(rank), 0, offset, length))
        files = {rank_file(rank): {"size": 1 << 30, "header_crc32": 1 << 31}}
        return {"problem": None, "parameters": entries, "moments": KINDS[1:], "files": files}

    received, first = [], 1
    while first < ranks:
        others = [report_of(rank) for rank in range(first, min(ranks, 2 * first))]
        received.append(pickle.dumps(combine_reports(others)))
        first *= 2
    own = report_of(0)
    with measure() as cost:
        for content in received:
            own = combine_reports([own, pickle.loads(content)])
    return replace(cost, read=sum(map(len, received)))


def _delete(name: str, ranks: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(ranks):
            (Path(folder) / rank_file(rank)).touch()
        with measure() as cost:
            delete_share(Path(folder), ranks // 2, ranks)
    return cost


def _data(domains: int, documents: int) -> tuple[Cost, Cost]:
    """Costs of the first start, which orders the documents, and of the next one."""
    each = max(1, documents // domains)
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write_domain(Path(folder), number, each) for number in range(domains)]
        config = _config(
            next(iter(MODELS)),
            train_data_paths=paths,
            data_domain_names=[f"domain{number}" for number in range(domains)],
            train_data_weights=[1.0] * domains,
        )
        tokenizer: Any = SimpleNamespace(eod=0, vocab_size=_VOCABULARY)
        costs = []
        for _ in range(2):
            with measure() as cost:
                build_train_source(config, dp_rank=0, dp_size=1, tokenizer_info=tokenizer)
            costs.append(cost)
    return costs[0], costs[1]


def _write_domain(folder: Path, number: int, documents: int) -> str:
    """A data set of documents with three tokens each, but at least one sample."""
    prefix = folder / f"domain{number}" / "text"
    prefix.parent.mkdir()
    size = max(3, -(-2100 // documents))
    with MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16) as builder:
        builder._append(np.zeros(documents * size, dtype=np.uint16))
        builder._sizes.frombytes(np.full(documents, size, dtype=np.int32).tobytes())
        builder._doc_idx.frombytes(np.arange(1, documents + 1, dtype=np.int64).tobytes())
        builder.finalize(f"{prefix}.idx")
    return str(prefix)


ROWS: dict[str, Callable[[str, int], Cost]] = {
    "values": _values,
    "index": _index,
    "check": _check,
    "load": lambda name, ranks: _load(name, ranks, saved_on=ranks),
    "save": _save,
    "report": _report,
    "delete": _delete,
    "reload": lambda name, ranks: _load(name, ranks, saved_on=2 * ranks),
}


def _shown(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def _print_row(row: str, what: str, ranks: int, cost: Cost) -> None:
    in_all = "" if row in _OF_FIRST_RANK else _shown(cost.read * ranks)
    print(
        f"| {row} | {what} | {ranks:,} | {_shown(cost.read)} | {in_all} "
        f"| {_shown(cost.written)} "
        f"| {cost.operations:,} | {_shown(cost.memory)} | {cost.seconds:.3g} |",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", nargs="+", choices=[*ROWS, "data"], default=[*ROWS, "data"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64, 512, 4096])
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--domains", nargs="+", type=int, default=[22, 1000])
    parser.add_argument("--documents", nargs="+", type=int, default=[10_000_000])
    options = parser.parse_args(arguments)
    print(
        "| row | of | ranks | read per rank | read in all | written per rank | file operations "
        "| memory | seconds |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in options.row:
        if row == "data":
            continue
        for name in options.model:
            for ranks in options.ranks if (row, name) != ("save", "20B") else ():
                _print_row(row, name, ranks, ROWS[row](name, ranks))
    if "data" in options.row:
        for domains in options.domains:
            for documents in options.documents:
                what = f"{domains:,} domains, {documents:,} documents"
                for start, cost in zip(("first", "next"), _data(domains, documents), strict=True):
                    _print_row(f"data, {start} start", what, 1, cost)


if __name__ == "__main__":
    main()
