"""The command ``deepy.py``: read and check the configuration, then start the run."""

from __future__ import annotations

import errno
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.errors import UserError, one_line
from megatron.launcher.arguments_file import arguments_folder, write_arguments
from megatron.launcher.devices import rank_device_environment
from megatron.launcher.installation import missing_packages_problem
from megatron.launcher.native import check_slots
from megatron.launcher.plan import LaunchPlan, plan_launch
from megatron.launcher.rendezvous import LOOPBACK, reserve_port
from megatron.launcher.supervisor import RankCommand, Supervisor
from megatron.neox_arguments import ConfigError, NeoXArgs, Purpose, RunConfig
from megatron.neox_arguments.command_line import read_deepy_command
from megatron.neox_arguments.errors import shown
from megatron.neox_arguments.hostfile import is_host_name, missing_hostfile
from megatron.neox_arguments.neox_args import launch_values, placed
from megatron.neox_arguments.purpose import is_training_script, purpose_of
from megatron.neox_arguments.resolve import resolve_with_issues
from odm.wording import counted

__all__ = ["GRACE_VARIABLE", "main", "rank_commands"]

GRACE_VARIABLE = "ODM_NEOX_GRACE_SECONDS"
"""Seconds from a request to stop until ranks that have not ended are killed."""

_DEFAULT_GRACE_SECONDS = 60.0

