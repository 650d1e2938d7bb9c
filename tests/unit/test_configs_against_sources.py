"""Shipped configuration files have the values of the published files that they are made from."""

from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.neox_arguments.schema import read_files

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
DATA = ROOT.parent / "shared" / "data"
NEOX = DATA / "neox_configs" / "configs"
RESEARCH = DATA / "odm_research_configs" / "method_configs"

pytestmark = pytest.mark.skipif(not NEOX.is_dir(), reason="the published files are not here")

SIZES = "19M 49M 125M bf16_125M 350M 760M 800M 1-3B 2-7B 6-7B 13B 20B 175B".split()
PYTHIA = "14M 31M 70M 160M 410M 1B 1-4B 2-8B 6-9B 12B".split()
RESEARCH_MODELS = {"160M": "160m", "410M": "410m", "1B": "1B", "3B": "3B"}

SOURCES = {
    **{name: [NEOX / f"{name}.yml"] for name in SIZES},
    **{f"pythia/{name}": [NEOX / "pythia" / f"{name}.yml"] for name in PYTHIA},
    **{
        f"odm/{ours}": [RESEARCH / "models" / f"{theirs}.yml", RESEARCH / "init.yml"]
        for ours, theirs in RESEARCH_MODELS.items()
    },
}
PROCESSES = {
    **dict.fromkeys((f"pythia/{name}" for name in PYTHIA[:5]), 32),
    **dict.fromkeys((f"pythia/{name}" for name in PYTHIA[5:8]), 64),
    **{"pythia/6-9B": 128, "pythia/12B": 256, "20B": 96},
}
"""Processes with which the published file has the batch it was trained with; 8 for the others."""

COMPARED = tuple(
    f"{section}.{name}"
    for section, names in {
        "model": (
            "num_layers hidden_size num_attention_heads max_position_embeddings norm "
            "pos_emb rotary_emb_base no_weight_tying gpt_j_residual gpt_j_tied init_method "
            "output_layer_init_method init_method_std hidden_dropout attention_dropout "
            "norm_epsilon bias_gelu_fusion head_dim num_kv_heads rotary_dim mlp_inner_size "
            "activation checkpoint_num_layers"
        ),
        "data": "seq_length split",
        "optimizer": "type options learning_rate betas eps weight_decay gradient_clipping",
        "schedule": "min_lr decay_style warmup_iters decay_iters train_iters",
        "batch": "train_batch_size micro_batch_size",
        "precision": "dtype fp16_options communication_data_type",
        "layout": "zero_stage model_parallel_size pipe_parallel_size",
        "saving": "factor scale extra_steps keep_last_n_checkpoints",
        "evaluation": "interval iters",
        "logging": "interval",
    }.items()
    for name in names.split()
)
"""What a training is: network, optimizer, schedule, precision, batch, layout."""

ON_PURPOSE = {
    **{name: {"layout.zero_stage": (3, 1)} for name in ("13B", "175B")},
    "20B": {
        "layout.zero_stage": (3, 1),
        "layout.model_parallel_size": (1, 2),
        "layout.pipe_parallel_size": (1, 4),
    },
    "pythia/6-9B": {"layout.model_parallel_size": (1, 2)},
    "pythia/12B": {"layout.model_parallel_size": (1, 4)},
}
"""Differences that the comment at the top of a shipped file explains: (ours, theirs)."""


def load(paths, world_size):
    """Resolves files without their data, which are the machine's."""
    kept = {
        key: value
        for key, value in read_files(paths).values.items()
        if not key.endswith(("_data_paths", "_data_weights"))
        and not key.startswith(("use_named_", "data_sampling_", "max_validation_"))
    }
    config = resolve(NeoXArgs.from_dict({**kept, "data_path": "x"}), world_size=world_size)
    return {
        f"{name}.{key}": value
        for name, section in config.to_dict().items()
        if isinstance(section, dict)
        for key, value in section.items()
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_file_has_its_sources_values(name):
    ours = load([CONFIGS / f"{name}.yml"], 8)
    theirs = load(SOURCES[name], PROCESSES.get(name, 8))
    found = {key: (ours[key], theirs[key]) for key in COMPARED if ours[key] != theirs[key]}
    assert found == ON_PURPOSE.get(name, {})


def last_parts(values):
    return {
        name: [Path(path).parts[-3:] for path in values[f"{name}_data_paths"]]
        for name in ("train", "valid", "test")
    }


def test_the_piles_domains_are_in_the_order_of_the_research_code():
    ours = read_files([CONFIGS / "odm" / "data_pile.yml"]).values
    theirs = read_files([RESEARCH / "data" / "pile.yml"]).values
    assert last_parts(ours) == last_parts(theirs)


@pytest.mark.parametrize("path", sorted((CONFIGS / "odm" / "weights").glob("*.yml")))
def test_weights_are_those_of_the_research_code(path):
    theirs = RESEARCH / "train_data_weights" / path.name
    assert read_files([path]).values == read_files([theirs]).values


@pytest.mark.parametrize(
    ("name", "source", "left_out"),
    [
        ("eval_tasks", RESEARCH / "eval_tasks.yml", set()),
        ("cpu_mock_config", NEOX / "cpu_mock_config.yml", set()),
        (
            "text_generation",
            NEOX / "text_generation.yml",
            # the kind follows from -i; the cache of keys and values has no switch; our file's name
            {"text_gen_type", "recompute", "sample_input_file", "sample_output_file"},
        ),
    ],
)
def test_the_other_files_say_what_their_source_says(name, source, left_out):
    ours = read_files([CONFIGS / f"{name}.yml"]).values
    theirs = read_files([source]).values
    assert {key: ours.get(key) for key in theirs if key not in left_out} == {
        key: value for key, value in theirs.items() if key not in left_out
    }
