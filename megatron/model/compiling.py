"""The blocks and the loss, compiled by torch's Inductor for training.

Only these functions are compiled; DeepSpeed's engine, its hooks and the pipeline call them as they
call the others. All blocks of a model share one compiled function, since parameters are its
inputs. Shapes are static: a batch of another shape would be compiled again.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron.model.forward_context import ForwardContext
from megatron.model.loss import ChunkTerms, chunk_terms
from megatron.model.output_layer import OutputLayer
from megatron.model.transformer import CompiledBlock, TransformerLayer

__all__ = ["compile_model", "compiler_problem"]


def compiler_problem(device_type: str) -> str | None:
    """Returns what Inductor misses on this machine, and what to install; None if it can compile."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}); install one, or name it in the variable CXX"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"no {header}; install Python's headers, such as the package python3-dev"
    if device_type != "cpu" and not _has_triton():
        return "no Triton for this device; install torch with it"
    return None


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def compile_model(model: nn.Module, *, output: OutputLayer | None = None) -> None:
    """Makes the blocks of ``model``, and its loss, run compiled in training.

    Nothing is compiled before the first pass.

    Args:
        model: A whole model or a pipeline stage; its attention sees all earlier tokens, and nothing
            in it is tensor-parallel.
        output: The output layer if it is no module of the model, as with tied embeddings in a
            pipeline.
    """
    for module in [*model.modules(), output]:
        if isinstance(module, TransformerLayer):
            module.compiled = _compiled_block()
        elif isinstance(module, OutputLayer):
            module.compiled = _compiled_terms()


def _block(layer: TransformerLayer, hidden: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    return layer.compute(hidden, ForwardContext(angles, None, is_causal=True, is_whole=True))


@cache
def _compiled_block() -> CompiledBlock:
    return torch.compile(_block, dynamic=False, fullgraph=True)


@cache
def _compiled_terms() -> ChunkTerms:
    return torch.compile(chunk_terms, dynamic=False, fullgraph=True)
