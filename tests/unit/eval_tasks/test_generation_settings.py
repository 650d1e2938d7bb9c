"""generation_kwargs of tasks in our terms."""

from __future__ import annotations

import pytest

from megatron.errors import TaskError
from megatron.eval_tasks.generation_settings import cut_at_stop, read_settings


def test_without_settings_the_text_is_greedy_and_as_long_as_that_of_other_models():
    settings = read_settings({})
    assert settings.maximum_tokens == 256
    assert settings.stop_strings == ()
    assert settings.sampling.is_greedy


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "do_sample": False}, 0.0),
        ({"temperature": 0.7, "do_sample": True}, 0.7),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.0}, 0.0),
    ],
)
def test_do_sample_and_temperature_decide_together(given, temperature):
    assert read_settings(given).sampling.temperature == temperature


@pytest.mark.parametrize("key", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_the_number_of_tokens_has_several_names(key):
    assert read_settings({key: 5, "until": "\n"}).maximum_tokens == 5


def test_filters_and_stop_strings_are_kept_and_empty_ones_are_not():
    settings = read_settings({"until": ["a", "", "b"], "top_k": 4, "top_p": 0.5, "num_beams": 1})
    assert settings.stop_strings == ("a", "b")
    assert (settings.sampling.top_k, settings.sampling.top_p) == (4, 0.5)
    assert read_settings({"until": "stop"}).stop_strings == ("stop",)


def test_equal_settings_are_computed_together():
    first = read_settings({"until": ["a"], "max_gen_toks": 4})
    assert {first: 1}[read_settings({"max_gen_toks": 4, "until": "a", "do_sample": False})] == 1


def test_what_is_not_done_is_refused_by_name():
    with pytest.raises(TaskError, match=r"num_beams: 4 is not supported; supported: until"):
        read_settings({"num_beams": 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ({"max_new_tokens": "many"}, "max_new_tokens must be at least 1, got 'many'"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"temperature": "hot"}, "temperature must be at least 0, got 'hot'"),
        ({"top_k": "a few"}, "top_k must be a whole number of at least 0, or -1 for all, got 'a f"),
        ({"top_p": 1.5}, r"top_p must be in \[0, 1\], got 1.5"),
        ({"min_p": -1}, r"min_p must be in \[0, 1\], got -1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
    ],
)
def test_senseless_values_are_refused_by_name(given, message):
    with pytest.raises(TaskError, match=f"^generation_kwargs: {message}"):
        read_settings(given)


def test_numbers_may_be_written_as_text():
    sampling = read_settings({"do_sample": True, "top_k": "50", "top_p": "0.5"}).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 50, 0.5)


def test_what_the_new_tokens_leave_of_the_window_is_the_context():
    settings = read_settings({"max_gen_toks": 20})
    assert settings.longest_context(48) == 28
    assert settings.longest_context(21) == 1
    with pytest.raises(TaskError, match="max_gen_toks 20 leaves no room"):
        settings.longest_context(20)


def test_a_text_is_cut_before_the_first_stop_string():
    assert cut_at_stop("one. two; three", (";", ".")) == "one"
    assert cut_at_stop("nothing here", ("!",)) == "nothing here"
