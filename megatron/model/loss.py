"""Unembedding and cross entropy in one pass.

A language model's largest activation is the (tokens, vocabulary) matrix of logits. Here it exists
for one chunk of tokens at a time: for each chunk the forward pass computes logits, per-token losses
*and* the gradients of the hidden states and of the unembedding matrix, and then frees the logits.
The backward pass only scales these gradients.

Shapes: n tokens, h hidden size, v tokens of the vocabulary on this rank, c tokens per chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.model.cpu.products import product, transposed_product
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing import loss_chunks

__all__ = [
    "ChunkTerms",
    "VocabularyPart",
    "chunk_terms",
    "chunked_cross_entropy",
    "token_losses",
    "upcast",
]

ChunkTerms = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""See `chunk_terms`."""

_SMALLEST_LIKELIHOOD = 1e-30
"""Below it, float32 probabilities lose digits, so the loss is computed from the logits."""
_CACHED_LOGITS = 1 << 20
"""Logits of half precision that a CPU makes float32 at a time: 4 MiB."""


@dataclass(frozen=True)
class VocabularyPart:
    """The tokens whose rows of the unembedding are on a rank."""

    first: int
    """First token of the part."""
    size: int
    """Number of tokens; further rows of the matrix are padding."""
    tp: TensorParallel = SINGLE

    def localize(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A valid row number per label (c,), and whether the label is in this part (c,)."""
        local = labels - self.first
        is_here = (local >= 0) & (local < self.size)
        return local.clamp(0, max(0, self.size - 1)), is_here


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weight: Tensor,
    *,
    part: VocabularyPart,
    z_loss: float = 0.0,
    terms: ChunkTerms | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy of ``hidden @ weight.T`` against ``labels``.

    Args:
        hidden: (n, h), any floating dtype; the same on all ranks of the tensor-parallel group. Its
            gradient is this rank's part of the sum.
        weight: (rows >= part.size, h), same dtype; rows beyond ``part.size`` are padding.
        labels: (n,) int64 tokens; labels with ``token_weight`` 0 have no effect.
        token_weight: (n,) float; the loss is ``sum(token_weight * nll)``. It gets no gradient.
        part: The tokens to which the rows of ``weight`` belong.
        z_loss: Adds ``z_loss * logsumexp(logits)^2`` per token (Chowdhery et al. 2022,
            arXiv:2204.02311), with the same token weights.
        terms: `chunk_terms`, compiled; None computes operation by operation, in place. Only for a
            group of one.

    Returns:
        The scalar loss, and the negative log-likelihoods (n,) in nats without z-loss, float32
        (float64 for float64 input), not differentiable; the same on all ranks of the group.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, token_weight, part, z_loss, terms)


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, part: VocabularyPart) -> Tensor:
    """Negative log-likelihoods (n,) in nats, without gradients; see `chunked_cross_entropy`."""
    size = loss_chunks.chunk_tokens(weight.shape[0], hidden.device.type)
    valid = weight[: part.size]
    pieces = zip(hidden.split(size), labels.split(size), strict=True)
    return torch.cat([_softmax(upcast(product(h, valid)), h, valid, y, part)[2] for h, y in pieces])


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, token_weight, part, z_loss, terms):
        size = loss_chunks.chunk_tokens(weight.shape[0], hidden.device.type)
        valid = weight[: part.size]
        accumulator = _upcast_dtype(hidden.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        nll = torch.empty(hidden.shape[0], dtype=accumulator, device=hidden.device)
        loss = torch.zeros((), dtype=accumulator, device=hidden.device)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            chunk, chunk_weight = hidden[rows], token_weight[rows].to(accumulator)
            own_labels = labels[rows]
            if terms is None:
                found = _terms_in_place(chunk, valid, own_labels, part, z_loss)
            else:
                found = terms(product(chunk, valid), own_labels, z_loss)
            nll[rows], log_normalizer, grad_logits = found
            loss += torch.dot(nll[rows], chunk_weight)
            if z_loss:
                loss += z_loss * torch.dot(log_normalizer.square(), chunk_weight)
            # d loss / d logits without the token's weight, by which the smaller operand is scaled
            scale = chunk_weight[:, None].to(hidden.dtype)
            if grad_hidden is not None:
                torch.mul(product(grad_logits, valid.t()), scale, out=grad_hidden[rows])
            if wants_weight:
                grad_weight = _add_product(grad_weight, grad_logits, chunk * scale)
            del found, grad_logits  # the next chunk uses the same memory
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_like = (weight.shape, weight.dtype)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx, *grads):
        grad_hidden, grad_valid = ctx.saved_tensors
        scale, grad_weight = grads[0], None
        # only on a CPU, which saves a copy of the gradients: elsewhere reading the scale would wait
        is_one = scale.device.type == "cpu" and scale.item() == 1.0
        if grad_hidden is not None and not is_one:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_valid is not None:
            shape, dtype = ctx.weight_like
            if is_one and grad_valid.shape == shape and grad_valid.dtype == dtype:
                return grad_hidden, grad_valid.contiguous(), None, None, None, None, None
            grad_weight = torch.empty(shape, dtype=dtype, device=grad_valid.device)
            num_valid = grad_valid.shape[0]
            torch.mul(grad_valid, scale, out=grad_weight[:num_valid])
            grad_weight[num_valid:].zero_()
        return grad_hidden, grad_weight, None, None, None, None, None


def _terms_in_place(
    chunk: Tensor, valid: Tensor, labels: Tensor, part: VocabularyPart, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `chunk_terms` for the logits ``chunk @ valid.T``, in one large buffer."""
    logits = product(chunk, valid)
    if (
        logits.dtype == _upcast_dtype(logits.dtype)
        or part.tp.size > 1
        or logits.device.type != "cpu"
    ):
        nll, log_normalizer, gradient = _exact_terms(logits, chunk, valid, labels, part, z_loss)
        return nll, log_normalizer, gradient.to(chunk.dtype)
    # the float32 copies of a few rows stay in a CPU's cache, and their gradient replaces the logits
    size = max(1, _CACHED_LOGITS // max(1, part.size))
    found = []
    for rows, features, own_labels in zip(
        logits.split(size), chunk.split(size), labels.split(size), strict=True
    ):
        *terms, gradient = _exact_terms(rows, features, valid, own_labels, part, z_loss)
        rows.copy_(gradient)
        found.append(terms)
    nll, log_normalizer = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return nll, log_normalizer, logits


def _exact_terms(
    logits: Tensor,
    chunk: Tensor,
    valid: Tensor,
    labels: Tensor,
    part: VocabularyPart,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `chunk_terms` in `_upcast_dtype`; overwrites logits that have it already."""
    probabilities, chosen, nll = _softmax(upcast(logits), chunk, valid, labels, part)
    log_normalizer = chosen + nll
    if z_loss:
        probabilities.mul_((1.0 + 2.0 * z_loss * log_normalizer)[:, None])
    return nll, log_normalizer, _subtract_one_hot(probabilities, labels, part)


def chunk_terms(logits: Tensor, labels: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of tokens, log-normalisers (c,), and the gradient of the logits in their dtype.

    Without changes in place, a compiler makes two passes of it: the sums of each row, and the
    gradient. The logits are read twice and written once, in the precision of the product.

    Args:
        logits: (c, v).
        labels: (c,) int64, below v.
        z_loss: As for `chunked_cross_entropy`.
    """
    exact = upcast(logits)
    log_normalizer = exact.logsumexp(dim=1)
    nll = log_normalizer - exact.gather(1, labels[:, None]).squeeze(1)
    gradient = (exact - log_normalizer[:, None]).exp()
    if z_loss:
        gradient = gradient * (1.0 + 2.0 * z_loss * log_normalizer)[:, None]
    places = torch.arange(logits.shape[1], device=logits.device)
    gradient = gradient - (places == labels[:, None]).to(gradient.dtype)
    return nll, log_normalizer, gradient.to(logits.dtype)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total + left.T @ right`` in place, (c, v) and (c, h) -> (v, h); sums in `_upcast_dtype`."""
    if total is None:
        return upcast(transposed_product(left, right))
    if total.dtype == left.dtype and total.is_contiguous():
        return total.addmm_(left.t(), right)
    return total.add_(transposed_product(left, right))


def _subtract_one_hot(probabilities: Tensor, labels: Tensor, part: VocabularyPart) -> Tensor:
    """Subtracts 1 from the probability of each label in this part, in place."""
    if part.size:
        local, is_here = part.localize(labels)
        ones = is_here.to(probabilities.dtype).neg_()
        probabilities.scatter_add_(1, local[:, None], ones[:, None])
    return probabilities


def _softmax(
    logits: Tensor, chunk: Tensor, weight: Tensor, labels: Tensor, part: VocabularyPart
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (c, v) of this part, the labels' logits (c,), negative log-likelihoods (c,).

    The probabilities overwrite the logits ``chunk @ weight.T``, so that a chunk needs only one
    large buffer.
    """
    if part.tp.size > 1:
        return _parallel_softmax(logits, labels, part)
    local, _ = part.localize(labels)
    chosen = logits.gather(1, local[:, None]).squeeze(1)
    if logits.device.type != "cpu":  # checking for underflow would wait for the device
        nll = logits.logsumexp(dim=1) - chosen
        return torch.softmax(logits, dim=1, out=logits), chosen, nll
    # On a CPU it is faster to read the logits one time less: the likelihood of a label is taken
    # from the probabilities, unless it underflowed.
    probabilities = torch.softmax(logits, dim=1, out=logits)
    likelihood = probabilities.gather(1, local[:, None]).squeeze(1)
    nll = -likelihood.log()
    (lost,) = torch.where(likelihood < _SMALLEST_LIKELIHOOD)
    if len(lost):
        nll[lost] = upcast(chunk[lost] @ weight.t()).logsumexp(dim=1) - chosen[lost]
    return probabilities, chosen, nll


def _parallel_softmax(
    logits: Tensor, labels: Tensor, part: VocabularyPart
) -> tuple[Tensor, Tensor, Tensor]:
    """`_softmax` with the logits distributed over ranks: two small all-reduces per chunk."""
    count = logits.shape[0]
    if part.size:
        largest = logits.amax(dim=1)
        local, is_here = part.localize(labels)
        chosen = logits.gather(1, local[:, None]).squeeze(1) * is_here
    else:  # a rank that has only padding
        largest = logits.new_full((count,), float("-inf"))
        chosen = logits.new_zeros(count)
    part.tp.all_reduce(largest, op=dist.ReduceOp.MAX)
    exponentials = logits.sub_(largest[:, None]).exp_()
    normalizer, chosen = part.tp.all_reduce(torch.stack((exponentials.sum(dim=1), chosen)))
    nll = normalizer.log() + largest - chosen
    return exponentials.div_(normalizer[:, None]), chosen, nll


def _upcast_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in the precision of losses: float32, or float64 if it already is."""
    return tensor.to(_upcast_dtype(tensor.dtype))
