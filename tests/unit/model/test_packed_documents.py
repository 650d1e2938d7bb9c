"""Documents in a row, windows and relative biases in the whole model: losses, inference, tasks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.eval_tasks.likelihood import score_pairs
from megatron.generation.decoder import BatchDecoder
from megatron.model.gpt2_model import GPT2Model
from tests.unit.model.attention_by_hand import attention_by_hand
from tests.unit.model.shapes import small_model

POSITIONS = ("rotary", "learned", "sinusoidal", "none", "alibi", "rpe")
REACHES: dict[str, tuple] = {
    "everything": (),
    "windows": ((3, 1), (3, 1)),
    "local and global": ((1, 4), None),
}
RESET = {"reset_attention_mask": True, "reset_position_ids": True}
LENGTHS = (7, 1, 8, 8)
OFFSETS = torch.tensor([[p for n in LENGTHS[:3] for p in range(n)], [*range(8), *range(8)]])


def make_model(positions: str, reach: tuple = (), **changes) -> GPT2Model:
    config = small_model(
        pos_emb=positions,
        rotary_dim=4 if positions == "rotary" else 0,
        attention_reach=reach,
        rpe_num_buckets=8,
        rpe_max_distance=12,
        **changes,
    )
    model = GPT2Model(config, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that every part counts
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator()))
    return model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=generator())


def losses(model: GPT2Model, text: Tensor, *offsets: Tensor) -> Tensor:
    _, nll = model(text[:, :-1], text[:, 1:], torch.ones(text[:, 1:].shape), *offsets)
    return nll


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("positions", POSITIONS)
class TestEveryKind:
    def test_documents_in_a_row_have_the_losses_of_each_alone(self, positions, reach):
        model = make_model(positions, REACHES[reach], **RESET)
        text = tokens(2, 17)
        packed = losses(model, text, OFFSETS)
        for row, lengths in ((0, LENGTHS[:3]), (1, (8, 8))):
            start = 0
            for length in lengths:
                alone = losses(model, text[row : row + 1, start : start + length + 1])
                got = packed[row : row + 1, start : start + length]
                torch.testing.assert_close(got, alone, rtol=0, atol=1e-5)
                start += length

    def test_recomputed_activations_of_documents_give_the_same_gradients(self, positions, reach):
        text, results = tokens(2, 17), []
        for count in (0, 1, 2):
            model = make_model(positions, REACHES[reach], checkpoint_num_layers=count, **RESET)
            loss, _ = model(text[:, :-1], text[:, 1:], torch.ones(2, 16), OFFSETS)
            loss.backward()
            results.append([parameter.grad for parameter in model.parameters()])
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)

    def test_cached_generation_computes_what_recomputing_does(self, positions, reach):
        model = make_model(positions, REACHES[reach]).eval()
        prompts = [[5, 9, 2], list(range(3, 14)), [7, 1, 1, 8, 30]]
        with torch.no_grad():
            cached, again = (
                BatchDecoder(model, prompts, capacity=18, recompute=recompute)
                for recompute in (False, True)
            )
            texts = [list(prompt) for prompt in prompts]
            for _ in range(6):
                got, want = cached.next_logits(), again.next_logits()
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
                alone = [model(torch.tensor([text]))[0, -1] for text in texts]
                torch.testing.assert_close(got, torch.stack(alone), rtol=1e-5, atol=1e-5)
                chosen = got.argmax(dim=-1)
                for text, token in zip(texts, chosen.tolist(), strict=True):
                    text.append(token)
                cached.append(chosen)
                again.append(chosen)

    def test_endings_that_share_a_context_score_as_each_alone(self, positions, reach):
        model = make_model(positions, REACHES[reach]).eval()
        context = [4, 8, 15, 16, 23, 42]
        endings = [[1, 2, 3, 4], [5, 6, 7], [9], [10, 11, 12, 13, 14]]
        scores = score_pairs(model, [(context, ending) for ending in endings], max_batch_tokens=999)
        for ending, (score, _) in zip(endings, scores, strict=True):
            text = torch.tensor([context + ending])
            with torch.no_grad():
                alone = -losses(model, text)[0, len(context) - 1 :].sum()
            assert score == pytest.approx(alone.item(), abs=2e-5)

    def test_training_lowers_the_loss(self, positions, reach):
        model = make_model(positions, REACHES[reach], **RESET)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        text, history = tokens(2, 17), []
        for _ in range(12):
            optimizer.zero_grad()
            loss, _ = model(text[:, :-1], text[:, 1:], torch.ones(2, 16), OFFSETS)
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        assert history[-1] < 0.5 * history[0]


def test_without_the_reset_keys_offsets_change_nothing():
    model, text = make_model("rotary"), tokens(2, 17)
    assert torch.equal(losses(model, text, OFFSETS), losses(model, text))


@pytest.mark.parametrize("key", RESET)
def test_each_reset_key_changes_only_its_part(key):
    text = tokens(1, 17)
    offsets = OFFSETS[1:]
    learned = make_model("learned", **{key: True})
    changed = losses(learned, text, offsets)
    assert not torch.allclose(changed, losses(learned, text))
    last = losses(learned, text[:, 8:])
    seen_alone = torch.allclose(changed[:, 8:], last, atol=1e-5)
    # with the mask alone the second document has the positions 8 on; with the positions alone it
    # sees the first one
    assert not seen_alone


def test_the_learned_bias_has_one_table_and_moves_the_scores():
    model = make_model("rpe")
    names = [name for name, _ in model.named_parameters() if "rpe" in name]
    assert names == ["rpe.weight"]
    assert model.get_parameter("rpe.weight").shape == (8, 4)
    attention = model.get_submodule("2").attention
    hidden = torch.randn(1, 6, 32, generator=generator())
    fused = attention.query_key_value(hidden).view(1, 6, 4, 3, 8)
    query, key, value = fused.permute(3, 0, 2, 1, 4)
    table = model.get_parameter("rpe.weight") * 8**0.5
    bucket = (0, 1, 2, 3, 4, 4)  # of 8 buckets up to 12: 4 + floor(ln(d / 4) / ln 3 * 4)
    mixed = attention_by_hand(
        query, key, value, documents=[[6]], bias=lambda distance: table[bucket[distance]]
    )
    dense = attention.dense
    want = F.linear(mixed.transpose(1, 2).flatten(2), dense.weight, dense.bias)
    torch.testing.assert_close(attention(hidden), want, rtol=1e-5, atol=1e-6)


def test_a_window_as_wide_as_the_row_changes_nothing_and_a_narrower_one_does():
    text = tokens(1, 17)
    free, wide, narrow = (
        losses(make_model("rotary", reach), text)
        for reach in ((), ((15, 1), (15, 1)), ((14, 1), (14, 1)))
    )
    torch.testing.assert_close(wide, free, rtol=1e-5, atol=1e-6)
    assert torch.allclose(narrow[:, :15], free[:, :15], atol=1e-6)
    assert not torch.allclose(narrow[:, 15], free[:, 15], atol=1e-4)


def kept_for_gradients(model: GPT2Model, *inputs: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = model(*inputs)
    loss.backward()
    return sum(kept.values())


def test_documents_of_2048_tokens_need_as_much_memory_as_a_causal_row_within_a_tenth():
    size = {"hidden_size": 64, "head_dim": 16, "mlp_inner_size": 256, "num_layers": 2}
    model = make_model("rotary", **size, max_position_embeddings=2048, **RESET)
    text = tokens(1, 2049)
    lengths = (500, 3, 20, 90, 700, 35, 300, 400)
    offsets = torch.tensor([[place for length in lengths for place in range(length)]])
    assert offsets.shape == (1, 2048)
    inputs = (text[:, :-1], text[:, 1:], torch.ones(1, 2048))
    packed, causal = kept_for_gradients(model, *inputs, offsets), kept_for_gradients(model, *inputs)
    assert packed < 1.10 * causal
