import gzip
import json
import os
import shlex
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from megatron.data.indexed_dataset import MMapIndexedDataset
from megatron.data.metadata import read_metadata
from megatron.neox_arguments import NeoXArgs
from megatron.tokenizer import DocumentError, TokenizerError
from tools.corpora import system_text, this_machine
from tools.corpora.arithmetic import arithmetic_documents
from tools.corpora.corpus import domain_name, pieces
from tools.corpora.registry import DATA_DOWNLOADERS
from tools.datasets.prepare import main
from tools.datasets.splitting import assign_splits, digest_of

ROOT = Path(__file__).resolve().parents[3]
CPU_MODEL = ROOT / "configs/cpu.yml"
SPLITS = ("train", "valid", "test")


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sentences(domain, count=40):
    return [
        {"text": f"{domain} sentence number {number}", "domain": domain} for number in range(count)
    ]


def prepare(dataset, data_dir, *more):
    arguments = [dataset, "-d", str(data_dir), "-t", "CharLevelTokenizer", *map(str, more)]
    return yaml.safe_load(main(arguments).read_text())


def domains_of(settings, split="train"):
    return [Path(prefix).parent.name for prefix in settings[f"{split}_data_paths"]]


def texts_of(settings):
    """All documents behind the data YAML, by split."""
    found = {}
    for split in SPLITS:
        prefixes = settings.get(f"{split}_data_paths", [])
        items = [item for prefix in prefixes for item in MMapIndexedDataset(prefix)[:]]
        found[split] = sorted(bytes(item.tolist()).rstrip(b"\0").decode() for item in items)
    return found


def every(documents):
    return [text for split in SPLITS for text in documents[split]]


@pytest.fixture
def two_domains(tmp_path):
    write_jsonl(tmp_path / "input" / "news.jsonl", sentences("news"))
    write_jsonl(tmp_path / "input" / "code" / "part.jsonl", sentences("code"))
    return tmp_path / "input"


def test_a_folder_becomes_one_dataset_a_domain_and_a_data_yaml(two_domains, tmp_path):
    settings = prepare("local", tmp_path / "data", "-i", two_domains)
    for split in SPLITS:
        assert settings[f"{split}_data_paths"] == [
            f"{tmp_path}/data/local/{split}/{domain}/{domain}_text_document"
            for domain in ("code", "news")
        ]
    assert settings["tokenizer_type"] == "CharLevelTokenizer"
    assert settings["use_named_train_datasets"] is settings["use_named_eval_datasets"] is True
    documents = texts_of(settings)
    everything = [record["text"] for name in ("code", "news") for record in sentences(name)]
    assert sorted(every(documents)) == sorted(everything)
    assert all(len(documents[split]) == 8 for split in ("valid", "test"))


