import fcntl

import numpy as np
import pytest

from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.data.metadata import (
    DatasetMetadata,
    TokenizerIdentity,
    read_metadata,
    write_metadata,
)
from tools.datasets import merge_datasets as alias
from tools.merge_datasets import main

PARTS = {"parts/a": [[1, 2], [3]], "parts/b": [[], [4, 5, 6]]}


@pytest.fixture
def parts(write_dataset, tmp_path):
    for name, documents in PARTS.items():
        write_dataset(name, documents)
    return [str(tmp_path / name) for name in PARTS]


def documents_of(prefix):
    return [item.tolist() for item in MMapIndexedDataset(prefix)]


def test_prefixes_are_joined_in_the_order_given(parts, tmp_path, capsys):
    main(["--input", *parts[::-1], "--output-prefix", str(tmp_path / "new/whole")])
    assert documents_of(tmp_path / "new/whole") == [[], [4, 5, 6], [1, 2], [3]]
    assert "2 data sets, 4 items, 6 tokens" in capsys.readouterr().out


def test_a_folder_is_joined_in_the_order_of_names(parts, tmp_path, write_dataset):
    alias.main(["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "whole")])
    write_dataset("expected", [document for part in PARTS.values() for document in part])
    for suffix in (".bin", ".idx"):
        whole, expected = (tmp_path / f"{name}{suffix}" for name in ("whole", "expected"))
        assert whole.read_bytes() == expected.read_bytes()


def test_hidden_files_of_a_folder_are_no_parts(parts, tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"parts/._1{suffix}").write_bytes(b"a resource fork of macOS")
    main(["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "whole")])
    assert documents_of(tmp_path / "whole") == [d for part in PARTS.values() for d in part]


def test_metadata_are_added_up_where_every_part_has_them(parts, tmp_path):
    identity = TokenizerIdentity("HFTokenizer", 100)
    write_metadata(parts[0], DatasetMetadata(2, 3, 10, 3, identity))
    arguments = ["--input", *parts, "--output-prefix", str(tmp_path / "whole")]
    main(arguments)
    assert read_metadata(tmp_path / "whole") is None
    write_metadata(parts[1], DatasetMetadata(2, 3, 5, 6, identity))
    main(arguments)
    assert read_metadata(tmp_path / "whole") == DatasetMetadata(4, 6, 15, 6, identity)


def test_the_limits_of_what_can_be_joined_are_one_line_and_exit_code_2(
    parts, tmp_path, write_dataset, capsys
):
    write_dataset("other", np.array([[1]]), "i4")
    (tmp_path / "empty").mkdir()
    write_dataset("half/a", [[1]])
    (tmp_path / "half/b.bin").write_bytes(b"")
    cases = {
        "stores int32": [*parts, str(tmp_path / "other")],
        "no such file": [str(tmp_path / "absent")],
        "no .idx file in this folder": [str(tmp_path / "empty")],
        "half/b.idx: no such file": [str(tmp_path / "half")],
        "whole: is both": [*parts, str(tmp_path / "whole")],
    }
    for message, inputs in cases.items():
        with pytest.raises(SystemExit) as caught:
            main(["--input", *inputs, "--output-prefix", str(tmp_path / "whole")])
        error = capsys.readouterr().err
        assert caught.value.code == 2
        assert message in error
        assert error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".whole", "whole"))]


def test_a_result_inside_a_folder_of_parts_is_refused(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path / "parts")
    for output in (tmp_path / "parts/all", "all"):
        with pytest.raises(SystemExit):
            main(["--input", str(tmp_path / "parts"), "--output-prefix", str(output)])
        assert f"--output-prefix {output}: is in the input folder" in capsys.readouterr().err
    assert not list((tmp_path / "parts").glob("*all*"))
    main(["--input", "a", "b", "--output-prefix", "all"])
    assert len(documents_of("all")) == 4


def test_a_merge_removes_what_a_killed_one_left(parts, tmp_path, capsys):
    left, held = (tmp_path / f".whole.bin.{number}-0a0b0c0d.tmp" for number in (1, 2))
    for path in (left, held):
        path.write_bytes(b"tokens")
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        main(["--input", *parts, "--output-prefix", str(tmp_path / "whole")])
    assert f"removed {left}, " in capsys.readouterr().err
    assert [path for path in (left, held) if path.exists()] == [held]
