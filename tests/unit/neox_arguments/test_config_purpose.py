"""Programs that read a model are not refused for what only its training needs."""

import itertools
from pathlib import Path

import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, Purpose, resolve
from megatron.neox_arguments.purpose import purpose_of

RESEARCH = Path(__file__).resolve().parents[4] / "shared/data/odm_research_configs/method_configs"

NETWORK = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

TRAINING_ALONE = [
    {"data_sampling_method": "smoothed_mean"},
    {"data_sampling_method": "naive_validation"},
    {"data_sampling_method": "exp3", "weight_by_num_documents": True},
    {"data_sampling_method": "ema", "data_path": "a/text"},
    {"data_sampling_warmup_steps": 5},
    {"data_sampling_update_frequency": -1},
    {"data_sampling_min_weight": 0.1},
    {"data_sampling_max_epochs": {"gone": 1}},
    {"mixed_batches": True, "mixed_minibatches": True},
    {"train_data_weights": [1, 2, 3]},
    {"train_data_paths": ["a/text"], "data_domain_names": ["a", "b"]},
    {"train_data_paths": ["a/text", "a/text"], "use_named_train_datasets": True},
    {"train_iters": 0},
    {"train_batch_size": 480, "train_micro_batch_size_per_gpu": 50},
    {"train_micro_batch_size_per_gpu": 0},
    {"save": "checkpoints"},
    {"checkpoint_factor": 0.5},
    {"log_interval": 0},
    {"eval_harness_interval": 10},
    {"optimizer": {"type": "muon"}},
    {"optimizer": {"type": "Adam", "params": {"lr": -1}}},
    {"optimizer_type": "SM3"},
    {"lr_decay_iters": 10, "lr_decay_fraction": 0.5},
    {"min_lr": 5.0},
    {"warmup": 7},
    {"z_loss": -1},
    {"fp16": {"enabled": True, "loss_scale": -1}},
    {"zero_optimization": {"stage": 3, "cpu_offload": True}},
    {"zero_stage": 9},
    {"pipe_parallel_size": 2, "zero_stage": 2},
    {"pipe_parallel_size": 4, "pipe_partition_method": "best"},
    {"deepspeed_extra_args": {"optimizer": {}}},
    {"use_bnb_optimizer": True, "optimizer": {"type": "SGD"}},
    {"train_impl": "dpo"},
    {"curriculum_learning": {"enabled": True}},
    {"validation_based_reward": True},
]


def read(values, **keywords):
    try:
        return resolve(NeoXArgs.from_dict({**NETWORK, **values}), world_size=4, **keywords)
    except ConfigError as error:
        return list(error.messages)


@pytest.mark.parametrize("values", TRAINING_ALONE, ids=lambda values: ",".join(values))
def test_what_only_training_needs_is_refused_for_training_alone(values):
    runnable = {"train_iters": 10, "train_micro_batch_size_per_gpu": 1, **values}
    assert isinstance(read(runnable), list)
    for script in ("evaluate.py", "path/generate.py"):
        config = read({**values, "user_script": script})
        assert config.layout.world_size == 4
    assert read(values, purpose=Purpose.READING).to_dict()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"rotary_pct": 0.001, "pos_emb": "rotary"}, "rotary_pct"),
        ({"model_parallel_size": 3}, "model_parallel_size"),
        ({"attention_config": [[["bigbird"], 2]]}, "attention_config"),
        ({"precision": "fp16", "bf16": {"enabled": True}}, "precision"),
        ({"moe_num_experts": 8}, "moe_num_experts"),
        ({"valid_data_weights": [1, 2]}, "valid_data_weights"),
        ({"data_path": "a", "valid_data_paths": ["b/b"]}, "data_path"),
        ({"max_test_samples_per_dataset": 0}, "max_test_samples_per_dataset"),
        ({"eval_iters": -1}, "eval_iters"),
        ({"eval_num_fewshot": -1}, "eval_num_fewshot"),
        ({"text_gen_type": "aloud"}, "text_gen_type"),
        ({"seed": 0}, "seed"),
    ],
)
def test_what_reading_needs_is_refused_for_both(values, key):
    runnable = {"train_iters": 10, "train_micro_batch_size_per_gpu": 1, **values}
    for purpose in Purpose:
        messages = read(runnable, purpose=purpose)
        assert [message for message in messages if key in message], purpose


def test_a_script_tells_the_purpose():
    scripts = ("train.py", "my/evaluate.py", "eval.py", "generate.py", "mine.py", None)
    assert [purpose_of(script) is Purpose.READING for script in scripts] == [
        *(False, True, True, True, False, False)
    ]


def test_an_evaluation_of_unnamed_data_measures_the_samples_of_the_training():
    batch = {"train_batch_size": 480, "train_micro_batch_size_per_gpu": 60}
    config = read({**batch, "gradient_accumulation_steps": 8, "user_script": "evaluate.py"})
    assert (config.batch.train_batch_size, config.batch.micro_batch_size) == (480, 60)


def evaluation_steps():
    """Files that the research code passes to evaluate.py: a model and what belongs to it."""
    models = sorted(path.stem for path in RESEARCH.glob("models/*.yml"))
    runs = sorted(path.stem for path in RESEARCH.glob("run_specific/*.yml"))
    evaluated = [name for name in models if name.startswith("eval_")]
    return [*itertools.product(evaluated, [None, *runs]), *((name, None) for name in models)]


@pytest.mark.skipif(not RESEARCH.is_dir(), reason="shared/data/odm_research_configs is not here")
@pytest.mark.parametrize("script", ["evaluate.py", "generate.py"])
def test_the_research_codes_models_are_evaluated_without_their_data_files(script):
    steps = evaluation_steps()
    assert len(steps) > 80
    weights = sorted(RESEARCH.glob("train_data_weights/*.yml"))
    for (model, run), weight in zip(steps, itertools.cycle(weights), strict=False):
        files = [RESEARCH / f"models/{model}.yml", RESEARCH / "eval_tasks.yml", weight]
        files += [RESEARCH / f"run_specific/{run}.yml"] if run else []
        method = {"data_sampling_method": "smoothed_mean", "data_sampling_warmup_steps": 2000}
        overwrites = {"user_script": script, "load": "outputs/x", **method}
        config = resolve(NeoXArgs.from_ymls(files, overwrites), world_size=1)
        assert config.saving.load_path == "outputs/x"
