"""Per-domain losses on held-out data, and their averages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from megatron.data.batch import Batch
from megatron.data.data_utils import build_evaluation_source
from megatron.data.evaluation_batches import EvaluationBatches
from megatron.errors import EvaluationStopped
from megatron.evaluation_domains import EvaluationPart
from megatron.inference import LoadedModel
from megatron.logging import RunLogger
from megatron.neox_arguments import ConfigError
from megatron.runners import Evaluator, InferenceRunner

__all__ = ["DomainResult", "averages", "evaluate_domains", "evaluate_parts"]


@dataclass(frozen=True)
class DomainResult:
    """Held-out loss of one domain."""

    loss: float
    """Nats a token, the mean over all tokens evaluated."""
    perplexity: float
    bits_per_byte: float | None
    """Loss in bits a byte of text; None where the number of bytes is not known."""
    num_samples: int


def evaluate_domains(
    runner: Evaluator,
    source: EvaluationBatches,
    *,
    progress: str | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, DomainResult]:
    """Evaluates every domain on its fixed samples; all ranks call it and get the same numbers.

    Args:
        runner: Computes the losses.
        source: The samples.
        progress: Name of a progress bar, which rank 0 shows on a terminal; None shows none.
        should_stop: Asked before each batch, on every rank, and answers alike on all of them.

    Raises:
        EvaluationStopped: On every rank, if ``should_stop`` said so.
    """
    num_domains = len(source.domains)
    batches = tqdm(
        _batches(source, should_stop),
        total=sum(source.num_batches(k) for k in range(num_domains)),
        desc=progress,
        unit="batch",
        disable=None if progress and dist.get_rank() == 0 else True,  # None: not in a file
    )
    sums = runner.evaluate(batches, num_domains=num_domains).cpu().numpy()
    loss_sum, _, tokens, _ = sums[:-2].reshape(4, num_domains)
    results = {}
    for k, name in enumerate(source.domains):
        loss = float(loss_sum[k] / tokens[k]) if tokens[k] else math.nan
        bytes_per_token = source.text_bytes_per_token[k]
        results[name] = DomainResult(
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),  # exp overflows float64 above 709
            bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else None,
            num_samples=source.num_samples[k],
        )
    return results


def _batches(source: EvaluationBatches, should_stop: Callable[[], bool] | None) -> Iterator[Batch]:
    for batch in itertools.chain.from_iterable(map(source.batches, range(len(source.domains)))):
        if should_stop is not None and should_stop():
            raise EvaluationStopped
        yield batch


def averages(results: dict[str, DomainResult]) -> dict[str, float]:
    """Means over domains under the research code's names, plain and weighted by samples.

    ``avg_ppl`` is the mean of perplexities, not the perplexity of the mean loss: the two rank
    mixtures differently, so both are reported.
    """
    losses = np.array([r.loss for r in results.values()])
    perplexities = np.array([r.perplexity for r in results.values()])
    samples = np.array([r.num_samples for r in results.values()], dtype=np.float64)
    weights = samples / samples.sum()
    summary = {
        "avg_lm_loss": float(losses.mean()),
        "avg_ppl": float(perplexities.mean()),
        "ppl_of_avg_lm_loss": math.exp(min(float(losses.mean()), 700.0)),
        "weighted_avg_lm_loss": float(losses @ weights),
        "weighted_avg_ppl": float(perplexities @ weights),
        "worst_lm_loss": float(losses.max()),
    }
    bits = [r.bits_per_byte for r in results.values()]
    if all(value is not None for value in bits):
        summary["avg_bits_per_byte"] = float(np.mean(np.array(bits, dtype=np.float64)))
    return summary


def evaluate_parts(
    loaded: LoadedModel, parts: Sequence[EvaluationPart], logger: RunLogger
) -> dict[str, Any]:
    """Evaluates a loaded model on data, and logs and prints the losses of each part.

    Args:
        loaded: The model and its iteration.
        parts: What to evaluate; all ranks pass the same.
        logger: Receives the losses.

    Returns:
        {name of the part: {"domains": {domain: losses}, "averages": ...}}.

    Raises:
        ConfigError: If none of the parts has data.
    """
    topology = loaded.topology
    runner = InferenceRunner(loaded.model, topology)
    report: dict[str, Any] = {}
    for part in parts:
        source = build_evaluation_source(
            part.config,
            part.split,
            dp_rank=topology.data_rank,
            dp_size=topology.grid.data,
            tokenizer_info=loaded.tokenizer,
        )
        if source is None:
            continue
        results = evaluate_domains(runner, source, progress=part.name)
        summary = averages(results)
        logger.evaluation(part.name, loaded.iteration, results, summary)
        report[part.name] = {
            "domains": {name: asdict(result) for name, result in results.items()},
            "averages": summary,
        }
    if parts and not report:
        raise ConfigError("valid_data_paths: no held-out data to evaluate; name some")
    return report
