#!/usr/bin/env python
"""Generated tokens per second against transformers' `generate` with its cache, on the same weights.

Both continue the same random prompts greedily, runs interleaved, each side in a process of its own
that waits while the other runs. Prints the ratios, whether the tokens are equal, and the share of
the memory's own read rate at which our weights are read: each step of a batch reads them all once,
which is the limit of small batches. The read rate is that of a sum over a large tensor.
``--without frozen`` compares our generation with itself without `frozen_weights` instead, in one
process, by processor time, which other programs on the machine change little.

    python -m tools.benchmark.generation_throughput [--shapes 14M 70M] [--batches 1 8] [--runs 5]
    OMP_NUM_THREADS=1 python -m tools.benchmark.generation_throughput --without frozen
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tools.benchmark.step_throughput import SHAPES, VOCAB_SIZE
from tools.benchmark.workers import Worker

PROMPT_TOKENS, NEW_TOKENS = 64, 128
WARMUP_RUNS = 2
READ_BYTES = 1 << 29


def network(shape_name: str):
    """Our network of this shape, in evaluation mode; the same weights in every process."""
    from megatron.model.gpt2_model import GPT2Model
    from megatron.sizing.model_shape import ModelShape

    shape = SHAPES[shape_name]
    head_dim = shape.hidden_size // shape.num_attention_heads
    config = ModelShape(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_kv_heads=shape.num_attention_heads,
        head_dim=head_dim,
        mlp_inner_size=4 * shape.hidden_size,
        is_gated_mlp=False,
        max_position_embeddings=512,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=VOCAB_SIZE,
        pos_emb="rotary",
        rotary_dim=head_dim // 4,
        qk_norm="none",
        norm_epsilon=1e-5,
        use_bias_in_attn_output=True,
        checkpoint_num_layers=0,
        gpt_j_residual=True,
        no_weight_tying=True,
        init_method_std=0.05,  # texts that do not repeat one token
        output_layer_init_method="normal",
    )
    return GPT2Model(config, seed=1).eval()


def random_prompts(batch: int) -> list[list[int]]:
    """Prompts of one length, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(batch)
    return torch.randint(VOCAB_SIZE, (batch, PROMPT_TOKENS), generator=generator).tolist()


def our_side(shape_name: str) -> dict[str, Callable[..., Any]]:
    """What the process of this project answers."""
    from megatron.generation.batch import generate_batch
    from megatron.runtime import accelerator

    if accelerator.is_cpu():
        accelerator.keep_freed_memory()  # as generate.py does
    model = network(shape_name)

    def generate(batch: int) -> list[list[int]]:
        results = generate_batch(
            model, random_prompts(batch), decode=lambda tokens: "", maximum_tokens=NEW_TOKENS
        )
        return [list(result.tokens) for result in results]

    def weight_bytes() -> int:
        """Bytes of weights that a step reads, without the embedding (one row per token)."""
        names = {name: p.nbytes for name, p in model.named_parameters()}
        return sum(names.values()) - names["0.word_embeddings.weight"]

    return {
        "run": lambda batch: _timed(generate, batch),
        "whole": lambda batch: _processor_seconds(generate, batch),
        "without": lambda batch: _without_frozen(_processor_seconds, generate, batch),
        "weight_bytes": weight_bytes,
        "read_rate": read_rate,
    }