@pytest.mark.parametrize("name", ["data", "da ta, x", "it's $HOME,", "-d"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_commands_are_shown_as_the_user_would_type_them(
    two_domains, tmp_path, monkeypatch, capsys, name, elsewhere
):
    start = tmp_path if elsewhere else ROOT
    monkeypatch.chdir(start)
    data = Path(name) if elsewhere else tmp_path / name
    main(["local", f"--data-dir={data}", "-i", str(two_domains), "-t", "CharLevelTokenizer"])
    said = capsys.readouterr().err.splitlines()
    shown = [line[2:] for line in said if line.startswith("$ ")]
    assert len(shown) == 6
    _, launcher, *arguments = shlex.split(said[-1].replace("<model>.yml", str(CPU_MODEL)))
    assert (start / launcher).samefile(ROOT / "deepy.py")
    read = NeoXArgs.consume_deepy_args(arguments)
    assert Path(read.user_script).samefile(ROOT / "train.py")
    assert read.train_data_paths[0] == str(data / "local/train/code/code_text_document")
    prefix = data / "local/train/code/code_text_document"
    before = Path(f"{prefix}.bin").read_bytes()
    Path(f"{prefix}.bin").unlink()
    Path(f"{prefix}.idx").unlink()
    command = shown[0].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=start, capture_output=True)
    assert Path(f"{prefix}.bin").read_bytes() == before


def test_records_can_name_their_domain(tmp_path):
    records = [
        {"body": f"{name} {number}", "meta": {"source": name}}
        for number in range(30)
        for name in ("Stack Exchange", "arXiv")
    ]
    path = write_jsonl(tmp_path / "all.jsonl", records)
    keys = ("--text-key", "body", "--domain-key", "meta.source")
    settings = prepare("local", tmp_path / "data", "-i", path, *keys)
    assert domains_of(settings) == ["Stack_Exchange", "arXiv"]


@pytest.mark.parametrize(("first", "second"), [("C", "C++"), ("Stack Exchange", "Stack_Exchange")])
def test_domains_that_would_share_a_name_are_refused_with_both(tmp_path, first, second):
    records = [*sentences(first), {"text": "x", "domain": f" {first} "}, *sentences(second)]
    path = write_jsonl(tmp_path / "all.jsonl", records)
    with pytest.raises(DocumentError) as raised:
        prepare("local", tmp_path / "data", "-i", path, "--domain-key", "domain")
    assert f"all.jsonl:42: the domains {first!r} and {second!r} would both be" in str(raised.value)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ("w" * 201, ("a name of 201 characters", "at most 200", f"'{'w' * 60}...'")),
        ("w/" * 5_000_000, ("a name of 9999999 characters", "at most 200")),
        ("\u4e2d" * 300, ("cannot be a domain name", "...")),
    ],
)
def test_a_domain_name_that_no_folder_can_have_is_named_shortened(tmp_path, raw, parts):
    path = write_jsonl(tmp_path / "all.jsonl", [*sentences("a"), {"text": "x", "domain": raw}])
    with pytest.raises(DocumentError) as raised:
        prepare("local", tmp_path / "data", "-i", path, "--domain-key", "domain")
    assert str(raised.value).startswith(f"{path}:41: ")
    assert all(part in str(raised.value) for part in parts)
    assert len(str(raised.value)) < 400


