"""Ten optimizer steps of the whole program against the same steps written out by hand.

The other side shares no code with the project: transformers' networks, or formulas in
`plain_network`; and an AdamW of one loop in `plain_training`. Its float64 and ours agree to the
few digits that angles and the scale of clipping lose in float32.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from megatron.data.batch import Batch
from megatron.engine.domain_sums import DomainLossRecorder
from megatron.hooks.base import Hook
from tests.process_group import engine_of_one
from tests.unit.oracles import plain_network
from tests.unit.oracles.plain_network import Network
from tests.unit.oracles.plain_training import PlainTraining, Step
from tests.unit.oracles.training_runs import (
    LENGTH,
    RATES,
    OurStep,
    configuration,
    make_runner,
    run_steps,
    samples,
    values,
)

transformers = pytest.importorskip("transformers")

LIMIT = 0.8
"""Some steps of each network have a larger norm, some a smaller one."""

GPT_NEOX = {"pos_emb": "rotary", "norm": "layernorm", "no_weight_tying": True}
LLAMA = {
    "pos_emb": "rotary",
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-6,
    "activation": "swiglu",
    "mlp_inner_size": 48,
    "num_kv_heads": 2,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
    "no_weight_tying": False,
}


def yarn_by_hand() -> tuple[float, ...]:
    """Pair i of 6 turns 32 / wavelength times in 32 positions: it is kept from 1.5 turns on, slowed
    four times below 0.25, and mixed by its place between."""

    def pair_with(turns: float) -> float:
        return 6 * math.log(32 / (2 * math.pi * turns)) / math.log(1000)

    first, last = pair_with(1.5), pair_with(0.25)
    found = []
    for i in range(6):
        plain = 1000 ** (-i / 6)
        slowed = min(max((i - first) / (last - first), 0), 1)
        found.append(plain * (1 - slowed) + plain / 4 * slowed)
    return tuple(found)


CASES: dict[str, tuple[dict[str, Any], Network]] = {
    "parallel": (
        {**GPT_NEOX, "rotary_pct": 0.25, "gpt_j_residual": True, "z_loss": 1e-2},
        Network(rotary_dim=2, is_parallel=True, z_loss=1e-2),
    ),
    "sequential": ({**GPT_NEOX, "rotary_pct": 1.0}, Network(rotary_dim=8)),
    "recomputed": (
        {**GPT_NEOX, "rotary_pct": 0.5, "checkpoint_activations": True, "rotary_emb_base": 500},
        Network(rotary_dim=4, rotary_base=500),
    ),
    "llama": (
        LLAMA,
        Network(
            rotary_dim=8,
            kv_heads=2,
            norm="rmsnorm",
            norm_epsilon=1e-6,
            activation="silu",
            is_gated=True,
            is_tied=True,
        ),
    ),
    "qwen3, yarn": (
        {
            **LLAMA,
            **{"head_dim": 12, "qk_norm": "head", "rotary_emb_base": 1000},
            **{"use_bias_in_attn_linear": True, "use_bias_in_attn_output": False},
            "rope_scaling": {
                **{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32},
                **{"beta_fast": 1.5, "beta_slow": 0.25, "truncate": False},
            },
        },
        Network(
            head_dim=12,
            rotary_dim=12,
            frequencies=yarn_by_hand(),
            rotary_scale=0.1 * math.log(4) + 1,
            kv_heads=2,
            qk_norm="head",
            norm="rmsnorm",
            norm_epsilon=1e-6,
            activation="silu",
            is_gated=True,
            is_tied=True,
        ),
    ),
    "gpt-neox, queries and keys, positions from 2": (
        {
            **{"pos_emb": "learned", "opt_pos_emb_offset": 2, "use_qk_layernorm": True},
            **{"max_position_embeddings": LENGTH + 2, "seq_length": LENGTH},
            **{"no_weight_tying": True, "use_bias_in_norms": False},
        },
        Network(positions="learned", first_position=2, qk_norm="neox"),
    ),
    "non-parametric norm": (
        {**GPT_NEOX, "norm": "non_parametric_layernorm", "qk_norm": "head"},
        Network(rotary_dim=8, norm="non_parametric_layernorm", qk_norm="head"),
    ),
    "one norm, learned positions": (
        {
            **{"pos_emb": "learned", "gpt_j_residual": True, "gpt_j_tied": True},
            **{"activation": "geglu", "bias_gelu_fusion": True, "num_kv_heads": 1},
            **{"mlp_inner_size": 40, "no_weight_tying": False},
        },
        Network(
            kv_heads=1,
            positions="learned",
            activation="gelu_tanh",
            is_gated=True,
            is_parallel=True,
            has_one_norm=True,
            is_tied=True,
        ),
    ),
    "scalenorm, sinusoidal positions": (
        {"pos_emb": "sinusoidal", "norm": "scalenorm", "activation": "relu"},
        Network(positions="sinusoidal", norm="scalenorm", activation="relu", is_tied=True),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    with engine_of_one(configuration()):
        yield


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_steps(weights: dict[str, torch.Tensor], net: Network, **changes: Any) -> list[Step]:
    """The ten steps by formulas alone."""

    def losses_of(weights: dict[str, torch.Tensor], step: int) -> Any:
        text = torch.from_numpy(samples(step))
        return plain_network.losses(weights, net, text[:, :-1], text[:, 1:])

    return steps_of(weights, losses_of, **changes)


def steps_of(weights: dict[str, torch.Tensor], losses_of: Any, **changes: Any) -> list[Step]:
    settings = {
        **{"rates": RATES, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2, "limit": LIMIT},
        **changes,
    }
    return PlainTraining(weights, losses_of, **settings).run()


def compare(ours: list[OurStep], plain: list[Step], *, rtol: float, atol: float) -> None:
    """Loss, norm, every gradient, weight and moment, at every step."""
    rates = RATES[: len(plain)]
    for number, (our, step, rate) in enumerate(zip(ours, plain, rates, strict=True), start=1):
        assert our.report.learning_rate == pytest.approx(rate, rel=1e-7), number
        assert our.report.lm_loss == pytest.approx(step.losses.mean().item(), rel=rtol), number
        assert our.report.grad_norm == pytest.approx(step.norm, rel=rtol), number
        assert our.report.signal.loss_sum.tolist() == pytest.approx(
            [step.losses[our.report.draw.domains == k].sum().item() for k in range(2)], rel=rtol
        )
        sides = [(our.gradients, step.gradients), (our.values["fp32"], step.weights)]
        sides += [(ours, step.moments[kind]) for kind, ours in our.values.items() if kind != "fp32"]
        for got, want in sides:
            assert not got or got.keys() == want.keys()
            for name, tensor in got.items():
                torch.testing.assert_close(
                    tensor,
                    want[name].to(tensor.dtype),
                    rtol=rtol,
                    atol=atol,
                    msg=lambda text, name=name, number=number: f"step {number}, {name}: {text}",
                )


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_are_those_of_a_plain_loop(case, monkeypatch, float64):
    changes, net = CASES[case]
    runner, config = make_runner(monkeypatch, **changes)
    weights = values(runner, ())["fp32"]
    ours = run_steps(runner, config)
    compare(ours, plain_steps(weights, net), rtol=1e-5, atol=1e-6)


def test_gradients_beyond_the_limit_are_scaled_to_it_and_others_are_left(monkeypatch, float64):
    runner, config = make_runner(monkeypatch, **CASES["sequential"][0], gradient_clipping=LIMIT)
    steps = run_steps(runner, config)
    before = [float(step.report.grad_norm) for step in steps]
    after = [sum(g.square().sum().item() for g in step.gradients.values()) ** 0.5 for step in steps]
    assert min(before) < LIMIT < max(before)
    assert after == pytest.approx([min(norm, LIMIT) for norm in before], rel=1e-5)


@pytest.mark.parametrize(("stage", "limit"), [(0, 0.0), *((stage, LIMIT) for stage in range(4))])
def test_every_zero_stage_takes_the_steps_in_float32(stage, limit, monkeypatch):
    changes, net = CASES["sequential"]
    settings = {"zero_optimization": {"stage": stage}, "gradient_clipping": limit}
    runner, config = make_runner(monkeypatch, **changes, **settings)
    weights = values(runner, ())["fp32"]
    ours = run_steps(runner, config)
    compare(ours, plain_steps(weights, net, limit=limit), rtol=1e-3, atol=1e-4)


class Evaluates(Hook):
    """Measures other text between the steps, as a validation does."""

    def __init__(self, runner: Any, net: Network) -> None:
        self.runner, self.net, self.found = runner, net, []

    def after_step(self, state: Any, report: Any) -> None:
        text = torch.from_numpy(samples(100 + state.step))
        mask, domains = torch.ones(4, LENGTH), torch.tensor([0, 1, 1, 1])
        batch = Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), mask, domains)
        recorder = DomainLossRecorder(2, self.runner.device)
        self.runner.evaluate([batch], recorder)
        sums = recorder.held_out_sums().all_reduce()
        weights = values(self.runner, ())["fp32"]
        nll = plain_network.losses(weights, self.net, text[:, :-1], text[:, 1:])[1]
        expected = [nll[0].sum().item(), nll[1:].sum().item()]
        self.found.append(sums.loss.tolist() == pytest.approx(expected, rel=1e-6))
        assert sums.tokens.tolist() == [LENGTH, 3 * LENGTH]


def test_an_evaluation_between_steps_is_right_and_changes_none_of_them(monkeypatch, float64):
    changes, net = CASES["sequential"]
    runner, config = make_runner(monkeypatch, **changes)
    weights = values(runner, ())["fp32"]
    hook = Evaluates(runner, net)
    ours = run_steps(runner, config, hook)
    assert hook.found == [True] * 10
    compare(ours, plain_steps(weights, net), rtol=1e-5, atol=1e-6)


def test_bfloat16_takes_about_the_same_steps(monkeypatch):
    """Masters are float32; their gradients have 8 bits.

    Most initial values keep a wide distance from the bounds; a few lead to steps that are so large
    that rounding decides where they go.
    """
    changes, net = CASES["sequential"]
    settings = {"precision": "bfloat16", "zero_optimization": {"stage": 1}, "seed": 1}
    runner, config = make_runner(monkeypatch, **changes, **settings)
    weights = values(runner, ())["fp32"]
    for our, plain in zip(run_steps(runner, config), plain_steps(weights, net), strict=True):
        assert our.report.lm_loss == pytest.approx(plain.losses.mean().item(), rel=0.01)
        assert our.report.grad_norm == pytest.approx(plain.norm, rel=0.05)
        for name, tensor in our.values["fp32"].items():
            want = plain.weights[name].float()
            torch.testing.assert_close(tensor, want, rtol=0.05, atol=2e-2)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_is_that_of_a_plain_loop(nesterov, monkeypatch, float64):
    changes, net = CASES["sequential"]
    params = {"lr": 0.03, "momentum": 0.7, "nesterov": nesterov}
    runner, config = make_runner(
        monkeypatch, **changes, optimizer={"type": "SGD", "params": params}
    )
    weights = values(runner, ())["fp32"]
    ours = run_steps(runner, config)
    plain = plain_steps(weights, net, momentum=0.7, nesterov=nesterov)
    compare(ours, plain, rtol=1e-5, atol=1e-6)


def test_long_rows_are_attended_to_with_the_same_gradients(monkeypatch, float64):
    changes, net = CASES["sequential"]
    length = {"seq_length": 256, "max_position_embeddings": 256}
    runner, config = make_runner(monkeypatch, **changes, **length)
    weights = values(runner, ())["fp32"]
    (ours,) = run_steps(runner, config, last_step=1)

    def losses_of(weights: dict[str, torch.Tensor], step: int) -> Any:
        text = torch.from_numpy(samples(step, 256))
        return plain_network.losses(weights, net, text[:, :-1], text[:, 1:])

    compare([ours], steps_of(weights, losses_of, rates=RATES[:1]), rtol=1e-5, atol=1e-6)


# the networks of transformers, with a mapping of weights written here


def neox_names(name: str) -> str:
    """GPTNeoXForCausalLM's name of one of our parameters."""
    layer, _, rest = name.partition(".")
    top = {
        "0": "gpt_neox.embed_in.weight",
        "5": f"gpt_neox.final_layer_norm.{name.rpartition('.')[2]}",
        "6": "lm_head.weight",
    }
    return top.get(layer) or f"gpt_neox.layers.{int(layer) - 2}.{rest}"


