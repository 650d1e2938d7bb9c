"""The input of a model: a micro-batch of tokens, labels, mask and domains."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from megatron.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank; b rows of s tokens."""

    tokens: torch.Tensor
    """Inputs, shape (b, s), int64."""
    labels: torch.Tensor
    """The token after each input, shape (b, s), int64."""
    loss_mask: torch.Tensor
    """1 where the label counts, else 0, shape (b, s), float32."""
    domain_ids: torch.Tensor
    """Number of the domain of each row, shape (b,), int64."""
    document_offsets: torch.Tensor | None = None
    """Tokens between each input and the start of its document, or of the row if that comes later,
    shape (b, s), int64; None if the model need not tell documents apart."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Returns the batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """Returns a batch with ``change`` applied to each tensor."""
        tensors = vars(self).items()
        return Batch(**{name: change(tensor) for name, tensor in tensors if tensor is not None})


def make_batch(
    tokens: np.ndarray,
    domain_ids: np.ndarray,
    *,
    eod_token: int,
    eod_mask_loss: bool = False,
    tells_documents: bool = False,
    vocab_size: int | None = None,
    domains: Sequence[str] = (),
) -> Batch:
    """Shifts samples into inputs and labels.

    Args:
        tokens: Samples, shape (b, s + 1), int64.
        domain_ids: Number of the domain of each sample, shape (b,).
        eod_token: Id of the end of a document.
        eod_mask_loss: Leaves out the prediction of the token after an end of document.
        tells_documents: Adds `Batch.document_offsets`.
        vocab_size: Ids of this size or larger are refused; None does not check.
        domains: Names of the domains, for the message.

    Raises:
        DataError: If a token id is negative or not below ``vocab_size``.
    """
    if vocab_size is not None:
        _require_known_ids(tokens, domain_ids, vocab_size=vocab_size, domains=domains)
    inputs = np.ascontiguousarray(tokens[:, :-1])
    if eod_mask_loss:
        loss_mask = (inputs != eod_token).astype(np.float32)
    else:
        loss_mask = np.ones(inputs.shape, dtype=np.float32)
    return Batch(
        tokens=torch.from_numpy(inputs),
        labels=torch.from_numpy(np.ascontiguousarray(tokens[:, 1:])),
        loss_mask=torch.from_numpy(loss_mask),
        domain_ids=torch.from_numpy(np.array(domain_ids, dtype=np.int64)),
        document_offsets=(
            torch.from_numpy(document_offsets(inputs, eod_token)) if tells_documents else None
        ),
    )


def document_offsets(tokens: np.ndarray, eod_token: int) -> np.ndarray:
    """Counts the tokens before each token in its document.

    Args:
        tokens: Shape (b, s). A document ends with ``eod_token``, which belongs to it; the first one
            of a row may have begun before the row.
        eod_token: Id of the end of a document.

    Returns:
        Shape (b, s), int64: 0 for the first token of a row and for every token after an end.
    """
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int64), tokens.shape)
    starts = np.zeros(tokens.shape, dtype=np.int64)
    np.copyto(starts[:, 1:], places[:, 1:], where=tokens[:, :-1] == eod_token)
    return places - np.maximum.accumulate(starts, axis=1)


def _require_known_ids(
    tokens: np.ndarray, domain_ids: np.ndarray, *, vocab_size: int, domains: Sequence[str]
) -> None:
    """Refuses ids without a row in the embedding; on a GPU the error would hide the cause."""
    # A negative id is a large unsigned one, so one maximum finds both.
    largest_unsigned = tokens.view(np.uint64).max()
    if largest_unsigned < vocab_size:
        return
    row, column = np.argwhere(tokens.view(np.uint64) >= vocab_size)[0]
    domain_id = int(domain_ids[row])
    domain = domains[domain_id] if domain_id < len(domains) else str(domain_id)
    raise DataError(
        f"domain {domain}: token id {tokens[row, column]} is not in the vocabulary of {vocab_size} "
        "ids; tokenize the data with the tokenizer of this run"
    )