def test_the_longest_domain_name_is_prepared(tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", sentences("w" * 198 + "/\0/x"))
    settings = prepare("local", tmp_path / "data", "-i", path, "--domain-key", "domain")
    assert domains_of(settings) == ["w" * 198 + "_x"]


def test_more_domains_than_files_may_be_open_are_refused_with_the_key_to_check(tmp_path):
    import resource

    path = tmp_path / "all.jsonl"
    path.write_text("".join(f'{{"text": "{n}", "domain": "d{n}"}}\n' for n in range(500)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with pytest.raises(DocumentError, match=r"than [0-9]+ domains .*--domain-key"):
            prepare("local", tmp_path / "data", "-i", path, "--domain-key", "domain")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list((tmp_path / "data").rglob("*.spool")) == []


def test_a_domain_without_any_letter_is_refused_with_its_line(tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", [*sentences("a"), {"text": "x", "domain": "?"}])
    with pytest.raises(DocumentError, match=r"all\.jsonl:41: '\?' cannot be a domain name"):
        prepare("local", tmp_path / "data", "-i", path, "--domain-key", "domain")


def test_a_folder_that_is_split_already_keeps_its_splits(tmp_path):
    for split in ("train", "valid"):
        for name in ("a", "b"):
            write_jsonl(tmp_path / "in" / split / f"{name}.jsonl", sentences(f"{split} {name}", 5))
    (tmp_path / "in" / "manifest.json").write_text("{}")
    settings = prepare("local", tmp_path / "data", "-i", tmp_path / "in")
    assert domains_of(settings, "valid") == ["a", "b"]
    assert "test_data_paths" not in settings
    assert all(text.startswith("valid") for text in texts_of(settings)["valid"])
    assert len(texts_of(settings)["train"]) == 10


@pytest.mark.parametrize("name", ["validation", "val", "dev"])
def test_other_names_of_the_validation_split_are_understood(tmp_path, name, capsys):
    for split in ("train", name, "test", "extra"):
        write_jsonl(tmp_path / "in" / split / "web.jsonl", sentences(split, 5))
    documents = texts_of(prepare("local", tmp_path / "data", "-i", tmp_path / "in"))
    assert documents["valid"] == [f"{name} sentence number {number}" for number in range(5)]
    assert len(documents["train"]) == len(documents["test"]) == 5
    said = capsys.readouterr().err.splitlines()[-2]
    assert f"left out files and folders in none of train, {name}, test: 1; the first: " in said
    assert said.endswith("/extra")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a", "valid/a", "dev/a"), "dev and valid are both the split 'valid'"),
        (("train/a", "test/a"), "test, train look like splits"),
        (("train/a", "eval/a"), "eval, train look like splits"),
        (("train/a", "valid/a", "test"), r"test\.jsonl, train, valid look like splits"),
        (("train", "validation"), r"train\.jsonl, validation\.jsonl look like splits"),
    ],
)
def test_splits_that_would_become_domains_are_refused(tmp_path, names, message):
    for name in names:
        write_jsonl(tmp_path / f"in/{name}.jsonl", sentences(name))
    with pytest.raises(DocumentError, match=message):
        prepare("local", tmp_path / "data", "-i", tmp_path / "in")


def test_a_split_without_one_of_the_domains_is_refused(tmp_path):
    write_jsonl(tmp_path / "in/train/a.jsonl", sentences("a"))
    write_jsonl(tmp_path / "in/valid/b.jsonl", sentences("b"))
    with pytest.raises(DocumentError, match="valid and train differ in the domains a, b"):
        prepare("local", tmp_path / "data", "-i", tmp_path / "in")


def test_duplicates_are_dropped_across_domains(tmp_path):
    write_jsonl(tmp_path / "in/a.jsonl", sentences("same") + sentences("same"))
    write_jsonl(
        tmp_path / "in/b.jsonl", [*sentences("other"), {"text": "same  sentence\nnumber 3"}]
    )
    documents = texts_of(prepare("local", tmp_path / "data", "-i", tmp_path / "in"))
    assert len(every(documents)) == 80


def test_what_is_dropped_as_duplicate_or_empty_is_counted(tmp_path, capsys):
    same = sentences("same")
    write_jsonl(tmp_path / "in/a.jsonl", [*same, *same[:3], {"text": " \n"}])
    write_jsonl(tmp_path / "in/b.jsonl", same)
    write_jsonl(tmp_path / "in/c.jsonl", [{"text": ""}, *same])
    assert domains_of(prepare("local", tmp_path / "data", "-i", tmp_path / "in")) == ["a"]
    said = capsys.readouterr().err
    assert "a: 40 documents, 0.00 MB; 3 duplicates, 1 empty left out\n" in said
    assert "left out b: all documents (40) are duplicates of text gathered before\n" in said
    assert "left out c: all documents (41) are duplicates of text gathered before or" in said


def test_skipped_records_are_counted_and_told_again_when_the_text_is_kept(tmp_path, capsys):
    write_jsonl(tmp_path / "in/a.jsonl", [*sentences("a"), {"body": "x"}, {"body": "y"}])
    write_jsonl(tmp_path / "in/b.jsonl", sentences("b"))
    write_jsonl(tmp_path / "in/c.jsonl", [{"body": "z"}])
    arguments = ("local", tmp_path / "data", "-i", tmp_path / "in")
    prepare(*arguments, "--on-error", "skip")
    said = capsys.readouterr().err
    assert "a: 2 unusable records skipped\n" in said
    assert "left out c: nothing of it can be used\n" in said
    prepare(*arguments, "--on-error", "skip")
    said = capsys.readouterr().err
    assert "kept the text of a; when it was gathered: 2 unusable records skipped\n" in said
    assert "kept the text of b\n" in said
    with pytest.raises(DocumentError, match=r"a\.jsonl:41: no key 'text'"):
        prepare(*arguments)


def test_records_that_were_skipped_before_a_domain_was_full_are_counted(tmp_path, capsys):
    records = [{"body": "x"}, *sentences("a"), {"body": "never read"}]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    arguments = ("--on-error", "skip", "--max-domain-mb", "0.0005")
    prepare("local", tmp_path / "data", "-i", tmp_path / "in", *arguments)
    assert "a: 1 unusable record skipped\n" in capsys.readouterr().err


def test_what_is_left_out_is_summed_in_the_last_lines_of_every_run(two_domains, tmp_path, capsys):
    left_out = ("code/b.pdf", "code/a.pdf", "c.PNG", "README", ".git/index", "code/.x/y.txt")
    for name in (*left_out, "__MACOSX/._news.jsonl", "notes.md"):
        (two_domains / name).parent.mkdir(exist_ok=True)
        (two_domains / name).write_text("x")
    told = ["4 files", "hidden files and folders", "single documents beside the domains"]
    counts = ["(the first: ", "): 3; the first: ", "): 1; the first: "]
    for _ in range(2):  # gathered, then kept
        settings = prepare("local", tmp_path / "data", "-i", two_domains)
        assert domains_of(settings) == ["code", "news"]
        *said, ready = capsys.readouterr().err.splitlines()[-4:]
        for line, begin, count in zip(said, told, counts, strict=True):
            assert line.startswith(f"left out {begin}")
            assert count in line
        kinds = ": 2 .pdf, 1 .png, 1 without extension "
        assert f"{kinds}(the first: {two_domains}/README)" in said[0]
        assert ready.startswith("ready: ")


@pytest.mark.parametrize("flat", [False, True])
def test_each_file_of_prose_and_code_is_a_document(tmp_path, flat):
    names = ["a.md", "b.rst", "c.py", "d.C", "e.tex", "f.java", "g.rs", "h.md.gz"]
    folder = tmp_path / "in" if flat else tmp_path / "in/mixed"
    folder.mkdir(parents=True)
    for name in names:
        content = f"{name}\n\nsecond paragraph".encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    settings = prepare("local", tmp_path / "data", "-i", tmp_path / "in")
    assert domains_of(settings) == ["in" if flat else "mixed"]
    assert sorted(every(texts_of(settings))) == [f"{name}\n\nsecond paragraph" for name in names]


def test_tables_are_domains_with_a_text_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    texts = {name: [f"{name} {number}" for number in range(10)] for name in ("a", "b", "c")}
    (tmp_path / "in/a.csv").write_text("id,body\n" + "".join(f'1,"{t}"\n' for t in texts["a"]))
    (tmp_path / "in/b.tsv").write_text("body\tid\n" + "".join(f"{t}\t1\n" for t in texts["b"]))
    parquet.write_table(arrow.table({"body": texts["c"]}), tmp_path / "in/c.parquet")
    arguments = ("-i", tmp_path / "in", "--text-key", "body")
    settings = prepare("local", tmp_path / "data", *arguments)
    assert domains_of(settings) == ["a", "b", "c"]
    assert sorted(every(texts_of(settings))) == sorted(
        text for own in texts.values() for text in own
    )


def test_one_long_plain_text_is_cut_into_documents(tmp_path):
    (tmp_path / "in").mkdir()
    paragraphs = [f"paragraph {number} " + "word " * 200 for number in range(200)]
    (tmp_path / "in" / "book.txt").write_text("\n\n".join(paragraphs))
    documents = texts_of(prepare("local", tmp_path / "data", "-i", tmp_path / "in"))
    assert all(documents[split] for split in SPLITS)
    assert sum(map(len, every(documents))) == len("\n\n".join(paragraphs))


def test_a_second_run_keeps_what_is_finished_and_mends_what_is_torn(two_domains, tmp_path, capsys):
    arguments = ("local", tmp_path / "data", "-i", two_domains)
    settings = prepare(*arguments)
    torn, missing, kept = (Path(settings[f"{split}_data_paths"][0]) for split in SPLITS)
    torn.with_suffix(".bin").write_bytes(torn.with_suffix(".bin").read_bytes()[:-2])
    missing.with_suffix(".idx").unlink()
    kept_at_ns = kept.with_suffix(".bin").stat().st_mtime_ns
    text = tmp_path / "data/local/text/train/news.jsonl"
    whole_text = text.read_bytes()
    text.write_bytes(whole_text[:-5])
    capsys.readouterr()
    assert prepare(*arguments) == settings
    assert kept.with_suffix(".bin").stat().st_mtime_ns == kept_at_ns
    assert text.read_bytes() == whole_text
    said = capsys.readouterr().err
    assert said.count("$ python tools/preprocess_data.py") == 2
    assert "kept the text of code" in said
    assert len(texts_of(settings)["train"]) == 64


def test_text_of_a_domain_that_is_gone_is_removed(two_domains, tmp_path):
    arguments = ("local", tmp_path / "data", "-i", two_domains)
    prepare(*arguments)
    (two_domains / "news.jsonl").unlink()
    left_over = tmp_path / "data/local/text/train/.news.jsonl.1-0.tmp"
    left_over.touch()
    assert domains_of(prepare(*arguments)) == ["code"]
    found = [path.name for path in (tmp_path / "data/local/text/train").iterdir()]
    assert found == ["code.jsonl"]


def test_a_second_run_takes_in_text_that_was_added(two_domains, tmp_path, capsys):
    arguments = ("local", tmp_path / "data", "-i", two_domains)
    before = prepare(*arguments)
    code = Path(before["train_data_paths"][0]).with_suffix(".bin")
    made_at_ns = code.stat().st_mtime_ns
    with (two_domains / "news.jsonl").open("a") as file:
        file.write('{"text": "something new"}\n')
    capsys.readouterr()
    assert "something new" in every(texts_of(prepare(*arguments)))
    assert code.stat().st_mtime_ns == made_at_ns
    assert "news: 41 documents" in capsys.readouterr().err


def test_text_behind_a_linked_folder_is_read_and_read_again_when_it_changed(two_domains, tmp_path):
    write_jsonl(tmp_path / "elsewhere/poems.jsonl", sentences("poems"))
    (two_domains / "art").mkdir()
    (two_domains / "art/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    arguments = ("local", tmp_path / "data", "-i", two_domains)
    assert "poems sentence number 3" in every(texts_of(prepare(*arguments)))
    with (tmp_path / "elsewhere/poems.jsonl").open("a") as file:
        file.write('{"text": "a new poem"}\n')
    assert "a new poem" in every(texts_of(prepare(*arguments)))


def test_other_text_of_the_same_size_is_tokenized_and_shows_in_the_data_yaml(
    two_domains, tmp_path, capsys
):
    arguments = ["local", "-d", str(tmp_path / "data"), "-i", str(two_domains)]
    arguments += ["--vocab-size", "270"]

    def run():
        path = main(arguments)
        folder = path.parent
        tokens = b"".join(file.read_bytes() for file in sorted(folder.rglob("*.bin")))
        return path.read_text(), (folder / "tokenizer.json").read_text(), tokens

    first = run()
    assert run() == first
    assert "text or tokenizer have changed" not in capsys.readouterr().err
    file = two_domains / "news.jsonl"
    file.write_text(file.read_text().replace("sentence", "sequence"))
    changed = run()
    assert all(old != new for old, new in zip(first, changed, strict=True))
    assert "text or tokenizer have changed" in capsys.readouterr().err


def test_text_added_to_one_domain_leaves_another_that_holds_it_too(two_domains, tmp_path):
    arguments = ("local", tmp_path / "data", "-i", two_domains)
    prepare(*arguments)
    with (two_domains / "code" / "part.jsonl").open("a") as file:
        file.write('{"text": "news sentence number 3"}\n')
    assert len(every(texts_of(prepare(*arguments)))) == 80


def test_a_domain_that_is_left_out_takes_no_text_from_others(tmp_path):
    write_jsonl(tmp_path / "in/a.jsonl", sentences("b", 3))
    write_jsonl(tmp_path / "in/b.jsonl", sentences("b"))
    settings = prepare("local", tmp_path / "d", "-i", tmp_path / "in", "--min-domain-kb", "0.5")
    assert domains_of(settings) == ["b"]
    assert len(every(texts_of(settings))) == 40


def test_another_tokenizer_makes_the_datasets_anew(two_domains, tmp_path):
    arguments = ["local", "-d", str(tmp_path / "data"), "-i", str(two_domains), "--vocab-size"]
    for vocab_size in (260, 280):
        path = main([*arguments, str(vocab_size)])
        settings = yaml.safe_load(path.read_text())
        identities = {
            read_metadata(prefix).tokenizer
            for split in SPLITS
            for prefix in settings[f"{split}_data_paths"]
        }
        assert {identity.vocab_size for identity in identities} == {vocab_size}
    assert settings["vocab_file"] == str(tmp_path / "data/local/tokenizer.json")


def test_the_tokenizer_sees_the_training_text_alone(two_domains, tmp_path, capsys):
    main(["local", "-d", str(tmp_path), "-i", str(two_domains), "--vocab-size", "260"])
    said = capsys.readouterr().err
    assert f"--json_input_dir {tmp_path}/local/text/train " in said
    assert "trained tokenizer: 64 documents" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "a folder or a file with --input"),
        (("-i", "absent"), "absent: no such file or folder"),
        (("-i", "few"), "2 documents cannot be split"),
        (("-i", "twice"), "are both the domain 'a'"),
        (("-i", "few", "--min-domain-kb", "50"), "no domain has enough text"),
        (("-i", "bad"), "x.jsonl:1: no key 'text'"),
    ],
)
def test_a_wrong_input_gives_one_line(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "few" / "a.jsonl", sentences("a", 2))
    write_jsonl(tmp_path / "twice" / "a.jsonl", sentences("a"))
    write_jsonl(tmp_path / "twice" / "a" / "x.jsonl", sentences("b"))
    write_jsonl(tmp_path / "bad" / "x.jsonl", [{"body": "x"}])
    with pytest.raises(DocumentError) as raised:
        prepare("local", tmp_path / "data", *more)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "data").rglob("*.spool"))


