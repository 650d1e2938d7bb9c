import base64
import json
import re

import pytest
import yaml

from megatron.neox_arguments import ConfigError, NeoXArgs
from megatron.neox_arguments.command_line import ROOT, load_megatron_config, read_deepy_command


@pytest.fixture
def folder(tmp_path, minimal, monkeypatch):
    (tmp_path / "model.yml").write_text(yaml.safe_dump(minimal))
    (tmp_path / "data.yml").write_text("seed: 7\nhostfile: /mock_path\n")
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_deepy_takes_a_script_and_files_with_or_without_a_folder(folder, monkeypatch):
    whole = NeoXArgs.consume_deepy_args(["train.py", "model.yml", "data.yml"])
    assert whole.user_script == "train.py"
    assert whole.seed == 7
    assert NeoXArgs.consume_deepy_args(["train.py", "-d", str(folder), "model", "data"]) == whole
    monkeypatch.setattr("sys.argv", ["deepy.py", "train.py", "model", "data"])
    assert NeoXArgs.consume_deepy_args() == whole


def test_flags_win_over_files(folder):
    args = NeoXArgs.consume_deepy_args(
        "train.py model data -H /hosts --iteration 5 --wandb_group g --wandb_run_name r "
        "--wandb_team t --eval_tasks a b --eval_results_prefix p -i in.txt -o out.txt".split()
    )
    assert args.hostfile == "/hosts"
    assert args.iteration == 5
    assert (args.wandb_group, args.wandb_run_name, args.wandb_team) == ("g", "r", "t")
    assert args.eval_tasks == ["a", "b"]
    assert args.eval_results_prefix == "p"
    assert (args.sample_input_file, args.sample_output_file) == ("in.txt", "out.txt")


def test_files_may_stand_after_flags(folder):
    args = NeoXArgs.consume_deepy_args(["train.py", "model", "--iteration", "3", "data"])
    assert (args.iteration, args.seed) == (3, 7)


def test_check_and_dry_run_are_told_to_the_launcher(folder):
    assert read_deepy_command(["train.py", "model", "--check"]).check
    assert read_deepy_command(["train.py", "model", "--dry-run"]).dry_run
    assert not read_deepy_command(["train.py", "model"]).check


def test_a_link_that_leads_to_no_file_is_named(folder):
    (folder / "circle.yml").symlink_to(folder / "circle.yml")
    for name in ("circle.yml", "circle"):
        with pytest.raises(ConfigError, match=r"circle\.yml: is a link that leads to no file"):
            NeoXArgs.consume_deepy_args(["train.py", "-d", str(folder), name])


@pytest.mark.parametrize("words", [["-i", ""], ["-o", ""], ["-d", ""], ["-H", " "], [""]])
def test_an_empty_path_is_refused(folder, words, capsys):
    with pytest.raises(SystemExit) as caught:
        NeoXArgs.consume_deepy_args(["train.py", "model", "data", *words])
    assert caught.value.code == 2
    assert "is empty, as an unset variable leaves it" in capsys.readouterr().err


def test_a_file_that_is_given_as_the_folder_is_named_for_what_it_is(folder):
    file = str(folder / "model.yml")
    with pytest.raises(ConfigError, match=rf"{file}/data: .*; {file} is a file, name the folder"):
        NeoXArgs.consume_deepy_args(["train.py", "-d", file, "data"])


