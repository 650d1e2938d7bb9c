#!/usr/bin/env python
"""Requests per second of our lm-eval adapter against lm-eval's own ``hf`` model, same weights.

60 contexts of 40 to 120 tokens with four endings of 3 to 12 tokens each, fp32. Both sides get the
same texts through the same method, ``loglikelihood``, tokenization included. Each side has a
process of its own and waits while the other runs. The ``hf`` model uses the best of several batch
sizes, which is found first and printed. Prints requests per second of both, their ratio, and the
largest difference of two log-likelihoods.

    python -m tools.benchmark.eval_throughput [--shapes demo 14M 70M] [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.workers import Worker

CONTEXTS, ENDINGS = 60, 4
CONTEXT_TOKENS, ENDING_TOKENS = (40, 120), (3, 12)
HF_BATCH_SIZES = (1, 4, 8, 16, 32)
"""Without ``auto``, which begins with 64 rows of the full context: 6.6 GB of logits here."""

SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Settings of both sides."""


@dataclass(frozen=True)
class Shape:
    """A GPT-NeoX network."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    window: int
    is_tied: bool = False


SHAPES = {
    # its window is 128; a little more, so that nothing is cut
    "demo": Shape(4, 128, 4, vocab_size=2048, window=132, is_tied=True),
    "14M": Shape(6, 128, 4, vocab_size=50304, window=512),
    "70M": Shape(6, 512, 8, vocab_size=50304, window=512),
}


def make_texts(shape: Shape) -> list[tuple[str, str]]:
    """Contexts and endings of random words, each word one token."""
    source = random.Random(7)

    def words(bounds: tuple[int, int]) -> str:
        count = source.randint(*bounds)
        return " ".join(f"w{source.randrange(2, shape.vocab_size)}" for _ in range(count))

    contexts = [words(CONTEXT_TOKENS) for _ in range(CONTEXTS)]
    return [(text, " " + words(ENDING_TOKENS)) for text in contexts for _ in range(ENDINGS)]


def write_model(shape: Shape, folder: Path) -> None:
    """Writes a random model with a tokenizer, as `transformers` does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    config = GPTNeoXConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=4 * shape.hidden_size,
        rotary_pct=0.25,
        max_position_embeddings=shape.window,
        use_parallel_residual=True,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<|endoftext|>": 0, "<|padding|>": 1}
    vocabulary.update({f"w{number}": number for number in range(2, shape.vocab_size)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|padding|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|padding|>",
    ).save_pretrained(folder)


def our_side(folder: Path, shape: Shape) -> Mapping[str, Callable[..., Any]]:
    """Our adapter on the converted model; answers "run" with (seconds, log-likelihoods)."""
    from megatron.runtime import accelerator

    accelerator.keep_freed_memory()  # as our programs do at the start
    from megatron.checkpoint.loading import load_module_weights
    from megatron.eval_tasks.eval_adapter import NeoXEvalAdapter
    from megatron.model.gpt2_model import GPT2Model
    from megatron.mpu import RankGrid, Topology
    from tools.convert_from_hf import main as convert
    from tools.hf.settings import settings_of

    with contextlib.redirect_stdout(io.StringIO()):
        convert(["--input_dir", str(folder), "--output_dir", str(folder / "converted")])
    checkpoint = folder / "converted/global_step0"
    topology = Topology(RankGrid(1, 1, 1), 0, None, None, None)
    settings = settings_of(checkpoint)
    model = GPT2Model(settings.shape(shape.vocab_size), seed=1).eval()
    load_module_weights(model, checkpoint, topology)
    tokenizer = settings.tokenizer()
    adapters: dict[int | None, NeoXEvalAdapter] = {}

    def run(max_batch_tokens: int | None) -> tuple[float, list[float]]:
        if max_batch_tokens not in adapters:
            adapters[max_batch_tokens] = NeoXEvalAdapter(
                model, tokenizer, topology, max_batch_tokens=max_batch_tokens
            )
        return _timed(adapters[max_batch_tokens], shape)

    return {"run": run}


def hf_side(folder: Path, shape: Shape) -> Mapping[str, Callable[..., Any]]:
    """lm-eval's model on the same weights; answers "run" with (seconds, log-likelihoods)."""
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)

    def run(batch_size: int) -> tuple[float, list[float]]:
        model.batch_size_per_gpu = batch_size
        return _timed(model, shape)

    return {"run": run}


def _timed(model: Any, shape: Shape) -> tuple[float, list[float]]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, 0) for pair in make_texts(shape)]
    start = time.perf_counter()
    scores = model.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - start, [score for score, _ in scores]


def compare(
    name: str, rounds: int, batch_tokens: list[int | None], hf_batch_sizes: list[int]
) -> None:
    """Prints the table of one shape."""
    shape = SHAPES[name]
    count = CONTEXTS * ENDINGS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(shape, folder)
        ours, theirs = Worker(our_side, folder, shape), Worker(hf_side, folder, shape)
        print(f"{name}: {count} requests, fp32, {os.cpu_count()} cores")
        tried = {size: theirs.ask("run", size)[0] for size in hf_batch_sizes}
        words = ", ".join(f"{size}: {count / seconds:.0f}" for size, seconds in tried.items())
        best = min(tried, key=lambda size: tried[size])
        print(f"  hf by batch size, requests/s once: {words}; it has {best}")
        for tokens in batch_tokens:
            ours.ask("run", tokens)  # the first call of a process is slower
            pairs = [(ours.ask("run", tokens), theirs.ask("run", best)) for _ in range(rounds)]
            _print_table(pairs, tokens, count)
        ours.close()
        theirs.close()


def _print_table(pairs: list[Any], tokens: int | None, count: int) -> None:
    sides = {who: [pair[index][0] for pair in pairs] for index, who in enumerate(("ours", "hf"))}
    if tokens is not None:
        print(f"  batches of at most {tokens} tokens:")
    for who, times in sides.items():
        print(
            f"  {who:<6}{count / statistics.median(times):8.0f} requests/s (median), "
            f"{count / min(times):8.0f} (best)"
        )
    ratios = [theirs / ours for ours, theirs in zip(sides["ours"], sides["hf"], strict=True)]
    print(
        f"  ratio {statistics.median(ratios):8.2f} (median of pairs), "
        f"{min(sides['hf']) / min(sides['ours']):.2f} (best against best)"
    )
    (_, ours), (_, theirs) = pairs[0]
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"  largest difference of two log-likelihoods: {largest:.1e}")


def main() -> None:
    """Parses the command line and prints a table per shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    parser.add_argument(
        "--batch_tokens",
        nargs="+",
        type=int,
        default=[None],
        help="token budgets of our batches to try; the adapter's own where none is given",
    )
    parser.add_argument(
        "--hf_batch_sizes", nargs="+", type=int, default=list(HF_BATCH_SIZES), help="to try"
    )
    args = parser.parse_args()
    os.environ.update(SURROUNDINGS)
    for name in args.shapes:
        compare(name, args.rounds, args.batch_tokens, args.hf_batch_sizes)


if __name__ == "__main__":
    main()
