"""What a run takes over from the checkpoint that it continues, and what it must not replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron.checkpoint.foreign import neox_checkpoint_names
from megatron.checkpoint.format import checkpoint_steps
from megatron.engine.build import LoadedRun
from megatron.errors import CheckpointError
from megatron.files import is_same_path
from megatron.neox_arguments import ConfigError, RunConfig
from odm import MixtureController
from odm.wording import counted

__all__ = ["refuse_to_replace", "restore_mixture"]


def refuse_to_replace(config: RunConfig, loaded: LoadedRun) -> None:
    """Raises an error if a run would replace the checkpoints of another run.

    Raises:
        ConfigError: If ``save`` contains checkpoints, and the run neither continues them nor goes
            back to iteration 0 of them on purpose; or if it contains later ones of GPT-NeoX.
    """
    save, is_finetuning = config.saving.save_path, config.saving.finetune
    if save is None:
        return
    later = {f"global_step{s}" for s in checkpoint_steps(Path(save)) if s > loaded.state.step}
    if theirs := sorted(later & neox_checkpoint_names(Path(save))):
        raise ConfigError(
            f"save: {save} contains {theirs[0]} of GPT-NeoX, which this run would replace, because "
            f"it continues from iteration {loaded.state.step}; name another folder"
        )
    if loaded.state.step > 0:
        return
    if loaded.folder is not None and is_same_path(loaded.folder.parent, save) and not is_finetuning:
        return  # iteration: 0 goes back to the start on purpose
    last = max(checkpoint_steps(Path(save)), default=0)
    if last == 0:
        return
    way = "set load to it and remove finetune" if is_finetuning else "set load to it"
    raise ConfigError(
        f"save: {save} contains checkpoints up to iteration {last}, which this run would replace, "
        f"because it begins at iteration 0; {way} to continue them, or name another folder"
    )


def restore_mixture(
    mixture: MixtureController,
    loaded: LoadedRun,
    samples_by_domain: Mapping[str, int],
    *,
    warn: Callable[[str], None],
) -> None:
    """Continues the mixture of a checkpoint; its domains and method must be those of this run.

    Args:
        mixture: The mixture of this run, which takes over the saved state.
        loaded: The run that the checkpoint was loaded into.
        samples_by_domain: Domain -> samples per epoch in this run.
        warn: Called with a message if the data have changed since the checkpoint.

    Raises:
        CheckpointError: If domains or method differ.
    """
    if loaded.mixture_state is None:
        return
    try:
        mixture.load_state_dict(loaded.mixture_state)
    except ValueError as error:
        raise CheckpointError(
            f"{loaded.folder}: mixture.json: {error}; finetune: true loads only the weights of "
            "the model and starts mixture, optimizer and iteration from zero"
        ) from error
    now, before = samples_by_domain, loaded.samples_per_epoch
    changed = [name for name in now if now[name] != before.get(name, now[name])]
    if changed:
        first = changed[0]
        warn(
            f"the data changed since {loaded.folder}: domain {first} has "
            f"{counted(now[first], 'sample')} per epoch and had {before[first]} ({len(changed)} of "
            f"{counted(len(now), 'domain')} changed); each continues at its old place in a new "
            "order, so some text is repeated or comes late"
        )
