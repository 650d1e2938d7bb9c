"""Our safetensors files are what the library writes; damage is found by whoever reads it."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron.checkpoint import tensor_files
from megatron.checkpoint.tensor_files import write_checked_tensors, write_tensors
from megatron.checkpoint.tensor_reader import TensorFile
from megatron.errors import CheckpointError

TENSORS = {
    "a|b": torch.arange(7.0),
    "half": torch.tensor([[1.5, -2.0], [3.0, 4.0]], dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "wide": torch.tensor(3.25, dtype=torch.float64),
    "whole": torch.arange(6).view(2, 3).T,
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
}
NUMBERS = torch.arange(20.0)


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 16)


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


@pytest.mark.parametrize("has_checksums", [True, False])
def test_we_read_what_the_library_reads(tmp_path, small_blocks, has_checksums):
    path = tmp_path / "x.safetensors"
    if has_checksums:
        facts = write_checked_tensors(path, TENSORS)
    else:  # as earlier versions
        save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
        facts = {"size": 1, "crc32": 2}
    file = TensorFile(path, facts)
    assert file.names == list(load_file(path))
    for name, expected in load_file(path).items():
        assert file.describe(name)[1] == tuple(expected.shape)
        found = file.read(name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected.flatten()), name
    file.verify()


def test_the_checksums_are_those_of_blocks_and_header(tmp_path, small_blocks):
    path = tmp_path / "x.safetensors"
    facts = write_checked_tensors(path, {"numbers": NUMBERS})
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    assert facts == {"size": len(content), "header_crc32": zlib.crc32(content[:data])}
    metadata = json.loads(content[8:data])["__metadata__"]
    blocks = [content[place : place + 16] for place in range(data, len(content), 16)]
    assert metadata["block_bytes"] == "16"
    assert metadata["crc32:numbers"] == "".join(f"{zlib.crc32(block):08x}" for block in blocks)


def test_a_large_file_has_larger_blocks_not_more(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(tensor_files, "_MAX_BLOCKS", 3)
    path = tmp_path / "x.safetensors"
    facts = write_checked_tensors(path, {"numbers": NUMBERS})
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["block_bytes"] == "32"
    assert torch.equal(TensorFile(path, facts).read("numbers", 3, 17), NUMBERS[3:17])


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 79))
def test_damage_is_found_by_those_alone_who_read_its_block(tmp_path_factory, one, other, place):
    first, end = sorted((one, other))
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "_BLOCK_BYTES", 16)
        facts = write_checked_tensors(path, {"numbers": NUMBERS})
    content = bytearray(path.read_bytes())
    content[facts["size"] - 80 + place] ^= 1
    path.write_bytes(content)
    file = TensorFile(path, facts)
    is_read = first < end and 4 * first // 16 <= place // 16 <= (4 * end - 1) // 16
    if not is_read:
        assert torch.equal(file.read("numbers", first, end), NUMBERS[first:end])
        return
    with pytest.raises(CheckpointError, match=r"x\.safetensors: numbers: checksum differs"):
        file.read("numbers", first, end)


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"numbers", b"nombers", "checksum differs from index.json"),
        (b'"block_bytes":"', b'"block_bytes":"0', "block_bytes: must be a number of bytes"),
        (b'"crc32:numbers":"', b'"crc32:numbers":"00', "has not 5 checksums"),
        (b'"crc32:numbers":"', b'"crc32:numbers":"x', "has not 5 checksums"),
        (b"crc32:numbers", b"crc32:nombers", "has not 5 checksums"),
        (b"[0,80]", b"[80,0]", "ends before it begins"),
        (b"[0,80]", b"[0,84]", "has 84 bytes, not those of F32 (20,)"),
        (b'"F32"', b'"F99"', "tensors of F99 are not supported"),
        (b'"shape":[20]', b'"shape":20', "shape: must be a list"),
        (b'"__metadata__":{', b'"__metadata__":{"a":1,', "__metadata__.a: must be"),
        (b"{", b"[", "is not JSON"),
    ],
)
def test_a_wrong_header_is_one_line(tmp_path, small_blocks, old, new, message):
    path = tmp_path / "x.safetensors"
    facts = write_checked_tensors(path, {"numbers": NUMBERS})
    change(path, old, new)
    if "index.json" not in message:  # with a checksum that is right
        content = path.read_bytes()
        size = len(content) - 80
        content = (size - 8).to_bytes(8, "little") + content[8:]
        path.write_bytes(content)
        facts = {"size": len(content), "header_crc32": zlib.crc32(content[:size])}
    with pytest.raises(CheckpointError, match=re.escape(message)) as refused:
        TensorFile(path, facts).read("numbers")
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, bytes(8), b"\2" + bytes(7) + b"{}"]
)
def test_a_file_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorFile(tmp_path / "x", {}).read("numbers")


def test_a_cut_file_is_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    facts = write_checked_tensors(path, {"numbers": NUMBERS})
    path.write_bytes(path.read_bytes()[:-1])
    file = TensorFile(path, facts)
    for read in (lambda: file.read("numbers"), file.verify):
        with pytest.raises(CheckpointError, match=r"numbers: cannot be read \(the file is cut\)"):
            read()


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"x: cannot be read \(No such file or directory\)"):
        TensorFile(tmp_path / "x", {})


def test_a_closed_file_opens_again(tmp_path):
    path = tmp_path / "x.safetensors"
    file = TensorFile(path, write_checked_tensors(path, {"numbers": NUMBERS}))
    file.close()
    assert torch.equal(file.read("numbers"), NUMBERS)


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
