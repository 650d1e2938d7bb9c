"""Parameters of a GPT-NeoX checkpoint by the names and shapes of this program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.neox.folder import NeoxFolder
from megatron.checkpoint.neox.merging import (
    SPLIT_GATE,
    full_name,
    is_cut,
    is_left_out,
    merge,
    our_name,
)
from megatron.checkpoint.neox.optimizer import OptimizerStates, no_states
from megatron.errors import CheckpointError
from megatron.model.parameters import ParameterSpec, cut_shard
from megatron.sizing.model_shape import ModelShape

__all__ = ["NeoxReader"]


class NeoxReader:
    """Reads a ``global_step<N>`` folder of GPT-NeoX, of any number of model-parallel parts.

    Args:
        folder: The folder.
        network: The network of the run; the files do not say how many heads share a key, whether
            the MLP is gated or how large the vocabulary is without padding.
        with_optimizer: Whether to read the optimizer's states and master weights, if they are of a
            known form. Without them the weights are those of the model, often in half precision;
            ZeRO 3 saves only master weights, which are read in any case.

    Raises:
        CheckpointError: If files are missing or damaged, or of another network, or if weights that
            ZeRO 3 partitioned are of an unknown form.
    """

    def __init__(self, folder: Path, network: ModelShape, *, with_optimizer: bool = False):
        self.folder = folder
        self._network = network
        self._files = NeoxFolder(folder)
        self._check_layers()
        self._sources: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Logical shape of each parameter."""
        self.num_vocabulary_rows = 0
        """Rows of the word embedding, padding included."""
        for layer in self._files.layers:
            self._add_layer(layer)
        self._states = self._weights = no_states("not asked for")
        if with_optimizer or self._files.is_partitioned:
            self._weights = OptimizerStates.find(self._files, self._sources)
        if with_optimizer:
            self._states = self._weights
        if self._files.is_partitioned and self._weights.problem:
            raise CheckpointError(
                f"{folder}: weights that ZeRO 3 partitioned cannot be put together: "
                f"{self._weights.problem}; load the checkpoint in GPT-NeoX and save it with ZeRO "
                "stage 1"
            )

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Moments of the optimizer that can be read; empty if there are none."""
        return self._states.moment_names

    @property
    def why_no_moments(self) -> str | None:
        """Why the optimizer's states are not read; None if they are."""
        return self._states.problem

    @property
    def num_parts(self) -> int:
        """Model-parallel parts of the checkpoint."""
        return self._files.num_parts

    def read_logical(self, name: str, kind: str = "fp32") -> Tensor:
        """One whole parameter, or a moment of it, in its logical shape, float32."""
        return self._read(name, kind, range(self.num_parts))

    def read_shard(
        self, name: str, spec: ParameterSpec, *, kind: str, tp_rank: int, tp_size: int
    ) -> Tensor:
        """The part of a parameter that belongs to a tensor-parallel rank; padding is zero.

        Only the files with that part are read, if the ranks divide the parts evenly.
        """
        local = self._sources[name][1][0]
        per_rank, rest = divmod(self.num_parts, tp_size)
        if spec.tp_dim is None or rest or not is_cut(our_name(local, self._network)):
            return cut_shard(self.read_logical(name, kind), spec, tp_rank)
        return self._read(name, kind, range(tp_rank * per_rank, (tp_rank + 1) * per_rank))

    def _read(self, name: str, kind: str, parts: Sequence[int]) -> Tensor:
        layer, sources = self._sources[name]
        if kind == "fp32" and not self._weights.has_weights:
            found = self._files.parts_of(layer)
            tensors = [[found[part][source] for source in sources] for part in parts]
        else:
            tensors = [
                [self._weights.read(layer, source, part, kind) for source in sources]
                for part in parts
            ]
        local = our_name(sources[0], self._network)
        return merge(local, tensors, self._network, num_parts=self.num_parts, kind=kind)

    def _add_layer(self, layer: int) -> None:
        parts = self._files.parts_of(layer)
        sources: dict[str, tuple[str, ...]] = {}
        for theirs in parts[0]:
            if not is_left_out(theirs, self._network):
                ours = our_name(theirs, self._network)
                both = (*sources.get(ours, ()), theirs)
                sources[ours] = tuple(sorted(both, key=lambda name: SPLIT_GATE.get(name, 0)))
        for ours, names in sources.items():
            where = f"{self._files.file_of(layer, 0)}: {names[0]}"
            if len(names) > 1 and set(names) != SPLIT_GATE.keys():
                raise CheckpointError(f"{where} and {names[1]} are the same parameter")
            empty = [[torch.empty_like(p[name], device="meta") for name in names] for p in parts]
            try:
                merged = merge(ours, empty, self._network, num_parts=self.num_parts)
            except (ValueError, IndexError, RuntimeError) as error:
                shapes = ", ".join(str(tuple(parts[0][name].shape)) for name in names)
                raise CheckpointError(
                    f"{where} has the shape {shapes}, which does not fit the configuration: {error}"
                ) from error
            name = full_name(layer, ours, self._network)
            self._sources[name] = layer, names
            self.shapes[name] = tuple(merged.shape)
            if ours == "word_embeddings.weight":
                self.num_vocabulary_rows = sum(part[names[0]].shape[0] for part in parts)

    def _check_layers(self) -> None:
        """Compares the numbers of the layers with the network's."""
        found, network = set(self._files.layers), self._network
        wanted = _layers_of(network.num_layers, has_output=network.no_weight_tying)
        if found == wanted:
            return
        for has_output in (True, False):
            num_layers = max(found, default=0) - (4 if has_output else 3)
            if found == _layers_of(num_layers, has_output=has_output):
                key, theirs, ours = "num_layers", num_layers, network.num_layers
                if theirs == ours:
                    key, theirs, ours = "no_weight_tying", has_output, network.no_weight_tying
                raise CheckpointError(
                    f"{self.folder}: {key} is {str(theirs).lower()}, this run has "
                    f"{str(ours).lower()}; use the model's own configuration"
                )
        if missing := sorted(wanted - found):
            path = self._files.file_of(missing[0], 0)
            what = f"lacks layer {missing[0]}" if path.exists() else "is missing"
            raise CheckpointError(f"{path}: {what}")
        more = min(found - wanted)
        raise CheckpointError(
            f"{self._files.file_of(more, 0)}: is of layer {more}, which a network of "
            f"{network.num_layers} blocks does not have; the configuration differs"
        )


def _layers_of(num_layers: int, *, has_output: bool) -> set[int]:
    top = num_layers + 2
    return {0, *range(2, top), top + 1, *((top + 2,) if has_output else ())}
