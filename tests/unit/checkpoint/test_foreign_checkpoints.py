"""A checkpoint of another program is named for what it is, wherever a checkpoint is asked for."""

from types import SimpleNamespace

import pytest

from megatron.checkpoint.foreign import foreign_checkpoint_problem
from megatron.checkpoint.format import CheckpointReader
from megatron.engine.chosen_checkpoint import checkpoint_to_load
from megatron.errors import CheckpointError
from tests.process_group import process_group_of_one
from tools.checkpoints.single_process import find_source

GPT_NEOX, HUGGING_FACE, MEGATRON = "checkpoint of GPT-NeoX", "Hugging Face model", "Megatron-LM"
MISNAMED = "another name than global_step<N>"
WAYS = {
    GPT_NEOX: "tools/checkpoints/import_neox.py",
    MISNAMED: "rename the folder",
    HUGGING_FACE: "tools/convert_from_hf.py",
    MEGATRON: "tools/convert_from_hf.py",
}

FOREIGN = [
    (["global_step10/mp_rank_00_model_states.pt", "latest"], GPT_NEOX),
    (["global_step10/layer_00-model_01-model_states.pt", "global_step10/configs/a.yml"], GPT_NEOX),
    (["global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt"], GPT_NEOX),
    (["global_step10/bf16_zero_pp_rank_3_mp_rank_01_optim_states.pt"], GPT_NEOX),
    (["global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt"], GPT_NEOX),
    (["step_of_another_name/mp_rank_00_model_states.pt"], MISNAMED),
    (["mp_rank_00_model_states.pt"], MISNAMED),
    (["config.json", "model.safetensors"], HUGGING_FACE),
    (["config.json", "pytorch_model-00001-of-00002.bin"], HUGGING_FACE),
    (["iter_0000010/mp_rank_00/model_optim_rng.pt"], MEGATRON),
    (["iter_0000010/__0_0.distcp", "iter_0000010/common.pt"], MEGATRON),
]
OURS_OR_NOTHING = [
    [],
    ["global_step10/index.json", "global_step10/rank_00000.safetensors"],
    ["global_step10/index.json", "exported/config.json", "exported/model.safetensors"],
    ["exported/config.json", "exported/model.safetensors"],
    ["logs/metrics.jsonl", "notes.txt"],
]


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(("names", "kind"), FOREIGN, ids=lambda value: str(value)[:40])
def test_another_programs_checkpoint_is_named_with_the_way_to_import_it(tmp_path, names, kind):
    problem = foreign_checkpoint_problem(make(tmp_path, names))
    assert problem.startswith(str(tmp_path))
    assert kind in problem
    assert WAYS[kind] in problem
    assert "damaged" not in problem


@pytest.mark.parametrize("names", OURS_OR_NOTHING, ids=str)
def test_our_own_folders_are_none_of_these(tmp_path, names):
    assert foreign_checkpoint_problem(make(tmp_path, names)) is None
    assert foreign_checkpoint_problem(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("names", "kind"), FOREIGN[5:], ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("save", [None, "the same"])
def test_load_refuses_it_even_where_a_run_could_start_fresh(tmp_path, names, kind, save):
    load = str(make(tmp_path, names))
    config = SimpleNamespace(
        saving=SimpleNamespace(
            load_path=load, save_path=save and load, finetune=False, iteration=None
        ),
    )
    with process_group_of_one(), pytest.raises(CheckpointError, match=kind):
        checkpoint_to_load(config, print)


def test_tools_name_it_too(tmp_path):
    run = make(tmp_path, ["global_step10/mp_rank_00_model_states.pt", "latest"])
    with pytest.raises(CheckpointError, match=GPT_NEOX):
        CheckpointReader(run / "global_step10")
    other = make(tmp_path / "other", ["iter_10/mp_rank_00/model_optim_rng.pt"])
    with pytest.raises(CheckpointError, match=MEGATRON):
        find_source(other, None)