def test_a_vocabulary_size_for_a_tokenizer_that_is_not_trained_is_refused(two_domains, tmp_path):
    with pytest.raises(TokenizerError, match="--vocab-size 300"):
        prepare("local", tmp_path / "data", "-i", two_domains, "--vocab-size", 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("this_machine", "-i", "in"), "--input in: this_machine"),
        (("this_machine", "--text-key", "body"), "--text-key body: this_machine"),
        (("local", "-i", "in", "-d", "in"), "in/local would be written inside it"),
        (("local", "-i", "in", "-m", "merges.txt"), "--merge-file merges.txt: a HFTokenizer"),
        (("local", "-i", "in", "-v", "absent.json"), "absent.json"),
    ],
)
def test_arguments_without_effect_are_refused_before_any_text_is_gathered(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in" / "a.jsonl", sentences("a"))
    with pytest.raises((DocumentError, TokenizerError)) as raised:
        main(list(arguments))
    assert message in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "place", ["data/local", "data/local/train", "data/local/text/train/web.jsonl", "link"]
)
def test_text_of_the_user_inside_the_output_folder_is_refused_and_left_as_it_is(
    tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    text = write_jsonl(tmp_path / "data/local/text/train/web.jsonl", sentences("web"))
    (tmp_path / "data/local/train").mkdir()
    (tmp_path / "link").symlink_to("data/local/text", target_is_directory=True)
    before = text.read_bytes()
    with pytest.raises(DocumentError, match=f"--input {place}: is inside data/local, .*--data-"):
        prepare("local", "data", "-i", place)
    assert text.read_bytes() == before
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [text]


@pytest.mark.parametrize("wrong", [("--max-domain-mb", "0"), ("--workers", "0")])
def test_a_number_that_would_be_taken_for_none_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["this_machine", *wrong])
    assert f"argument {wrong[0]}: must be at least" in capsys.readouterr().err


