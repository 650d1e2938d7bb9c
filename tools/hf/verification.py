"""Proof of an export or import: transformers computes from the folder what our network computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.sizing.model_shape import ModelShape
from megatron.tokenizer import AbstractTokenizer
from tools.hf.network import filled_model
from tools.hf.tokenizer_files import TOKENIZER_FILE

__all__ = [
    "TOLERANCE",
    "Comparison",
    "compare",
    "real_text",
    "require_transformers",
    "verify_import",
]

MAX_TOKENS = 512
_MAX_REASON = 200
TOLERANCE = 1e-4
"""Of logits in float32."""


@dataclass(frozen=True)
class Comparison:
    """Largest absolute differences of logits in float32 over a real text."""

    num_tokens: int
    difference: float
    """transformers against our network with the weights as exported."""
    rounding: float
    """Our network with the weights as exported against those of the checkpoint; 0 for float32."""
    version: str
    """Version of transformers."""


def real_text() -> str:
    """English text that is always beside this program."""
    return (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def compare(
    folder: Path,
    shape: ModelShape,
    tokenizer: AbstractTokenizer,
    *,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    text: str,
    with_special_tokens: bool = True,
) -> Comparison:
    """Compares the export in ``folder`` with our network on ``text``. Memory: two models.

    Args:
        folder: The export.
        shape: Shape of the network.
        tokenizer: The tokenizer of the run.
        read: Returns parameters of the checkpoint by name.
        dtype: Number format of the export.
        text: As many tokens of it as the context holds are used, at most 512.
        with_special_tokens: Whether the tokens that `AutoTokenizer` adds to a text must be those
            of training; if not, they do not count.

    Raises:
        CheckpointError: If transformers misses or does not know a tensor, or splits the text into
            other tokens.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ids = tokenizer.tokenize(text)
    if (folder / TOKENIZER_FILE).is_file():
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        found = theirs(text, add_special_tokens=with_special_tokens)["input_ids"]
        _check_tokens(found, ids)
    tokens = torch.tensor([ids[: min(MAX_TOKENS, shape.max_position_embeddings)]])
    with torch.no_grad():
        exported = filled_model(shape, lambda name: read(name).to(dtype).float())(tokens)
        rounding = 0.0
        if dtype != torch.float32:
            rounding = _largest(exported - filled_model(shape, read)(tokens))
        logits = _load(folder, transformers)(tokens).logits
    if logits.shape != exported.shape:
        raise CheckpointError(
            f"verification: logits of shape {tuple(logits.shape)}, ours {tuple(exported.shape)}"
        )
    return Comparison(
        tokens.numel(), _largest(logits - exported), rounding, transformers.__version__
    )


def verify_import(folder: Path, shape: ModelShape, *, read: Callable[[str], Tensor]) -> str:
    """Compares our network with the model folder that it is made from, on random tokens.

    Args:
        folder: The folder of transformers.
        shape: Shape of our network, without padding of the vocabulary.
        read: Returns parameters of our network by name.

    Returns:
        A line for the user.

    Raises:
        CheckpointError: If transformers is not installed, misses or does not know a tensor, or
            computes other logits.
    """
    require_transformers("leave --verify out")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    size = (1, min(MAX_TOKENS, shape.max_position_embeddings))
    tokens = torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = filled_model(shape, read)(tokens)
        try:
            theirs = _load(folder, transformers)(tokens).logits[..., : shape.vocab_size]
        except CheckpointError:
            raise
        except Exception as error:  # a foreign folder makes transformers raise errors of many kinds
            reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
            raise CheckpointError(
                f"{folder}: verification: transformers {transformers.__version__} cannot use the "
                f"model: {reason}; leave --verify out to import it all the same"
            ) from error
    difference, version = _largest(theirs - ours), transformers.__version__
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: verification: logits differ by {difference:.2e} from transformers "
            f"{version}, more than {TOLERANCE:g}; nothing was written"
        )
    return (
        f"verified with transformers {version} on {tokens.numel()} random tokens: logits differ by "
        f"{difference:.2e} at most (tolerance {TOLERANCE:g})"
    )


def require_transformers(alternative: str) -> None:
    """Raises CheckpointError if the package is not installed, with what to do instead."""
    if importlib.util.find_spec("transformers") is None:
        raise CheckpointError(
            f"--verify: the package transformers is not installed; install it or {alternative}"
        )


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()  # NaN stays NaN, and no tolerance admits it


def _load(folder: Path, transformers: Any) -> Any:
    # config.json may name a format that would round the weights of the files
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = ", ".join(sorted(map(str, report[kind]))[:3])
            raise CheckpointError(f"verification: transformers reports {kind}: {names}")
    return model.eval()


def _check_tokens(found: list[int], ids: list[int]) -> None:
    if found != ids:
        first = next(
            (n for n, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(ids)),
        )
        raise CheckpointError(
            f"verification: AutoTokenizer gives other tokens than training, from token {first} on: "
            f"{found[first : first + 3]}, but training has {ids[first : first + 3]}"
        )
