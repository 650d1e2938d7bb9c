"""Runs what a plan lists: some runs at a time, each of which continues where it was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from megatron.files import write_text_atomic
from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.runtime.process_life import die_with_parent
from tools.benchmark.quality.plan import Plan, Run
from tools.benchmark.quality.results import collect, read_result, result_path, write_result
from tools.benchmark.quality.suites import PreparedText, prepared_text, text_manifest

__all__ = ["Campaign"]

ROOT = Path(__file__).resolve().parents[3]
POLL_SECONDS = 0.2
STOP_SECONDS = 120.0
"""Time to save and end after a request to stop."""


@dataclass
class Campaign:
    """A plan with its folders."""

    plan: Plan
    work: Path
    """Texts and training runs."""
    results: Path
    """One small file per finished run."""
    threads: int = 1
    """Threads of each run."""
    say: Callable[[str], None] = print
    _texts: dict[str, PreparedText] = field(default_factory=dict)

    def text_of(self, run: Run) -> PreparedText:
        """The prepared text of a run.

        Raises:
            PlanError: If it is not prepared.
        """
        name = self.plan.suites[run.suite].text
        if name not in self._texts:
            self._texts[name] = prepared_text(self._text_folder(run))
        return self._texts[name]

    def _text_folder(self, run: Run) -> Path:
        return self.work / "texts" / self.plan.suites[run.suite].text

    def digest(self, run: Run) -> str:
        """See `Plan.digest`."""
        return self.plan.digest(run, self.text_of(run).digest)

    def folder(self, run: Run) -> Path:
        """Where a run trains. Another digest is another folder: nothing continues what differs."""
        return self.work / "runs" / run.suite / f"{run.arm}-{run.seed}-{self.digest(run)}"

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of exactly this run; None if there is none, or one of other settings.

        Where the text is not prepared, that of the result counts: a report needs no corpus.
        """
        path = result_path(self.results, run)
        if not path.exists():
            return None
        result = read_result(path)
        is_prepared = text_manifest(self._text_folder(run)).exists()
        text_digest = self.text_of(run).digest if is_prepared else result["text_digest"]
        return result if result["digest"] == self.plan.digest(run, text_digest) else None

    def state(self, run: Run) -> str:
        """``done``, ``begun``, ``to do``, or ``refused`` with the reason in brackets."""
        if self.result(run):
            return "done"
        if problem := self.problem(run):
            return f"refused ({problem})"
        return "begun" if self.is_begun(run) else "to do"

    def is_begun(self, run: Run) -> bool:
        """Whether a run has a checkpoint to continue from."""
        return (self.folder(run) / "run/latest").exists()

    def problem(self, run: Run) -> str | None:
        """Why this version cannot make the run, in one line: a key or value that it refuses."""
        arm = self.plan.arms[run.arm]
        if arm.average_of:
            source = self.problem(Run(run.suite, arm.average_of, run.seed))
            if source:
                return f"{arm.average_of} is refused: {source}"
        try:
            resolve(NeoXArgs.from_dict(self._configuration(run, weights=None)), world_size=1)
        except ConfigError as error:
            return " ".join(str(error).split())
        return None

    def waits_for(self, run: Run) -> Run | None:
        """The run whose result this one needs and that is not there."""
        source = self.plan.arms[run.arm].average_of
        needed = Run(run.suite, source, run.seed) if source else None
        return needed if needed and not self.result(needed) else None

    def _configuration(self, run: Run, *, weights: list[float] | None) -> dict[str, Any]:
        text, folder = self.text_of(run), str(self.folder(run) / "run")
        paths = {f"{split}_data_paths": text.paths(split) for split in ("train", "valid", "test")}
        return {
            **self.plan.settings(run),
            **paths,
            **({} if weights is None else {"train_data_weights": weights}),
            "use_named_train_datasets": True,
            "use_named_eval_datasets": True,
            "tokenizer_type": "HFTokenizer",
            "vocab_file": text.tokenizer_file,
            "num_gpus": 1,
            "save": folder,
            "load": folder,
        }

    def _weights(self, run: Run) -> list[float] | None:
        """Initial weights, which are the weights of a static arm; None: equal."""
        arm, text = self.plan.arms[run.arm], self.text_of(run)
        if arm.natural:
            return [float(entry["tokens"]["train"]) for entry in text.domains.values()]
        if arm.average_of is None:
            return None
        source = self.result(Run(run.suite, arm.average_of, run.seed))
        assert source is not None, "waits_for holds such runs back"
        return [float(source["domains"][name]["samples"]) for name in text.domains]

    def start(self, run: Run) -> subprocess.Popen[bytes]:
        """Starts or continues a run in a process that dies with this one."""
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yml"
        configuration = self._configuration(run, weights=self._weights(run))
        write_text_atomic(config, yaml.safe_dump(configuration, sort_keys=False))
        parent_pid = os.getpid()
        with open(folder / "output.txt", "ab") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "deepy.py"), "train.py", str(config)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals of a terminal reach it once, from here
                preexec_fn=lambda: die_with_parent(parent_pid),
            )

    def keep_result(self, run: Run) -> bool:
        """Writes the result of a run whose log is complete; returns whether it is."""
        log = self.folder(run) / "run/logs/metrics.jsonl"
        if not log.exists():
            return False
        text = self.text_of(run)
        result = collect(
            run,
            log,
            settings=self.plan.settings(run),
            digest=self.digest(run),
            text_digest=text.digest,
            text_domains=text.domains,
            threads=self.threads,
        )
        if result is None:
            return False
        write_result(result_path(self.results, run), result)
        return True

    def run(self, runs: Iterable[Run], *, processes: int, seconds: float | None = None) -> int:
        """Makes all runs that are not done, ``processes`` at a time.

        A run that fails, or that this version refuses, is reported and the others continue.

        Args:
            runs: In the order in which they are begun.
            processes: Training runs at a time.
            seconds: After this time, runs that are not finished save, and the campaign ends.

        Returns:
            0 if all runs are done or the time was up; 1 if one was refused or failed; 128 + the
            number of the signal that stopped the campaign.
        """
        waiting = [run for run in runs if not self.result(run)]
        possible = []
        for run in waiting:
            if problem := self.problem(run):
                self.say(f"{run.name}: refused: {problem}")
            else:
                possible.append(run)
        with _StopRequests() as stop:
            failed = _work_off(self, possible, processes=processes, stop=stop, seconds=seconds)
        if stop.signal_number:
            return 128 + stop.signal_number
        return 1 if failed or len(possible) < len(waiting) else 0


