import pytest
import torch
import torch.nn.functional as F

from megatron.model import loss as loss_module
from megatron.model import scoring
from megatron.model.loss import (
    VocabularyPart,
    chunked_cross_entropy,
    token_losses,
)
from megatron.sizing import loss_chunks

TOKENS, HIDDEN, ROWS, VOCAB = 50, 16, 40, 33
PART = VocabularyPart(0, VOCAB)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks of unequal size, or nothing about chunking is tested."""
    monkeypatch.setattr(loss_chunks, "CHUNK_BYTES", 4 * VOCAB * 7)
    monkeypatch.setattr(loss_chunks, "MIN_CHUNK_TOKENS", 1)


def make_inputs(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(ROWS, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    mask = (torch.rand(TOKENS, generator=generator) < 0.7).to(dtype)
    return hidden, weight, labels, mask


def plain_loss(hidden, weight, labels, mask, z_loss=0.0):
    logits = hidden @ weight[:VOCAB].t()
    nll = F.cross_entropy(logits, labels, reduction="none")
    penalty = z_loss * logits.logsumexp(dim=1).square()
    return ((nll + penalty) * mask).sum() / mask.sum(), nll


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_and_gradients_equal_the_plain_form(z_loss):
    hidden, weight, labels, mask = make_inputs()
    loss, nll = chunked_cross_entropy(
        hidden, weight, labels, mask / mask.sum(), part=PART, z_loss=z_loss
    )
    gradients = torch.autograd.grad(loss, (hidden, weight))
    expected, expected_nll = plain_loss(hidden, weight, labels, mask, z_loss)
    expected_gradients = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(nll, expected_nll.detach(), rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_gradients_pass_gradcheck_in_float64():
    hidden, weight, labels, mask = make_inputs(torch.float64)
    labels, mask = labels[:10], mask[:10]  # three chunks
    hidden = hidden[:10].detach().requires_grad_()

    def weighted_loss(hidden, weight):
        return chunked_cross_entropy(
            hidden, weight, labels, mask / mask.sum(), part=PART, z_loss=1e-3
        )[0]

    assert torch.autograd.gradcheck(weighted_loss, (hidden, weight))


def test_padding_rows_have_no_influence_and_no_gradient():
    hidden, weight, labels, mask = make_inputs()
    loss, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        weight[VOCAB:] = 1e3
    changed, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    assert torch.equal(changed, loss)
    assert not gradient[VOCAB:].any()


def test_ignored_tokens_may_carry_any_label():
    hidden, weight, labels, mask = make_inputs()
    ignored = torch.where(mask.bool(), labels, torch.tensor(-100))
    loss, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    other, _ = chunked_cross_entropy(hidden, weight, ignored, mask, part=PART)
    assert torch.equal(loss, other)


def test_a_scaled_loss_scales_the_gradients():
    """What fp16 loss scaling and gradient accumulation do to the loss before backward."""
    hidden, weight, labels, mask = make_inputs()
    loss, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    base = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    scaled = torch.autograd.grad(loss * 1024.0, (hidden, weight))
    for got, want in zip(scaled, base, strict=True):
        assert torch.equal(got, want * 1024.0)


def test_accumulated_gradients_are_the_sum_over_micro_batches():
    hidden, weight, labels, mask = make_inputs()
    for rows in (slice(0, 20), slice(20, TOKENS)):
        loss, _ = chunked_cross_entropy(hidden[rows], weight, labels[rows], mask[rows], part=PART)
        loss.backward()
    whole, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    hidden_gradient, weight_gradient = torch.autograd.grad(whole, (hidden, weight))
    torch.testing.assert_close(hidden.grad, hidden_gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, weight_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_logits_of_half_precision_are_cut_without_a_difference(z_loss, monkeypatch):
    hidden, weight, labels, mask = make_inputs(torch.bfloat16)
    mask = mask.float()
    found = []
    for most in (1, 2 * VOCAB, 1 << 20):  # one row, two rows, a whole chunk
        monkeypatch.setattr(loss_module, "_CACHED_LOGITS", most)
        total, nll = chunked_cross_entropy(hidden, weight, labels, mask, part=PART, z_loss=z_loss)
        found.append((total, nll, *torch.autograd.grad(total, (hidden, weight))))
    for other in found[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, found[0], strict=True))


def test_bfloat16_losses_are_computed_in_float32():
    hidden, weight, labels, mask = make_inputs(torch.bfloat16)
    loss, nll = chunked_cross_entropy(hidden, weight, labels, mask.float(), part=PART)
    assert loss.dtype == nll.dtype == torch.float32
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    total, expected = plain_loss(*exact, labels, mask.float())
    torch.testing.assert_close(nll, expected.detach(), rtol=0.03, atol=0.03)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    wanted = torch.autograd.grad(total * mask.float().sum(), exact)
    for got, want in zip(gradients, wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - want).abs().max() <= 0.03 * want.abs().max()


def test_a_certain_wrong_prediction_gives_a_finite_loss():
    """The label's probability underflows in float32; its log must not."""
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[100.0], [600.0]])
    loss, _ = chunked_cross_entropy(
        hidden, weight, torch.tensor([0]), torch.ones(1), part=VocabularyPart(0, 2)
    )
    assert loss.item() == 500.0


def test_losses_without_gradients_are_the_same_numbers():
    hidden, weight, labels, mask = make_inputs()
    _, nll = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    torch.testing.assert_close(
        token_losses(hidden, weight, labels, PART), nll, rtol=1e-6, atol=1e-6
    )


def test_losses_and_scores_without_gradients_take_the_chunks_of_their_device(monkeypatch):
    monkeypatch.setattr(loss_chunks, "GPU_CHUNK_BYTES", 4 * ROWS * 16)
    chunks = []

    def recorded(rows, weight):
        chunks.append(len(rows))
        return rows @ weight.t()

    monkeypatch.setattr(loss_module, "product", recorded)
    monkeypatch.setattr(scoring, "product", recorded)
    hidden = torch.empty(TOKENS, HIDDEN, device="meta")
    weight = torch.empty(ROWS, HIDDEN, device="meta")
    labels = torch.empty(TOKENS, dtype=torch.int64, device="meta")
    token_losses(hidden, weight, labels, PART)
    scoring.score_targets(hidden, weight, labels, part=PART)
    assert chunks == [16, 16, 16, 2] * 2


def test_a_chunk_of_logits_stays_below_its_size_limit(monkeypatch):
    monkeypatch.setattr(loss_chunks, "CHUNK_BYTES", 1 << 20)
    assert loss_chunks.chunk_tokens(1024, "cpu") == 256
    assert loss_chunks.chunk_tokens(700, "cpu") == 256
    assert loss_chunks.chunk_tokens(3000, "cpu") == 64
    monkeypatch.setattr(loss_chunks, "GPU_CHUNK_BYTES", 4 << 20)
    assert loss_chunks.chunk_tokens(1024, "gpu") == 1024


def test_a_second_backward_pass_of_a_kept_graph_gives_the_same_gradients():
    hidden, weight, labels, mask = make_inputs()
    weight = weight[:VOCAB].detach().requires_grad_()
    loss, _ = chunked_cross_entropy(hidden, weight, labels, mask, part=PART)
    loss.backward(retain_graph=True)
    first = hidden.grad.clone(), weight.grad.clone()
    hidden.grad.zero_()  # as an optimizer would; the graph must not have been touched
    weight.grad.zero_()
    loss.backward()
    assert torch.equal(hidden.grad, first[0])
    assert torch.equal(weight.grad, first[1])
