"""The stages are those that DeepSpeed makes, and the sizes those of the real model."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.runtime.utils import partition_balanced, partition_uniform
from hypothesis import given
from hypothesis import strategies as st

from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import TensorParallel
from megatron.neox_arguments import ConfigError
from megatron.sizing.stages import PlannedLayer, network_layers, plan_stages, stage_parameters
from tests.distributed.spawn import run_ranks
from tests.unit.model.shapes import small_model

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"no_weight_tying": False},
    "grouped": {"num_kv_heads": 2},
    "gated": {"is_gated_mlp": True, "mlp_inner_size": 96, "activation": "swiglu"},
    "llama": {
        "norm": "rmsnorm",
        "num_kv_heads": 2,
        "is_gated_mlp": True,
        "activation": "swiglu",
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
    },
    "learned": {"pos_emb": "learned", "no_weight_tying": False, "use_bias_in_norms": False},
    "gpt-j": {"gpt_j_residual": True, "gpt_j_tied": True, "norm": "scalenorm"},
    "wide heads": {"head_dim": 16},
    "qwen3": {"norm": "rmsnorm", "qk_norm": "head", "use_bias_in_attn_output": False},
    "gpt-neox's norm of queries and keys": {"qk_norm": "neox"},
    "without weights in norms": {"qk_norm": "neox", "norm": "non_parametric_layernorm"},
    "one number a norm": {"qk_norm": "neox", "norm": "scalenorm"},
}
METHODS = ("type:transformer|mlp", "type:embedding|transformer", "parameters", "uniform")


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_parameter_count_is_that_of_the_model(name, tp):
    config = small_model(num_layers=3, **MODELS[name])
    planned = stage_parameters(network_layers(config, tensor_parallel=tp))
    for rank in range(tp):
        model = GPT2Model(config, seed=1, tp=TensorParallel(size=tp, rank=rank))
        assert planned == sum(p.numel() for _, p in model.named_parameters())


@given(
    weights=st.lists(st.integers(0, 60), min_size=1, max_size=14) | st.lists(st.integers(0, 1)),
    num_stages=st.integers(2, 6),
)
def test_the_balanced_cut_is_deepspeeds(weights, num_stages):
    layers = [PlannedLayer("Layer", weight) for weight in weights]
    bounds = [int(bound) for bound in partition_balanced(weights, num_stages)]
    assert edges(plan_stages(layers, num_stages=num_stages, method="parameters")) == bounds


@given(count=st.integers(0, 40), num_stages=st.integers(2, 9))
def test_the_uniform_cut_is_deepspeeds(count, num_stages):
    layers = [PlannedLayer("Layer", 1)] * count
    stages = plan_stages(layers, num_stages=num_stages, method="Uniform")
    assert edges(stages) == partition_uniform(count, num_stages)


def edges(stages: tuple[range, ...]) -> list[int]:
    return [stage.start for stage in stages] + [stages[-1].stop]


def test_without_a_pipeline_one_stage_holds_everything():
    layers = network_layers(small_model(), tensor_parallel=1)
    assert plan_stages(layers, num_stages=1, method="anything") == (range(7),)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "profile",
            "pipe_partition_method: 'profile' is unknown; use type:REGEX, parameters or uniform",
        ),
        (
            "type:",
            "pipe_partition_method: 'type:' is unknown; use type:REGEX, parameters or uniform",
        ),
        (
            "type:conv",
            "pipe_partition_method: 'conv' matches none of the layers Embedding, _pass_through, "
            "TransformerLayer, FinalNorm, PipelineOutputLayer; use type:transformer",
        ),
        (
            "type:(",
            "pipe_partition_method: '(' is no regular expression (missing ), unterminated "
            "subpattern at position 0)",
        ),
    ],
)
def test_a_method_that_cannot_work_is_refused(method, message):
    layers = network_layers(small_model(), tensor_parallel=1)
    with pytest.raises(ConfigError) as caught:
        plan_stages(layers, num_stages=2, method=method)
    assert str(caught.value) == message


@pytest.mark.distributed
def test_stages_and_their_parameters_are_those_of_the_pipeline():
    results = run_ranks("tests.unit.sizing.test_stages:build_pipelines", 2)
    for name, changes in MODELS.items():
        layers = network_layers(small_model(num_layers=5, **changes), tensor_parallel=1)
        for method in METHODS:
            stages = plan_stages(layers, num_stages=2, method=method)
            for rank, result in enumerate(results):
                places = stages[rank]
                assert result.value[f"{name} {method}"] == {
                    "bounds": edges(stages),
                    "parameters": stage_parameters(layers[places.start : places.stop]),
                }, (name, method)


# what runs on the two ranks


def build_pipelines() -> dict[str, dict[str, Any]]:
    """Builds this rank's stage of each model for each method."""
    from megatron.model.pipeline_model import GPT2PipelineModel
    from megatron.mpu import RankGrid, Topology
    from megatron.neox_arguments import NeoXArgs, resolve
    from megatron.runtime.initialize import initialize_megatron

    settings = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "train_iters": 1,
        "train_micro_batch_size_per_gpu": 1,
        "pipe_parallel_size": 2,
    }
    initialize_megatron(resolve(NeoXArgs.from_dict(settings)), handle_signals=False)
    topology = Topology.create(RankGrid(pipe=2, data=1, model=1))
    found = {}
    for name, changes in MODELS.items():
        for method in METHODS:
            model = GPT2PipelineModel(
                small_model(num_layers=5, **changes),
                topology,
                TensorParallel(),
                partition_method=method,
            )
            found[f"{name} {method}"] = {
                "bounds": [int(bound) for bound in model.parts],
                "parameters": sum(p.numel() for p in model.parameters()),
            }
    return found
