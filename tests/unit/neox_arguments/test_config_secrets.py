"""Passwords and keys of services reach the library that needs them, and nothing that is written."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.deepspeed_json import deepspeed_config, with_secrets
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.secrets import (
    REDACTED,
    is_secret_key,
    plain_secrets,
    redacted,
    redacted_text,
)
from megatron.neox_arguments.sections import SECTIONS


@pytest.mark.parametrize(
    ("key", "is_secret"),
    [
        *((key, True) for key in ("api_key", "apikey", "API-KEY", "comet_api_key", "apiKey")),
        *((key, True) for key in ("token", "hub_token", "hf-token", "accessToken", "auth")),
        *((key, True) for key in ("password", "db_passwd", "secret", "client_secret_id")),
        *((key, True) for key in ("aws_secret_access_key", "Authorization", "credentials")),
        *((key, True) for key in ("wandb api key", "hf.token", "HFToken", "hftoken", "AWS_SECRET")),
        *((key, True) for key in ("WANDB_KEY", "accesstoken", "pwd", "cookie", "ssh_key")),
        *((key, False) for key in ("tokenizer_type", "num_tokens", "eval_batch_tokens", "key")),
        *((key, False) for key in ("experiment_key", "author", "apply_query_key_layer_scaling")),
        *((key, False) for key in ("tokens_per_second", "keys", "project", 5, None)),
    ],
)
def test_keys_that_look_like_secrets(key, is_secret):
    assert is_secret_key(key) == is_secret


def test_no_key_of_ours_is_taken_for_a_secret():
    answers = [field.name for section in SECTIONS.values() for field in fields(section.answers)]
    names = (*field_table(), *answers)
    assert [name for name in names if is_secret_key(name)] == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("api_key: hush  # mine\nlr: 1\n", f'api_key: "{REDACTED}"  # mine\nlr: 1\n'),
        ("a:\n  'token': 'hu:sh'\nb: 2\n", f"a:\n  'token': \"{REDACTED}\"\nb: 2\n"),
        ("{api-key: hush, b: 2}\n", f'{{api-key: "{REDACTED}", b: 2}}\n'),
        ("password: |\n  hush\n  hush\nb: 2\n", f'password: "{REDACTED}"\nb: 2\n'),
        ("password: >-\n  hush\n\n  hush\n", f'password: "{REDACTED}"\n'),
        ("password: hush\n  hush\nb: 2\n", f'password: "{REDACTED}"\nb: 2\n'),
        ("p: &x hush\ntoken: *x\n", f'p: &x "{REDACTED}"\ntoken: *x\n'),
        ("token: !!str 5\n", f'token: "{REDACTED}"\n'),
        ("p: !!str &x 5\ntoken: *x\n", f'p: &x "{REDACTED}"\ntoken: *x\n'),
        ("secret: {a: hush, b: [hush]}\n", f'secret: {{a: "{REDACTED}", b: ["{REDACTED}"]}}\n'),
        ("token : hush\n", f'token : "{REDACTED}"\n'),
        ("? token\n: hush\n", f'? token\n: "{REDACTED}"\n'),
        ("x: 1\n# token: hush\n", f"x: 1\n# token: {REDACTED}\n"),
        ("# a: 1, token: hush\nx: 1\n", f"# a: 1, token: {REDACTED}\nx: 1\n"),
        ("# export HF_TOKEN=hush\n", f"# export HF_TOKEN={REDACTED}\n"),
        ("a: 1 # api key: hush\n", f"a: 1 # api key: {REDACTED}\n"),
        ("a: 1 # hub token = hush", f"a: 1 # hub token = {REDACTED}"),
        ("a: 'x # token: y'\n", "a: 'x # token: y'\n"),
        ("a: |\n  # token: y\nb: 1\n", "a: |\n  # token: y\nb: 1\n"),
        ("wandb api key: hush\n", f'wandb api key: "{REDACTED}"\n'),
        ('{"token": "hush"}', f'{{"token": "{REDACTED}"}}'),
        ('{\n\t"token": "hush"\n}', f'{{\n\t"token": "{REDACTED}"\n}}'),
        ("token: ${HUB}\n", "token: ${HUB}\n"),
        ("token: null\napi_key: ''\n", "token: null\napi_key: ''\n"),
        ("tokenizer_type: HFTokenizer\n", "tokenizer_type: HFTokenizer\n"),
    ],
)
def test_a_copy_of_a_file_differs_in_its_secrets_alone(text, clean):
    assert redacted_text(text) == clean


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text("hush: {}[]#'\"\n-&*|>!", max_size=9)
)
KEYS = st.sampled_from(["api_key", "name", "a-token", "deep"])


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=12,
    ),
    st.booleans(),
    st.sampled_from([None, "'", '"', "|", ">"]),
)
def test_a_redacted_text_holds_the_redacted_data(data, flow, style):
    text = yaml.safe_dump({"a": data}, default_flow_style=flow, default_style=style)
    assert yaml.safe_load(redacted_text(text)) == redacted({"a": data})
    assert list(plain_secrets(redacted(data))) == []


@pytest.fixture
def secretive(minimal, tmp_path):
    """A configuration file with a key of comet."""
    path = tmp_path / "model.yml"
    section = {"comet": {"enabled": False, "api_key": "hush", "project": "p"}}
    path.write_text(yaml.safe_dump({**minimal, "deepspeed_extra_args": section}))
    return path


def test_a_secret_reaches_its_library_and_nothing_that_is_written(secretive):
    args = NeoXArgs.from_ymls([secretive])
    config = resolve(args, world_size=1)
    assert deepspeed_config(config)["comet"]["api_key"] == "hush"
    written = (
        *(json.dumps(config.to_dict()), json.dumps(dict(config.files)), repr(args)),
        repr(config.files),
    )
    for text in written:
        assert "hush" not in text
        assert REDACTED in text
    assert config.to_dict()["launch"]["deepspeed_extra_args"]["comet"]["project"] == "p"


def test_a_message_about_a_section_holds_no_secret(minimal):
    with pytest.raises(ConfigError) as refused:
        NeoXArgs.from_dict({**minimal, "wandb": [{"api_key": "hush", "team": "ours"}]})
    (message,) = refused.value.messages
    assert "hush" not in message
    assert "ours" in message


def test_ranks_get_the_secret_that_the_launcher_read(secretive):
    passed = NeoXArgs.from_ymls([secretive]).megatron_config
    config = resolve(NeoXArgs.from_dict(json.loads(json.dumps(passed))), world_size=1)
    assert deepspeed_config(config)["comet"]["api_key"] == "hush"


def test_a_command_line_of_several_machines_holds_no_secret(secretive):
    with pytest.raises(ConfigError) as refused:
        NeoXArgs.from_ymls([secretive]).get_deepspeed_main_args()
    (message,) = refused.value.messages
    assert message.startswith(f"{secretive}:1: deepspeed_extra_args.comet.api_key: ")
    assert "hush" not in message
    secretive.write_text(secretive.read_text().replace("hush", "${COMET_API_KEY}"))
    assert NeoXArgs.from_ymls([secretive]).get_deepspeed_main_args()


@pytest.mark.parametrize("reference", ["${COMET_API_KEY}", "$COMET_API_KEY"])
def test_a_secret_is_taken_from_the_environment(secretive, monkeypatch, reference):
    secretive.write_text(secretive.read_text().replace("hush", reference))
    config = resolve(NeoXArgs.from_ymls([secretive]), world_size=1)
    monkeypatch.setenv("COMET_API_KEY", "hush")
    assert deepspeed_config(config)["comet"]["api_key"] == "hush"
    assert reference in json.dumps(config.to_dict())
    monkeypatch.delenv("COMET_API_KEY")
    with pytest.raises(
        ConfigError, match=r"^deepspeed_extra_args\.comet\.api_key: .*COMET_API_KEY"
    ):
        deepspeed_config(config)


def test_the_copy_in_a_checkpoint_can_be_run_again(secretive):
    files = resolve(NeoXArgs.from_ymls([secretive]), world_size=1).files
    secretive.write_text(files[secretive.name])
    config = resolve(NeoXArgs.from_ymls([secretive]), world_size=1)
    assert deepspeed_config(config)["comet"] == {"enabled": False, "project": "p"}


def test_a_library_gets_its_section_without_secrets_that_a_copy_has_not():
    section = {"api_key": REDACTED, "project": REDACTED, "hub": {"token": "$HUB", "name": "$HUB"}}
    filled = with_secrets(section, {"HUB": "x"}, name="comet")
    assert filled == {"project": REDACTED, "hub": {"token": "x", "name": "$HUB"}}
