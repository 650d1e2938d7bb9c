"""One row of the matrix: a checkpoint or a model folder goes to the other side and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.format import CheckpointReader
from tools.checkpoints.tensor_sources import open_source
from tools.hf.exporting import ExportOptions, export
from tools.hf.families import FAMILIES
from tools.hf.importing import convert_from_hf
from tools.hf.network import filled_model, true_vocab_size
from tools.hf.settings import settings_of

__all__ = [
    "Row",
    "check_export",
    "check_import",
    "import_model",
    "our_logits",
    "same_parameters",
    "some_tokens",
    "write_their_model",
]

TOLERANCE = 1e-4
PADDING_ROWS = 20


@dataclass(frozen=True)
class Row:
    """What went one way and back."""

    direction: str
    difference: float
    """Largest difference of logits, ours and theirs, in float32."""
    spread: float
    """Standard deviation of the logits: the difference means nothing if they are all alike."""
    is_equal: bool
    """Whether the way back gives the same bits."""

    @property
    def is_right(self) -> bool:
        """Whether both sides agree."""
        return self.difference <= TOLERANCE and self.is_equal


def check_export(source: Path, folder: Path, family: str) -> Row:
    """Exports a checkpoint to ``folder/hf`` and imports that again to ``folder/back``.

    Args:
        source: A ``global_step<N>`` folder of any layout.
        folder: An empty folder.
        family: A key of `FAMILIES`.
    """
    _export(source, folder / "hf", family)
    back = import_model(folder / "hf", folder / "back")
    tokens = some_tokens(source)
    ours, theirs = our_logits(source, tokens), their_logits(folder / "hf", tokens)
    return _row("export and back", ours, theirs, same_parameters(source, back))


def check_import(model: Path, folder: Path) -> Row:
    """Imports a model folder to ``folder/run`` and exports that again to ``folder/again``."""
    source = import_model(model, folder / "run")
    family = _config_of(model)["model_type"]
    _export(source, folder / "again", family)
    tokens = some_tokens(source)
    ours, theirs = our_logits(source, tokens), their_logits(model, tokens)
    first, second = open_source(model), open_source(folder / "again")
    is_equal = all(
        torch.equal(
            first.rows(name, "fp32", 0, shape[0]),  # without padding rows
            second.rows(name, "fp32", 0, shape[0]),
        )
        for name, shape in second.shapes.items()
    )
    is_equal = is_equal and first.shapes.keys() == second.shapes.keys()
    return _row("import and back", ours, theirs[..., : ours.shape[-1]], is_equal)


def same_parameters(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same parameters bit for bit."""
    first, second = CheckpointReader(one), CheckpointReader(other)
    return first.parameters.keys() == second.parameters.keys() and all(
        torch.equal(first.read_logical(name), second.read_logical(name))
        for name in first.parameters
    )


def write_their_model(folder: Path, source: Path, family: str, tokenizer_file: Path) -> None:
    """A model of transformers' own making, as large as a checkpoint, with padding rows.

    Args:
        folder: The model folder to make.
        source: The checkpoint.
        family: A key of `FAMILIES`.
        tokenizer_file: Its tokenizer.json.
    """
    import transformers

    shape = settings_of(source).shape(true_vocab_size(CheckpointReader(source)))
    values = FAMILIES[family].write_config(shape)
    values["vocab_size"] += PADDING_ROWS
    config = transformers.AutoConfig.for_model(family, **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1.0 + 0.5 * random if is_scale else 0.3 * random)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())


def some_tokens(source: Path) -> Tensor:
    """(2, longest text) random tokens of a checkpoint's vocabulary."""
    vocab_size = true_vocab_size(CheckpointReader(source))
    length = settings_of(source).shape(vocab_size).max_position_embeddings
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (2, length), generator=generator)


def our_logits(source: Path, tokens: Tensor) -> Tensor:
    """Logits of a checkpoint, in one process and float32."""
    reader = CheckpointReader(source)
    shape = settings_of(source).shape(true_vocab_size(reader))
    with torch.no_grad():
        logits = filled_model(shape, reader.read_logical)(tokens)
    assert isinstance(logits, Tensor)
    return logits


def their_logits(folder: Path, tokens: Tensor) -> Tensor:
    """Logits of a model folder in transformers, in float32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model.float().eval()(tokens).logits


def _row(direction: str, ours: Tensor, theirs: Tensor, is_equal: bool) -> Row:
    difference = (ours - theirs).abs().max().item()
    return Row(direction, difference, ours.std().item(), is_equal)


def _export(source: Path, output: Path, family: str) -> None:
    options = ExportOptions(architecture=family)
    export(source, output, settings=settings_of(source), options=options, say=_nothing)


def import_model(source: Path, output: Path) -> Path:
    """Imports a model folder as the run ``output``; returns its checkpoint."""
    return convert_from_hf(source, output, config_out=output / "model.yml", say=_nothing)


def _config_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text(encoding="utf-8"))


def _nothing(line: str) -> None:
    """Takes the messages that nobody reads."""
