#!/usr/bin/env python
"""Trains a small model, exports it, and lets plain transformers compute its validation losses.

A model of the shape of Pythia 14M (6 layers, 128 wide, 4 heads; the vocabulary of the data's
tokenizer) learns with online data mixing, as a user starts it: `./deepy.py train.py`. Its folder
for transformers comes from `tools/convert_to_hf.py`. Prints, for each domain, the loss that the
run's own validation logged beside the one that transformers computes on the same windows, and
exits with 1 if two are further apart than the tolerance.

    python -m tools.benchmark.export_loss --data data/local/data.yml [--work_dir folder]

With --work_dir the run is kept, and an interrupted run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from megatron.data.data_utils import build_evaluation_source
from megatron.data.evaluation_batches import EvaluationBatches
from megatron.neox_arguments import NeoXArgs, resolve
from megatron.reporting.run_log import read_run_log
from tools.hf.settings import RunSettings

REPOSITORY = Path(__file__).resolve().parents[2]

MODEL: dict[str, Any] = {
    "num_layers": 6,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "no_weight_tying": True,
    "gpt_j_residual": True,
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 2e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
    "min_lr": 2e-4,
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "lr_decay_style": "cosine",
    "warmup": 0.05,
    "mixed_minibatches": True,
    "data_sampling_method": "smoothed_mean",
    "data_sampling_update_frequency": 1,
    "data_sampling_warmup_steps": 20,
    "log_interval": 10,
    "checkpoint_factor": 50,
    "keep_last_n_checkpoints": 1,
    "max_test_samples_per_dataset": 1,
    "seed": 1234,
}


@dataclass(frozen=True)
class Comparison:
    """Loss of one domain, nats per token."""

    domain: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        """Absolute difference."""
        return abs(self.ours - self.theirs)


def write_config(
    folder: Path, *, iterations: int, seq_length: int, samples_per_domain: int
) -> Path:
    """Writes ``folder/run.yml``, the run without its data, and returns it."""
    config = {
        **MODEL,
        "seq_length": seq_length,
        "max_position_embeddings": seq_length,
        "train_iters": iterations,
        "lr_decay_iters": iterations,
        "eval_interval": iterations,
        "max_validation_samples_per_dataset": samples_per_domain,
        "save": str(folder / "run"),
        "load": str(folder / "run"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yml"
    file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return file


def execute(*command: str) -> None:
    """Runs a command in the repository and shows it; ends this program if it fails."""
    print("$", *command, flush=True)
    code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    if code:
        raise SystemExit(code)


def logged_losses(run: Path, iteration: int) -> dict[str, float]:
    """The validation losses that the run logged after ``iteration``."""
    for event in reversed(read_run_log(run)):
        if event["event"] == "validation" and event["iteration"] == iteration:
            return {name: result["loss"] for name, result in event["domains"].items()}
    raise SystemExit(f"{run}: no validation after iteration {iteration}")


def validation_windows(files: Sequence[Path]) -> EvaluationBatches:
    """The windows of the run's validation, as tokens, labels and masks."""
    config = resolve(NeoXArgs.from_ymls(list(files)), world_size=1)
    tokenizer = RunSettings(config.to_dict()).tokenizer()
    source = build_evaluation_source(
        config, "valid", dp_rank=0, dp_size=1, tokenizer_info=tokenizer
    )
    if source is None:
        raise SystemExit(f"{files[-1]}: no validation data")
    return source


@torch.no_grad()
def loss_of(model: Any, source: EvaluationBatches, domain_id: int) -> float:
    """Mean cross-entropy of a model of transformers on a domain, nats per token."""
    loss_sum, num_tokens = 0.0, 0.0
    for batch in source.batches(domain_id):
        logits = model(input_ids=batch.tokens).logits.flatten(0, 1)
        losses = cross_entropy(logits, batch.labels.flatten(), reduction="none")
        mask = batch.loss_mask.flatten().double()
        loss_sum += float(losses.double() @ mask)
        num_tokens += float(mask.sum())
    return loss_sum / num_tokens


def compare(folder: Path, data: Path, iterations: int) -> list[Comparison]:
    """Compares the run's last validation with transformers on its export, domain by domain."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    ours = logged_losses(folder / "run", iterations)
    source = validation_windows([folder / "run.yml", data])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").float().eval()
    return [
        Comparison(name, ours[name], loss_of(model, source, number))
        for number, name in enumerate(source.domains)
    ]


def table(comparisons: Sequence[Comparison]) -> str:
    """One line per domain."""
    width = max(len("domain"), *(len(row.domain) for row in comparisons))
    lines = [f"{'domain':{width}}      ours  transformers  difference"]
    lines += [
        f"{row.domain:{width}}  {row.ours:8.5f}  {row.theirs:12.5f}  {row.difference:10.1e}"
        for row in comparisons
    ]
    return "\n".join(lines)


def check(folder: Path, args: argparse.Namespace) -> int:
    """Trains, exports and compares in ``folder``; returns the exit code."""
    run_file = write_config(
        folder,
        iterations=args.iterations,
        seq_length=args.seq_length,
        samples_per_domain=args.samples_per_domain,
    )
    data = Path(args.data).resolve()
    execute(sys.executable, "deepy.py", "train.py", str(run_file), str(data))
    arguments = ["--input_dir", str(folder / "run"), "--output_dir", str(folder / "exported")]
    execute(sys.executable, "tools/convert_to_hf.py", *arguments, "--overwrite")
    comparisons = compare(folder, data, args.iterations)
    print(table(comparisons))
    largest = max(row.difference for row in comparisons)
    is_right = all(row.difference <= args.tolerance for row in comparisons)  # NaN is not
    verdict = "within" if is_right else "ABOVE"
    print(f"largest difference {largest:.1e}, {verdict} {args.tolerance:g}")
    return 0 if is_right else 1


def get_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(description="Compare validation losses with transformers.")
    parser.add_argument("--data", required=True, metavar="YAML", help="data and tokenizer")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seq_length", type=int, default=256)
    parser.add_argument("--samples_per_domain", type=int, default=32, help="of the validation")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="nats per token")
    parser.add_argument("--work_dir", help="keep the run here (default: a folder that is removed)")
    return parser


def main(input_args: Sequence[str] | None = None) -> int:
    """Runs the check; returns 0 where all losses agree."""
    args = get_parser().parse_args(input_args)
    if args.work_dir:
        return check(Path(args.work_dir).resolve(), args)
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder), args)


if __name__ == "__main__":
    sys.exit(main())