def neox_network(**settings: Any) -> Any:
    config = transformers.GPTNeoXConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=12,
        hidden_act="gelu",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attn_implementation="eager",
        **settings,
    )
    return transformers.GPTNeoXForCausalLM(config)


def llama_network() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config)


def neox_weights(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {neox_names(name): tensor for name, tensor in ours.items()}


def llama_weights(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cuts the fused projections: groups of (2 queries, key, value) of 8 rows; gate, then up."""
    theirs = {
        "model.embed_tokens.weight": ours["tied_modules.embed.word_embeddings.weight"],
        "model.norm.weight": ours["5.norm.scale"],
    }
    for layer in range(2):
        block, name = f"{layer + 2}", f"model.layers.{layer}"
        groups = ours[f"{block}.attention.query_key_value.weight"].view(2, 4, 8, 32)
        fused = ours[f"{block}.mlp.dense_h_to_4h.weight"].reshape(96, 32)
        theirs |= {
            f"{name}.input_layernorm.weight": ours[f"{block}.input_layernorm.scale"],
            f"{name}.post_attention_layernorm.weight": ours[
                f"{block}.post_attention_layernorm.scale"
            ],
            f"{name}.self_attn.q_proj.weight": groups[:, :2].reshape(32, 32),
            f"{name}.self_attn.k_proj.weight": groups[:, 2].reshape(16, 32),
            f"{name}.self_attn.v_proj.weight": groups[:, 3].reshape(16, 32),
            f"{name}.self_attn.o_proj.weight": ours[f"{block}.attention.dense.weight"],
            f"{name}.mlp.gate_proj.weight": fused[:48],
            f"{name}.mlp.up_proj.weight": fused[48:],
            f"{name}.mlp.down_proj.weight": ours[f"{block}.mlp.dense_4h_to_h.weight"],
        }
    return theirs


THEIRS = {
    "parallel": (
        {**GPT_NEOX, "rotary_pct": 0.25, "gpt_j_residual": True},
        lambda: neox_network(rotary_pct=0.25, use_parallel_residual=True),
        neox_weights,
    ),
    "sequential": (
        {**GPT_NEOX, "rotary_pct": 1.0, "bias_gelu_fusion": False},
        lambda: neox_network(rotary_pct=1.0, use_parallel_residual=False),
        neox_weights,
    ),
    "llama": (LLAMA, llama_network, llama_weights),
}


@pytest.mark.parametrize("case", THEIRS)
def test_ten_steps_are_those_of_transformers_and_a_plain_optimizer(case, monkeypatch, float64):
    changes, make_network, mapping = THEIRS[case]
    runner, config = make_runner(monkeypatch, **changes)
    weights, network = values(runner, ())["fp32"], make_network().double()
    assert mapping(weights).keys() | {"lm_head.weight"} == network.state_dict().keys()

    def losses_of(weights: dict[str, torch.Tensor], step: int) -> Any:
        text, theirs = torch.from_numpy(samples(step)), mapping(weights)
        if case == "llama":
            theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"]
        logits = functional_call(network, theirs, (text[:, :-1],)).logits
        losses = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none")
        return losses.mean(), losses

    compare(run_steps(runner, config), steps_of(weights, losses_of), rtol=1e-4, atol=1e-5)
