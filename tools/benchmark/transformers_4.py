#!/usr/bin/env python
"""Loads an export in transformers 4, in an environment of its own, and compares logits with ours.

The tests run with transformers 5, which cannot be installed beside version 4. This makes a virtual
environment with `transformers<5` and the torch of this one, from whatever index pip is set up for,
and computes there the logits of real text. Prints both versions and the largest difference, and
exits with 1 if it is above the tolerance or the tokens are others.

    python -m tools.benchmark.transformers_4 --input_dir checkpoints/first [--venv folder]

--venv keeps the environment for the next time; its installation takes a minute or two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron.checkpoint.format import CheckpointReader
from megatron.errors import UserError
from tools.checkpoints.single_process import find_source
from tools.hf.exporting import ExportOptions, export
from tools.hf.network import filled_model, true_vocab_size
from tools.hf.settings import settings_of
from tools.hf.verification import MAX_TOKENS, real_text

REQUIREMENTS = ("transformers<5", "safetensors")

THEIR_PROGRAM = """
import sys
import torch, transformers
from safetensors.torch import save_file

folder, text_file, result, num_tokens, *saved = sys.argv[1:]
model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
wrong = {key: value for key, value in report.items() if value}
assert not wrong, wrong
for output in saved:
    model.save_pretrained(output)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
text = open(text_file, encoding="utf-8").read()
ids = tokenizer(text, add_special_tokens=False)["input_ids"]
tokens = torch.tensor([ids[: int(num_tokens)]])
with torch.no_grad():
    logits = model.float().eval()(tokens).logits
greedy = model.generate(
    tokens[:, :8], attention_mask=torch.ones_like(tokens[:, :8]), max_new_tokens=8, do_sample=False
)
assert greedy.shape[1] > 8, "generate made no token"
save_file({"tokens": tokens, "logits": logits.contiguous()}, result)
print(transformers.__version__)
"""
"""Runs in the other environment: files in, files out, the version on standard output."""


def python_with_transformers_4(folder: Path) -> Path:
    """Makes the environment in ``folder`` unless it is there; returns its interpreter."""
    python = folder / "bin" / "python"
    probe = "import safetensors, torch, transformers; assert transformers.__version__[:2] == '4.'"
    if python.is_file() and subprocess.run([python, "-c", probe], check=False).returncode == 0:
        return python
    print(f"installing transformers 4 in {folder}", flush=True)
    venv.create(folder, with_pip=True)
    torch_version = torch.__version__.split("+")[0]
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        *REQUIREMENTS,
        f"torch=={torch_version}",
    ]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(f"pip ended with code {code}; is an index of packages set up?")
    return python


def their_result(
    python: Path, model: Path, num_tokens: int, folder: Path, *, saved: Path | None = None
) -> dict[str, Tensor]:
    """Tokens and logits of `real_text` as transformers 4 computes them; prints its version.

    Args:
        python: Interpreter of its environment.
        model: The model folder.
        num_tokens: Tokens of the text.
        folder: For temporary files.
        saved: Folder in which it saves the model again; None: it does not.
    """
    text_file, result = folder / "text.txt", folder / "result.safetensors"
    text_file.write_text(real_text(), encoding="utf-8")
    arguments = [str(path) for path in (model, text_file, result)]
    command = [str(python), "-c", THEIR_PROGRAM, *arguments, str(num_tokens)]
    command += [] if saved is None else [str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"transformers 4: exit code {done.returncode}:\n{done.stderr[-4000:]}")
    print(f"theirs: transformers {done.stdout.strip()}")
    return load_file(result)


def check(source: Path, environment: Path, tolerance: float, folder: Path) -> int:
    """Exports ``source`` into ``folder`` and compares; returns the exit code."""
    settings = settings_of(source)
    reader = CheckpointReader(source)
    shape = settings.shape(true_vocab_size(reader))
    model = folder / "exported"
    export(source, model, settings=settings, options=ExportOptions(), say=print)
    num_tokens = min(MAX_TOKENS, shape.max_position_embeddings)
    theirs = their_result(python_with_transformers_4(environment), model, num_tokens, folder)
    tokens = settings.tokenizer().tokenize(real_text())[:num_tokens]
    if theirs["tokens"].tolist() != [tokens]:
        print("transformers 4 splits the text into OTHER TOKENS than ours")
        return 1
    with torch.no_grad():
        ours = filled_model(shape, reader.read_logical)(torch.tensor([tokens]))
    largest = (theirs["logits"] - ours).abs().max().item()
    is_right = largest <= tolerance
    print(
        f"ours:   torch {torch.__version__}; {num_tokens} tokens, {shape.vocab_size} logits each "
        f"of magnitude up to {ours.abs().max().item():.3g}\n"
        f"largest difference {largest:.2e}, {'within' if is_right else 'ABOVE'} {tolerance:g}"
    )
    return 0 if is_right else 1


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Compare an export with transformers 4.")
    parser.add_argument("--input_dir", required=True, help="folder of a run, or a global_step<N>")
    parser.add_argument("--iteration", type=int, help="checkpoint of the run (default: the latest)")
    parser.add_argument("--venv", help="folder of the environment (default: one that is removed)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of logits in float32")
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the check; returns 0 where the logits agree."""
    args = get_parser().parse_args(input_args)
    try:
        source = find_source(Path(args.input_dir), args.iteration)
        with tempfile.TemporaryDirectory() as folder:
            environment = Path(args.venv or f"{folder}/venv").absolute()
            return check(source, environment, args.tolerance, Path(folder))
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