def test_this_machine_gives_six_domains_without_any_system_text(tmp_path, monkeypatch, capsys):
    for name in ("manual_pages", "system_documentation"):
        monkeypatch.delitem(this_machine.DOMAINS, name)
    monkeypatch.setattr(system_text, "LOCALE_ROOT", tmp_path / "absent")
    limits = ("--max-domain-mb", "0.12", "--min-domain-kb", "40")
    settings = prepare("this_machine", tmp_path / "one", *limits)
    assert len(domains_of(settings)) >= 6
    assert {"python_source", "python_documentation", "arithmetic"} <= set(domains_of(settings))
    assert domains_of(settings) == domains_of(settings, "valid") == domains_of(settings, "test")
    assert "left out translations: no text was found" in capsys.readouterr().err
    again = prepare("this_machine", tmp_path / "two", *limits)
    for first, second in zip(settings["train_data_paths"], again["train_data_paths"], strict=True):
        assert Path(f"{first}.bin").read_bytes() == Path(f"{second}.bin").read_bytes()
    for prefix in settings["train_data_paths"]:
        assert read_metadata(prefix).text_bytes < 160_000


@pytest.mark.parametrize(
    ("name", "domain_key", "domains"),
    [
        ("common_pile", "source", ["arxiv_papers", "ubuntu_irc"]),
        ("common_corpus", "open_type", ["Open_Culture", "Open_Science"]),
    ],
)
def test_hub_corpora_read_a_local_copy_of_their_files(
    tmp_path, monkeypatch, name, domain_key, domains
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    lines = [
        json.dumps({"text": f"{domain} {number}", domain_key: domain.replace("_", " ")})
        for number in range(30)
        for domain in domains
    ]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    settings = prepare(name, tmp_path / "data", "-i", tmp_path / "copy", "--min-domain-kb", 0.1)
    assert domains_of(settings) == domains
    assert len(every(texts_of(settings))) == 60
    with pytest.raises(DocumentError, match="row 1: no key 'subject'"):
        prepare(name, tmp_path / "other", "-i", tmp_path / "copy", "--domain-key", "subject")
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_every_entry_states_its_licence():
    assert set(DATA_DOWNLOADERS) == {"this_machine", "local", "common_pile", "common_corpus"}
    assert all(corpus.licence and corpus.description for corpus in DATA_DOWNLOADERS.values())


@pytest.mark.parametrize("kind", ["loop", "pipe", "nothing"])
def test_an_input_that_is_neither_file_nor_folder_is_one_line(tmp_path, kind):
    source = tmp_path / kind
    if kind == "loop":
        source.symlink_to(source)
    elif kind == "pipe":
        os.mkfifo(source)
    what = "is neither a file nor a folder" if kind == "pipe" else "no such file or folder"
    with pytest.raises(DocumentError, match=f"{kind}: {what}; check --input"):
        prepare("local", tmp_path / "data", "-i", source)
    assert not (tmp_path / "data").exists()


def test_an_output_that_is_a_link_to_itself_is_one_line(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", sentences("a"))
    (tmp_path / "data").symlink_to(tmp_path / "data")
    with pytest.raises(OSError, match="symbolic links"):
        prepare("local", tmp_path / "data", "-i", source)


@pytest.mark.parametrize("flag", ["-i", "-d", "-v", "-m"])
def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["local", flag, ""])
    assert "is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize("flag", ["--max-domain-mb", "--min-domain-kb"])
def test_a_limit_that_is_no_finite_number_is_refused(capsys, flag, value):
    with pytest.raises(SystemExit):
        main(["local", flag, value])
    assert f"argument {flag}: must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "257"])
def test_a_vocabulary_that_is_too_small_is_refused_before_text_is_gathered(tmp_path, capsys, size):
    source = write_jsonl(tmp_path / "a.jsonl", sentences("a"))
    with pytest.raises(SystemExit):
        main(["local", "-i", str(source), "-d", str(tmp_path / "d"), "--vocab-size", size])
    assert f"argument --vocab-size: must be at least 258 and finite, got {size}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "d").exists()


def test_a_file_without_text_is_reported_as_such(tmp_path, capsys):
    source = write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(DocumentError, match="no domain has enough text"):
        prepare("local", tmp_path / "data", "-i", source, "--domain-key", "domain")
    assert "no text was found" in capsys.readouterr().err


def test_pass_prepares_nothing(tmp_path):
    assert main(["pass", "-d", str(tmp_path)]) is None
    assert list(tmp_path.iterdir()) == []


def test_the_script_reports_a_mistake_in_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "prepare_data.py", "local", "-d", tmp_path, "-i", "absent"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "absent: no such file or folder; check --input"


@given(texts=st.sets(st.text(min_size=1), min_size=3, max_size=60), data=st.data())
def test_the_split_depends_on_the_documents_and_not_on_their_order(texts, data):
    digests = sorted({digest_of(text) for text in texts})
    if len(digests) < 3:
        return
    sizes = [1000] * len(digests)
    splits = dict(zip(digests, assign_splits(digests, sizes), strict=True))
    shuffled = data.draw(st.permutations(digests))
    assert dict(zip(shuffled, assign_splits(shuffled, sizes), strict=True)) == splits
    assert set(splits.values()) == {"train", "valid", "test"}


def test_large_domains_hold_out_two_percent_and_growing_moves_nothing():
    digests = [digest_of(str(number)) for number in range(20_000)]
    splits = assign_splits(digests, [5000] * 20_000)
    assert 300 < splits.count("valid") < 500
    assert 300 < splits.count("test") < 500
    assert assign_splits(digests[:10_000], [5000] * 10_000) == splits[:10_000]


def test_small_domains_hold_out_enough_to_measure():
    digests = [digest_of(str(number)) for number in range(100)]
    splits = assign_splits(digests, [5000] * 100)
    assert (splits.count("test"), splits.count("valid")) == (8, 8)
    assert assign_splits(digests, [500] * 100).count("valid") == 10


@given(text=st.text(alphabet="ab\r\n", max_size=200), longest=st.integers(1, 50))
def test_cutting_loses_no_character(text, longest):
    cut = list(pieces(text, longest))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= longest for piece in cut)


