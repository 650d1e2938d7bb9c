from pathlib import Path

import pytest

from megatron.neox_arguments import NeoXArgs

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"text_gen_type": "input-file"},
            "text_gen_type is input-file but there is no sample_input_file; set it or pass -i",
        ),
        (
            {"text_gen_type": "precompute"},
            "text_gen_type must be one of unconditional, input-file, interactive, got 'precompute'",
        ),
        ({"top_p": 2}, "top_p must be in [0, 1], got 2.0"),
        ({"min_p": -0.5}, "min_p must be in [0, 1], got -0.5"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"temperature": -1}, "temperature must be at least 0, got -1.0"),
        (
            {"repetition_penalty": 0},
            "repetition_penalty must be above 0, got 0.0; 1 switches it off",
        ),
        ({"maximum_tokens": 0}, "maximum_tokens must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"generation_batch_size": 0}, "generation_batch_size must be at least 1, got 0"),
        (
            {"prompt_end": ""},
            "prompt_end must be at least one character, got ''; '\\n' is usual",
        ),
        (
            {"stop_strings": ["a", ""]},
            "stop_strings must be texts that are not empty, got ['a', '']",
        ),
        ({"stop_tokens": [-1]}, "stop_tokens must be token ids of at least 0, got [-1]"),
    ],
)
def test_wrong_ways_to_generate_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_prompts_decide_how_text_is_generated(make_config):
    assert make_config().generation.kind == "unconditional"
    assert make_config(sample_input_file="x").generation.kind == "input-file"
    mine = make_config(sample_input_file="x", text_gen_type="unconditional")
    assert mine.generation.kind == "unconditional"


def test_prompts_on_the_command_line_win_over_the_kind_in_a_file(tmp_path):
    (tmp_path / "generate.py").write_text("")
    (tmp_path / "text.yml").write_text("text_gen_type: unconditional\nsample_input_file: a.txt\n")
    model = str(ROOT / "configs/pythia/14M.yml")
    command = [str(tmp_path / "generate.py"), model, str(tmp_path / "text.yml")]
    values = NeoXArgs.consume_deepy_args([*command, "-i", "b.txt", "-o", "c.txt"])
    assert values.text_gen_type == "input-file"
    assert (values.sample_input_file, values.sample_output_file) == ("b.txt", "c.txt")
    assert NeoXArgs.consume_deepy_args(command).text_gen_type == "unconditional"
