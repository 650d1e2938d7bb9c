"""A prompt of trained vectors before every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.model.init_functions import uniform
from megatron.model.parameters import make_parameter
from megatron.sizing.model_shape import ModelShape

__all__ = ["SOFT_PROMPT_NAME", "SoftPrompt", "freeze_all_but_prompt", "prompt_of_embeddings"]

SOFT_PROMPT_NAME = "1.soft_embedding_weight"
"""GPT-NeoX inserts the prompt as layer 1 and calls its parameter so."""


class SoftPrompt(nn.Module):
    """Vectors (n, h) in front of the embedded text.

    They take the first n positions of rotary embeddings. Learned and sinusoidal positions have been
    added to the text before, which keeps them: the prompt has none.
    """

    def __init__(self, config: ModelShape):
        super().__init__()
        assert config.soft_prompt is not None
        self.num_tokens = config.soft_prompt.num_tokens
        self.soft_embedding_weight = make_parameter(
            self.num_tokens,
            config.hidden_size,
            init_method=uniform(config.soft_prompt.init_range),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(b, s, h) -> (b, n + s, h)."""
        prompt = self.soft_embedding_weight.to(hidden.dtype)
        return torch.cat((prompt.expand(len(hidden), -1, -1), hidden), dim=1)

    def positions(self, positions: Tensor | None, *, is_first: bool) -> Tensor | None:
        """Positions (b, s) of the text, moved behind the prompt; with it if it ``is_first``."""
        if positions is None:
            return None
        moved = positions + self.num_tokens
        if not is_first:
            return moved
        own = torch.arange(self.num_tokens, device=positions.device)
        return torch.cat((own.expand(len(positions), -1), moved), dim=1)

    def attention_mask(self, mask: Tensor | None, length: int, *, is_first: bool) -> Tensor | None:
        """The mask of a text, (b or 1, 1, s or 1, t), in which all of the text sees the prompt.

        Args:
            mask: True where a token of the text may attend.
            length: Number of new tokens of the text, s.
            is_first: Whether the prompt is computed in this pass; it is causal in itself.
        """
        if mask is None:
            return None
        n = self.num_tokens
        if not is_first:
            return F.pad(mask, (n, 0), value=True)
        text = F.pad(mask.expand(-1, -1, length, -1), (n, 0), value=True)
        own = torch.ones(n, text.shape[-1], dtype=torch.bool, device=mask.device).tril_()
        return torch.cat((own.expand(len(text), 1, -1, -1), text), dim=2)


def freeze_all_but_prompt(model: nn.Module) -> None:
    """Leaves only the prompt to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == SOFT_PROMPT_NAME)


def prompt_of_embeddings(num_tokens: int, table: Tensor, tokens: Sequence[int]) -> Tensor:
    """The word embeddings of ``tokens``, repeated or cut to the length of a prompt.

    Args:
        num_tokens: Vectors of the prompt, n.
        table: Word embeddings of all tokens, (vocabulary, h).
        tokens: Token ids, at least one.

    Returns:
        (n, h).
    """
    return table[[tokens[place % len(tokens)] for place in range(num_tokens)]]
