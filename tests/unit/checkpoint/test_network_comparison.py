"""A checkpoint is told apart from other networks whose parameters have the same shapes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from megatron.checkpoint.loading import load_module_weights
from megatron.checkpoint.network_comparison import first_difference
from megatron.checkpoint.schema import check_resolved
from megatron.errors import CheckpointError
from megatron.model.gpt2_model import GPT2Model
from megatron.neox_arguments.resolved import in_current_form
from megatron.neox_arguments.sections.model import RopeScaling
from megatron.sizing.model_shape import ModelShape
from odm.json_data import SchemaError
from tests.interop.conversions import ALONE, VOCAB_SIZE, random_weights
from tools.hf.importing import write_model_checkpoint
from tools.hf.settings import RunSettings, resolve_model_fields

FIELDS: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "pos_emb": "rotary",
    "rotary_pct": 0.5,
    "no_weight_tying": True,
    "gpt_j_residual": True,
}


LINEAR = {"rope_type": "linear", "factor": 2.0}
UNSCALED = dict.fromkeys(field.name for field in fields(RopeScaling))


def groups_of(**changes: Any) -> dict[str, dict[str, Any]]:
    return resolve_model_fields({**FIELDS, **changes}).to_dict()


def network_of(**changes: Any) -> ModelShape:
    return RunSettings(groups_of(**changes)).shape(VOCAB_SIZE)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_attention_heads": 2}, ("num_attention_heads", 4, 2)),
        ({"num_kv_heads": 2}, ("num_kv_heads", 4, 2)),
        ({"rotary_pct": 1.0}, ("rotary_dim (from rotary_pct)", 4, 8)),
        ({"rotary_emb_base": 500000}, ("rotary_emb_base", 10000, 500000)),
        ({"rotary_emb_base": 10000.5}, ("rotary_emb_base", 10000, 10000.5)),
        ({"pos_emb": "sinusoidal"}, ("pos_emb", "rotary", "sinusoidal")),
        ({"activation": "relu"}, ("activation", "gelu", "relu")),
        ({"norm": "rmsnorm"}, ("norm", "layernorm", "rmsnorm")),
        ({"layernorm_epsilon": 1e-3}, ("layernorm_epsilon", 1e-5, 1e-3)),
        ({"gpt_j_residual": False}, ("gpt_j_residual", True, False)),
        ({"gpt_j_tied": True}, ("gpt_j_tied", False, True)),
        ({"head_dim": 16}, ("head_dim", 8, 16)),
        ({"qk_norm": "head"}, ("qk_norm", "none", "head")),
        ({"use_bias_in_attn_output": False}, ("use_bias_in_attn_output", True, False)),
        ({"rope_scaling": LINEAR}, ("rope_scaling", None, {**UNSCALED, **LINEAR})),
        (
            {"sliding_window_width": 9},
            (
                "attention_reach (from sliding_window_width and attention_config)",
                *([], [[9, 1], [9, 1]]),
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_field_that_changes_the_function_is_found(changes, found):
    assert first_difference(network_of(**changes), groups_of()) == found


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "scalenorm"])
@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "sinusoidal", "none"])
def test_a_network_is_like_itself_whatever_has_no_effect_on_it(norm, pos_emb):
    changes = {"norm": norm, "pos_emb": pos_emb}
    other: dict[str, Any] = {
        "hidden_dropout": 0.1,
        "init_method_std": 0.5,
        "bias_gelu_fusion": True,
        **{f"{name}_epsilon": 0.5 for name in {"rms_norm", "layernorm", "scalenorm"}},
    }
    del other[{"rmsnorm": "rms_norm_epsilon"}.get(norm, f"{norm}_epsilon")]
    if pos_emb != "rotary":
        other |= {"rotary_pct": 1.0, "rotary_emb_base": 500000}
    if norm != "layernorm":
        other["use_bias_in_norms"] = False
    assert first_difference(network_of(**changes, **other), groups_of(**changes)) is None


@pytest.mark.parametrize("base", [10000, 10000.0, "1e4", "10000.0"])
def test_a_whole_base_of_rotary_positions_is_written_as_it_always_was(base):
    groups = groups_of(rotary_emb_base=base)
    assert json.dumps(groups["model"]["rotary_emb_base"]) == "10000"
    assert first_difference(network_of(), groups) is None
    groups["model"]["rotary_emb_base"] = 10000.0
    assert first_difference(network_of(), groups) is None


def test_a_scaling_is_like_itself_and_unlike_none():
    scaled = {"rope_scaling": LINEAR}
    stored = json.loads(json.dumps(groups_of(**scaled)))
    assert first_difference(RunSettings(stored).shape(VOCAB_SIZE), stored) is None
    found = first_difference(network_of(), stored)
    assert found == ("rope_scaling", {**UNSCALED, **LINEAR}, None)


def test_a_checkpoint_of_a_version_without_the_switches_is_a_network_without_them():
    stored = groups_of(use_bias_in_attn_linear=False)
    for name in ("qk_norm", "rope_scaling", "opt_pos_emb_offset", "use_bias_in_attn_output"):
        del stored["model"][name]
    shape = RunSettings(in_current_form(stored)).shape(VOCAB_SIZE)
    assert shape == network_of(use_bias_in_attn_linear=False)


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"rope_type": "su", "factor": 2.0}, "model.rope_scaling.rope_type"),
        ({"rope_type": "linear", "factor": 0.5}, "model.rope_scaling.factor"),
        ({"rope_type": "linear"}, "model.rope_scaling.factor"),
        ({"rope_type": "linear", "factor": 2.0, "more": 1}, "model.rope_scaling.'more'"),
        ([], "model.rope_scaling"),
    ],
)
def test_a_damaged_scaling_is_named(section, place):
    stored = groups_of()
    stored["model"]["rope_scaling"] = section
    with pytest.raises(SchemaError) as error:
        check_resolved(stored, "")
    assert place in str(error.value)


def test_fields_that_an_older_version_lacks_are_accepted():
    groups = groups_of()
    for name in (field.name for field in fields(ModelShape)):
        groups["model"].pop(name, None)
    assert first_difference(network_of(num_attention_heads=2), groups) is None
    assert first_difference(network_of(), {}) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    shape = network_of()
    return write_model_checkpoint(
        tmp_path_factory.mktemp("run"),
        shape,
        run_config=resolve_model_fields(FIELDS),
        read=random_weights(shape).__getitem__,
        files={},
    )


def test_weights_do_not_go_into_another_network(trained):
    network = network_of(num_attention_heads=2)
    with pytest.raises(CheckpointError) as error:
        load_module_weights(GPT2Model(network, seed=1), trained, ALONE)
    assert str(error.value) == (
        f"{trained}/configs/resolved.json: num_attention_heads is 4, this run has 2, which is "
        "another network; use the model's own configuration"
    )
    load_module_weights(
        GPT2Model(replace(network_of(), hidden_dropout=0.5), seed=1), trained, ALONE
    )


@pytest.mark.parametrize("is_finetuning", [False, True])
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_layers": 3}, "num_layers is 2, this run has 3"),
        ({"num_layers": 1}, "num_layers is 2, this run has 1"),
        ({"hidden_size": 64}, "hidden_size is 32, this run has 64"),
        (
            {"intermediate_size": 96},
            "mlp_inner_size (from intermediate_size) is 128, this run has 96",
        ),
        ({"pos_emb": "learned"}, 'pos_emb is "rotary", this run has "learned"'),
    ],
    ids=str,
)
def test_weights_of_other_shapes_name_the_key_and_both_values(
    trained, changes, found, is_finetuning
):
    model = GPT2Model(network_of(**changes), seed=1)
    say = (lambda line: None) if is_finetuning else None
    with pytest.raises(CheckpointError, match=re.escape(found)):
        load_module_weights(model, trained, ALONE, on_other_network=say)


def test_more_learned_positions_than_the_checkpoint_has_are_named():
    groups = groups_of(pos_emb="learned")
    network = network_of(pos_emb="learned", max_position_embeddings=64)
    assert first_difference(network, groups) == ("max_position_embeddings", 48, 64)
    assert first_difference(network_of(max_position_embeddings=64), groups_of()) is None


def test_another_tokenizer_than_the_model_had_is_named(trained):
    model = GPT2Model(
        replace(network_of(), vocab_size=VOCAB_SIZE - 5, padded_vocab_size=VOCAB_SIZE - 5), seed=1
    )
    with pytest.raises(CheckpointError, match=rf"model has {VOCAB_SIZE} tokens, .*vocab_file\)"):
        load_module_weights(model, trained, ALONE)


def test_finetuning_may_change_the_network_aloud(trained):
    said: list[str] = []
    model = GPT2Model(network_of(rotary_emb_base=500000), seed=1)
    load_module_weights(model, trained, ALONE, on_other_network=said.append)
    (line,) = said
    assert "rotary_emb_base is 10000, this run has 500000" in line


def test_a_checkpoint_that_does_not_say_its_network_is_accepted(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "global_step0")
    other = GPT2Model(network_of(gpt_j_residual=False), seed=1)
    resolved = folder / "configs/resolved.json"
    for content in ("{", "{}", '{"model": null}', '{"model": {"norm": "x"}}'):
        resolved.write_text(content)
        with pytest.raises(CheckpointError, match=r"resolved\.json: "):
            load_module_weights(other, folder, ALONE)
    resolved.unlink()
    load_module_weights(other, folder, ALONE)


def test_windows_are_compared_as_they_are_read_from_a_file():
    sections = json.loads(json.dumps(groups_of(sliding_window_width=9)))
    assert first_difference(network_of(sliding_window_width=9), sections) is None


def test_how_documents_are_read_may_change_between_runs():
    packed = network_of(reset_attention_mask=True, reset_position_ids=True)
    assert first_difference(packed, groups_of()) is None


@pytest.mark.parametrize("key", ["rpe_num_buckets", "rpe_max_distance"])
def test_the_buckets_of_a_relative_bias_are_compared_only_with_one(key):
    assert first_difference(network_of(**{key: 50}), groups_of()) is None
    changed = network_of(pos_emb="rpe", **{key: 50})
    assert first_difference(changed, groups_of(pos_emb="rpe"))[0] == key
