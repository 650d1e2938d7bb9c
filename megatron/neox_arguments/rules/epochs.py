"""The length of a run that is given in epochs: iterations are counted from the training data."""

from __future__ import annotations

from megatron.data.errors import DataError
from megatron.data.shares import training_samples
from odm.wording import counted

from ..bounds import LARGEST_WHOLE_NUMBER
from ..purpose import Purpose
from ..sections import Batch, Data
from .draft import Draft

KEY = "train_epochs"


def count_iterations(draft: Draft, data: Data, batch: Batch) -> None:
    """Sets `train_iters` from `train_epochs`, before anything that follows from it is computed.

    An epoch is as many samples as all training data sets have together, as in GPT-NeoX; the weights
    decide how many of them each domain gives. There are as many iterations as fit into the epochs:
    an incomplete last batch is left out.

    Args:
        draft: The configuration; `train_iters` is set and noted.
        data: The training data, whose indexes are read.
        batch: The global batch.
    """
    epochs = draft[KEY]
    if epochs is None or draft.purpose is Purpose.READING:
        return
    if draft["train_iters"] is not None:
        both = f"is {epochs} and train_iters is {draft['train_iters']}; keep one"
        draft.refuse(KEY, both)
        return
    draft.values["train_iters"] = 1  # in the place of a number that cannot be counted
    if epochs < 1:  # a broken bound, which is refused elsewhere
        return
    if not data.train_paths:
        draft.refuse(KEY, f"is {epochs}, without training data; set train_data_paths or data_path")
        return
    try:
        samples = sum(
            training_samples(prefix, split=data.split, seq_length=data.seq_length)[1]
            for prefix in data.train_paths
        )
    except DataError as error:
        draft.refuse(KEY, f"is {epochs}, and the training data cannot be counted: {error}")
        return
    if samples == 0:
        what = f"the training data have no whole sample of seq_length {data.seq_length}"
        draft.refuse(KEY, f"is {epochs}, but {what}; lower seq_length or add texts")
        return
    iterations = epochs * samples // batch.train_batch_size
    if not 0 < iterations <= LARGEST_WHOLE_NUMBER:
        what = "no whole batch" if iterations == 0 else counted(iterations, "iteration")
        counts = f"{counted(samples, 'sample')} in batches of {batch.train_batch_size} are {what}"
        advice = "raise it or lower train_batch_size" if iterations == 0 else "lower it"
        draft.refuse(KEY, f"is {epochs}, but {counts}; {advice}")
        return
    draft.values["train_iters"] = iterations
    draft.notes.append(
        f"{KEY} {epochs}: {counted(iterations, 'iteration')} of {batch.train_batch_size} samples; "
        f"an epoch has the {counted(samples, 'sample')} of all training data"
    )
