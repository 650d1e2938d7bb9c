"""Layouts that cannot work are refused before anything starts, with the numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments import NeoXArgs, resolve


@pytest.mark.parametrize(
    ("size", "values", "message"),
    [
        (
            3,
            {"num_kv_heads": 1, "intermediate_size": 96},
            "model_parallel_size 3 does not divide num_attention_heads 4; set it to one of 1, 2, 4",
        ),
        (
            4,
            {"num_kv_heads": 2},
            "model_parallel_size 4 does not divide num_kv_heads 2; set it to one of 1, 2",
        ),
        (
            2,
            {"intermediate_size": 129},
            "model_parallel_size 2 does not divide the inner width of the MLP 129; set it to one "
            "of 1, 3",
        ),
        (
            2,
            {"sequence_parallel": True, "seq_length": 127},
            "model_parallel_size 2 does not divide seq_length (with sequence_parallel) 127; set it "
            "to one of 1",
        ),
    ],
)
def test_a_size_that_tensor_parallelism_cannot_cut_is_refused(problems, size, values, message):
    assert message in problems(size, model_parallel_size=size, **values)


def test_every_size_that_cannot_be_cut_is_named_at_once(problems):
    messages = problems(3, model_parallel_size=3)
    assert [message.split(";")[0] for message in messages] == [
        "model_parallel_size 3 does not divide num_attention_heads 4",
        "model_parallel_size 3 does not divide num_kv_heads 4",
        "model_parallel_size 3 does not divide the inner width of the MLP 256",
    ]


def test_the_sequence_may_have_any_length_without_sequence_parallelism(problems):
    assert problems(2, model_parallel_size=2, seq_length=127) == []


def test_sequence_parallelism_on_one_rank_is_noted(make_config):
    assert make_config(sequence_parallel=True).notes == (
        "'sequence_parallel' has no effect: model_parallel_size is 1",
    )


def test_fewer_layers_than_stages_are_refused(problem):
    assert problem(3, pipe_parallel_size=3) == (
        "pipe_parallel_size 3 stages cannot share 2 layers (num_layers); set pipe_parallel_size to "
        "2 or less"
    )


@pytest.mark.parametrize("stage", [2, 3])
def test_partitioned_gradients_on_a_pipeline_are_refused(problem, stage):
    message = problem(2, pipe_parallel_size=2, zero_optimization={"stage": stage})
    assert message == (
        f"zero_optimization.stage {stage} does not work with pipe_parallel_size 2: a pipeline "
        "keeps gradients between micro-batches; use stage 1 or 0"
    )


@pytest.mark.parametrize("stage", [0, 1])
def test_a_pipeline_works_with_whole_gradients(problems, stage):
    assert problems(2, pipe_parallel_size=2, zero_optimization={"stage": stage}) == []


def test_a_pipeline_with_too_few_micro_batches_is_noted(make_config):
    config = make_config(2, pipe_parallel_size=2, gradient_accumulation_steps=1)
    assert config.notes == (
        "gradient_accumulation_steps 1 micro-batches cannot fill 2 pipeline stages; more of them "
        "waste less time",
    )
    assert make_config(2, pipe_parallel_size=2, gradient_accumulation_steps=2).notes == ()


@pytest.mark.parametrize(
    ("world_size", "model", "pipe", "least"), [(3, 2, 1, 2), (3, 1, 2, 2), (6, 2, 2, 4)]
)
def test_processes_that_do_not_divide_are_refused(problem, world_size, model, pipe, least):
    message = problem(world_size, model_parallel_size=model, pipe_parallel_size=pipe)
    assert message == (
        f"world size {world_size} = data parallel x model_parallel_size {model} x "
        f"pipe_parallel_size {pipe} has no whole solution; start a multiple of {least} processes, "
        "or lower one of the two sizes"
    )


@given(
    data=st.integers(1, 5),
    model=st.sampled_from([1, 2, 4]),
    pipe=st.sampled_from([0, 1, 2]),
    steps=st.integers(1, 4),
)
def test_the_degrees_multiply_to_the_world_size(data, model, pipe, steps):
    settings = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "train_iters": 1,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": steps,
        "model_parallel_size": model,
        "pipe_parallel_size": pipe,
    }
    world_size = data * model * max(pipe, 1)
    config = resolve(NeoXArgs.from_dict(settings), world_size=world_size)
    degrees = (
        config.layout.data_parallel_size,
        config.layout.model_parallel_size,
        config.layout.pipe_parallel_size,
    )
    assert degrees == (data, model, max(pipe, 1))
    assert config.batch.train_batch_size == 3 * steps * data


@pytest.mark.parametrize("size", [0, 1])
def test_zero_and_one_stages_are_no_pipeline(make_config, size):
    config = make_config(pipe_parallel_size=size, zero_optimization={"stage": 3})
    assert config == make_config(zero_optimization={"stage": 3})
    assert config.layout.pipe_parallel_size == 1


def test_an_unknown_rule_for_cutting_stages_is_refused(problem):
    message = problem(2, pipe_parallel_size=2, pipe_partition_method="profile")
    assert message == (
        "pipe_partition_method must be uniform, parameters or type:<regex>, got 'profile'"
    )


@pytest.mark.parametrize("key", ["model_parallel_size", "pipe_parallel_size"])
def test_negative_sizes_are_refused(problem, key):
    assert problem(1, **{key: -1}) == f"{key} must be at least 0, got -1"
