"""Hostile configuration files: one message with the file and its line, soon."""

from __future__ import annotations

import gc
import time
from types import MappingProxyType

import pytest

from megatron.launcher.command import main
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.command_line import load_megatron_config
from megatron.neox_arguments.parsing import parse_text
from megatron.neox_arguments.schema import find_file, read_files
from tools.benchmark.fuzz.configuration import KINDS, empty_folder, generate, problem_of

NINE = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
MERGED = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))
CHAIN = "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
DEEP = "is nested more than 50 deep"


def message_of(call, *arguments, **keywords) -> str:
    gc.disable()  # collecting what other tests left takes longer than the call
    try:
        began = time.thread_time()  # and their threads may still run
        with pytest.raises(ConfigError) as caught:
            call(*arguments, **keywords)
        seconds = time.thread_time() - began
    finally:
        gc.enable()
    assert seconds < 0.5
    (message,) = caught.value.messages
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("seed: 1\nlr: \0\n", "2", "contains the character U+0000"),
        ("seed: 1\nlr: \x07\n", "2", "contains the character U+0007"),
        ('seed: 1\nlr: !!int ""\n', "2", "a value does not fit its tag"),
        ("lr: !!float x\n", "1", "a value does not fit its tag"),
        ("lr: !!bool x\n", "1", "a value does not fit its tag"),
        ("seed: 1\nlr: !!timestamp x\n", "2:5", "is read as a date"),
        ("lr: !!python/object/apply:os.system [ls]\n", "1:5", "has the tag 'tag:yaml.org,2002:pyt"),
        ("lr: !!binary aGk=\n", "1:5", "has the tag"),
        ("lr: !!set {a, b}\n", "1:5", "has the tag"),
        ("lr: !!omap [a: 1]\n", "1:5", "has the tag"),
        ("lr: =\n", "1:5", "has the tag"),
        ('seed: 1\n"\\U00110000": 1\n', "2:4", "malformed YAML: no such character"),
        ('lr: "\\ud800"\n', "1:5", "contains half a character"),
        ('lr: "\\0"\n', "1", "lr contains the character NUL"),
        ("fp16: {a: 1, b: .inf}\n", "1", "fp16.b contains inf; write a finite number"),
        (f"seed: 1\nlr: {'9' * 5000}\n", "2:5", "a number of 5000 characters is too long"),
        (f"lr: 0x{'f' * 101}\n", "1:5", "a number of 103 characters is too long"),
        (f"lr: {'1:' * 60}1\n", "1:5", "a number of 121 characters is too long"),
        (f"fp16: [1, {2**63}]\n", "1", "fp16 contains a number above 9223372036854775807"),
        (f"lr: {'[' * 100_000}", "1:56", DEEP),
        (f"lr: {'{a: ' * 100_000}", "1:198", DEEP),
        (f"lr:\n{'- ' * 100_000}", "2:101", DEEP),
        ("? " * 100_000, "1:103", DEEP),
        ("".join(f"{' ' * n}a:\n" for n in range(900)), "50:50", DEEP),
        (f"a0: &a0 [{', '.join('x' * 9)}]\n{NINE}", "6:10", "contains more than 100000 values"),
        (f"a0: &a0 {{x: 1}}\n{MERGED}", "6:30", "contains more than 100000 values"),
        (f"a0: &a0 [x]\n{CHAIN}", "49:12", DEEP),
        ("lr: &a [1, *a]\n", "1:12", "*a contains itself"),
        ("lr: &a {b: {c: *a}}\n", "1:16", "*a contains itself"),
        ("lr: *a\n", "1:5", "malformed YAML: found undefined alias"),
        ("? [a]\n: 1\n", "1", "a key must be text, got ['a']"),
        ("fp16: {[a]: 1}\n", "1:8", "malformed YAML: found unhashable key"),
        ("null: 1\n", "1", "a key must be text, got None"),
        ("<<: 1\n", "1:5", "malformed YAML: expected a mapping"),
        ("%YAML " + "9" * 5000 + ".1\n---\nlr: 1\n", "1:7", "malformed YAML: no such character"),
        ("lr:\n" + "- x\n" * 100_000, "1", "contains more than 20000 lines and commas"),
        ("".join(f"k{n}: 1\n" for n in range(1001)), "1", "has 1001 keys, must be at most 1000"),
        (f"lr: *{'a' * 5000}\n", "1:5", "malformed YAML: found undefined alias 'aaa"),
    ],
)
def test_a_hostile_yaml_file_is_one_message_with_its_line(text, place, problem):
    assert message_of(parse_text, text, "x.yml").startswith(f"x.yml:{place}: {problem}")


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{\n\t"a": ' + "[" * 100_000, "2:57", DEEP),
        ('{"a": "[[", \n\t"b":' + '{"c":' * 100_000, "2:247", DEEP),
        ('{\n\t"a": ' + "9" * 5000 + "}", "2:7", "a number of 5000 characters is too long"),
        ('{\n\t"a": {"b": NaN}}', "2", "NaN is no finite number; write one"),
        ('{\n\t"a": "\\ud800"}', "2:7", "contains half a character"),
        ('{\n\t"a": "\\u0000"}', "2", "a contains the character NUL"),
        ('{\n\t"a": ' + '"\\"' * 50_000, "2:11", "malformed JSON"),
    ],
)
def test_a_hostile_json_file_is_one_message_with_its_line(text, place, problem):
    assert message_of(parse_text, text, "x.json").startswith(f"x.json:{place}: {problem}")


