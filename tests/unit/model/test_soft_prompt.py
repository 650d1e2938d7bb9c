"""A soft prompt: vectors in front of every text, which are all that is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.model.gpt2_model import GPT2Model
from megatron.model.soft_prompt import (
    SOFT_PROMPT_NAME,
    SoftPrompt,
    freeze_all_but_prompt,
    prompt_of_embeddings,
)
from megatron.neox_arguments.sections import model as sections
from tests.unit.model.shapes import small_model

LENGTH = 3
PROMPT = sections.SoftPrompt(num_tokens=LENGTH, init_string="", init_range=0.5)


def models(**changes: Any) -> tuple[GPT2Model, GPT2Model]:
    """(with a prompt, without), with the same other weights."""
    tuned = GPT2Model(small_model(soft_prompt=PROMPT, **changes), seed=3).eval()
    plain = GPT2Model(small_model(**changes), seed=3).eval()
    assert dict(tuned.named_parameters()).keys() - dict(plain.named_parameters()).keys() == {
        SOFT_PROMPT_NAME
    }
    return tuned, plain


def tokens(rows: int = 2, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(61, (rows, length), generator=generator)


@pytest.mark.parametrize("tied", [False, True])
def test_a_prompt_of_word_embeddings_is_the_text_of_these_words(tied):
    tuned, plain = models(no_weight_tying=not tied)
    words = [5, 11, 2]
    assert tuned.soft_prompt is not None
    table = tuned.embedding.word_embeddings.weight
    tuned.soft_prompt.soft_embedding_weight.data = prompt_of_embeddings(LENGTH, table, words)
    text = tokens()
    whole = torch.cat((torch.tensor([words, words]), text), dim=1)
    torch.testing.assert_close(tuned(text), plain(whole)[:, LENGTH:])


def test_a_short_text_is_repeated_and_a_long_one_cut():
    tuned, _ = models()
    table = tuned.embedding.word_embeddings.weight
    short, long = (prompt_of_embeddings(LENGTH, table, ids) for ids in ([4, 9], [1, 2, 3, 4, 5]))
    torch.testing.assert_close(short, table[[4, 9, 4]])
    torch.testing.assert_close(long, table[[1, 2, 3]])


def test_random_first_values_fill_the_range():
    prompt = sections.SoftPrompt(num_tokens=50, init_string="", init_range=0.25)
    model = GPT2Model(small_model(soft_prompt=prompt, max_position_embeddings=99), seed=3)
    values = model.get_parameter(SOFT_PROMPT_NAME)
    assert values.shape == (50, 32)
    assert 0.24 < values.abs().max().item() <= 0.25


def test_only_the_prompt_gets_a_gradient():
    tuned, _ = models()
    freeze_all_but_prompt(tuned)
    text = tokens(length=8)
    output = tuned(text[:, :-1], text[:, 1:], torch.ones(2, 7))
    output[0].backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None}
    assert trained == {SOFT_PROMPT_NAME}
    assert tuned.get_parameter(SOFT_PROMPT_NAME).grad.abs().min() > 0


@pytest.mark.parametrize("pos_emb", ["rotary", "learned", "none"])
@pytest.mark.parametrize("cuts", [(7,), (1, 6), (3, 1, 3), (6, 1)])
def test_cached_passes_equal_the_whole_one(pos_emb, cuts):
    tuned, _ = models(pos_emb=pos_emb, rotary_dim=4 if pos_emb == "rotary" else 0)
    text = tokens()
    caches = tuned.make_caches(2, 7)
    with torch.no_grad():
        parts = [tuned(part, caches=caches) for part in text.split(cuts, dim=1)]
    assert tuned.cached_tokens(caches) == 7
    torch.testing.assert_close(torch.cat(parts, dim=1), tuned(text), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pos_emb", ["rotary", "learned"])
def test_a_row_with_padding_on_the_left_equals_the_row_alone(pos_emb):
    tuned, _ = models(pos_emb=pos_emb, rotary_dim=4 if pos_emb == "rotary" else 0)
    text = tokens(rows=1)
    padded = torch.cat((torch.zeros(1, 2, dtype=torch.int64), text), dim=1)
    places = torch.arange(9)
    positions = (places - 2).clamp(min=0).unsqueeze(0)
    seen = (places >= 2)[None, None, None, :]
    mask = (seen & (places[None, :] <= places[:, None]))[..., :8, :8]
    caches = tuned.make_caches(1, 9)
    with torch.no_grad():
        first = tuned(padded[:, :8], positions=positions[:, :8], attention_mask=mask, caches=caches)
        last = tuned(padded[:, 8:], positions=positions[:, 8:], attention_mask=seen, caches=caches)
    torch.testing.assert_close(
        torch.cat((first, last), dim=1)[:, 2:], tuned(text), rtol=1e-5, atol=1e-5
    )


def test_training_recomputes_activations_with_a_prompt():
    text = tokens(length=8)
    gradients = []
    for layers in (0, 1):
        model = GPT2Model(small_model(soft_prompt=PROMPT, checkpoint_num_layers=layers), seed=3)
        freeze_all_but_prompt(model)
        output = model(text[:, :-1], text[:, 1:], torch.ones(2, 7))
        output[0].backward()
        gradients.append(model.get_parameter(SOFT_PROMPT_NAME).grad)
    torch.testing.assert_close(*gradients)


def test_a_prompt_lowers_the_loss_of_a_frozen_model():
    tuned, _ = models()
    freeze_all_but_prompt(tuned)
    before = {name: p.clone() for name, p in tuned.named_parameters() if name != SOFT_PROMPT_NAME}
    text = tokens(length=8)
    optimizer = torch.optim.Adam([tuned.get_parameter(SOFT_PROMPT_NAME)], lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = tuned(text[:, :-1], text[:, 1:], torch.ones(2, 7))[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.03
    assert all(torch.equal(before[name], tuned.get_parameter(name)) for name in before)
    assert isinstance(tuned.soft_prompt, SoftPrompt)
