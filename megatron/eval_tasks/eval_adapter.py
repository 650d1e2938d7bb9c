"""The interface through which lm-eval uses a model of this program."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from megatron.errors import EvaluationBroken, EvaluationStopped, TaskError, UserError
from megatron.eval_tasks.chat import ChatTemplate
from megatron.eval_tasks.encoding import encode_pairs
from megatron.eval_tasks.generation import generate_texts
from megatron.eval_tasks.generation_settings import DEFAULT_NEW_TOKENS
from megatron.eval_tasks.likelihood import Score, score_pairs
from megatron.eval_tasks.packing import Pair
from megatron.eval_tasks.sharing import check_same_requests, gather_results, own_share
from megatron.model.gpt2_model import GPT2Model
from megatron.model.parameters import spec_of
from megatron.mpu import Topology
from megatron.neox_arguments import ConfigError
from megatron.reporting.progress_lines import ProgressLines
from megatron.reporting.run_logger import print_rank_0
from megatron.runtime import accelerator
from megatron.tokenizer import AbstractTokenizer

__all__ = ["NeoXEvalAdapter"]

CPU_BATCH_TOKENS = 2048
DEVICE_BATCH_TOKENS = 16384
"""`tools/benchmark/eval_throughput.py --batch_tokens` prints the alternatives."""

Report = Callable[[int, Any], None]
"""Called with the number of a request and its result."""


class NeoXEvalAdapter(TemplateLM):
    """Scores and generates text for lm-eval.

    Every process gets all requests, computes the share of its data-parallel rank, and returns all
    results; so lm-eval sees rank 0 of 1 in every process, see `megatron.eval_tasks.sharing`. The
    ranks of a tensor-parallel group compute together. Pipeline stages are not supported.

    Args:
        model: The model, in evaluation mode.
        tokenizer: The tokenizer that the model was trained with.
        topology: The ranks that compute together; it must have no pipeline stages.
        max_batch_tokens: Maximum tokens per forward pass, padding included; None chooses a value
            for the device.
        tokenizer_folder: Folder where a chat template is looked for; None if there is no folder.
        seed: Sampled texts depend on it and on the request.
        should_stop: Called between two batches; if it returns True, see `gather_results`.
    """

    def __init__(
        self,
        model: GPT2Model,
        tokenizer: AbstractTokenizer,
        topology: Topology,
        *,
        max_batch_tokens: int | None = None,
        tokenizer_folder: Path | None = None,
        seed: int = 1234,
        should_stop: Callable[[], bool] | None = None,
    ):
        super().__init__()
        default = CPU_BATCH_TOKENS if accelerator.is_cpu() else DEVICE_BATCH_TOKENS
        self.max_batch_tokens = default if max_batch_tokens is None else max_batch_tokens
        if self.max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens: must be at least 1, got {max_batch_tokens}")
        self.model = model
        self._text = tokenizer
        self._topology = topology
        self._chat = ChatTemplate(tokenizer_folder)
        self._seed = seed
        self._should_stop = should_stop
        self._num_added = len(tokenizer.added.before)
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self._text.eod

    @property
    def prefix_token_id(self) -> int:
        """The token for an empty context: training's first token of a text, or end of document."""
        return next(iter(self._text.added.before), self._text.eod)

    @property
    def max_length(self) -> int:
        """Length of the model's context in tokens."""
        return self.model.config.longest_text

    @property
    def max_gen_toks(self) -> int:
        """Maximum number of tokens to generate if a task does not give it."""
        return DEFAULT_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Identifies tokenizer and chat template in lm-eval's cache of requests."""
        parts = (self._text.name, self._text.fingerprint[:12], self._chat.fingerprint)
        return "-".join(filter(None, parts))

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text, with those that training adds before it unless the flag is False."""
        (tokens,) = self._text.tokenize_prompts([string])
        return tokens[self._num_added :] if add_special_tokens is False else tokens

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._chat.apply(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._chat.text if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """Information that lm-eval writes beside the results."""
        parameters = list(self.model.parameters())
        count = sum(math.prod(spec_of(parameter).logical_shape) for parameter in parameters)
        return {"model_num_parameters": count, "model_dtype": str(parameters[0].dtype)}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihoods of endings after their contexts, and whether each is the greedy ending.

        Raises:
            UserError: On every rank, if a request cannot be scored.
        """
        texts = [(request.args[0], request.args[1]) for request in requests]

        def compute(mine: Sequence[int], report: Report) -> None:
            chosen = [texts[number] for number in mine]
            pairs = encode_pairs(chosen, self._text, prefix=self.prefix_token_id)
            self._score(pairs, lambda position, score: report(mine[position], score))

        return self._run(
            "loglikelihood",
            texts,
            compute,
            keys=[context for context, _ in texts],
            costs=[len(context) + len(ending) for context, ending in texts],
            disable_tqdm=disable_tqdm,
        )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Score]:
        """As `loglikelihood`, of tokens; requests without texts are not cached."""

        def compute(mine: Sequence[int], report: Report) -> None:
            pairs = [requests[number][1:] for number in mine]
            self._score(pairs, lambda position, score: report(mine[position], score))

        return self._run(
            "loglikelihood",
            [texts for texts, _, _ in requests],
            compute,
            keys=[tuple(context) for _, context, _ in requests],
            costs=[len(context) + len(ending) for _, context, ending in requests],
            disable_tqdm=disable_tqdm,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole documents; a document that is too long is cut into windows.

        Each token is predicted once, with as much context as it gets from lm-eval's other models.
        """
        texts = [(request.args[0],) for request in requests]

        def compute(mine: Sequence[int], report: Report) -> None:
            documents = self._text.tokenize_prompts([texts[number][0] for number in mine])
            windows = [self._windows(tokens[self._num_added :]) for tokens in documents]
            owners = [number for number, own in zip(mine, windows, strict=True) for _ in own]
            missing = {number: len(own) for number, own in zip(mine, windows, strict=True)}
            totals = dict.fromkeys(mine, 0.0)
            for number in [number for number, count in missing.items() if not count]:
                report(number, 0.0)  # an empty text has probability 1

            def add(position: int, score: Score) -> None:
                number = owners[position]
                totals[number] += score[0]
                missing[number] -= 1
                if not missing[number]:
                    report(number, totals[number])

            self._score([window for own in windows for window in own], add)

        return self._run(
            "loglikelihood_rolling",
            texts,
            compute,
            keys=range(len(texts)),
            costs=[len(text) for (text,) in texts],
            disable_tqdm=disable_tqdm,
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that the model generates after contexts; see `generate_texts`."""
        calls = [(request.args[0], request.args[1]) for request in requests]

        def compute(mine: Sequence[int], report: Report) -> None:
            generate_texts(
                self.model,
                self._text,
                {number: calls[number] for number in mine},
                max_batch_tokens=self.max_batch_tokens,
                seed=self._seed,
                on_text=report,
                before_batch=self._check_stop,
            )

        return self._run(
            "generate_until",
            calls,
            compute,
            keys=range(len(calls)),
            costs=[len(context) for context, _ in calls],
            disable_tqdm=disable_tqdm,
        )

    def _windows(self, tokens: list[int]) -> list[Pair]:
        windows = utils.get_rolling_token_windows(
            token_list=tokens,
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [utils.make_disjoint_window(window) for window in windows]

    def _score(self, pairs: Sequence[Pair], on_score: Callable[[int, Score], None]) -> None:
        score_pairs(
            self.model,
            pairs,
            max_batch_tokens=self.max_batch_tokens,
            on_score=on_score,
            before_batch=self._check_stop,
        )

    def _check_stop(self) -> None:
        """Raises `EvaluationStopped` if a rank of the tensor-parallel group was asked to stop."""
        if self._should_stop is None:
            return
        is_wanted = torch.tensor(float(self._should_stop()), device=self._device)
        if self._topology.model_group is not None:
            dist.all_reduce(is_wanted, group=self._topology.model_group)
        if is_wanted:
            raise EvaluationStopped

    def _run(
        self,
        kind: str,
        arguments: Sequence[tuple[Any, ...] | None],
        compute: Callable[[Sequence[int], Report], None],
        *,
        keys: Sequence[Hashable],
        costs: Sequence[float],
        disable_tqdm: bool,
    ) -> list[Any]:
        """Computes this rank's share with ``compute``; returns all results, in request order.

        Args:
            kind: Name of lm-eval's method.
            arguments: The arguments of each request; a request with None is not cached.
            compute: Called with the numbers of this rank's requests, and a function to call with
                each number and its result.
            keys: One key per request; requests with equal keys are computed by the same rank.
            costs: Cost of each request; all ranks get about the same sum.
            disable_tqdm: Whether to hide the progress bar.
        """
        topology = self._topology
        check_same_requests(list(zip(arguments, keys, strict=True)), kind, topology)
        mine = own_share(keys, costs, rank=topology.data_rank, size=topology.grid.data)
        own: dict[int, Any] = {}
        # results of a killed run are worth keeping, but the caches of several ranks must not differ
        caches_at_once = topology.grid.size == 1
        is_hidden = disable_tqdm or topology.rank != 0
        # a progress bar on a terminal, lines in a log file
        say = None if is_hidden or sys.stderr.isatty() else print_rank_0
        lines = ProgressLines(say, kind, total=len(mine), unit="requests")
        with tqdm(total=len(mine), desc=kind, disable=True if is_hidden else None) as bar:

            def report(number: int, result: Any) -> None:
                own[number] = result
                bar.update()
                lines.tell(len(own))
                if caches_at_once:
                    self._cache(kind, arguments[number], result)

            share: dict[int, Any] | Exception = own
            try:
                compute(mine, report)
            except (EvaluationStopped, UserError) as problem:
                share = problem  # the other replicas are told when they have finished
            except Exception as problem:
                if topology.model_group is not None:  # its ranks may be waiting inside the model
                    raise EvaluationBroken(kind) from problem
                if topology.grid.size == 1:
                    raise
                traceback.print_exc()
                share = TaskError(f"{kind}: {type(problem).__name__}: {problem}")
        results = gather_results(share, topology)
        if not caches_at_once:
            for request, result in zip(arguments, results, strict=True):
                self._cache(kind, request, result)
        return results

    def _cache(self, kind: str, arguments: tuple[Any, ...] | None, result: Any) -> None:
        if arguments is not None:
            self.cache_hook.add_partial(kind, arguments, result)
