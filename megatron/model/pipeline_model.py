"""The layers of `GPT2Model`, under the same names, cut into stages for DeepSpeed's pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.forward_context import ForwardContext, document_context, make_context
from megatron.model.gpt2_model import layer_list
from megatron.model.output_layer import OutputLayer
from megatron.model.relative_bias import SHARED_BIAS, RelativeBias, make_relative_bias
from megatron.model.transformer import TransformerLayer
from megatron.mpu import TensorParallel, Topology
from megatron.sizing.model_shape import ModelShape

__all__ = ["GPT2PipelineModel", "TokenLosses"]


class TokenLosses(NamedTuple):
    """Result of the last stage for one micro-batch."""

    nll: Tensor
    """Negative log-likelihoods in nats, (b, s)."""
    loss_mask: Tensor
    """Mask of the tokens, (b, s): 0 for tokens that do not count."""
    domain_ids: Tensor
    """Domain of each sample, (b,) int64."""


class PipelineOutputLayer(OutputLayer):
    """The unembedding on the last stage; the loss function applies it to the hidden states."""

    def forward(self, hidden: Tensor, *args: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Without labels returns the hidden states, since the loss function needs no logits."""
        return super().forward(hidden, *args) if args else hidden


class _StageLoss:
    """Loss of a micro-batch on the last stage.

    The engine passes on only a scalar, so the losses of tokens are kept here until they are taken.
    """

    def __init__(self) -> None:
        self.layer: OutputLayer | None = None
        self.token_losses: list[TokenLosses] = []

    def __call__(self, hidden: Tensor, targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        assert self.layer is not None
        labels, loss_mask, domain_ids = targets
        loss, nll = self.layer(hidden, labels, loss_mask)
        self.token_losses.append(TokenLosses(nll.detach(), loss_mask, domain_ids))
        return loss


class _Block:
    """A block as a stage calls it: with the context that all blocks of a pass share."""

    def __init__(self, layer: TransformerLayer, context: Callable[[], ForwardContext | None]):
        self.layer = layer
        self._context = context

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden, self._context())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """That of the layer, for DeepSpeed's own checkpoints."""
        return self.layer.state_dict(*args, **kwargs)


def _pass_through(hidden: Tensor) -> Tensor:
    """Layers 1 and L+2, which were transpositions in GPT-NeoX."""
    return hidden


def _keep_hidden(module: nn.Module, hidden: Tensor) -> Tensor:
    """The tied embedding on the last stage, whose rows the loss function uses."""
    return hidden


