import json

import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.schema import find_file, parse_text, read_files

MINIMAL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "train_iters": 100,
    "train_micro_batch_size_per_gpu": 4,
}
MODEL = """{
  # a file in the flow style of GPT-NeoX
  "num-layers": 2, "hidden-size": 64,
  "num_attention_heads": 4,
  "max-position-embeddings": 128,
  "fp16": {"enabled": False},
  "attention-config": [[["flash"], 2]],
}
"""


def messages(call, *arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    return list(caught.value.messages)


def test_a_flow_style_file_with_comments_and_trailing_commas_loads(write):
    args = NeoXArgs.from_ymls([write("model.yml", MODEL)])
    assert args.num_layers == 2
    assert args.fp16 == {"enabled": False}
    assert args.attention_config == [[["flash"], 2]]


def test_a_json_file_with_tabs_loads(write):
    text = '{\n\t"num-layers": 2,\n\t"hidden_size": 64,\n\t"save": "x"\n}\n'
    document = read_files([write("model.json", text)])
    assert document.values == {"num_layers": 2, "hidden_size": 64, "save": "x"}
    assert document.origins["save"].line == 4


def test_an_empty_file_says_nothing(write):
    assert read_files([write("empty.yml", "# later\n")]).values == {}


def test_texts_are_kept_as_they_are_even_with_equal_names(write):
    first, second = write("a/x.yml", "seed: 1\n"), write("b/x.yml", "lr: 0.1 # peak\n")
    assert read_files([first, second]).texts == {
        "x.yml": "seed: 1\n",
        "x-2.yml": "lr: 0.1 # peak\n",
    }


def test_a_file_that_is_called_as_the_checkpoints_own_is_kept_beside_it(write):
    assert read_files([write("resolved.json", '{"seed": 1}')]).texts == {
        "resolved-2.json": '{"seed": 1}'
    }


@pytest.mark.parametrize("key", ["num_layers", "num-layers"])
def test_a_key_with_two_values_in_two_files_names_both_lines(write, key):
    first = write("a.yml", f"seed: 1\n{key}: 2\n")
    second = write("b.yml", f"# model\nlr: 0.1\n{key}: 3\n")
    assert messages(read_files, [first, second]) == [
        f"{second}:3: 'num_layers' is already set at {first}:2; set it once"
    ]


@pytest.mark.parametrize(("one", "other"), [("num_layers", "num-layers"), ("a-b", "a_b")])
def test_of_two_spellings_in_two_files_the_later_one_counts_and_is_noted(write, one, other):
    first = write("a.yml", f"seed: 1\n{one}: 2\n")
    second = write("b.yml", f"# paths\n{other}: 3\n")
    document = read_files([first, second])
    assert document.values[one.replace("-", "_")] == 3
    assert document.origins[one.replace("-", "_")].source == second
    assert document.notes == (f"'{other}' at {second}:2 replaces '{one}' at {first}:2",)
    assert read_files([second, first]).values[one.replace("-", "_")] == 2


@pytest.mark.parametrize(
    ("value", "is_same"),
    [("HFTokenizer", True), ("[1, {a: 2}]", True), ("1.0", False), ("true", False)],
)
def test_files_may_repeat_a_value(write, value, is_same):
    one = write("a.yml", f"key: {value if is_same else 1}\n")
    other = write("b.yml", f"key: {value}\n")
    if is_same:
        assert read_files([one, other]).notes == ()
    else:
        assert "'key' is already set at" in messages(read_files, [one, other])[0]


def test_a_replaced_key_is_noted_by_whoever_reads_the_files(write):
    model = write("a.yml", json.dumps({**MINIMAL, "seed": 3, "log-interval": 5}))
    paths = write("b.yml", '{"log_interval": 7}')
    args = NeoXArgs.from_ymls([model, paths])
    assert args.log_interval == 7
    assert [note for note in resolve(args).notes if "'log_interval' at" in note]


def test_a_key_twice_in_one_file_names_both_lines(write):
    path = write("a.yml", "num-layers: 2\nnum_layers: 2\n")
    assert messages(read_files, [path]) == [
        f"{path}:2: 'num_layers' is already set at {path}:1; set it once"
    ]


def test_a_key_twice_in_a_section_names_both_lines(write):
    path = write("a.yml", "optimizer:\n  params:\n    lr: 1\n    eps: 1\n    lr: 2\n")
    assert messages(read_files, [path]) == [
        f"{path}:5: 'lr' is already set at {path}:3; set it once"
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("1", "true"), ("1", "1.0"), ("0", "no"), ("on", "yes"), ("1", "0x1"), ("1.5", "1.50")],
        *[("0x1", '"1"'), ("true", '"True"'), ("yes", '"true"')],
    ],
)
@pytest.mark.parametrize("form", ["a: {{{}: 1, b: 1,\n {}: 2}}", "a: {{b: [{{{}: 1,\n {}: 2}}]}}"])
def test_keys_that_some_reader_takes_for_one_name_both_lines(write, form, one, other):
    for keys in [(one, other), (other, one)]:
        path = write("a.yml", form.format(*keys))
        (message,) = messages(read_files, [path])
        first, second = (key.strip('"') for key in keys)
        both = f"{second} and {first} at {path}:1 are one key"
        assert message == f"{path}:2: {both}; set it once, or put both in quotes"


