"""Which files are read: hidden names, commas, kinds, members of archives with odd names."""

import io
import sys
import tarfile
import zipfile

import pytest

from megatron.tokenizer.documents import DocumentReader
from megatron.tokenizer.errors import DocumentError
from megatron.tokenizer.file_kinds import is_hidden_member, split_suffixes
from megatron.tokenizer.inputs import split_at_commas

HIDDEN_MEMBERS = ["__MACOSX/._a.txt", "__MACOSX/a.txt", ".git/b.txt", "x/.ipynb_checkpoints/c.txt"]
READ_MEMBERS = ["./a.txt", "/b.txt", "../c.txt", "x/../d.txt", "e.e.txt", "x__MACOSX/f.txt"]


def read(path, **settings):
    reader = DocumentReader([str(path)], **settings)
    return [document.texts[0] for document in reader], reader


def write_archive(path, members):
    """A zip or tar archive of pairs (name, content); the names are taken as they are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                entry = zipfile.ZipInfo("x")
                entry.filename = name
                archive.writestr(entry, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def test_hidden_files_of_a_folder_are_left_out_and_counted_in_one_line(tmp_path):
    names = [".ipynb_checkpoints/a-checkpoint.txt", "b/.DS_Store", "b/._c.txt", "__MACOSX/d.txt"]
    for name in ("a.txt", "b/c.txt", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".broken.txt").symlink_to("nowhere")
    texts, reader = read(tmp_path)
    assert texts == ["a.txt", "b/c.txt"]
    (line,) = reader.left_out.lines()
    assert line.startswith("left out hidden files and folders")
    assert ": 5; the first" in line


def test_what_is_named_is_read_though_it_is_hidden(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/.a.txt").write_text("x")
    (tmp_path / ".cache/b.txt").write_text("y")
    assert read(tmp_path / ".cache")[0] == ["y"]
    assert read(tmp_path / ".cache/.a.txt")[0] == ["x"]


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar"])
def test_hidden_members_are_left_out_whatever_they_hold(tmp_path, name):
    members = [(member, b"\xff\x00") for member in HIDDEN_MEMBERS]
    members += [(member, member.encode()) for member in READ_MEMBERS]
    texts, reader = read(write_archive(tmp_path / name, members))
    assert texts == READ_MEMBERS
    assert reader.left_out.total == len(HIDDEN_MEMBERS)


@pytest.mark.parametrize("path", ["..", ".", "a/../b", "./a"])
def test_dots_that_lead_to_a_folder_hide_nothing(path):
    assert not is_hidden_member(path)


@pytest.mark.parametrize("member", ["\0a.txt", "a.txt\0", "b\0.txt", "\0"])
def test_a_zip_member_whose_name_holds_a_nul_is_left_out_and_counted(tmp_path, member):
    path = write_archive(tmp_path / "corpus.zip", [(member, b"x"), ("c.txt", b"read")])
    texts, reader = read(path)
    assert texts == ["read"]
    (line,) = reader.left_out.lines()
    assert line.startswith("left out members of archives without a usable name")
    assert ": 1; the first" in line
    assert line.isprintable()


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar"])
def test_a_member_without_a_name_is_left_out_and_counted(tmp_path, name):
    path = write_archive(tmp_path / name, [("", b"x"), ("c.txt", b"read")])
    texts, reader = read(path)
    assert texts == ["read"]
    assert reader.left_out.total == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar"])
def test_members_of_one_name_are_each_read(tmp_path, name):
    members = [("a.txt", b"old"), ("b.txt", b"x"), ("a.txt", b"new")]
    assert read(write_archive(tmp_path / name, members))[0] == ["old", "x", "new"]


@pytest.mark.parametrize("name", ["corpus.zip", "corpus.tar"])
def test_the_name_of_a_member_is_one_line_of_a_message(tmp_path, name):
    path = write_archive(tmp_path / name, [("a\n\x1b[2J.jsonl", b"x")])
    with pytest.raises(DocumentError) as raised:
        read(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("existing", "text", "paths"),
    [
        ([], "a,b", ["a", "b"]),
        ([], " a , b ", ["a", "b"]),
        ([], "a,", ["a", ""]),
        (["a,b"], "a,b", ["a,b"]),
        (["a,b"], "a,b,c", ["a,b", "c"]),
        (["b,c"], "a,b,c", ["a", "b,c"]),
        (["a", "b", "a,b"], "a,b", ["a,b"]),
        (["a", "b, c"], "a, b, c", ["a", "b, c"]),
        ([" a"], " a,b", [" a", "b"]),
        (["a,"], "a,", ["a,"]),
        ([","], ",", [","]),
    ],
)
def test_what_exists_as_a_whole_is_one_path(tmp_path, monkeypatch, existing, text, paths):
    monkeypatch.chdir(tmp_path)
    for name in existing:
        (tmp_path / name).touch()
    assert split_at_commas(text) == paths


def test_a_long_list_is_split_in_no_time():
    names = [f"/no/such/folder/{number}.jsonl" for number in range(2000)]
    assert split_at_commas(",".join(names)) == names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JSONL.GZ", (".jsonl", ".gz")),
        ("a.tgz", (".tar", ".gz")),
        ("README.md", (".md", "")),
        ("a.b.py.zst", (".py", ".zst")),
        ("jsonl", ("", "")),
        ("a.txt.bak", ("", "")),
    ],
)
def test_the_kind_of_a_file_is_in_its_name(name, expected):
    assert split_suffixes(name) == expected


def test_prose_and_code_are_left_out_of_a_folder_where_fields_are_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "source": "y"}\n')
    (tmp_path / "README.md").write_text("about the file beside")
    reader = DocumentReader([str(tmp_path)], keys=["text", "source"])
    assert [document.texts for document in reader] == [("x", "y")]
    (line,) = reader.left_out.lines()
    assert line.startswith(
        "left out files of text or code, which have no fields to choose from: 1;"
    )


TABLE = 'id,text,meta.source\r\n1,"two\r\nlines, ""quoted""",web\r\n\r\n2,\u00e9,\r\n'
ROWS = [('two\r\nlines, "quoted"', "web"), ("\u00e9", "")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.zip", "a.tar"])
def test_the_rows_of_a_table_are_documents(tmp_path, name):
    table = TABLE.replace(",", "\t").replace("lines\t", "lines,") if name == "a.tsv" else TABLE
    content = b"\xef\xbb\xbf" + table.encode()
    if name in ("a.zip", "a.tar"):
        write_archive(tmp_path / name, [("table.csv", content)])
    else:
        (tmp_path / name).write_bytes(content)
    reader = DocumentReader([str(tmp_path / name)], keys=["text", "meta.source"])
    assert [document.texts for document in reader] == ROWS


@pytest.mark.parametrize(
    ("content", "problem", "kept"),
    [
        ("a,b\n1,2\n", ":1: no column 'text' (there is: 'a', 'b'), choose with --text-key", []),
        ("text,b,text\n1,2,3\n", ":1: 2 columns 'text', give each its own name", []),
        ("text,b\n1\nx,y\n", ":2: 1 field, the header has 2", ["x"]),
        ('text,b\n"a"b,1\nx,y\n', ":2: malformed row", ["x"]),
        ('text,b\nx,y\n"open,1\nz,1\n', ":3: malformed row", ["x"]),
        ("text\n\udcff\nx\n", ":2: invalid UTF-8 at byte 5, 0xff", ["x"]),
        ('text\n"a\n\udcff\n"\nx\n', ":2: invalid UTF-8 at byte 8, 0xff", ["x"]),
    ],
)
def test_a_bad_row_is_reported_with_its_line_and_counted(tmp_path, content, problem, kept):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    said = []
    texts, reader = read(path, on_error="skip", report=said.append)
    assert texts == kept
    assert reader.problems == len(said) == 1
    assert f"{path}{problem}" in said[0]
    with pytest.raises(DocumentError, match="--on-error skip"):
        read(path)


@pytest.fixture
def parquet():
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    return pyarrow.parquet


def table(**columns):
    import pyarrow

    return pyarrow.table(columns)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_table_of_parquet_without_rows_holds_no_documents(tmp_path, parquet, dictionary):
    empty = table(text=["x"], meta=[{"source": "web"}]).slice(0, 0)
    parquet.write_table(empty, tmp_path / "a.parquet", use_dictionary=dictionary)
    reader = DocumentReader([str(tmp_path / "a.parquet")], keys=["text", "meta.source"])
    assert list(reader) == []


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_rows_of_parquet_are_documents(tmp_path, parquet, dictionary, version):
    texts = [f"text {number % 7}" for number in range(1000)]
    meta = [{"source": "web", "id": number} for number in range(1000)]
    parquet.write_table(
        table(meta=meta, text=texts, other=[[1, 2]] * 1000),
        tmp_path / "a.parquet",
        row_group_size=300,
        use_dictionary=dictionary,
        data_page_version=version,
        data_page_size=100,
    )
    reader = DocumentReader([str(tmp_path / "a.parquet")], keys=["text", "meta.source"])
    assert [document.texts for document in reader] == [(text, "web") for text in texts]
    assert reader.bytes_read <= reader.total_bytes


@pytest.mark.parametrize(
    ("columns", "problem", "kept"),
    [
        ({"a": ["x"]}, ":1: no column 'text' (there is: 'a'), choose with --text-key", []),
        ({"text": ["x", None, "y"]}, ":2: the value of 'text' is not text but null", ["x", "y"]),
        ({"text": [1]}, ":1: the value of 'text' is not text but a number", []),
        ({"text": [b"x", b"\xff"]}, ":2: invalid UTF-8 in column 'text' at byte 0", ["x"]),
    ],
)
def test_a_bad_row_of_parquet_is_reported(tmp_path, parquet, columns, problem, kept):
    parquet.write_table(table(**columns), tmp_path / "a.parquet")
    said = []
    assert read(tmp_path / "a.parquet", on_error="skip", report=said.append)[0] == kept
    assert len(said) == 1
    assert f"{tmp_path / 'a.parquet'}{problem}" in said[0]


def test_a_truncated_parquet_file_fails(tmp_path, parquet):
    parquet.write_table(table(text=["x"] * 100), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for kept in (0, 3, len(content) // 2, len(content) - 1):
        (tmp_path / "a.parquet").write_bytes(content[:kept])
        with pytest.raises(DocumentError, match=r"a\.parquet: damaged or truncated"):
            read(tmp_path / "a.parquet", on_error="skip")


def test_a_missing_pyarrow_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.jsonl").write_text("no JSON")
    (tmp_path / "b.parquet").touch()
    with pytest.raises(DocumentError, match=r"b\.parquet: reading \.parquet needs .* pyarrow"):
        DocumentReader([str(tmp_path)])