class GPT2PipelineModel(PipelineModule):
    """This rank's stage of the network; its parameters have no memory yet.

    Args:
        partition_method: DeepSpeed's rule for cutting the list of layers.
    """

    def __init__(
        self,
        config: ModelShape,
        topology: Topology,
        tp: TensorParallel,
        *,
        partition_method: str,
    ):
        self.config = config
        self._stage_loss = _StageLoss()
        self._context: ForwardContext | None = None  # of the pass whose layers are running
        self._bias_group: Any = None
        bias = make_relative_bias(config, tp)
        grid = topology.grid
        with contextlib.redirect_stdout(io.StringIO()):  # every rank prints tables of stages
            super().__init__(
                layers=_layer_specs(config, tp, bias),
                topology=PipeModelDataParallelTopology(
                    num_pp=grid.pipe, num_mp=grid.model, num_dp=grid.data
                ),
                loss_fn=self._stage_loss,
                partition_method=partition_method,
                activation_checkpoint_interval=config.checkpoint_num_layers,
                activation_checkpoint_func=self._recompute_later,
                checkpointable_layers=[_Block.__name__],
            )
        for index, layer in enumerate(self.forward_funcs):
            if isinstance(layer, TransformerLayer):  # the engine calls layers with one argument
                self.forward_funcs[index] = _Block(layer, lambda: self._context)
        self._blocks = tuple(layer for layer in self.forward_funcs if isinstance(layer, _Block))
        if isinstance(bias, nn.Module):
            self._share_bias(bias, topology)
        if topology.is_last_stage:
            self._stage_loss.layer = self._find_output_layer(tp)

    def to(self, *args: Any, **kwargs: Any) -> GPT2PipelineModel:
        """Does nothing while DeepSpeed builds the module: without memory there is nothing to move.

        When the parameters have memory, this is `nn.Module.to`.
        """
        return self if self._lacks_memory() else super().to(*args, **kwargs)

    def _lacks_memory(self) -> bool:
        return any(parameter.is_meta for parameter in self.parameters())

    def _synchronize_tied_weights(self) -> None:
        """DeepSpeed sends tied weights to their copies; here both get the same values later."""
        if not self._lacks_memory():
            super()._synchronize_tied_weights()

    def forward(self, inputs: Tensor | tuple[Tensor, Tensor]) -> Any:
        """Runs the layers of this stage.

        Args:
            inputs: Tokens on the first stage and hidden states on others; where documents are told
                apart, the pair of these and the offsets of all tokens in their documents, (b, s)
                int64.

        Returns:
            Hidden states, and on all but the last stage the offsets, if there are any.
        """
        first, offsets = (inputs, None) if isinstance(inputs, Tensor) else inputs
        resets = offsets is not None and self.config.reset_position_ids
        with self._running(self._make_context(offsets)):
            hidden = super().forward((first, offsets) if resets and self.stage_id == 0 else first)
        is_last = self.stage_id == self.num_stages - 1
        return hidden if is_last or offsets is None else (hidden, offsets)

    def _make_context(self, offsets: Tensor | None) -> ForwardContext | None:
        """What the blocks of this stage share in a pass; None if each needs nothing from others."""
        if not self._blocks:
            return None
        like, context = next(self.parameters()), None
        if offsets is not None:
            rotary = self._blocks[0].layer.attention.rotary
            context = document_context(self.config, rotary, like, offsets)
        bias = getattr(self, SHARED_BIAS, None)
        if bias is None:
            return context
        values = bias(self.config.max_position_embeddings, like.device)
        context = context or make_context(None, 0, like=like, is_whole=True)
        return dataclasses.replace(context, bias_values=values)

    @contextlib.contextmanager
    def _running(self, context: ForwardContext | None) -> Iterator[None]:
        """Makes ``context`` that of the blocks that run inside."""
        before, self._context = self._context, context
        try:
            yield
        finally:
            self._context = before

    def _recompute_later(self, function: Any, *inputs: Tensor) -> Tensor:
        """Activation checkpointing: other micro-batches run before layers are computed again."""
        context = self._context
        values = None if context is None else context.bias_values

        def run(values: Tensor | None, *inputs: Tensor) -> Tensor:
            own = None if context is None else dataclasses.replace(context, bias_values=values)
            with self._running(own):
                return function(*inputs)

        return checkpoint(run, values, *inputs, use_reentrant=True)

    def _share_bias(self, bias: nn.Module, topology: Topology) -> None:
        """Registers learned biases on every stage that has blocks, as copies of the first one's.

        DeepSpeed's tied layers have a place in the list of layers, which these biases do not have.
        """
        owners = {self.stage_owner(index) for index in range(2, self.config.num_layers + 2)}
        stages, grid = sorted(owners), topology.grid
        for data in range(grid.data):
            for model in range(grid.model):
                group = dist.new_group([grid.rank(stage, data, model) for stage in stages])
                if (data, model) == (topology.data_rank, topology.model_rank):
                    self._bias_group = group
        if self.stage_id in owners:
            self.add_module(SHARED_BIAS, bias)
            for parameter in bias.parameters():
                parameter.ds_pipe_replicated = self.stage_id != stages[0]  # type: ignore[attr-defined]

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
        """DeepSpeed's tied weights, and the learned biases: the engine sums their gradients."""
        tied = super().get_tied_weights_and_groups()
        bias = getattr(self, SHARED_BIAS, None)
        if bias is not None:
            tied = [*tied, *((parameter, self._bias_group) for parameter in bias.parameters())]
        return tied

    def take_token_losses(self) -> list[TokenLosses]:
        """Losses of the micro-batches since the last call; empty except on the last stage."""
        taken, self._stage_loss.token_losses = self._stage_loss.token_losses, []
        return taken

    @property
    def output_layer(self) -> OutputLayer | None:
        """The layer that computes the loss; None except on the last stage."""
        return self._stage_loss.layer

    def _find_output_layer(self, tp: TensorParallel) -> OutputLayer:
        if self.config.no_weight_tying:
            layer = self.get_submodule(str(self.config.num_layers + 4))
            assert isinstance(layer, OutputLayer)
            return layer
        return OutputLayer(self.config, tp, tied=self.tied_modules["embed"].word_embeddings)


def _layer_specs(config: ModelShape, tp: TensorParallel, bias: RelativeBias | None) -> list[Any]:
    """Layers 0 .. L+4; a layer's position in the list is its name."""
    recipes = layer_list(config, tp, bias=bias)
    specs: list[Any] = [_pass_through] * (config.num_layers + 5)
    for index, (kind, args) in recipes.items():
        specs[index] = LayerSpec(PipelineOutputLayer if kind is OutputLayer else kind, *args)
    if not config.no_weight_tying:
        kind, args = recipes[0]
        tied = {"tied_weight_attr": "word_embeddings.weight"}
        specs[0] = TiedLayerSpec("embed", kind, *args, **tied)
        specs[-1] = TiedLayerSpec("embed", kind, *args, forward_fn=_keep_hidden, **tied)
    return specs
