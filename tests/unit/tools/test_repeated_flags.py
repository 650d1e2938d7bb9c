"""Flags that are given twice: all values count, or the command refuses."""

from __future__ import annotations

import pytest

from megatron.neox_arguments.command_line import script_parser
from tools import compare_runs, inspect_checkpoint, merge_datasets, preprocess_data
from tools.benchmark import mixing_quality
from tools.checkpoints import import_neox
from tools.datasets import prepare

TOKENIZER = ["--tokenizer-type", "CharLevelTokenizer"]

LISTS = [
    (merge_datasets.get_parser().parse_args, "--output-prefix all", "--input", "input"),
    (compare_runs.get_parser().parse_args, "a b", "--domains", "domains"),
    (inspect_checkpoint.get_parser().parse_args, "run", "--kinds", "kinds"),
    (import_neox.get_parser().parse_args, "neox -o run", "--config", "config"),
    (mixing_quality.get_args, "run", "--only", "only"),
    (script_parser().parse_intermixed_args, "a.yml", "--eval_tasks", "eval_tasks"),
    (script_parser().parse_intermixed_args, "a.yml", "--domains", "eval_domains"),
    (
        preprocess_data.get_args,
        "--input a --output-prefix b --tokenizer-type CharLevelTokenizer",
        "--jsonl-keys",
        "jsonl_keys",
    ),
]


@pytest.mark.parametrize(("parse", "others", "flag", "name"), LISTS)
def test_all_values_of_a_flag_that_is_given_twice_count(parse, others, flag, name):
    parsed = parse([*others.split(), flag, "x", "y", flag, "z"])
    assert [str(value) for value in getattr(parsed, name)] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (preprocess_data.main, [*TOKENIZER, "--output-prefix", "all"]),
        (prepare.main, ["local"]),
    ],
)
def test_a_second_text_is_not_read_instead_of_the_first(main, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--input", "a.txt", "--input", "b.txt"])
    assert caught.value.code == 2
    assert "--input: is given twice, with 'a.txt' and 'b.txt'; " in capsys.readouterr().err
