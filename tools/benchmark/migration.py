"""Writes docs/migration.md: how to move from GPT-NeoX, and what becomes of each of its keys.

``python -m tools.benchmark.migration`` writes the page; ``--check`` only compares it. The tables
follow from the declared keys, from `unsupported.py`, and from what `resolve` answers to the values
that GPT-NeoX allows. `make docs` runs it.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from megatron.files import write_text_atomic
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.aliases import ALIASES
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.unsupported import UNSUPPORTED

__all__ = ["main", "page", "refused_values", "verdicts"]

TARGET = Path(__file__).resolve().parents[2] / "docs" / "migration.md"

PROSE = """\
# Moving from GPT-NeoX

This program reads the configuration files of GPT-NeoX (2026) and of the research code of Online
Data Mixing, and has the same commands. Written by `python -m tools.benchmark.migration`; do not
edit it.

1. **Install**: `pip install -r requirements/requirements.txt`, with torch and DeepSpeed from the
   package index. There are no fused kernels to build: `python megatron/fused_kernels/setup.py
   install` reports that.
2. **Check your files**: `./deepy.py train.py -d configs 125M.yml my_setup.yml --check` reads them
   as GPT-NeoX does and prints what is refused, each with file, line and reason, and a note for
   each key without effect. Old names of keys work. `python -m tools.benchmark.configuration_files
   FOLDER` does this for all files of a folder.
3. **Data**: `.bin` and `.idx` files of GPT-NeoX are used as they are.
   `tools/datasets/preprocess_data.py` makes new ones. `prepare_data.py NAME` tells for each
   dataset of GPT-NeoX where its text is to be had today.
4. **Train**: `./deepy.py train.py CONFIG...`, or `torchrun`, `srun` and `mpirun` with `train.py`.
   A mixture of domains that learns is one key more: `data_sampling_method`, see
   [mixing.md](mixing.md).
5. **Evaluate and generate**: `./deepy.py evaluate.py CONFIG... --eval_tasks ...` (`eval.py` is
   the same) and `./deepy.py generate.py CONFIG...`.
6. **Hugging Face**: `tools/ckpts/convert_neox_to_hf.py` exports. `tools/convert_from_hf.py`
   imports; GPT-NeoX's commands for that are in `tools/ckpts` and name it. See
   [huggingface.md](huggingface.md).
7. **Checkpoints** of GPT-NeoX load as they are: `load` names the folder with its
   `global_step<N>`. Those that this program saves load on any number of ranks, tensor parallel
   sizes, stages and ZeRO stages; there is nothing to merge. See
   [checkpoints.md](checkpoints.md#checkpoints-of-gpt-neox).

What differs: metrics come with the logged iterations, not with each one; `train_epochs` allows a
mixture; weights and optimizer are always in float32 beside half precision; bfloat16 and fp16
without ZeRO are run as ZeRO 1. With `neox_compat: odm2024` keys that a file does not set have the
defaults of the research code, see [the reference](../configs/neox_arguments.md#presets).
"""

VALUES: dict[str, dict[str, Any]] = {
    "optimizer.type": {
        name: {"optimizer": {"type": name, "params": {}}}
        for name in (
            *("adam", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd"),
            *("lion", "muon"),
        )
    },
    "attention_config": {
        name: {"attention_config": [[[name], "all"]]}
        for name in (
            *("global", "local", "sparse_fixed", "sparse_variable", "bigbird", "bslongformer"),
            *("gmlp", "amlp", "flash", "rwkv", "mamba"),
        )
    },
    "zero_optimization": {
        "offload_optimizer": {
            "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}
        },
    },
}
"""Values of keys that are no list of choices: name in messages -> value -> keys that ask for it."""

_SMALL = {
    **{"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "seq_length": 64},
    **{"max_position_embeddings": 128, "train_iters": 10, "train_micro_batch_size_per_gpu": 1},
}


def verdicts() -> dict[str, tuple[str, str]]:
    """Key -> (works, no effect, refused or refused when enabled; why, or the key it stands for)."""
    old = {alias.old: alias.new for alias in ALIASES}
    found = {}
    for key in field_table():
        if key in UNSUPPORTED:
            found[key] = UNSUPPORTED[key].verdict, UNSUPPORTED[key].reason
        else:
            found[key] = "works", f"read as `{old[key]}`" if key in old else ""
    return found


def refused_values() -> Iterator[tuple[str, str, str]]:
    """Yields key, value and reason of what is refused although the key works."""
    for key, value, keys in _values():
        if reason := _refusal(key, keys):
            yield key, value, reason


def _values() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for key, field in field_table().items():
        if key not in UNSUPPORTED:
            for choice in _choices(field.type):
                yield key, str(choice), {key: choice}
    for key, values in VALUES.items():
        for value, keys in values.items():
            yield key, value, keys


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _refusal(key: str, keys: dict[str, Any]) -> str | None:
    """What `resolve` says against a value itself; not that it lacks another key."""
    try:
        resolve(NeoXArgs.from_dict({**_SMALL, **keys}), world_size=1)
    except ConfigError as error:
        marks = ("not part of this version", "not supported", "is unknown")
        for message in error.messages:
            if message.startswith(key) and any(mark in message for mark in marks):
                return message.removeprefix(key).lstrip(": ")
    return None


def page() -> str:
    """Returns the whole page as Markdown."""
    rows = sorted(verdicts().items())
    counts = Counter(verdict for _, (verdict, _) in rows)
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    parts = [
        PROSE,
        f"\n## Keys\n\nOf {len(rows)} keys: {told}. [The reference]"
        "(../configs/neox_arguments.md) documents those that work; some of them are not in "
        "GPT-NeoX.\nKeys are refused only if they are set to something else than their "
        "default.\n\n| key | here | why, or what instead |\n|---|---|---|\n",
        *(f"| `{key}` | {verdict} | {_cell(text)} |\n" for key, (verdict, text) in rows),
        "\n## Values\n\nValues that are refused although their key works.\n\n"
        "| key | value | answer |\n|---|---|---|\n",
        *(
            f"| `{key}` | `{value}` | {_cell(text)} |\n"
            for key, value, text in sorted(refused_values())
        ),
    ]
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns 1 if ``--check`` finds it out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when the page is out of date")
    check = parser.parse_args(argv).check
    text = page()
    if not check:
        write_text_atomic(TARGET, text)
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        sys.stderr.write(f"{TARGET.name} is out of date; run python -m tools.benchmark.migration\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