def test_long_texts_are_cut_at_blank_lines():
    assert list(pieces("aaaa\n\nbbb\n\ncc", 11)) == ["aaaa\n\nbbb\n\n", "cc"]


def test_text_with_windows_line_ends_is_cut_at_blank_lines_too():
    assert list(pieces("aaaaaa\r\n\r\nb\r\ncc", 14)) == ["aaaaaa\r\n\r\n", "b\r\ncc"]
    assert list(pieces("aaaaa\r\nb\r\nccccc", 12)) == ["aaaaa\r\nb\r\n", "ccccc"]


def test_domain_names_are_fit_for_folders():
    assert domain_name("Wikipedia (en)") == "Wikipedia_en"
    assert domain_name("../up") == "up"
    with pytest.raises(DocumentError, match="cannot be a domain name"):
        domain_name("..")


def test_arithmetic_is_the_same_on_every_run_and_right():
    first, again = arithmetic_documents(), arithmetic_documents()
    documents = [next(first) for _ in range(12)]
    assert documents == [next(again) for _ in range(12)]
    sums = [line for document in documents for line in document.splitlines() if " = " in line]
    checked = 0
    for line in sums:
        left, _, right = line.partition(" = ")
        if set(left) <= set("0123456789+-* ") and right.lstrip("-").isdigit():
            assert eval(left) == int(right), line
            checked += 1
    assert checked > 100


