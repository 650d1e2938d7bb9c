"""Our network against transformers' GPTNeoXForCausalLM with the same weights."""

import pytest
import torch
import torch.nn.functional as F

from megatron.model.gpt2_model import GPT2Model
from tests.unit.model.shapes import small_model

transformers = pytest.importorskip("transformers")


def copy_weights(ours: GPT2Model, theirs, num_layers: int) -> None:
    """Fused rows are [head, 3, d] in both; padding rows do not exist in theirs."""
    source = dict(ours.named_parameters())
    target = theirs.state_dict()
    vocab = ours.config.vocab_size
    renamed = {
        "gpt_neox.embed_in.weight": source["0.word_embeddings.weight"][:vocab],
        "gpt_neox.final_layer_norm.weight": source[f"{num_layers + 3}.norm.weight"],
        "gpt_neox.final_layer_norm.bias": source[f"{num_layers + 3}.norm.bias"],
    }
    output = next(name for name in target if name.startswith(("lm_head", "embed_out")))
    renamed[output] = source[f"{num_layers + 4}.final_linear.weight"][:vocab]
    for name in target:
        if name.startswith("gpt_neox.layers."):
            _, _, layer, rest = name.split(".", 3)
            renamed[name] = source[f"{int(layer) + 2}.{rest}"]
    theirs.load_state_dict({name: tensor.detach().clone() for name, tensor in renamed.items()})


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("rotary_pct", [0.25, 0.5, 1.0])
def test_logits_and_loss_agree(parallel, rotary_pct):
    shape = small_model(
        gpt_j_residual=parallel, head_dim=8, rotary_dim=int(8 * rotary_pct), init_method_std=0.1
    )
    ours = GPT2Model(shape, seed=4).eval()
    config = transformers.GPTNeoXConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        rotary_pct=rotary_pct,
        hidden_act="gelu",
        max_position_embeddings=24,
        use_parallel_residual=parallel,
        layer_norm_eps=1e-5,
    )
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    copy_weights(ours, theirs, 2)
    text = torch.randint(0, 61, (3, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, want = ours(text[:, :-1]), theirs(text[:, :-1]).logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        loss, _ = ours(text[:, :-1], text[:, 1:], torch.ones(3, 24))
    want_loss = F.cross_entropy(want.flatten(0, 1), text[:, 1:].flatten())
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=0)
