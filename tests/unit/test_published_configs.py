"""The configuration files that GPT-NeoX and the research code publish, read where they are."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tools.benchmark.configuration_files import configuration_files, main, read_configuration

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
NEOX, RESEARCH = SHARED / "neox_configs", SHARED / "odm_research_configs"

pytestmark = pytest.mark.skipif(
    not (NEOX.is_dir() and RESEARCH.is_dir()),
    reason="shared/data has no configuration files here",
)

PAIRS = {
    f"{side}_{split}_{what}data_paths"
    for side in ("pos", "neg")
    for split in ("train", "valid", "test")
    for what in ("", "label_")
}
LABELS = {f"{split}_label_data_paths" for split in ("train", "valid", "test")}
OTHER_LOSSES = "post-training/configs/"
REFUSED = {
    NEOX: {
        "configs/1-3B-transformer-engine.yml": {"te_layernorm_mlp", "te_mha"},
        "configs/125M-dmoe.yml": {"moe_num_experts"},
        "configs/autotuning_configs/small_tune.json": {"autotuning", "zero_optimization.stage"},
        "configs/autotuning_configs/tune_1-3B.json": {"autotuning"},
        "configs/autotuning_configs/tune_6-7B.json": {"autotuning", "zero_optimization.stage"},
        "configs/gmlp_small.yml": {"attention_config", "optimizer.params.eps"},
        "configs/local_setup_comet.yml": {"use_comet"},
        **{
            f"configs/mamba/mamba-{size}.yml": {"attention_config"}
            for size in ("130M", "370M", "790M", "1.4B", "2.8B")
        },
        "configs/rwkv/170M.yml": {"attention_config"},
        **{
            f"{OTHER_LOSSES}{name}.yml": {*PAIRS, "pack_impl", "dataset_impl", "train_impl", *more}
            for name, more in {
                "benchmarking/llama-13b-dpo": ("dpo_fp32", "dpo_beta"),
                "benchmarking/mistral-dpo": ("dpo_fp32", "dpo_beta"),
                "llama3-8b-dpo": ("dpo_beta",),
                "llama3-8b-rm": (),
            }.items()
        },
        f"{OTHER_LOSSES}llama3-8b-kto.yml": {
            *("pack_impl", "train_impl", *LABELS),
            *(f"{split}_reward_data_paths" for split in ("train", "valid", "test")),
        },
        f"{OTHER_LOSSES}llama3-8b-reinforce.yml": {
            *("pack_impl", "dataset_impl", "train_impl", *LABELS),
            *("kl_impl", "reinforce_leave_one_out", "serve_model_weights"),
        },
        f"{OTHER_LOSSES}llama3-8b-sft.yml": {"pack_impl", *LABELS},
        "tests/config/test_setup.yml": {"optimizer.type"},  # SM3
    },
    RESEARCH: {
        "configs/gmlp_small.yml": {"attention_config"},
    },
}
"""Keys that each refused file is refused for; all other files load."""


HAVE_PATHS = ("14M", "31M")
"""Pythia files with paths of their own, spelled as in the file of paths: GPT-NeoX refuses these
pairs too."""


def blamed(problem):
    """The key in ``file:line: key ...``."""
    return re.match(r".*?:\d+: ([\w.]+)", problem).group(1)


@pytest.mark.parametrize(
    ("folder", "counts"),
    [
        (NEOX, {"loads": 10, "loads with notes": 42, "refused": 21}),
        (RESEARCH, {"loads": 35, "loads with notes": 39, "refused": 1}),
    ],
    ids=["GPT-NeoX", "research code"],
)
def test_every_published_file_loads_or_is_refused_for_what_is_not_built(folder, counts):
    readings = [read_configuration(path) for path in configuration_files(folder)]
    refused = {
        reading.path.relative_to(folder).as_posix(): {blamed(line) for line in reading.problems}
        for reading in readings
        if reading.problems
    }
    assert refused == REFUSED[folder]
    assert Counter(reading.outcome for reading in readings) == counts


@pytest.mark.parametrize(
    "files",
    [
        *(
            (path, NEOX / "configs/docker/pythia-paths.yml")
            for path in sorted(NEOX.glob("configs/pythia/*.yml"))
            if path.stem not in HAVE_PATHS
        ),
        *(
            (path, NEOX / "configs/llama/train_config.yml")
            for path in sorted(NEOX.glob("configs/llama*/*.yml"))
            if path.name != "train_config.yml"
        ),
    ],
    ids=lambda files: f"{files[0].parent.name}/{files[0].stem}",
)
def test_files_that_are_used_together_load_together(files):
    assert read_configuration(*files).problems == ()


@pytest.mark.parametrize("name", HAVE_PATHS)
def test_a_file_with_paths_of_its_own_is_refused_beside_others(name):
    files = (NEOX / f"configs/pythia/{name}.yml", NEOX / "configs/docker/pythia-paths.yml")
    problems = read_configuration(*files).problems
    assert {blamed(problem.replace("'", "")) for problem in problems} == {
        *("train_data_paths", "valid_data_paths", "test_data_paths", "vocab_file")
    }


def test_the_command_prints_each_file_with_its_reasons_and_the_counts(capsys):
    assert main([str(RESEARCH / "configs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "refused: gmlp_small.yml" in lines
    reason = lines[lines.index("refused: gmlp_small.yml") + 1]
    assert "gMLP layers are not part of this version" in reason
    assert lines[-1].endswith("24 files, {'loads': 6, 'loads with notes': 17, 'refused': 1}")
