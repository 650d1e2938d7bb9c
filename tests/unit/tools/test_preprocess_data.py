import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

import tools.datasets.preprocess_data
from megatron.data.errors import DataError
from megatron.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from megatron.data.metadata import read_metadata
from megatron.tokenizer import DocumentError, TokenizerError
from tests import signals
from tools.preprocess_data import main

ROOT = Path(__file__).resolve().parents[3]
LETTERS = np.frombuffer(b"     abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
SCRIPT = ROOT / "tools" / "preprocess_data.py"


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tokenize(path, prefix, *more):
    arguments = ["--input", str(path), "--output-prefix", str(prefix)]
    return main([*arguments, "--tokenizer-type", "CharLevelTokenizer", *more])


def documents(prefix):
    return [item.tolist() for item in MMapIndexedDataset(prefix)[:]]


def outputs(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_bytes_on_disk_are_those_worked_out_by_hand(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "AB"}, {"text": "\u00e9"}])
    tokenize(path, tmp_path / "out", "--append-eod")
    stored = (tmp_path / "out_text_document.bin").read_bytes()
    assert stored.hex(" ", 2) == "4100 4200 0000 c300 a900 0000"
    assert documents(tmp_path / "out_text_document") == [[65, 66, 0], [0xC3, 0xA9, 0]]


def test_the_description_counts_text_and_names_the_tokenizer(tmp_path):
    path = write_jsonl(
        tmp_path / "corpus.jsonl", [{"text": "AB"}, {"text": ""}, {"text": "\u00e9"}]
    )
    (summary,) = tokenize(path, tmp_path / "out")
    metadata = read_metadata(tmp_path / "out_text_document")
    assert (metadata.documents, metadata.tokens, metadata.text_bytes) == (2, 4, 4)
    assert metadata.max_token_id == 0xC3
    assert (metadata.tokenizer.type, metadata.tokenizer.vocab_size) == ("CharLevelTokenizer", 512)
    assert summary.num_empty == 1


def test_every_key_tokenizes_its_own_text(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"a": "x", "b": "yz"}, {"a": "v", "b": "w"}])
    tokenize(path, tmp_path / "out", "--jsonl-keys", "a", "b")
    assert documents(tmp_path / "out_a_document") == [[120], [118]]
    assert documents(tmp_path / "out_b_document") == [[121, 122], [119]]


def test_the_datasets_of_all_keys_appear_or_none(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"title": "a", "text": "b"}])
    original = MMapIndexedDatasetBuilder.finalize

    def finalize(builder, index_file):
        if "text" in index_file:
            raise OSError(28, "No space left on device")
        original(builder, index_file)

    monkeypatch.setattr(MMapIndexedDatasetBuilder, "finalize", finalize)
    with pytest.raises(OSError, match="No space left"):
        tokenize(path, tmp_path / "out", "--jsonl-keys", "title", "text")
    assert outputs(tmp_path) == ["corpus.jsonl"]


