"""The configuration files that are shipped."""

import json
from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs, deepspeed_config, resolve

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = "19M 49M 125M bf16_125M 350M 760M 800M 1-3B 2-7B 6-7B 13B 20B 175B".split()
PYTHIA = "14M 31M 70M 160M 410M 1B 1-4B 2-8B 6-9B 12B".split()
ODM = "160M 410M 1B 3B".split()
WEIGHTS = "original_pile doremi_120 doremi_280 doremi_1B static_1B_final static_1B_mean".split()
METHODS = "smoothed_mean smoothed_mean_half odm_paper exp3 ema learning_curve static".split()


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "DLTS_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)


def load(*names, world_size=None):
    return resolve(NeoXArgs.from_ymls([CONFIGS / name for name in names]), world_size=world_size)


@pytest.mark.parametrize("name", [*SIZES, *(f"pythia/{name}" for name in PYTHIA)])
@pytest.mark.parametrize("world_size", [1, 8])
def test_a_model_file_with_local_setup_is_a_whole_run(name, world_size):
    config = load(name, "local_setup", world_size=world_size)
    assert config.saving.save_path == "checkpoints"
    assert config.notes == ()
    assert deepspeed_config(config)["train_batch_size"] == config.batch.train_batch_size


@pytest.mark.parametrize(
    "name",
    [*SIZES, *(f"pythia/{name}" for name in PYTHIA), *(f"odm/{name}" for name in ODM)],
)
def test_a_model_file_goes_with_the_data_file_that_prepare_data_writes(name, tmp_path):
    data = {"data_domain_names": ["a"], "vocab_file": "t.json", "tokenizer_type": "HFTokenizer"}
    data |= {f"{split}_data_paths": [f"{split}/a"] for split in ("train", "valid", "test")}
    (tmp_path / "data.yml").write_text(json.dumps(data))
    config = resolve(NeoXArgs.from_ymls([CONFIGS / name, tmp_path / "data.yml"]), world_size=8)
    assert config.data.train_paths == ("train/a",)


@pytest.mark.parametrize("name", SIZES)
def test_text_generation_and_one_mock_process_go_with_a_model(name):
    config = load(name, "local_setup", "text_generation", "cpu_mock_config")
    assert config.generation.kind == "unconditional"
    assert config.layout.world_size == 1


def test_the_tasks_of_the_research_code_go_with_a_model():
    config = load("125M", "local_setup", "eval_tasks")
    assert config.evaluation.tasks == [
        *("lambada_openai", "piqa", "winogrande", "arc_easy", "sciq", "wikitext", "openbookqa")
    ]
    assert config.evaluation.tasks_interval is None
    assert config.notes == ()


def parameters_without_embeddings(config):
    """12 L h^2 weights of the blocks: four attention matrices and two MLP matrices."""
    return 12 * config.model.num_layers * config.model.hidden_size**2


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(("19M", 19), ("49M", 49), ("125M", 85), ("350M", 302), ("760M", 679), ("800M", 805)),
        *(("1-3B", 1208), ("2-7B", 2517), ("6-7B", 6442), ("13B", 12583), ("20B", 19931)),
        *(("175B", 173946), ("pythia/70M", 19), ("pythia/12B", 11325), ("odm/1B", 805)),
    ],
)
def test_models_have_the_size_of_their_name(name, millions):
    args = NeoXArgs.from_ymls([CONFIGS / name])
    assert round(12 * args.num_layers * args.hidden_size**2 / 1e6) == millions


@pytest.mark.parametrize("name", PYTHIA)
def test_pythia_is_trained_as_published(name):
    config = load(f"pythia/{name}", "local_setup", world_size=32)
    assert config.batch.train_batch_size * config.data.seq_length == 2_097_152
    assert config.schedule.train_iters == 143_000
    assert config.model.rotary_dim == int(0.25 * config.model.head_dim)
    assert config.schedule.min_lr == pytest.approx(config.optimizer.learning_rate / 10, rel=1e-12)
    assert [
        step for step in range(1001) if config.saving.is_save_step(step, last_step=143_000)
    ] == [*(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)]


@pytest.mark.parametrize("model", ODM)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_odm_run_resolves(model, weights, method):
    names = (f"odm/{model}", "odm/data_pile", f"odm/weights/{weights}", f"odm/method/{method}")
    config = load(*names, world_size=8)
    assert config.batch.train_batch_size == 480
    assert config.data.train_domains == config.data.valid_domains == config.data.test_domains
    assert len(config.data.train_domains) == 22
    assert config.mixing.run_length == config.batch.micro_batch_size
    assert sum(config.data.train_weights) == pytest.approx(1.0, abs=2.5e-4)


def test_the_papers_run_has_its_numbers():
    names = ("odm/1B", "odm/data_pile", "odm/weights/original_pile", "odm/method/smoothed_mean")
    config = load(*names, world_size=8)
    assert config.batch.train_batch_size * 1024 * config.schedule.train_iters == 49_152_000_000
    assert config.batch.gradient_accumulation_steps == 1
    assert (config.model.num_layers, config.model.hidden_size) == (16, 2048)
    assert config.model.num_attention_heads == 16
    assert config.optimizer.learning_rate == 2.5e-4
    assert config.data.train_domains[:3] == ("Pile-CC", "PubMed_Central", "Books3")
    assert config.data.train_domains[10:13] == (
        "Gutenberg_(PG-19)",
        "OpenSubtitles",
        "Wikipedia_(en)",
    )
    assert config.data.train_weights[:3] == (0.1811, 0.144, 0.1207)
    assert config.mixing.warmup_steps == 2000
    assert config.launch.seed == 42


def test_the_cpu_model_has_about_a_million_parameters_and_takes_any_data():
    data = {f"{s}_data_paths": [f"d/a/{s}", f"d/b/{s}"] for s in ("train", "valid", "test")}
    args = NeoXArgs.from_ymls([CONFIGS / "cpu.yml"], {**data, "save": "x"})
    for world_size in (1, 2, 4):
        config = resolve(args, world_size=world_size)
        assert 0.9e6 < parameters_without_embeddings(config) < 1.1e6
        assert config.precision.dtype == "fp32"
        assert config.batch.train_batch_size == 16


def test_every_shipped_file_is_covered_here():
    mine = {*SIZES, "local_setup", "text_generation", "cpu_mock_config", "cpu", "odm/data_pile"}
    mine.add("eval_tasks")
    mine |= {f"pythia/{name}" for name in PYTHIA} | {f"odm/{name}" for name in ODM}
    mine |= {f"odm/weights/{name}" for name in WEIGHTS} | {f"odm/method/{name}" for name in METHODS}
    shipped = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yml")}
    assert shipped - mine <= {"demo"}
    assert mine <= shipped
