"""The resolved configuration as checkpoints hold it, of this version and of the one before."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs, resolve
from megatron.neox_arguments.resolved import in_current_form
from megatron.neox_arguments.sections import SECTIONS

ROOT = Path(__file__).resolve().parents[3]
OLDER = ROOT / "tests/golden/checkpoint_1/global_step4/configs"


def test_a_file_of_the_first_version_tells_what_its_run_resolves_to_today():
    found = in_current_form(json.loads((OLDER / "resolved.json").read_text()))
    run = resolve(NeoXArgs.from_ymls([OLDER / "run.yml"])).to_dict()
    told_otherwise = {"precision.key", "precision.communication_data_type", "data.split_text"}
    first = {"method", "run_length", "warmup_steps", "update_frequency", "smoothing_factor"}
    first |= {"stratified", "min_weights", "max_weights", "max_epochs"}
    later = {"data.train_weighting", *(f"mixing.{name}" for name in {*run["mixing"]} - first)}
    later |= {"schedule.wsd_decay_style", "schedule.wsd_decay_iters", "schedule.train_epochs"}
    later |= {"model.soft_prompt", "optimizer.use_bnb_optimizer", "launch.torch_compile"}
    later |= {f"logging.log_{name}" for name in ("grad_norm", "param_norm", "grad_pct_zeros")}
    later |= {"saving.save_copy", "saving.load_copy"}
    later |= {"logging.log_optimizer_states", "logging.log_gradient_noise_scale"}
    later |= {f"logging.gradient_noise_scale_{name}" for name in ("n_batches", "cpu_offload")}
    found["launch"].pop("distributed_timeout_minutes")  # has another default now
    missing, changed = set(), {"launch.distributed_timeout_minutes"}
    for name in SECTIONS:
        for field, value in run[name].items():
            if field in found.get(name, {}):
                assert found[name][field] == value, f"{name}.{field}"
            else:
                missing.add(f"{name}.{field}")
    assert missing <= told_otherwise | later | changed


def test_a_file_of_this_version_stays_as_it_is(make_config):
    plain = make_config().to_dict()
    assert in_current_form(plain) == plain


def test_answers_by_key_have_the_names_of_the_files(make_config):
    values = make_config(eval_tasks=["a"], num_kv_heads=2, optimizer_type="sgd").by_key()
    assert (values["eval_tasks"], values["num_kv_heads"]) == (["a"], 2)
    assert values["optimizer_type"] == "sgd"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the program whose section for logging has one key more."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("megatron", "odm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("deepy.py", "train.py"):
        shutil.copy(ROOT / name, folder)
    path = folder / "megatron/neox_arguments/sections/output.py"
    text = path.read_text(encoding="utf-8")
    declared = (
        '    log_flavour: Annotated[int, at_least(2)] = 3\n    """Taste of a log line."""\n\n'
    )
    place = text.index("    log_dir:")
    path.write_text(text[:place] + declared + text[place:], encoding="utf-8")
    return folder


def run_copy(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_one_declaration_adds_a_key_to_the_reference_and_to_its_section(copy, minimal):
    code = (
        "from megatron.neox_arguments import NeoXArgs, resolve\n"
        "from megatron.neox_arguments.documentation import reference_markdown\n"
        f"args = NeoXArgs.from_dict({minimal!r} | {{'log-flavour': 5}})\n"
        "print(resolve(args).logging.log_flavour, NeoXArgs.log_flavour)\n"
        "print(reference_markdown())\n"
    )
    process = run_copy(copy, "-c", code)
    assert process.stdout.splitlines()[0] == "5 3", process.stderr
    assert (
        "- **log_flavour**: a whole number, at least 2. Default: 3.\n\n    Taste of a log line.\n"
    ) in process.stdout


@pytest.mark.parametrize(
    ("value", "message"),
    [("1", "log_flavour must be at least 2, got 1"), ("x", "log_flavour must be a whole number")],
)
def test_one_declaration_adds_a_key_to_the_check(copy, minimal, value, message):
    lines = [*(f"{key}: {number}" for key, number in minimal.items()), f"log_flavour: {value}"]
    (copy / "run.yml").write_text("\n".join(lines))
    process = run_copy(copy, "deepy.py", "train.py", "run.yml", "--check")
    assert process.returncode != 0
    assert f"run.yml:{len(lines)}: {message}" in process.stdout + process.stderr
