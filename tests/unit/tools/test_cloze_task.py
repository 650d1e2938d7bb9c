"""Multiple-choice questions from held-out text."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.data.errors import DataError
from tools.cloze_task import (
    Sizes,
    find_passages,
    main,
    make_questions,
    make_task,
    task_settings,
)

SMALL = Sizes(questions_per_domain=5, context_bytes=20, ending_bytes=10)


def documents(word: str, count: int) -> list[str]:
    return [" ".join(f"{word}{number}-{k}" for k in range(20)) for number in range(count)]


def questions_of(texts: dict[str, list[str]], sizes: Sizes = SMALL):
    passages = [p for name, own in texts.items() for p in find_passages(name, own, sizes)]
    return make_questions(passages, sizes)


def test_passages_are_cut_at_white_space_and_follow_each_other():
    text = "one two three four five six seven and so"
    assert [(p.context, p.ending) for p in find_passages("d", [text], Sizes(1, 6, 8))] == [
        ("one two", " three four"),
        (" five six", " seven and"),
    ]


@given(st.lists(st.text(alphabet="ab \n\u00e9\u4e2d", max_size=200), max_size=4))
@settings(max_examples=50)
def test_every_passage_is_a_piece_of_its_document_and_no_longer_than_allowed(texts):
    for passage in find_passages("d", texts, SMALL):
        assert passage.context + passage.ending in texts[passage.document]
        assert passage.ending[0].isspace()
        assert 10 <= len(passage.ending.encode()) <= 15


def test_hidden_files_are_no_domains(tmp_path, capsys):
    for name in ("a.jsonl", "._a.jsonl", ".b.jsonl"):
        lines = [json.dumps({"text": text}) for text in documents("apple", 8)]
        (tmp_path / name).write_text("\n".join(lines))
    sizes = ["--context-bytes", "20", "--ending-bytes", "10"]
    assert main([str(tmp_path), "-o", str(tmp_path / "tasks"), *sizes]) == 0
    said = capsys.readouterr()
    assert "from 1 domain" in said.out
    assert f"left out 2 hidden files of {tmp_path}" in said.err


def test_a_text_without_spaces_gives_no_question():
    assert find_passages("d", ["\u4e2d" * 500 + " end"], SMALL) == []


def test_wrong_choices_come_from_three_other_documents_of_the_domain():
    texts = {"a": documents("apple", 6), "b": documents("berry", 6)}
    questions = questions_of(texts)
    assert Counter(question.domain for question in questions) == {"a": 5, "b": 5}
    for question in questions:
        assert len(set(question.choices)) == 4
        sources = [
            {n for n, text in enumerate(texts[question.domain]) if choice in text}
            for choice in question.choices
        ]
        own = {
            n
            for n, text in enumerate(texts[question.domain])
            if question.context + question.choices[question.answer] in text
        }
        assert len(own) == 1
        assert sources[question.answer] == own
        assert len({frozenset(source) for source in sources}) == 4


def test_a_domain_of_few_documents_takes_wrong_choices_from_others():
    texts = {"few": documents("apple", 2), "many": documents("berry", 6)}
    of_few = [question for question in questions_of(texts) if question.domain == "few"]
    assert of_few
    for question in of_few:
        assert sum("berry" in choice for choice in question.choices) == 2


def test_the_same_text_gives_the_same_questions_in_any_order_of_domains():
    texts = {"a": documents("apple", 6), "b": documents("berry", 6)}
    assert questions_of(texts) == questions_of(dict(reversed(texts.items())))


def test_answers_stand_at_every_place():
    texts = {"a": documents("apple", 40)}
    places = Counter(q.answer for q in questions_of(texts, Sizes(80, 20, 10)))
    assert set(places) == {0, 1, 2, 3}


def test_the_command_writes_a_task_that_names_its_data(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in documents("apple", 6))
    (tmp_path / "text/fruit.jsonl").write_text("".join(lines))
    command = [str(tmp_path / "text"), "--name", "mine", "-o", str(tmp_path / "tasks")]
    assert main([*command, "--context-bytes", "20", "--ending-bytes", "10"]) == 0
    assert "chance 0.25" in capsys.readouterr().out
    task = yaml.safe_load((tmp_path / "tasks/mine.yaml").read_text())
    data = tmp_path / "tasks/mine.jsonl"
    assert task == task_settings("mine", data)
    assert task["dataset_kwargs"]["data_files"] == {"test": str(data)}
    first = json.loads(data.read_text().splitlines()[0])
    assert first.keys() == {"domain", "context", "choices", "answer"}
    assert first["domain"] == "fruit"


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (None, [], "there is no <domain>.jsonl here"),
        ('{"words": 1}\n', [], "a.jsonl:1: no key 'text'"),
        ('{"text": "short"}\n', [], "no question from 1 document;"),
        ('{"text": "short"}\n', ["--ending-bytes", "0"], "--ending-bytes: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, content, more, message):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    assert main([str(tmp_path), "-o", str(tmp_path / "tasks"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "tasks").exists()


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="give at least four documents"):
        make_task({"a": documents("x", 1)}, folder=tmp_path, name="t", sizes=SMALL)


def test_a_task_is_not_written_among_the_text(tmp_path, capsys):
    lines = [json.dumps({"text": text}) + "\n" for text in documents("word", 8)]
    (tmp_path / "code.jsonl").write_text("".join(lines))
    assert main([str(tmp_path), "--name", "code", "-o", str(tmp_path)]) == 2
    assert "is the folder of the text" in capsys.readouterr().err
    assert (tmp_path / "code.jsonl").read_text() == "".join(lines)
    assert len(list(tmp_path.iterdir())) == 1
