import pytest
import torch
import torch.nn.functional as F

from megatron.model.gpt2_model import GPT2Model
from tests.unit.model.shapes import small_model

VARIANTS = {
    "pythia": {"gpt_j_residual": True},
    "sequential": {},
    "tied parallel norm": {"gpt_j_residual": True, "gpt_j_tied": True},
    "tied embeddings": {"no_weight_tying": False},
    "learned positions": {"pos_emb": "learned", "rotary_dim": 0},
    "sinusoidal positions": {"pos_emb": "sinusoidal", "rotary_dim": 0},
    "no positions": {"pos_emb": "none", "rotary_dim": 0},
    "full rotary": {"rotary_dim": 8},
    "llama-like": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "is_gated_mlp": True,
        "num_kv_heads": 2,
        "use_bias_in_attn_linear": False,
        "use_bias_in_mlp": False,
    },
    "scalenorm": {"norm": "scalenorm"},
    "mish": {"activation": "mish"},
}


def batch(seed: int = 0, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (2, length + 1), generator=generator)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
class TestEveryVariant:
    def test_the_loss_is_the_cross_entropy_of_the_logits_with_the_same_gradients(self, changes):
        model = GPT2Model(small_model(**changes), seed=1)
        text = batch()
        tokens, labels = text[:, :-1], text[:, 1:]
        loss, _ = model(tokens, labels, torch.ones(labels.shape))
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        expected = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        for name, parameter in model.named_parameters():
            scale = parameter.grad.abs().max().clamp_min(1e-6)
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-5 * scale, name

    def test_a_causal_mask_and_positions_by_hand_change_no_gradient(self, changes):
        model = GPT2Model(small_model(**changes), seed=1)
        tokens, mask = batch()[:, :-1], torch.ones(12, 12, dtype=torch.bool).tril()
        positions = torch.arange(12).expand(2, 12)
        results = []
        for context in ({}, {"positions": positions, "attention_mask": mask}):
            model.zero_grad()
            model(tokens, **context).square().sum().backward()
            results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for got, want in zip(*results, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max().clamp_min(1e-6)

    def test_a_token_sees_no_later_token(self, changes):
        model = GPT2Model(small_model(**changes), seed=1).eval()
        tokens = batch()[:, :-1]
        changed = tokens.clone()
        changed[:, 7] = (changed[:, 7] + 1) % 61
        with torch.no_grad():
            before, after = model(tokens), model(changed)
        torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-6)
        assert not torch.allclose(before[:, 7:], after[:, 7:])

    def test_recomputed_activations_give_the_same_gradients(self, changes):
        text = batch()
        results = []
        for checkpoint_num_layers in (0, 1, 2):
            model = GPT2Model(
                small_model(**changes, checkpoint_num_layers=checkpoint_num_layers), seed=1
            )
            loss, _ = model(text[:, :-1], text[:, 1:], torch.ones(2, 12))
            loss.backward()
            results.append([p.grad for p in model.parameters()])
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                assert torch.equal(one, two)


def test_parameters_have_the_names_of_gpt_neox():
    names = [name for name, _ in GPT2Model(small_model(), seed=1).named_parameters()]
    assert names[0] == "0.word_embeddings.weight"
    assert "2.attention.query_key_value.weight" in names
    assert "3.mlp.dense_4h_to_h.bias" in names
    assert names[-3:] == ["5.norm.weight", "5.norm.bias", "6.final_linear.weight"]


def test_tied_embeddings_exist_once():
    model = GPT2Model(small_model(no_weight_tying=False), seed=1)
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "tied_modules.embed.word_embeddings.weight"
    assert not any("final_linear" in name for name in names)


def test_initial_values_depend_on_seed_and_name_alone():
    one = dict(GPT2Model(small_model(), seed=1).named_parameters())
    deeper = dict(GPT2Model(small_model(num_layers=2), seed=1).named_parameters())
    other = dict(GPT2Model(small_model(), seed=2).named_parameters())
    for name, parameter in one.items():
        assert torch.equal(parameter, deeper[name])
    name = "2.attention.dense.weight"
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one["3.attention.dense.weight"])


def test_a_pass_with_caches_keeps_nothing_for_gradients():
    model = GPT2Model(small_model(), seed=1)
    hidden = model.hidden_states(batch(), caches=model.make_caches(2, 13))
    assert not hidden.requires_grad


def test_vocabulary_padding_does_not_change_the_model():
    text = batch()
    losses = []
    for padded in (61, 64, 128):
        model = GPT2Model(small_model(padded_vocab_size=padded), seed=1)
        losses.append(model(text[:, :-1], text[:, 1:], torch.ones(2, 12))[0].item())
    assert losses[0] == losses[1] == losses[2]


def test_rotary_angles_stay_float32_in_a_bfloat16_model():
    model = GPT2Model(small_model(), seed=1).bfloat16()
    rotary = model.get_submodule("2.attention").rotary
    cos, sin = rotary.get(24, like=next(model.parameters()))
    assert cos.dtype == sin.dtype == torch.float32
    assert model(batch()[:, :-1]).dtype == torch.bfloat16


def test_the_loss_ignores_masked_tokens():
    model = GPT2Model(small_model(), seed=1)
    text = batch()
    mask = torch.ones(2, 12)
    mask[:, 5:] = 0
    other = text.clone()
    other[:, 6:] = 3
    with torch.no_grad():
        loss, _ = model(text[:, :-1], text[:, 1:], mask)
        assert model(text[:, :-1], other[:, 1:], mask)[0] == loss


@pytest.mark.parametrize("dropout", ["hidden_dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(dropout):
    model = GPT2Model(small_model(**{dropout: 0.5}), seed=1)
    tokens = batch()[:, :-1]
    with torch.no_grad():
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))