def test_a_missing_script_or_file_is_one_message(folder):
    with pytest.raises(ConfigError, match=r"^the command line: there is no script tarin.py"):
        NeoXArgs.consume_deepy_args(["tarin.py", "model"])
    with pytest.raises(
        ConfigError, match=r"^modle: no such configuration file; did you mean model"
    ):
        NeoXArgs.consume_deepy_args(["train.py", "modle"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("model.yml", "model.yml is a configuration file; name the program before it"),
        ("model.yml data.yml", "model.yml is a configuration file"),
        ("model data", "in ./deepy.py train.py model"),
        ("model.yml train.py", "model.yml is a configuration file"),
        ("--check absent.yaml", "absent.yaml is a configuration file"),
        ("train model", "there is no script train; did you mean train.py?"),
        ("trian.py model", "there is no script trian.py; did you mean train.py?"),
        ("evaluate.py model", f"did you mean {ROOT / 'evaluate.py'}?"),  # begun in another folder
        ("nothing_like_it.py model", "there is no script nothing_like_it.py; check its path"),
        (f"{ROOT}/prepare_data.py model", "start it by itself: python"),
        (f"{ROOT}/tools/plot_mixture.py model", "takes no configuration files"),
        ("train.py", "name at least one configuration file"),
        ("train.py train.py model", "train.py is a program, not a configuration file"),
    ],
)
def test_a_forgotten_program_or_file_is_one_message(folder, command, words):
    with pytest.raises(ConfigError) as refused:
        read_deepy_command(command.split())
    (message,) = refused.value.messages
    assert message.startswith("the command line: ")
    assert words in message


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train.py model --train_iters 5", "--train_iters 5; keys are set in YAML files"),
        ("", "user_script"),
        ("train.py model --iteration x", "invalid int value: 'x'"),
    ],
)
def test_a_wrong_command_line_is_one_line(folder, capsys, command, words):
    with pytest.raises(SystemExit) as ended:
        read_deepy_command(command.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("deepy.py: ")
    assert error.count("\n") == 1
    assert words in error


def test_flags_are_not_abbreviated(folder):
    with pytest.raises(SystemExit) as caught:
        NeoXArgs.consume_deepy_args(["train.py", "model", "--iter", "5"])
    assert caught.value.code == 2


def test_what_the_launcher_passes_makes_an_equal_object(folder):
    args = NeoXArgs.consume_deepy_args(["train.py", "model", "data"])
    passed = args.get_deepspeed_main_args()
    assert passed[:3] == ["--hostfile", "/mock_path", "train.py"]
    again = NeoXArgs.consume_neox_args(input_args=passed)
    assert again == args
    assert again.megatron_config == args.megatron_config
    changed = NeoXArgs.consume_neox_args({"train-iters": 9}, passed)
    assert changed.train_iters == 9


def test_launcher_flags_leave_out_defaults_and_take_the_environment(folder, monkeypatch, minimal):
    monkeypatch.setenv("DLTS_HOSTFILE", "/hosts")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    args = NeoXArgs.from_dict(
        {
            **minimal,
            "include": "h1:0",
            "force_multi": True,
            "user_script": "train.py",
        }
    )
    flags = args.get_deepspeed_main_args()
    flags = flags[: flags.index("train.py")]
    assert flags == [
        *("--hostfile", "/hosts", "--include", "h1:0", "--master_addr", "node0", "--force_multi")
    ]


@pytest.mark.parametrize("filters", ["include", "exclude"])
@pytest.mark.parametrize("count", ["num_gpus", "num_nodes"])
def test_a_filter_beside_a_number_is_not_dropped_for_deepspeeds_runner(minimal, filters, count):
    args = NeoXArgs.from_dict({**minimal, filters: "h1:0", count: 1})
    with pytest.raises(ConfigError, match=f"^{count} and {filters} are both set, and DeepSpeed's"):
        args.get_deepspeed_main_args()


def test_slurm_gets_account_and_comment_as_its_own_arguments(minimal):
    keys = {"account": "a", "comment": "two words", "detect_nvlink_pairs": True}
    flags = NeoXArgs.from_dict({**minimal, **keys, "launcher": "slurm"}).get_deepspeed_main_args()
    expected = ["--launcher", "slurm", "--launcher_args=--account=a '--comment=two words'"]
    assert flags[:3] == expected
    assert flags[3] == "--deepspeed_config"
    assert NeoXArgs.from_dict({**minimal, **keys}).get_deepspeed_main_args()[0] == flags[3]


def test_megatron_config_is_read_from_a_file_json_or_base64(tmp_path):
    content = {"seed": 3}
    text = json.dumps(content)
    path = tmp_path / "config.json"
    path.write_text(text)
    for form in (str(path), text, base64.urlsafe_b64encode(text.encode()).decode()):
        assert load_megatron_config(form) == content


@pytest.mark.parametrize("text", ["no/such/file.json", "[1]", "AAAA", "", "\ud800", "W10="])
def test_another_megatron_config_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--megatron_config: .* is no file, no JSON object"):
        load_megatron_config(text)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"seed": 3,\n "a" 1}', ":2:6: ", "malformed JSON: Expecting ':' delimiter"),
        ('{"seed": NaN}', ":1: ", "NaN is no finite number"),
        ('{"seed": ' + "9" * 5000 + "}", ":1: ", "a number of 5000 characters is too long"),
        ('{"a": ' + "[" * 100_000, ": ", "is nested more than"),
    ],
)
def test_a_malformed_megatron_config_is_refused_with_its_place(tmp_path, text, place, problem):
    path = tmp_path / "config.json"
    path.write_text(text)
    encoded = base64.urlsafe_b64encode(text.encode()).decode()
    for form, source in (
        (str(path), path),
        (text, "--megatron_config"),
        (encoded, "--megatron_co"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_megatron_config(form)
        assert str(caught.value).startswith(str(source))
        assert f"{place}{problem}" in str(caught.value)


def test_a_key_twice_in_a_megatron_config_is_refused():
    with pytest.raises(ConfigError, match=r"^--megatron_config: lr is set twice; set it once$"):
        load_megatron_config('{"a": [{"lr": 1, "eps": 1, "lr": 2}]}')


def test_a_megatron_config_file_that_is_no_object_or_no_text_is_named(tmp_path):
    path = tmp_path / "config.json"
    for content, problem in ((b"[1]", ": must be a JSON object"), (b'{"a": "\xff"}', ":1: is not")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}{problem}"):
            load_megatron_config(str(path))


def test_a_script_takes_file_names_by_itself(folder):
    args = NeoXArgs.consume_neox_args(input_args=["model.yml", "data.yml", "--local_rank=1"])
    assert args.seed == 7
    with pytest.raises(ConfigError, match="name at least one configuration file"):
        NeoXArgs.consume_neox_args(input_args=[])


def test_a_script_refuses_flags_that_it_does_not_know(folder):
    with pytest.raises(SystemExit):
        NeoXArgs.consume_neox_args(input_args=["model.yml", "--seed", "3"])


def test_sections_with_numbers_for_keys_reach_other_machines(minimal):
    args = NeoXArgs.from_dict({**minimal, "data_sampling_min_weight": {2020: 0.1, "b": 0.2}})
    again = NeoXArgs.consume_neox_args(input_args=args.get_deepspeed_main_args())
    assert again.data_sampling_min_weight == {"2020": 0.1, "b": 0.2}