def test_several_inputs_are_read_in_the_order_given(tmp_path):
    for name, text in (("b.txt", "1"), ("a.txt", "2")):
        (tmp_path / name).write_text(text)
    tokenize(f"{tmp_path / 'b.txt'},{tmp_path / 'a.txt'}", tmp_path / "out")
    assert documents(tmp_path / "out_text_document") == [[49], [50]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About 1.6 MB of words in several batches, some documents empty."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(7)
    lengths = generator.integers(0, 4000, size=800)
    lengths[::50] = 0
    lines = [
        json.dumps({"text": bytes(generator.choice(LETTERS, size=length)).decode()})
        for length in lengths
    ]
    path = folder / "corpus.jsonl.zst"
    path.write_bytes(zstandard.compress("\n".join(lines).encode()))
    return path


def test_the_output_is_the_same_for_any_number_of_workers(corpus, tmp_path):
    for workers in ("1", "2", "3"):
        tokenize(corpus, tmp_path / workers, "--workers", workers, "--append-eod")
    first, *others = (
        [(tmp_path / f"{workers}_text_document{end}").read_bytes() for end in (".bin", ".idx")]
        for workers in ("1", "2", "3")
    )
    assert len(first[0]) > 2_500_000
    assert all(other == first for other in others)


def test_hugging_face_tokenizers_work_in_workers_and_with_an_abbreviated_flag(corpus, tmp_path):
    from megatron.tokenizer import train_tokenizer

    vocab = tmp_path / "tokenizer.json"
    train_tokenizer.main(
        train_tokenizer.parse_args(
            ["--json_input_dir", str(corpus), "--tokenizer_output_path", str(vocab), "-v", "300"]
        )
    )
    for workers in ("1", "2"):
        (summary,) = tools.datasets.preprocess_data.main(
            f"--input {corpus} --vocab {vocab} --tokenizer-type HFTokenizer --append-eod "
            f"--output-prefix {tmp_path / workers} --workers {workers}".split()
        )
    one, two = ((tmp_path / f"{n}_text_document.bin").read_bytes() for n in ("1", "2"))
    assert one == two
    assert summary.metadata.tokenizer.vocab_size == 300
    assert summary.metadata.tokens < summary.metadata.text_bytes


def test_a_malformed_line_ends_the_run_and_leaves_nothing(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "good"}\n{"text": "good"\n')
    with pytest.raises(DocumentError, match=r"corpus\.jsonl:2: malformed JSON"):
        tokenize(path, tmp_path / "out")
    assert outputs(tmp_path) == ["corpus.jsonl"]


def test_a_malformed_line_is_skipped_on_request_and_said_aloud(tmp_path, capsys):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": "b"}\n')
    tokenize(path, tmp_path / "out", "--on-error", "skip")
    said = capsys.readouterr().err
    assert documents(tmp_path / "out_text_document") == [[97], [98]]
    assert "corpus.jsonl:2: the value of 'text' is not text but a number" in said
    assert "1 record skipped, 2 read" in said


def test_text_that_gives_no_token_is_no_document(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": ""}, {"text": "a"}, {"text": ""}])
    (summary,) = tokenize(path, tmp_path / "out", "--append-eod")
    assert documents(summary.prefix) == [[97, 0]]
    assert summary.num_empty == 2


def test_input_without_any_token_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": ""}])
    with pytest.raises(DocumentError, match="no document has any token"):
        tokenize(path, tmp_path / "out")
    assert outputs(tmp_path) == ["corpus.jsonl"]


def test_a_comma_too_many_does_not_read_the_current_folder(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "private.jsonl", [{"text": "b"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DocumentError, match="one comma too many"):
        tokenize(f"{path},", tmp_path / "out")
    tokenize(f"{path}, {path}", tmp_path / "out")
    assert documents(tmp_path / "out_text_document") == [[97], [97]]


def test_a_path_that_exists_may_hold_commas(tmp_path):
    for name, text in (("a,b.jsonl", "a"), ("c, d.jsonl", "b")):
        write_jsonl(tmp_path / name, [{"text": text}])
    tokenize(f"{tmp_path}/a,b.jsonl, {tmp_path}/c, d.jsonl", tmp_path / "out")
    assert documents(tmp_path / "out_text_document") == [[97], [98]]


def test_the_last_lines_count_what_was_left_out(tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("x.jsonl", ".ipynb_checkpoints/x-checkpoint.jsonl", "a.pdf", "b.pdf", "c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"text": "a"}])
    tokenize(folder, tmp_path / "out")
    *_, kinds, hidden = capsys.readouterr().err.splitlines()
    assert kinds.startswith("left out 3 files")
    assert ": 2 .pdf, 1 without extension (" in kinds
    assert hidden.startswith("left out hidden files and folders")
    assert ": 1; the first" in hidden
    assert documents(tmp_path / "out_text_document") == [[97]]


def test_where_nothing_is_left_to_read_it_is_said_what_was_not_read(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("__MACOSX/a.jsonl", '{"text": "a"}')
    with pytest.raises(DocumentError, match="no document has any token"):
        tokenize(tmp_path / "a.zip", tmp_path / "out")
    assert "left out hidden files and folders" in capsys.readouterr().err


@pytest.mark.parametrize("column", [[], ["--text-key", "body"], ["--jsonl-keys", "id", "body"]])
def test_columns_of_a_table_are_named_like_fields(tmp_path, column):
    (tmp_path / "a.csv").write_text("id,body\n1,AB\n2,C\n")
    if not column:
        with pytest.raises(DocumentError, match=r"a\.csv:1: no column 'text' .*--text-key"):
            tokenize(tmp_path / "a.csv", tmp_path / "out")
        return
    tokenize(tmp_path / "a.csv", tmp_path / "out", *column)
    assert documents(tmp_path / "out_body_document") == [[65, 66], [67]]


def test_a_record_above_the_limit_is_refused_with_the_option(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b" * 1000}])
    with pytest.raises(DocumentError, match=r"a\.jsonl:2: a record of more than 0\.001 MB, raise"):
        tokenize(path, tmp_path / "out", "--max-record-mb", "0.001")
    tokenize(path, tmp_path / "out", "--max-record-mb", "0.0011")
    assert len(documents(tmp_path / "out_text_document")) == 2


def test_a_half_dataset_is_not_overwritten(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    half = tmp_path / "out_text_document.idx"
    half.write_bytes(b"old")
    with pytest.raises(DocumentError, match="half dataset is not overwritten"):
        tokenize(path, tmp_path / "out")
    assert half.read_bytes() == b"old"


def test_a_whole_dataset_is_replaced(tmp_path):
    for text in ("a", "b"):
        tokenize(write_jsonl(tmp_path / "corpus.jsonl", [{"text": text}]), tmp_path / "out")
    assert documents(tmp_path / "out_text_document") == [[98]]


def test_ftfy_mends_mojibake_before_tokenizing(tmp_path):
    pytest.importorskip("ftfy")
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "caf\u00c3\u00a9"}])
    tokenize(path, tmp_path / "out", "--ftfy")
    assert documents(tmp_path / "out_text_document") == [list("caf\u00e9".encode())]


def test_a_missing_ftfy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    with pytest.raises(TokenizerError, match="pip install ftfy"):
        tokenize(path, tmp_path / "out", "--ftfy")


def test_formats_that_are_not_written_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"'lazy' .*; use mmap"):
        tokenize(path, tmp_path / "out", "--dataset-impl", "lazy")


CORPUS = ROOT / "../shared/corpus"


@pytest.mark.skipif(not CORPUS.exists(), reason="the development corpus is not beside the checkout")
def test_the_development_corpus_has_the_tokens_of_its_manifest(tmp_path):
    stated = json.loads((CORPUS / "manifest.json").read_text())["domains"]["code"]["splits"][
        "valid"
    ]
    (summary,) = main(
        f"--input {CORPUS / stated['file']} --tokenizer-type HFTokenizer "
        f"--vocab-file {CORPUS / 'tokenizer-8k.json'} --output-prefix {tmp_path / 'code'}".split()
    )
    assert summary.metadata.text_bytes == stated["text_bytes"]
    assert summary.metadata.documents == stated["documents"]
    assert summary.metadata.tokens == stated["tokens_8k"]


def start(corpus, prefix, *, workers):
    """Starts a run that lasts long enough to be stopped: the same file many times."""
    inputs = prefix.parent.parent / f"{prefix.parent.name}_links"
    inputs.mkdir()
    for number in range(400):
        (inputs / f"{number}.jsonl.zst").symlink_to(corpus)
    arguments = ["--input", str(inputs), "--tokenizer-type", "CharLevelTokenizer"]
    arguments += ["--output-prefix", str(prefix), "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=signals.take_defaults,
    )
    deadline_s = time.monotonic() + 30
    while not any(path.stat().st_size > 0 for path in prefix.parent.glob(".*.tmp")):
        assert time.monotonic() < deadline_s, "the run never wrote a token"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids):
    deadline_s = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline_s, f"still running: {pids}"
        time.sleep(0.05)


linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@linux_only
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_leaves_no_file_and_no_process(corpus, tmp_path, number, code):
    process = start(corpus, tmp_path / "out", workers=2)
    pids = children(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the workers too
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in said
    assert outputs(tmp_path) == []
    wait_until_gone(pids)


@linux_only
def test_workers_die_with_a_killed_parent(corpus, tmp_path):
    process = start(corpus, tmp_path / "out", workers=2)
    pids = children(process.pid)
    assert len(pids) >= 2
    process.kill()
    process.wait()
    wait_until_gone(pids)
    process.stderr.close()


@linux_only
def test_the_file_that_a_killed_run_left_is_removed_by_the_next(corpus, tmp_path, capsys):
    process = start(corpus, tmp_path / "out", workers=1)
    (left,) = tmp_path.glob(".out_text_document.bin.*.tmp")
    path = write_jsonl(tmp_path / "small.jsonl", [{"text": "AB"}])
    tokenize(path, tmp_path / "out")
    assert left.exists()  # the other run is still writing it
    process.kill()
    process.wait()
    process.stderr.close()
    bystander = tmp_path / ".out_text_document.bin.my.tmp"
    bystander.write_text("of another kind of name")
    capsys.readouterr()
    tokenize(path, tmp_path / "out")
    assert f"removed {left}, " in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob(".*")] == [bystander.name]
    assert documents(tmp_path / "out_text_document") == [[65, 66]]


@linux_only
def test_a_killed_worker_ends_the_run_with_one_line(corpus, tmp_path):
    process = start(corpus, tmp_path / "out", workers=2)
    victims = [
        pid
        for pid in children(process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "a worker process died" in said
    assert "Traceback" not in said
    assert outputs(tmp_path) == []
