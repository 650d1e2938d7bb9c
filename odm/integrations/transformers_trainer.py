"""Online data mixing inside ``transformers.Trainer``.

A training script reads data through ``MixtureIterableDataset`` (or the batch sampler), creates the
trainer with ``data_collator=recorder.collate, compute_loss_func=recorder.loss_function`` and
``remove_unused_columns=False``, and adds ``MixtureCallback(controller, recorder)``. If the
controller's reward needs held-out losses, the callback also gets ``held_out=HeldOutSamples(...)``
of `odm.integrations.torch_data`. Only causal language models are supported; every process runs the
same code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.data.data_collator import default_data_collator

from ..arguments import check_kind, whole_number
from ..controller import MixtureController
from ..held_out import HeldOut
from ..json_data import read_json
from ..signal import Signal
from ..wording import counted
from .torch_data import HeldOutSamples

STATE_FILE = "mixture.json"


class DomainLossRecorder:
    """Sums the losses per domain between two optimizer steps of a ``Trainer``.

    The domain of a sequence is stored in ``labels[:, 0]``: a causal model predicts the tokens from
    token 1 on, so this label is never a target. Sums stay on the device of the loss until ``take``
    copies them, once per step.

    Args:
        num_domains: Number of domains K.
        collate: Function that makes a batch with ``labels`` from samples without ``domain_ids``.
        ignore_index: Label of tokens that do not count.
    """

    def __init__(
        self,
        num_domains: int,
        *,
        collate: Callable[[list[Any]], Mapping[str, Any]] = default_data_collator,
        ignore_index: int = -100,
    ) -> None:
        self.num_domains = whole_number("transformers: num_domains", num_domains, 1)
        self._collate, self._ignore_index = collate, ignore_index
        self._sums: torch.Tensor | None = None

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates samples with ``domain_ids`` and ``labels``; pass it as ``data_collator``."""
        if any("domain_ids" not in sample for sample in samples):
            raise ValueError(
                "transformers: a sample has no domain_ids; set remove_unused_columns=False in the "
                "training arguments and read data through odm.integrations.torch_data"
            )
        domain_ids = torch.tensor([int(sample["domain_ids"]) for sample in samples])
        outside = domain_ids[(domain_ids < 0) | (domain_ids >= self.num_domains)]
        if outside.numel():
            raise ValueError(
                f"transformers: a sample has the domain {int(outside[0])}, the recorder has "
                f"{counted(self.num_domains, 'domain')}, counted from 0"
            )
        rest = [{k: v for k, v in sample.items() if k != "domain_ids"} for sample in samples]
        batch = dict(self._collate(rest)) if rest else {}
        if "labels" not in batch:
            raise ValueError(
                "transformers: a batch has no labels; give each sample labels, which may be its "
                "input_ids"
            )
        labels = torch.as_tensor(batch["labels"]).clone()
        labels[:, 0] = domain_ids
        return {**batch, "labels": labels}

    def loss_function(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Causal language-model loss, recorded per domain; pass it as ``compute_loss_func``.

        Args:
            outputs: Model outputs with ``logits`` of shape (batch, sequence, vocabulary).
            labels: Labels from ``collate``, shape (batch, sequence), not shifted.
            num_items_in_batch: Tokens of the whole optimizer step, or None.

        Returns:
            Scalar: summed loss over ``num_items_in_batch``, or over this batch's tokens. Only
            losses with gradients are recorded, so evaluation does not affect the mixture.
        """
        losses, counted = self._token_losses(outputs, labels)
        if torch.is_grad_enabled():
            self._record(losses.detach().double(), counted, domain_ids=labels[:, 0])
        total = counted.sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / total

    def losses_of(
        self, model: torch.nn.Module, samples: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of held-out samples, without ``domain_ids``, for `HeldOutSamples.measure`.

        Args:
            model: A causal language model, in evaluation mode.
            samples: Samples with ``labels``, as those of training.

        Returns:
            Sum of the losses and number of tokens of each sample, both of shape (n,).
        """
        device = next(model.parameters()).device
        tensors = {k: torch.as_tensor(v).to(device) for k, v in self._collate([*samples]).items()}
        labels = tensors.pop("labels")
        losses, counted = self._token_losses(model(**tensors), labels)
        return losses.double().sum(1), counted.sum(1)

    def _token_losses(
        self, outputs: Any, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each token, and whether it counts, both of shape (batch, sequence - 1)."""
        logits, targets = outputs["logits"][:, :-1].float(), labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=self._ignore_index, reduction="none"
        )
        return losses, targets != self._ignore_index

    def _record(
        self, losses: torch.Tensor, counted: torch.Tensor, *, domain_ids: torch.Tensor
    ) -> None:
        rows = torch.stack(
            [losses.sum(1), (losses**2).sum(1), counted.sum(1), torch.ones_like(losses[:, 0])]
        )
        if self._sums is None:
            self._sums = rows.new_zeros(4, self.num_domains)
        self._sums.index_add_(1, domain_ids, rows)

    def take(self) -> Signal:
        """Returns the sums since the last call, over all processes, and resets them."""
        if self._sums is None:
            raise ValueError(
                "transformers: no loss was recorded in this step; give the trainer "
                "compute_loss_func=recorder.loss_function"
            )
        sums = self._sums
        self._sums = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        return Signal(*sums.cpu().numpy())


class MixtureCallback(TrainerCallback):
    """Updates a controller after every optimizer step, logs its weights and saves its state.

    The state is saved as ``mixture.json`` in every checkpoint folder, without the plans that the
    trainer has read ahead. To resume, ``load`` it, create the dataset with ``first_step=global_step
    + 1`` and set ``ignore_data_skip=True``. The trainer reads one batch ahead, so new weights
    affect draws one step later than in a loop without read-ahead.

    Args:
        controller: The controller that the training data is drawn from.
        recorder: The recorder whose ``collate`` and ``loss_function`` the trainer uses.
        held_out: Held-out samples of every domain, for a controller whose reward needs them.
        held_out_interval: Steps from one measurement of them to the next.

    Raises:
        ValueError: If the controller's reward and ``held_out`` do not go together: without samples
            the weights would never change, and samples that nothing follows would only cost time.
    """

    def __init__(
        self,
        controller: MixtureController,
        recorder: DomainLossRecorder,
        *,
        held_out: HeldOutSamples | None = None,
        held_out_interval: int = 50,
    ) -> None:
        held_out_interval = whole_number("transformers: held_out_interval", held_out_interval, 1)
        check_kind(
            "transformers: controller",
            controller,
            MixtureController,
            example="odm.MixtureController(...)",
        )
        check_kind(
            "transformers: recorder", recorder, DomainLossRecorder, example="DomainLossRecorder(3)"
        )
        counts = {"recorder": recorder.num_domains}
        counts |= {} if held_out is None else {"held_out": held_out.num_domains}
        for name, count in counts.items():
            if count != controller.num_domains:
                raise ValueError(
                    f"transformers: {name} is for {counted(count, 'domain')}, the controller has "
                    f"{controller.num_domains}"
                )
        source = controller.reward.source
        if controller.reward.needs_held_out and held_out is None:
            raise ValueError(
                f"transformers: the controller's reward is {source}; give held_out=HeldOutSamples"
            )
        if held_out is not None and not controller.reward.needs_held_out:
            raise ValueError(
                f"transformers: held_out is given, but the controller's reward is {source}; set "
                "its reward to heldout, or leave out held_out"
            )
        self._controller, self._recorder = controller, recorder
        self._held_out, self._interval = held_out, held_out_interval

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Updates the weights from the losses of the step that has just ended."""
        signal, _ = self._recorder.take().drop_nonfinite()
        measured = None
        if self._held_out is not None and state.global_step % self._interval == 0:
            measured = self._measure(state.global_step, model, args.per_device_eval_batch_size)
        self._controller.observe(state.global_step, signal, held_out=measured)

    def _measure(self, step: int, model: torch.nn.Module, batch_size: int) -> HeldOut:
        assert self._held_out is not None
        was_training = model.training
        model.eval()
        try:
            losses_of = partial(self._recorder.losses_of, model)
            return self._held_out.measure(step, losses_of, batch_size=batch_size)
        finally:
            model.train(was_training)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Adds ``mixture/<domain>`` to the trainer's history and to later callbacks' logs."""
        weights = self._controller.weights.tolist()
        pairs = zip(self._controller.domains, weights, strict=True)
        metrics = {f"mixture/{name}": weight for name, weight in pairs}
        if logs is not None:
            logs.update(metrics)
        if state.log_history:
            state.log_history[-1].update(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the controller's state into the checkpoint folder (first process only)."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            mixture = self._controller.state_dict(completed_step=state.global_step)
            if self._held_out is not None:
                mixture["held_out"] = self._held_out.state_dict()
            _write_json(folder / STATE_FILE, mixture)

    def load(self, checkpoint: str | os.PathLike[str]) -> None:
        """Continues from the state in a checkpoint folder; call it before creating the dataset."""
        state = read_json(
            Path(checkpoint) / STATE_FILE,
            what="state of a mixture",
            advice="name a checkpoint folder that a run with MixtureCallback saved",
        )
        self._controller.load_state_dict(state)
        if self._held_out is not None and "held_out" in state:
            self._held_out.load_state_dict(state["held_out"])


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