_ELSEWHERE = (
    "deepy.py: a run on this machine would be refused; to check a run that will start on another "
    "machine, such as a node of a cluster, add --elsewhere"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``deepy.py`` with ``argv`` (``sys.argv[1:]`` when not given).

    Returns:
        The exit code: 0 done, or saved and stopped; 2 wrong input, with one message; 1 a failure.
    """
    try:
        command = read_deepy_command(argv)
        arguments = NeoXArgs.build(command.written)
        plan, config = _planned(arguments, is_elsewhere=command.elsewhere)
        _check_stages(arguments, config)
        _check_launcher(arguments, plan)
        if not command.check:  # the summary of a check has them
            for note in arguments.notes:
                _say(f"note: {one_line(note)}")  # ranks get one file and could not say it
        grace_seconds = _grace_seconds(os.environ)
        _tell_of_lone_machine(arguments, plan)
        problems = _start_problems(arguments, config, plan)
        is_elsewhere = command.elsewhere or bool(plan.hosts)
        if command.dry_run:
            sys.stdout.write(_shown_commands(arguments, plan) + _forecast(config))
            sys.stdout.write(_mixture_table(config))
        if not (command.check or command.dry_run):
            if problem := missing_packages_problem("torch", "deepspeed"):
                raise ConfigError(problem)
        elif problems and not is_elsewhere:
            problems = (*problems, _ELSEWHERE)
        if problems and not is_elsewhere:
            raise ConfigError(*problems)
        if command.check:
            sys.stdout.write(_summary(config, plan, lacks=problems) + "\n")
            sys.stdout.write("" if command.dry_run else _mixture_table(config))
        if command.check or command.dry_run:
            return 0
        if plan.hosts:
            from megatron.launcher.elsewhere import run_elsewhere  # one machine needs none of it

            return run_elsewhere(arguments, plan, grace_seconds, _say)
        talks = (
            Path(arguments.user_script).name == "generate.py"
            and config.generation.kind == "interactive"
        )
        return _run_here(arguments, plan, grace_seconds, pass_interrupts=talks)
    except UserError as error:
        _say(str(error))
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = one_line(str(error))
        _say(f"deepy.py: {reason}; check the path, the permissions and the free space")
        return 2


def rank_commands(
    script_argv: Sequence[str],
    *,
    plan: LaunchPlan,
    master_port: int,
    environ: Mapping[str, str],
) -> list[RankCommand]:
    """Makes the command and environment of every rank on this machine.

    ``LOCAL_SIZE``, which DeepSpeed's launcher sets, is left out: with it DeepSpeed makes shared
    memory segments that nobody removes.
    """
    shared = {key: value for key, value in environ.items() if key != "LOCAL_SIZE"}
    shared.update(rank_device_environment(plan.device_indices, environ))
    shared.update(
        MASTER_ADDR=LOOPBACK,
        MASTER_PORT=str(master_port),
        WORLD_SIZE=str(plan.num_processes),
        LOCAL_WORLD_SIZE=str(plan.num_processes),
    )
    return [
        RankCommand(script_argv, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(plan.num_processes)
    ]


def _run_here(
    arguments: NeoXArgs, plan: LaunchPlan, grace_seconds: float, *, pass_interrupts: bool
) -> int:
    with _prepared_commands(arguments, plan) as commands:
        return Supervisor(
            commands, grace_seconds=grace_seconds, report=_say, pass_interrupts=pass_interrupts
        ).run()


@contextmanager
def _prepared_commands(arguments: NeoXArgs, plan: LaunchPlan) -> Iterator[list[RankCommand]]:
    """Holds a port and the file of arguments while the commands are in use."""
    wanted = launch_values(arguments)["master_port"] if "master_port" in arguments.given else None
    holder, port = reserve_port(wanted, _say)
    with holder, arguments_folder() as folder:
        path = write_arguments(folder, "megatron_config", arguments.megatron_config)
        script_argv = [sys.executable, "-u", arguments.user_script, "--megatron_config", str(path)]
        yield rank_commands(script_argv, plan=plan, master_port=port, environ=os.environ)


def _shown_commands(arguments: NeoXArgs, plan: LaunchPlan) -> str:
    if plan.hosts:
        from megatron.launcher.elsewhere import shown_elsewhere

        return shown_elsewhere(arguments, plan)
    with _prepared_commands(arguments, plan) as commands:
        return "".join(_shown(command) + "\n" for command in commands)


def _forecast(config: Any) -> str:
    """Text about stages and memory of a training run; empty for other scripts."""
    if not is_training_script(config.launch.user_script):
        return ""
    from megatron.launcher.dry_run import describe_run

    return describe_run(config) + "\n"


def _mixture_table(config: RunConfig) -> str:
    """Text about what a training run reads of each domain; empty for other scripts."""
    if not is_training_script(config.launch.user_script):
        return ""
    from megatron.data.errors import DataError
    from megatron.sizing.mixture import describe_mixture

    try:
        return "".join(f"{line}\n" for line in describe_mixture(config))
    except (ConfigError, DataError):  # reported already; the data of a run elsewhere are there
        return ""


def _shown(command: RankCommand) -> str:
    added = {key: value for key, value in command.environ.items() if os.environ.get(key) != value}
    return shlex.join([*(f"{key}={value}" for key, value in sorted(added.items())), *command.argv])


def _grace_seconds(environ: Mapping[str, str]) -> float:
    text = environ.get(GRACE_VARIABLE)
    if text is None:
        return _DEFAULT_GRACE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{GRACE_VARIABLE}: must be a number of seconds, got '{text}'; unset it")
    return seconds


def _planned(arguments: NeoXArgs, *, is_elsewhere: bool) -> tuple[LaunchPlan, RunConfig]:
    """Where the run starts, and its configuration; raises all problems of both at once."""
    plan: LaunchPlan | None = None
    problems: list[str] = []
    try:
        plan = plan_launch(arguments, os.environ)
    except ConfigError as error:
        problems += error.messages
    config, issues = resolve_with_issues(arguments, plan.num_processes if plan else None)
    problems += issues.as_error().messages
    if problems or plan is None:
        others = plan.hosts if plan else arguments.hostfile or os.environ.get("DLTS_HOSTFILE")
        if not (is_elsewhere or others):
            problems += _start_problems(arguments, config, plan, is_valid=False)
        raise ConfigError(*dict.fromkeys(problems))
    return plan, config


def _check_stages(arguments: NeoXArgs, config: Any) -> None:
    """Refuses a rule for cutting stages that would fail when the model is built."""
    is_cut = config.layout.pipe_parallel_size > 1
    if not is_cut or purpose_of(arguments.user_script) is Purpose.READING:
        return
    from megatron.sizing.memory import memory_plan
    from megatron.sizing.stages import plan_stages

    try:
        plan = memory_plan(config)
        plan_stages(plan.layers, num_stages=plan.pipe, method=plan.partition_method)
    except ConfigError as error:
        blamed = ConfigError(*error.messages, key="pipe_partition_method")
        raise placed(arguments, blamed) from None


def _check_launcher(arguments: NeoXArgs, plan: LaunchPlan) -> None:
    """Refuses machines that the launcher would fail on."""
    address = os.environ.get("MASTER_ADDR")
    if plan.hosts and address and not is_host_name(address):
        raise ConfigError(f"MASTER_ADDR: must be a name or an address, got {shown(address)}")
    try:
        check_slots(plan.hosts, launch_values(arguments)["launcher"])
    except ConfigError as error:
        raise placed(arguments, error) from None


def _start_problems(
    arguments: NeoXArgs, config: RunConfig, plan: LaunchPlan | None, *, is_valid: bool = True
) -> tuple[str, ...]:
    """One line for each thing that would end a run on this machine before its first step."""
    from megatron.launcher.preflight import start_problems  # errors above need not wait for it

    has_accelerator = plan is None or bool(plan.device_indices)
    found = start_problems(config, has_accelerator=has_accelerator, is_valid=is_valid)
    return tuple(str(placed(arguments, problem)) for problem in found)


def _tell_of_lone_machine(arguments: NeoXArgs, plan: LaunchPlan) -> None:
    """Reports that a run uses only this machine although the configuration names others."""
    path = missing_hostfile(launch_values(arguments).__getitem__, os.environ)
    if path is not None:
        _say(f"deepy.py: there is no hostfile {one_line(path)}; the run uses only this machine")
    unused = _keys_of_more_machines(arguments)
    if unused and not plan.hosts:
        _say(f"deepy.py: {', '.join(unused)}: not used, because the run uses only this machine")


def _keys_of_more_machines(arguments: NeoXArgs) -> list[str]:
    """Names the keys that are set and have a meaning only for a run over several machines."""
    values = launch_values(arguments)
    alone = {"num_nodes": (-1, 1), "force_multi": (False,), "launcher": ("pdsh",)}
    names = [key for key, harmless in alone.items() if values[key] not in harmless]
    return [*names, "master_addr"] if values["master_addr"] else names


def _summary(config: Any, plan: LaunchPlan, *, lacks: Sequence[str]) -> str:
    """What a check prints; ``lacks``: what this machine lacks for a run that starts elsewhere."""
    layout, batch = config.layout, config.batch
    where = ", ".join(plan.hosts) or (
        "this machine, CPU" if not plan.device_indices else "this machine"
    )
    lines = {
        "configuration": ", ".join(Path(name).name for name in config.files) or "no file",
        "model": f"{counted(config.model.num_layers, 'layer')} x {config.model.hidden_size}, "
        f"{counted(config.model.num_attention_heads, 'head')}, sequence {config.data.seq_length}",
        "processes": f"{layout.world_size} on {where}; data {layout.data_parallel_size} x model "
        f"{layout.model_parallel_size} x pipe {layout.pipe_parallel_size}",
    }
    if purpose_of(config.launch.user_script) is Purpose.READING:
        lines |= {
            "precision": config.precision.dtype,
            "reads": config.saving.load_copy or config.saving.load_path or "nothing",
        }
    else:
        lines |= {
            "batch": f"{batch.train_batch_size} = {batch.micro_batch_size} per micro-batch x "
            f"{batch.gradient_accumulation_steps} accumulated x "
            f"{layout.data_parallel_size} data-parallel",
            "precision": f"{config.precision.dtype}, ZeRO {layout.zero_stage}",
            "domains": ", ".join(config.data.train_domains) or "one unnamed",
            "saves to": config.saving.save_path or "nowhere",
        }
        if config.saving.save_copy:
            lines["copies to"] = config.saving.save_copy
    width = max(map(len, lines))
    notes = [f"note: {note}" for note in config.notes]
    notes += [f"not on this machine: {problem}" for problem in lacks]
    return "\n".join(
        [
            "configuration is valid",
            *(f"  {key:<{width}}  {text}" for key, text in lines.items()),
            *notes,
        ]
    )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