def test_what_is_just_within_the_bounds_is_read():
    assert parse_text(f"a: {'[' * 49}{']' * 49}\n", "x.yml")
    assert parse_text(f"a: {'9' * 18}\nb: 0.{'1' * 98}\n", "x.yml")[0] == ("a", 10**18 - 1, 1)
    assert parse_text('a: "\\ud83d\\ude00"\n', "x.yml") == [("a", "\U0001f600", 1)]
    assert len(parse_text("a: &a [1, 2]\nb: [" + "*a, " * 10_000 + "]\n", "x.yml")) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: 1\n".encode("utf-16"), ":1: is not UTF-8 text"),
        ("seed: 1\n".encode("utf-32"), ":1: is not UTF-8 text"),
        ("seed: 1\n".encode("utf-16-le"), ":1: contains the character U+0000"),
        (b"seed: 1\nlr: \xe9\n", ":2: is not UTF-8 text"),
        (b"#" * 2**20, ": is larger than 524288 bytes"),
    ],
)
def test_a_file_of_another_encoding_or_size_is_one_message(tmp_path, content, problem):
    path = tmp_path / "x.yml"
    path.write_bytes(content)
    assert message_of(read_files, [path]).startswith(f"{path}{problem}")


def test_devices_and_pipes_are_no_configuration_files():
    assert message_of(find_file, "/dev/zero").startswith("/dev/zero: is no ordinary file")
    assert message_of(read_files, ["/dev/zero"]).startswith("/dev/zero: is no ordinary file")


def own_list() -> list:
    values: list = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"fp16": {"enabled": own_list()}}, f"fp16.enabled {DEEP}"),
        ({"wandb": {"group": "\ud800"}}, "wandb.group contains half a character"),
        ({"save": "a\0b"}, "save contains the character NUL"),
        (
            {"zero_optimization": {"stage": 10**400}},
            "zero_optimization.stage contains a number",
        ),
        ({"lr": "9" * 5000}, "lr must be a number, got '999"),
        ({"seed": "0" * 5000 + "1"}, "seed must be a whole number, got '000"),
        ({"fp16": MappingProxyType({"enabled": True})}, "fp16 contains mappingproxy("),
        ({10**5000: 1}, "a key must be text, got a number of thousands of digits"),
        ({"x" * 100_000: 1}, "unknown key 'xxx"),
        ({"a\nb": 1}, "unknown key 'a\\nb'"),
        ({"rotary_pct": 1e308, "pos_emb": "rotary"}, "rotary_pct must be above 0, at most 1, got"),
        ({"expansion_factor": 1e308}, "expansion_factor 1e+308 makes an MLP wider than 2147483648"),
        ({"intermediate_size": 2**62}, "intermediate_size 4.61169e+18 makes an MLP wider than"),
        ({"padded_vocab_size": -1}, "padded_vocab_size must be at least 0, got -1"),
    ],
)
def test_hostile_values_from_python_are_one_message(minimal, values, problem):
    def load():
        resolve(NeoXArgs.from_dict({**minimal, **values}))

    assert message_of(load).startswith(problem)


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\0", "W10="]
)
def test_a_hostile_megatron_config_is_one_message(text):
    assert message_of(load_megatron_config, text).startswith("--megatron_config:")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("load: a\nb: no file", "load: a\\nb: no file"),
        ("load: a\r\n\u2028b: no file", "load: a\\n\\nb: no file"),
        (f"{'x/' * 9999}y: no file", f"{'x/' * 50}...{'x/' * 49}y: no file"),
        (f"{'x' * 299}: no file", f"{'x' * 299}: no file"),
    ],
)
def test_a_message_is_one_line_whatever_path_it_names(message, expected):
    assert str(ConfigError(message)) == expected


def test_a_name_that_is_no_utf8_is_kept_readable(tmp_path):
    path = tmp_path / "a\udcff.yml"
    path.write_text("seed: 1\n")
    assert list(read_files([path]).texts) == ["a\ufffd.yml"]


def test_deepy_says_where_a_hostile_file_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "x.yml").write_bytes(b"num_layers: 2\nhidden_size: 8\0\n")
    assert main(["train.py", "x.yml", "--check"]) == 2
    assert capsys.readouterr().err.startswith("x.yml:2: contains the character U+0000")


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_configurations_are_taken_or_refused_in_short_lines(kind):
    for seed in range(40):
        case = generate(kind, seed)
        with empty_folder() as folder:
            assert problem_of(case, folder, slow_seconds=5.0) is None, (kind, seed)
