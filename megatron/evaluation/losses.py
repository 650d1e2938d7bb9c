"""Per-domain losses on held-out data, and their averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron.data.batch import Batch
from megatron.data.data_utils import build_evaluation_source
from megatron.data.evaluation_batches import EvaluationBatches
from megatron.engine.domain_sums import DomainLossRecorder, HeldOutSums
from megatron.engine.runners import Evaluator, InferenceRunner
from megatron.errors import EvaluationStopped
from megatron.evaluation.domains import EvaluationPart, nothing_to_evaluate
from megatron.evaluation.trained_model import LoadedModel
from megatron.reporting.progress_lines import ProgressLines
from megatron.reporting.run_logger import RunLogger

__all__ = ["DomainResult", "averages", "evaluate_domains", "evaluate_parts"]


@dataclass(frozen=True)
class DomainResult:
    """Held-out loss of one domain."""

    loss: float
    """Mean over all evaluated tokens, in nats per token."""
    standard_error: float | None
    """Standard error of ``loss``, in nats per token; None if there is only one sample."""
    perplexity: float
    bits_per_byte: float | None
    """Loss in bits per byte of text; None if the number of bytes is not known."""
    num_samples: int
    num_tokens: int
    """Number of tokens that ``loss`` is the mean of."""


def evaluate_domains(
    runner: Evaluator,
    source: EvaluationBatches,
    *,
    name: str = "evaluation",
    say: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, DomainResult]:
    """Evaluates every domain on its fixed samples; all ranks call it and get the same numbers.

    Args:
        runner: Computes the losses.
        source: Batches of the fixed samples of every domain.
        name: What is evaluated, for progress lines.
        say: Prints the progress lines, see `ProgressLines`; None prints nothing.
        should_stop: Called before each batch on every rank; returns the same on all of them.

    Raises:
        EvaluationStopped: On every rank, if ``should_stop`` returned True.
    """
    progress = ProgressLines(say, name, total=sum(source.num_samples), unit="samples")
    batches = _batches(source, should_stop, progress)
    recorder = DomainLossRecorder(len(source.domains), runner.device)
    runner.evaluate(batches, recorder)
    sums = recorder.held_out_sums().all_reduce()
    results = {}
    for k, domain in enumerate(source.domains):
        of_domain = HeldOutSums(*(field[k] for field in sums))
        tokens = int(of_domain.tokens)
        loss = float(of_domain.loss) / tokens if tokens else math.nan
        bytes_per_token = source.text_bytes_per_token[k]
        results[domain] = DomainResult(
            loss=loss,
            standard_error=standard_error(of_domain, num_samples=source.num_samples[k]),
            perplexity=math.exp(min(loss, 700.0)),  # exp overflows float64 above 709
            bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else None,
            num_samples=source.num_samples[k],
            num_tokens=tokens,
        )
    return results


def standard_error(sums: HeldOutSums, *, num_samples: int) -> float | None:
    """Standard error of a mean loss per token, with samples as the units that vary.

    Losses within a sample are correlated, so with tokens as units the error would be too small. The
    mean is a ratio of sums over samples; its linearised variance is n / (n - 1) sum((L - mean T)^2)
    / sum(T)^2 (Cochran 1977, Sampling Techniques, section 6.4).

    Args:
        sums: Sums over the samples of one domain, shape ().
        num_samples: Number n of samples.

    Returns:
        Nats per token; None if there are fewer than two samples or no token counts.
    """
    loss, tokens, loss_squares, products, token_squares = map(float, sums)
    if num_samples < 2 or not tokens:
        return None
    mean = loss / tokens
    squares = loss_squares - 2.0 * mean * products + mean * mean * token_squares
    # rounding may give less than 0; max keeps nan, the result of a loss that is not finite
    return math.sqrt(max(squares, 0.0) * num_samples / (num_samples - 1)) / tokens


def _batches(
    source: EvaluationBatches, should_stop: Callable[[], bool] | None, progress: ProgressLines
) -> Iterator[Batch]:
    done = 0
    for k, domain in enumerate(source.domains):
        for number, batch in enumerate(source.batches(k)):
            if should_stop is not None and should_stop():
                raise EvaluationStopped
            of_domain = source.num_samples[k] * number // source.num_batches(k)
            progress.tell(done + of_domain, now_at=domain)
            yield batch
        done += source.num_samples[k]


def averages(results: dict[str, DomainResult]) -> dict[str, float]:
    """Means over domains, plain and weighted by samples, under the research code's names.

    ``avg_ppl`` is the mean of perplexities, not the perplexity of the mean loss: they can rank two
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
    errors = [r.standard_error for r in results.values()]
    if all(error is not None for error in errors):
        errors_of_domains = np.array(errors, dtype=np.float64)
        summary["avg_lm_loss_standard_error"] = float(
            np.linalg.norm(errors_of_domains) / len(errors_of_domains)
        )
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
        logger: Logs the losses.

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
            batch_size=loaded.train_batch_size,
        )
        if source is None:
            continue
        results = evaluate_domains(runner, source, name=part.name, say=logger.say)
        summary = averages(results)
        logger.evaluation(part.name, loaded.iteration, results, summary)
        report[part.name] = {
            "domains": {name: asdict(result) for name, result in results.items()},
            "averages": summary,
        }
    if parts and not report:
        raise nothing_to_evaluate(parts[0].config)
    return report