def test_a_merged_key_is_not_taken_for_another_one(write):
    lines = ["a: &a {1: x, 2: y}", "b: {<<: *a, 1: z}", "c: &c {<<: *a, 3: z}", "d: {<<: *c, 3: v}"]
    values = read_files([write("a.yml", "\n".join(lines))]).values
    assert values["b"] == {1: "z", 2: "y"}
    assert values["d"] == {1: "x", 2: "y", 3: "v"}
    path = write("b.yml", "a: &a {1: x}\nb: {<<: *a, true: y}\n")
    (message,) = messages(read_files, [path])
    assert message.startswith(f"{path}:2: true and 1 at {path}:1 are one key;")


def test_keys_in_quotes_are_apart_and_so_they_are_in_json(write):
    content = '{"a": {"1": 1, "1.0": 2, "true": 3, "True": 4}}'
    for name in ("a.yml", "a.json"):
        assert read_files([write(name, content)]).values == json.loads(content)


def test_one_name_of_two_keys_from_python_is_refused(minimal):
    (message,) = messages(NeoXArgs.from_dict, {**minimal, "wandb": {1: "a", "1": "b"}})
    assert message == "wandb: '1' and a key before it are one key in JSON; keep one"


def test_malformed_yaml_names_line_and_column(write):
    # the published file of Pythia 12B misses this comma
    path = write("bad.yml", '{\n  "seed": 1\n  "lr": 2,\n}\n')
    (message,) = messages(read_files, [path])
    assert message.startswith(f"{path}:3:7: malformed YAML: ")
    assert message.endswith("a comma, quote or bracket before this place may be missing")


def test_malformed_json_names_line_and_column(write):
    path = write("bad.json", '{\n\t"seed": 1\n\t"lr": 2\n}')
    (message,) = messages(read_files, [path])
    assert message.startswith(f"{path}:3:2: malformed JSON: ")


