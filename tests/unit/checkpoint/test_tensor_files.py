"""Our safetensors files are what the library writes, and their checksum needs no second reading."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from megatron.checkpoint import tensor_files
from megatron.checkpoint.tensor_files import write_tensors
from megatron.errors import CheckpointError
from megatron.files import crc32_of_file

TENSORS = {
    "a|b": torch.arange(7.0),
    "half": torch.tensor([[1.5, -2.0], [3.0, 4.0]], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "wide": torch.tensor(3.25, dtype=torch.float64),
    "whole": torch.arange(6).view(2, 3).T,
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
}


def test_the_library_reads_what_we_wrote(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, metadata={"format": "pt"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_size_and_checksum_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 5)
    path = tmp_path / "x.safetensors"
    facts = write_tensors(path, TENSORS)
    assert facts == {"size": path.stat().st_size, "crc32": crc32_of_file(path)}


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", TENSORS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(stream) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files, "flush_to_disk", full)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: No space left on device; check"):
        write_tensors(tmp_path / "x.safetensors", TENSORS)
