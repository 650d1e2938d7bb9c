"""What is kept of a finished run: one small JSON file, enough for every table of the report."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron.files import write_text_atomic
from megatron.reporting.run_log import read_run_log
from odm.json_data import (
    anything,
    boolean,
    fields,
    integer,
    list_of,
    logged_number,
    mapping_of,
    number,
    one_of,
    optional,
    read_json,
    text,
)
from tools.benchmark.processor import processor
from tools.benchmark.quality.plan import PlanError, Run

__all__ = ["collect", "read_result", "result_path", "write_result"]

FORMAT = 1
ROOT = Path(__file__).resolve().parents[3]

_NUMBERS = list_of(logged_number)
_RESULT = fields(
    {
        "format": one_of(FORMAT),
        "suite": text(),
        "arm": text(),
        "seed": integer(0),
        "digest": text(),
        "settings": mapping_of(anything),
        "text_digest": text(),
        "tokens": integer(1),
        "parameters": integer(1),
        "seconds": number(0),
        "machine": mapping_of(anything),
        "versions": mapping_of(text()),
        "iterations": list_of(integer(0)),
        "stable_until": integer(0),
        "domains": mapping_of(
            fields(
                {
                    "noise": boolean,
                    "samples": integer(0),
                    "epochs": number(0),
                    "weights": _NUMBERS,
                    "validation_loss": _NUMBERS,
                    "test_loss": number(0),
                    "test_bits_per_byte": number(0),
                },
                {"entropy": optional(number(0))},
            )
        ),
    },
)


def result_path(folder: Path, run: Run) -> Path:
    """The file of a run's result."""
    return folder / f"{run.suite}-{run.arm}-{run.seed}.json"


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
        PlanError: If this version cannot read it.
    """
    advice = "remove it and run the benchmark again"
    result = read_json(path, _RESULT, error=PlanError, what="result", advice=advice)
    return dict(result)


def collect(
    run: Run,
    log: Path,
    *,
    settings: Mapping[str, Any],
    digest: str,
    text_digest: str,
    text_domains: Mapping[str, Mapping[str, Any]],
    threads: int,
) -> dict[str, Any] | None:
    """Makes the result of a run from its log; None if the run is not at its end.

    Args:
        run: The run, for its name.
        log: The run log, or a folder with it.
        settings: The YAML keys of the run without paths.
        digest: `Plan.digest`.
        text_digest: `PreparedText.digest`.
        text_domains: `PreparedText.domains`.
        threads: Threads that computed.
    """
    events = read_run_log(log)
    last = settings["train_iters"]
    tests = [e for e in events if e["event"] == "test" and e["iteration"] == last]
    train = {e["iteration"]: e for e in events if e["event"] == "train"}
    if not tests or last not in train:
        return None
    validations = {e["iteration"]: e for e in events if e["event"] == "validation"}
    starts = [event for event in events if event["event"] in ("start", "resume")]
    peak = max(event["learning_rate"] for event in train.values())
    end = train[last]
    per_epoch = starts[-1]["samples_per_epoch"]
    return {
        "format": FORMAT,
        "suite": run.suite,
        "arm": run.arm,
        "seed": run.seed,
        "digest": digest,
        "settings": dict(settings),
        "text_digest": text_digest,
        "tokens": end["consumed_tokens"],
        "parameters": starts[-1]["parameters"],
        "seconds": round(sum(event["seconds"] for event in train.values()), 1),
        "machine": {"processor": processor(), "threads": threads},
        "versions": _versions(),
        "iterations": list(validations),
        "stable_until": max(
            i for i, event in train.items() if event["learning_rate"] > peak * (1 - 1e-9)
        ),
        "domains": {
            name: {
                "noise": described["noise"],
                "entropy": described.get("nats_per_token"),
                "samples": round(end["epochs"][name] * per_epoch[name]),
                **_domain_curves(name, train=train, validations=validations, test=tests[-1]),
            }
            for name, described in text_domains.items()
        },
    }


def _domain_curves(
    name: str,
    *,
    train: Mapping[int, Mapping[str, Any]],
    validations: Mapping[int, Mapping[str, Any]],
    test: Mapping[str, Any],
) -> dict[str, Any]:
    """What events of the run log say of a domain; curves have one value per validation."""
    measured = test["domains"][name]
    losses = [event["domains"][name]["loss"] for event in validations.values()]
    return {
        "epochs": _short(train[max(train)]["epochs"][name]),
        "weights": [_short(train[iteration]["weights"][name]) for iteration in validations],
        "validation_loss": [_short(loss) for loss in losses],
        "test_loss": measured["loss"],
        "test_bits_per_byte": measured["bits_per_byte"],
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result with one line per domain, so that a difference is readable."""
    lines = []
    for key, value in result.items():
        if key == "domains":
            inner = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}"
                for name, entry in value.items()
            )
            lines.append(f'"domains": {{\n{inner}\n}}')
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, "{" + ",\n".join(lines) + "}\n")


def _short(value: float) -> float:
    """Six digits; a difference of two curves is read to four."""
    return value if not math.isfinite(value) else float(f"{value:.6g}")


def _versions() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    packages = {name: version(name) for name in ("torch", "deepspeed", "numpy")}
    return {"commit": commit or "unknown", "python": platform.python_version(), **packages}