def test_a_message_of_json_does_not_end_in_the_middle(write):
    path = write("bad.json", '{\n\t"seed": "1\n}')
    (message,) = messages(read_files, [path])
    assert "malformed JSON: Invalid control character; " in message


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "text\n"])
def test_a_file_that_is_no_mapping_is_refused(write, text):
    path = write("list.yml", text)
    assert messages(read_files, [path])[0].startswith(f"{path}:1: must be a section")


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"x.yml:1: a key must be text, got 5"):
        parse_text("5: 1\n", "x.yml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.yml"
    path.write_bytes(b"seed: \xff\xfe\n")
    assert messages(read_files, [path]) == [f"{path}:1: is not UTF-8 text; convert it"]


def test_all_files_are_read_before_errors_are_told(write):
    paths = [write("a.yml", "- 1\n"), write("b.yml", "{"), write("c.yml", "seed: 1\nseed: 2\n")]
    assert len(messages(read_files, paths)) == 3


def test_a_name_without_suffix_finds_the_file(write, tmp_path):
    write("125M.yml", MODEL)
    write("other.json", "{}")
    assert find_file("125M", str(tmp_path)).name == "125M.yml"
    assert find_file(str(tmp_path / "other")).name == "other.json"


def test_a_missing_file_suggests_a_near_one(write, tmp_path):
    write("125M.yml", MODEL)
    expected = f"{tmp_path}/125m: no such configuration file; did you mean {tmp_path}/125M.yml?"
    assert messages(find_file, "125m", str(tmp_path)) == [expected]


def test_a_missing_folder_is_named(tmp_path):
    folder = tmp_path / "none"
    assert messages(find_file, str(folder / "a.yml")) == [
        f"{folder}/a.yml: no such configuration file; the folder {folder} does not exist"
    ]


def test_an_unknown_key_names_its_line_and_the_nearest_key(write):
    path = write("a.yml", MODEL.replace('"fp16"', '"model-parallel-sise": 1,\n  "fp16"'))
    assert messages(NeoXArgs.from_ymls, [path]) == [
        f"{path}:6: unknown key 'model_parallel_sise'; did you mean 'model_parallel_size'?"
    ]


def test_a_key_like_no_other_points_to_the_reference(write):
    path = write("a.yml", MODEL.replace('"fp16"', '"qqqq": 1, "fp16"'))
    assert messages(NeoXArgs.from_ymls, [path]) == [
        f"{path}:6: unknown key 'qqqq'; see configs/neox_arguments.md for all keys"
    ]


def test_a_wrong_type_names_its_line(write):
    path = write("a.yml", MODEL.replace('"hidden-size": 64', '"hidden-size": true'))
    assert messages(NeoXArgs.from_ymls, [path]) == [
        f"{path}:3: hidden_size must be a whole number, got True"
    ]


def test_every_mistake_is_told_at_once(write):
    path = write("a.yml", "num_layers: two\nfoo: 1\nhidden_size: 64\nnum_attention_heads: 4\n")
    assert messages(NeoXArgs.from_ymls, [path]) == [
        f"{path}:1: num_layers must be a whole number, got 'two'",
        f"{path}:2: unknown key 'foo'; see configs/neox_arguments.md for all keys",
        "max_position_embeddings is required; set it in one of the configuration files",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfseed: 7\nlr: 0.1\n",
        b"seed: 7\r\nlr: 0.1\r\n",
        b'\xef\xbb\xbf{\r\n\t"seed": 7,\r\n\t"lr": 0.1\r\n}\r\n',
    ],
    ids=["mark", "carriage returns", "json with both and tabs"],
)
def test_files_of_windows_editors_load(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert read_files([path]).values == {"seed": 7, "lr": 0.1}


def test_a_file_that_is_named_twice_is_one_message(write, tmp_path):
    path = write("a.yml", MODEL)
    again = f"{tmp_path}/./a.yml"
    assert messages(read_files, [path, again]) == [
        f"{again}: this file is named twice; name it once"
    ]


def test_a_folder_or_nothing_instead_of_a_file_is_told(tmp_path):
    assert messages(find_file, str(tmp_path)) == [
        f"{tmp_path}: is a folder; name a file in it, or pass -d {tmp_path} and a name"
    ]
    assert messages(find_file, "") == [".: is a folder; name a file in it, or pass -d . and a name"]
    (message,) = messages(find_file, "x" * 5000)
    assert message.endswith("x: no such configuration file; check its name and --conf_dir")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nwandb_run_name: 2024-01-31\n",
            "x.yml:2:17: is read as a date; put it in quotes",
        ),
        ("wandb_run_name: 2024-02-31\n", "x.yml:1:17: is read as a date; put it in quotes"),
        ("fp16: {2024-01-31: 1}\n", "x.yml:1:8: is read as a date; put it in quotes"),
        (
            "seed: 1:30\n",
            "x.yml:1:7: 1:30 is read as 90 (base 60); write that, or put it in quotes",
        ),
        ("fp16: {a: 017}\n", "x.yml:1:11: 017 is read as 15 (base 8); write that, or put it in"),
        ("seed:1\n", "pairs), got the text 'seed:1'; is a blank missing after a colon?"),
        ("- seed\n", "x.yml:1: must be a section (key: value pairs), got a list"),
        ("seed:\n\t1\n", "YAML is indented with spaces; replace the tab"),
    ],
)
def test_what_yaml_makes_of_slips_of_the_pen_is_one_message(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_text(text, "x.yml")
    (found,) = caught.value.messages
    assert message in found


def test_anchors_and_merged_sections_are_taken(write):
    text = (
        "train_data_weights: &w [1, 2]\nvalid_data_weights: *w\n"
        "fp16: &half {enabled: true, hysteresis: 2}\nbf16:\n  <<: *half\n  enabled: false\n"
    )
    values = read_files([write("a.yml", text)]).values
    assert values["valid_data_weights"] == [1, 2]
    assert values["bf16"] == {"enabled": False, "hysteresis": 2}


def test_aliases_of_aliases_are_read_at_once(write):
    lines = ["wandb: &a0 {x: [1, 1]}"]
    lines += [f"s{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 12)]
    assert len(read_files([write("a.yml", "\n".join(lines))]).values) == 12


def test_a_key_twice_in_a_section_of_json_with_tabs_is_refused(write):
    path = write("a.json", '{\n\t"fp16": {\n\t\t"enabled": true,\n\t\t"enabled": false\n\t}\n}')
    assert messages(read_files, [path]) == [
        f"{path}:4: 'enabled' is already set at {path}:3; set it once"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"seed": None', "seed must be a whole number, got 'None'; write null for no value"),
        ('"wandb_group": 5', "wandb_group must be text, got 5; put it in quotes"),
        ('"split": [969, 30, 1]', "split must be text, got [969, 30, 1]"),
    ],
)
def test_a_wrong_type_says_how_to_write_it(write, line, message):
    path = write("a.yml", MODEL.replace('"fp16"', f'{line},\n  "fp16"'))
    assert messages(NeoXArgs.from_ymls, [path]) == [f"{path}:6: {message}"]


def test_the_kept_texts_cannot_be_replaced(write):
    path = write("a.yml", "config_files: {a.yml: other}\n")
    assert messages(read_files, [path]) == [
        f"{path}:1: config_files is set by the program; remove it"
    ]