def test_a_message_catalogue_is_read_in_both_byte_orders():
    strings = [b"", b"header", b"yes", b"ja"]
    for order in "<>":
        offset, places = 28 + 32, []
        for string in strings:
            places.append((len(string), offset))
            offset += len(string) + 1
        tables = [*places[0], *places[2], *places[1], *places[3]]
        head = struct.pack(f"{order}7I", 0x950412DE, 0, 2, 28, 44, 0, 0)
        content = head + struct.pack(f"{order}8I", *tables) + b"".join(s + b"\0" for s in strings)
        assert system_text.read_catalogue(content) == [("yes", "ja")]
    assert system_text.read_catalogue(b"not a catalogue at all, sorry") == []


def write_beginning_tokenizer(path):
    """Words as tokens; transformers adds ``<s>``, which is 1, before each text."""
    words = ["<|endoftext|>", "<s>", "news", "code", "sentence", "number"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("adds", [False, True])
def test_what_a_tokenizer_adds_to_texts_is_told_and_added_on_request(
    two_domains, tmp_path, capsys, adds
):
    vocab = write_beginning_tokenizer(tmp_path / "tokenizer.json")
    arguments = ["local", "-d", str(tmp_path / "data"), "-i", str(two_domains), "-v", str(vocab)]
    for _ in range(2):  # the second time nothing is tokenized
        file = main([*arguments, *(["--add-special-tokens"] if adds else [])])
        told = [line for line in capsys.readouterr().err.splitlines() if "'<s>' before" in line]
        assert [line for line in told if line.startswith(f"{vocab}: ")]
    settings = yaml.safe_load(file.read_text())
    assert settings.get("tokenizer_adds_special_tokens", False) == adds
    (first, *_) = MMapIndexedDataset(settings["train_data_paths"][0])[:]
    assert first.tolist()[:-2] == ([1, 3, 4, 5] if adds else [3, 4, 5])


def test_data_with_and_without_added_tokens_are_not_taken_for_each_other(two_domains, tmp_path):
    vocab = write_beginning_tokenizer(tmp_path / "tokenizer.json")
    arguments = ["local", "-d", str(tmp_path / "data"), "-i", str(two_domains), "-v", str(vocab)]
    sizes = []
    for more in ([], ["--add-special-tokens"]):
        settings = yaml.safe_load(main([*arguments, *more]).read_text())
        sizes.append(len(MMapIndexedDataset(settings["train_data_paths"][0])[:][0]))
    assert sizes[1] == sizes[0] + 1


def test_added_tokens_of_a_tokenizer_that_adds_none_are_refused(two_domains, tmp_path):
    with pytest.raises(TokenizerError, match="--add-special-tokens: a tokenizer that is trained"):
        main(["local", "-d", str(tmp_path), "-i", str(two_domains), "--add-special-tokens"])
