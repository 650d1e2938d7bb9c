"""The GPT-NeoX network as one list of layers, and the module without pipeline stages made of it.

Parameters are named by GPT-NeoX's layer numbers, on every layout: ``0`` embedding, ``2 .. L+1``
blocks, ``L+3`` final norm, ``L+4`` output matrix (1 and L+2 were transpositions in GPT-NeoX and are
empty here; 1 is the soft prompt if there is one). With tied embeddings layer 0 is
``tied_modules.embed`` and there is no L+4. Learned relative biases, which GPT-NeoX writes with
every block, are ``rpe``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.attention_span import layer_spans
from megatron.model.forward_context import ForwardContext, document_context, make_context
from megatron.model.init_functions import initialize_parameters
from megatron.model.key_value_cache import KeyValueCache
from megatron.model.output_layer import FinalNorm, OutputLayer
from megatron.model.positional_embeddings import make_rotary
from megatron.model.relative_bias import SHARED_BIAS, RelativeBias, make_relative_bias
from megatron.model.soft_prompt import SoftPrompt
from megatron.model.transformer import TransformerLayer
from megatron.model.word_embeddings import Embedding
from megatron.mpu.tensor_parallel import SINGLE, TensorParallel
from megatron.sizing.model_shape import ModelShape

__all__ = ["GPT2Model", "layer_list"]

LayerRecipe = tuple[type[nn.Module], tuple[Any, ...]]
"""Class of a layer, and its positional arguments."""


def layer_list(
    config: ModelShape, tp: TensorParallel = SINGLE, *, bias: RelativeBias | None = None
) -> dict[int, LayerRecipe]:
    """GPT-NeoX's layer numbers -> class and arguments of the layer.

    With tied embeddings the layer after the final norm is missing, since it has no matrix. The
    blocks share ``bias``; if it has parameters, the caller registers it as `SHARED_BIAS`.
    """
    rotary = make_rotary(config)
    top = config.num_layers + 2
    layers: dict[int, LayerRecipe] = {0: (Embedding, (config, tp))}
    for index, span in enumerate(layer_spans(config, bias), start=2):
        layers[index] = (TransformerLayer, (config, rotary, tp, span))
    if config.soft_prompt is not None:
        layers[1] = (SoftPrompt, (config,))
    layers[top + 1] = (FinalNorm, (config, tp))
    if config.no_weight_tying:
        layers[top + 2] = (OutputLayer, (config, tp))
    return layers


class GPT2Model(nn.Module):
    """The whole network on one rank.

    Args:
        seed: Seed of the initial values, see `initialize_parameters`; None leaves the parameters
            without memory and values.
        tp: The tensor-parallel group.
    """

    def __init__(
        self,
        config: ModelShape,
        *,
        seed: int | None,
        tp: TensorParallel = SINGLE,
    ):
        super().__init__()
        self.config = config
        self.tp = tp
        bias = make_relative_bias(config, tp)
        recipes = layer_list(config, tp, bias=bias)
        layers = {index: kind(*args) for index, (kind, args) in recipes.items()}
        self._block_names = [str(index) for index in range(2, config.num_layers + 2)]
        self._norm_name = str(config.num_layers + 3)
        self._output_name = str(config.num_layers + 4)
        first_block = layers[2]
        assert isinstance(first_block, TransformerLayer)
        self._rotary = first_block.attention.rotary
        embedding = layers.pop(0)
        assert isinstance(embedding, Embedding)
        if config.no_weight_tying:
            self.add_module("0", embedding)
        else:
            self.tied_modules = nn.ModuleDict({"embed": embedding})
        if isinstance(bias, nn.Module):
            self.add_module(SHARED_BIAS, bias)
        for index, layer in layers.items():
            self.add_module(str(index), layer)
        if not config.no_weight_tying:
            output = OutputLayer(config, tp, tied=embedding.word_embeddings)
            self.add_module(self._output_name, output)
        if seed is not None:
            initialize_parameters(self, seed, tp_rank=tp.rank)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        document_offsets: Tensor | None = None,
        *,
        caches: Sequence[KeyValueCache] | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        last_logits_only: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, or with labels the pair (mean loss of the micro-batch, losses of its tokens).

        Args:
            tokens: (b, s) int64.
            labels: (b, s) int64, the next tokens.
            loss_mask: (b, s), 0 for tokens that do not count.
            document_offsets: (b, s) int64, tokens of its document before each token, as for
                `hidden_states`.
            caches: One cache per layer, as for `hidden_states`; None keeps no keys and values.
            positions: (b, s) int64, position of each token, as for `hidden_states`.
            attention_mask: True where a token may attend, as for `hidden_states`.
            last_logits_only: Whether to return only the logits of the last position, (b, 1,
                vocab_size).

        Returns:
            Logits (b, s, vocab_size); with labels see `OutputLayer`.
        """
        hidden = self.hidden_states(
            tokens,
            caches=caches,
            positions=positions,
            attention_mask=attention_mask,
            document_offsets=document_offsets,
        )
        output = self.output_layer
        if labels is None:
            return output(hidden[:, -1:] if last_logits_only else hidden)
        return output(hidden, labels, loss_mask)

    def _with_bias_values(
        self, context: ForwardContext | None, hidden: Tensor
    ) -> tuple[ForwardContext | None, Tensor | None]:
        """The learned biases, if there are any, and a context that can take them."""
        bias = getattr(self, SHARED_BIAS, None)
        if bias is None:
            return context, None
        values = bias(self.config.max_position_embeddings, hidden.device)
        return context or make_context(None, 0, like=hidden, is_whole=True), values

    @property
    def output_layer(self) -> OutputLayer:
        """The unembedding."""
        output = self.get_submodule(self._output_name)
        assert isinstance(output, OutputLayer)
        return output

    def hidden_states(
        self,
        tokens: Tensor,
        *,
        caches: Sequence[KeyValueCache] | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_offsets: Tensor | None = None,
    ) -> Tensor:
        """Activations after the final norm, (b, s, h); with caches they have no gradients.

        Rows of different lengths are padded on the left, and the padding is masked. Several texts
        after one context may share a row; the positions of each start after the context, and a mask
        hides the other texts from it.

        Args:
            tokens: (b, s) int64.
            caches: One cache per layer, from `make_caches`. ``tokens`` come after the positions in
                the caches, and are added to them.
            positions: (b, s) int64 below ``longest_text``, position of each token in its text;
                None: the positions after those in the caches.
            attention_mask: bool, broadcastable to (b, 1, s, t), where t includes the cached
                positions; True where a token may attend. None is causal.
            document_offsets: (b, s) int64, tokens of its document before each token. What they do
                is decided by ``reset_attention_mask`` and ``reset_position_ids``; not together with
                the other arguments.
        """
        start = 0 if caches is None else caches[0].length
        with torch.set_grad_enabled(torch.is_grad_enabled() and caches is None):
            if document_offsets is not None and self.config.reset_position_ids:
                positions = document_offsets
            hidden = self.embedding(tokens, self.cached_tokens(caches), positions)
            if (prompt := self.soft_prompt) is not None:
                positions = prompt.positions(positions, is_first=start == 0)
                attention_mask = prompt.attention_mask(
                    attention_mask, tokens.shape[1], is_first=start == 0
                )
                hidden = hidden if start else prompt(hidden)
            context = None
            if document_offsets is not None:
                context = document_context(self.config, self._rotary, hidden, document_offsets)
            elif caches is not None or positions is not None or attention_mask is not None:
                context = make_context(
                    self._rotary,
                    hidden.shape[1],
                    like=hidden,
                    start=start,
                    longest=self.config.max_position_embeddings,
                    positions=positions,
                    attention_mask=attention_mask,
                )
            hidden = self._through_blocks(hidden, context, caches)
            hidden = hidden[:, -tokens.shape[1] :]  # a soft prompt predicts nothing
            return self.get_submodule(self._norm_name)(hidden)

    def _through_blocks(
        self,
        hidden: Tensor,
        context: ForwardContext | None,
        caches: Sequence[KeyValueCache] | None,
    ) -> Tensor:
        blocks = [self.get_submodule(name) for name in self._block_names]
        context, values = self._with_bias_values(context, hidden)
        chunk = self.config.checkpoint_num_layers
        if not chunk or not self.training or not torch.is_grad_enabled():
            return _run_blocks(blocks, hidden, context, values, caches)
        for first in range(0, len(blocks), chunk):
            inputs = (blocks[first : first + chunk], hidden, context, values)
            hidden = checkpoint(_run_blocks, *inputs, use_reentrant=True)
        return hidden

    @property
    def embedding(self) -> Embedding:
        """The layer at the bottom."""
        layer = self.get_submodule(self.config.embedding_name)
        assert isinstance(layer, Embedding)
        return layer

    @property
    def soft_prompt(self) -> SoftPrompt | None:
        """The prompt in front of every text, if the model has one."""
        layer = self._modules.get("1")
        assert layer is None or isinstance(layer, SoftPrompt)
        return layer

    def cached_tokens(self, caches: Sequence[KeyValueCache] | None) -> int:
        """Tokens of text whose keys and values are in the caches; a soft prompt does not count."""
        length = 0 if caches is None else caches[0].length
        return length - self.soft_prompt.num_tokens if self.soft_prompt and length else length

    def make_caches(self, batch_size: int, capacity: int) -> list[KeyValueCache]:
        """Empty caches, one per layer, for the heads of this tensor-parallel rank.

        Args:
            batch_size: Rows of the batch.
            capacity: Maximum tokens of text per row, padding included.
        """
        capacity += self.soft_prompt.num_tokens if self.soft_prompt else 0
        weight = next(self.parameters())
        heads = self.tp.divide(self.config.num_kv_heads, "num_kv_heads")
        return [
            KeyValueCache(
                batch_size,
                heads,
                capacity,
                self.config.head_dim,
                dtype=weight.dtype,
                device=weight.device,
            )
            for _ in range(self.config.num_layers)
        ]


def _run_blocks(
    blocks: Sequence[nn.Module],
    hidden: Tensor,
    context: ForwardContext | None,
    bias_values: Tensor | None,
    caches: Sequence[KeyValueCache] | None = None,
) -> Tensor:
    """Learned biases come as an argument of their own, through which gradients flow."""
    if context is not None and bias_values is not None:
        context = replace(context, bias_values=bias_values)
    layer_caches: Sequence[KeyValueCache | None] = caches or [None] * len(blocks)
    for block, cache in zip(blocks, layer_caches, strict=True):
        hidden = block(hidden, context, cache)
    return hidden
