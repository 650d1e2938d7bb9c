"""The layers of `GPT2Model`, under the same names, cut into stages for DeepSpeed's pipeline."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.model.gpt2_model import layer_list
from megatron.model.init_functions import initialize_parameters
from megatron.model.output_layer import OutputLayer
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


def _pass_through(hidden: Tensor) -> Tensor:
    """Layers 1 and L+2, which were transpositions in GPT-NeoX."""
    return hidden


def _keep_hidden(module: nn.Module, hidden: Tensor) -> Tensor:
    """The tied embedding on the last stage, whose rows the loss function uses."""
    return hidden


class GPT2PipelineModel(PipelineModule):
    """This rank's stage of the network.

    Args:
        seed: Seed of the initial values, which equal those of `GPT2Model`.
        partition_method: DeepSpeed's rule for cutting the list of layers.
    """

    def __init__(
        self,
        config: ModelShape,
        topology: Topology,
        tp: TensorParallel,
        *,
        seed: int,
        partition_method: str,
    ):
        self.config = config
        self._stage_loss = _StageLoss()
        grid = topology.grid
        with contextlib.redirect_stdout(io.StringIO()):  # every rank prints tables of stages
            super().__init__(
                layers=_layer_specs(config, tp),
                topology=PipeModelDataParallelTopology(
                    num_pp=grid.pipe, num_mp=grid.model, num_dp=grid.data
                ),
                loss_fn=self._stage_loss,
                partition_method=partition_method,
                activation_checkpoint_interval=config.checkpoint_num_layers,
                activation_checkpoint_func=_checkpoint,
                checkpointable_layers=[TransformerLayer.__name__],
            )
        initialize_parameters(self, seed, tp_rank=tp.rank)
        if topology.is_last_stage:
            self._stage_loss.layer = self._find_output_layer(tp)

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


def _layer_specs(config: ModelShape, tp: TensorParallel) -> list[Any]:
    """Layers 0 .. L+4; a layer's position in the list is its name."""
    recipes = layer_list(config, tp)
    specs: list[Any] = [_pass_through] * (config.num_layers + 5)
    for index, (kind, args) in recipes.items():
        specs[index] = LayerSpec(PipelineOutputLayer if kind is OutputLayer else kind, *args)
    if not config.no_weight_tying:
        kind, args = recipes[0]
        tied = {"tied_weight_attr": "word_embeddings.weight"}
        specs[0] = TiedLayerSpec("embed", kind, *args, **tied)
        specs[-1] = TiedLayerSpec("embed", kind, *args, forward_fn=_keep_hidden, **tied)
    return specs


def _checkpoint(function: Any, *inputs: Tensor) -> Tensor:
    return checkpoint(function, *inputs, use_reentrant=True)