def their_side(shape_name: str) -> dict[str, Callable[..., Any]]:
    """What the process of transformers answers."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from tools.hf.families import family_for

    ours = network(shape_name)
    family = family_for(ours.config)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**family.write_config(ours.config))).eval()
    weights = dict(ours.named_parameters())
    renamed = {
        family.other_names.get(name, name): weights[weight.ours].detach()
        for weight in family.weights_of(ours.config)
        for name in weight.theirs
    }
    model.load_state_dict(renamed)
    model.generation_config.eos_token_id = None
    del ours, weights

    def generate(batch: int) -> list[list[int]]:
        tokens = torch.tensor(random_prompts(batch))
        result = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        return result[:, PROMPT_TOKENS:].tolist()

    return {"run": lambda batch: _timed(generate, batch)}


def read_rate() -> float:
    """Bytes per second at which all cores together read memory that no cache holds."""
    import torch

    values = torch.ones(READ_BYTES // 4)
    return READ_BYTES / min(_timed(values.sum)[0] for _ in range(7))


def _timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action(*arguments)
    return time.perf_counter() - start, result


def compare(shape_name: str, batches: list[int], runs: int) -> None:
    """Prints the figures of one shape."""
    sides = {"ours": Worker(our_side, shape_name), "theirs": Worker(their_side, shape_name)}
    times: dict[tuple[str, int], list[float]] = {}
    tokens: dict[tuple[str, int], Any] = {}
    rates = []
    for number in range(WARMUP_RUNS + runs):
        for batch in batches:
            for who, worker in sides.items():
                seconds, tokens[who, batch] = worker.ask("run", batch)
                if number >= WARMUP_RUNS:
                    times.setdefault((who, batch), []).append(seconds)
        rates.append(sides["ours"].ask("read_rate"))
    print(
        f"{shape_name}: {PROMPT_TOKENS} tokens of prompt, {NEW_TOKENS} greedy tokens, fp32, "
        f"{os.cpu_count()} cores"
    )
    rate, size = statistics.median(rates), sides["ours"].ask("weight_bytes")
    for batch in batches:
        ours, theirs = times["ours", batch], times["theirs", batch]
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        is_equal = tokens["ours", batch] == tokens["theirs", batch]
        steps_per_second = NEW_TOKENS / statistics.median(ours)
        print(
            f"  batch {batch}: ours {batch * steps_per_second:.0f} tokens/s, transformers "
            f"{batch * NEW_TOKENS / statistics.median(theirs):.0f}; ratio "
            f"{statistics.median(ratios):.2f} (median of pairs), {min(theirs) / min(ours):.2f} "
            f"(best against best); tokens {'equal' if is_equal else 'DIFFER'}"
        )
        print(
            f"    weights: {size / 1e6:.0f} MB per step, {size * steps_per_second / 1e9:.1f} GB/s, "
            f"{size * steps_per_second / rate:.2f} of the memory's {rate / 1e9:.1f} GB/s"
        )
    for worker in sides.values():
        worker.close()


def _processor_seconds(action: Callable[..., Any], *arguments: Any) -> float:
    start = time.process_time()
    action(*arguments)
    return time.process_time() - start


def _without_frozen(action: Callable[..., Any], *arguments: Any) -> Any:
    """Calls ``action``; no batch of it is long enough to lay out weights."""
    from megatron.generation import batch

    worth = batch._STEPS_WORTH_FREEZING
    batch._STEPS_WORTH_FREEZING = sys.maxsize
    try:
        return action(*arguments)
    finally:
        batch._STEPS_WORTH_FREEZING = worth


def compare_without(shape_name: str, batches: list[int], runs: int) -> None:
    """Prints how long our generation takes without `frozen_weights`; above 1 where they win."""
    worker = Worker(our_side, shape_name)
    for batch in batches:
        turns = [[worker.ask(way, batch) for way in ("without", "whole")] for _ in range(1 + runs)][
            1:
        ]
        without, whole = map(min, zip(*turns, strict=True))
        print(
            f"{shape_name}, batch {batch}: without frozen weights "
            f"{statistics.median(one / other for one, other in turns):.2f} (median of turns), "
            f"{without / whole:.2f} (best against best) of {whole:.2f} s"
        )
    worker.close()


def main() -> None:
    """Parses the command line and prints the figures of each shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--without", choices=["frozen"])
    args = parser.parse_args()
    for name in args.shapes:
        if args.without:
            compare_without(name, args.batches, args.runs)
            continue
        compare(name, args.batches, args.runs)


if __name__ == "__main__":
    main()
