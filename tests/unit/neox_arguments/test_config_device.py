"""Keys of compilation, of profiles, and of the device's peak."""

from __future__ import annotations

import pytest

from megatron.sizing.gpus import peak_flops


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"model_parallel_size": 2}, "model_parallel_size: 2"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage: 3"),
        ({"pos_emb": "alibi"}, "pos_emb: alibi"),
        ({"reset_attention_mask": True}, "reset_attention_mask"),
        ({"sliding_window_width": 4}, "windows"),
        ({"flops_profiler": {"enabled": True}}, "flops_profiler"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(changes, setting, problem, problems):
    message = problem(2, torch_compile=True, **changes)
    assert message.startswith("torch_compile true does not work with ")
    assert setting in message
    assert problems(2, torch_compile="auto", **changes) == []


def test_compilation_takes_three_words(make_config, problem):
    assert make_config().launch.torch_compile == "auto"
    assert make_config(torch_compile=True, pipe_parallel_size=1).launch.torch_compile is True
    assert "'sometimes'" in problem(torch_compile="sometimes")


def test_a_profile_needs_a_folder_and_an_order(make_config, problem, tmp_path):
    assert problem(profile=True).startswith("profile needs a folder")
    assert problem(memory_profiling=True).startswith("memory_profiling needs a folder")
    make_config(memory_profiling=True, memory_profiling_path=str(tmp_path))
    folder = {"log_dir": str(tmp_path)}
    message = problem(profile=True, profile_step_start=5, profile_step_stop=4, **folder)
    assert message.startswith("profile_step_stop 4 is before profile_step_start 5")
    assert not make_config(profile=True, **folder).notes
    (note,) = make_config(profile=True, train_iters=9, **folder).notes
    assert "profile_step_start 10 is after the last iteration 9" in note


def test_the_peak_of_a_device_comes_from_the_key_or_from_the_table(make_config, problem):
    config = make_config(precision="bfloat16")
    assert peak_flops(config, "NVIDIA H200") == 989.4e12
    assert peak_flops(make_config(), "NVIDIA A100-SXM4-80GB") == 19.5e12
    assert peak_flops(config, "cpu") is None
    assert peak_flops(make_config(peak_theoretical_tflops=2), "NVIDIA H200") == 2e12
    assert "peak_theoretical_tflops must be above 0" in problem(peak_theoretical_tflops=0)