def _work_off(
    campaign: Campaign,
    runs: Sequence[Run],
    *,
    processes: int,
    stop: _StopRequests,
    seconds: float | None,
) -> list[Run]:
    """Makes ``runs``; returns those that failed."""
    waiting = list(runs)
    deadline = None if seconds is None else time.monotonic() + seconds
    running: dict[Run, subprocess.Popen[bytes]] = {}
    failed: list[Run] = []
    while waiting or running:
        is_over = bool(stop.signal_number) or (deadline and time.monotonic() > deadline)
        if is_over:
            campaign.say("stopping; the runs save, and the same command continues them")
            _end(running)
            _settle(campaign, running, is_stopping=True)
            break
        failed += _settle(campaign, running)
        ready = [run for run in waiting if not campaign.waits_for(run)]
        for run in ready[: processes - len(running)]:
            waiting.remove(run)
            if campaign.keep_result(run):  # it ended, but the campaign before its result
                continue
            verb = "continues" if campaign.is_begun(run) else "begins"
            campaign.say(f"{run.name}: {verb}")
            running[run] = campaign.start(run)
        if not running and not ready and waiting:
            needed = sorted({(campaign.waits_for(run) or run).name for run in waiting})
            campaign.say(f"{len(waiting)} runs need a result that is missing: {', '.join(needed)}")
            return failed + waiting
        time.sleep(POLL_SECONDS)
    return failed


def _settle(
    campaign: Campaign, running: dict[Run, subprocess.Popen[bytes]], *, is_stopping: bool = False
) -> list[Run]:
    """Takes runs that ended out of ``running`` and keeps their results.

    Returns:
        Runs that ended without a result.
    """
    without = []
    for run, process in list(running.items()):
        code = process.poll()
        if code is None:
            continue
        del running[run]
        if campaign.keep_result(run):
            campaign.say(f"{run.name}: done")
        elif is_stopping and code == 0:
            campaign.say(f"{run.name}: saved")
        else:
            without.append(run)
            output = campaign.folder(run) / "output.txt"
            campaign.say(f"{run.name}: not at its end, exit code {code}; see {output}")
    return without


def _end(running: Mapping[Run, subprocess.Popen[bytes]]) -> None:
    """Asks runs to save and end, and waits until they have."""
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in running.values():
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _StopRequests:
    """Notes SIGINT and SIGTERM while a campaign runs."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._previous: dict[int, Any] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number

    def __enter__(self) -> _StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
