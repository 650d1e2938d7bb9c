"""What the demo prints at its end, from the files that its commands made."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odm.text_table import aligned


def domain_table(events: Sequence[Mapping[str, Any]], losses: Mapping[str, Any]) -> str:
    """Tabulates every domain: what training did with it, and how well the model knows it.

    Args:
        events: The run log; first and last validation and training iteration are shown.
        losses: Result file of evaluate.py, of which the test data are shown.
    """
    training = [event for event in events if event["event"] == "train"]
    validation = [event for event in events if event["event"] == "validation"]
    if not training or not validation:
        return "the run log contains no validation"
    first, last = validation[0]["domains"], validation[-1]["domains"]
    start, end = training[0], training[-1]
    rows = [("domain", "weight", "epochs", "validation loss", "test perplexity", "bits per byte")]
    for name, test in losses["test"]["domains"].items():
        bits = test["bits_per_byte"]
        rows.append(
            (
                name,
                f"{start['weights'][name]:.3f} -> {end['weights'][name]:.3f}",
                f"{end['epochs'][name]:.2f}",
                f"{first[name]['loss']:.3f} -> {last[name]['loss']:.3f}",
                f"{test['perplexity']:.2f}",
                "-" if bits is None else f"{bits:.3f}",
            )
        )
    iterations = (
        f"(validation at iterations {validation[0]['iteration']} and "
        f"{validation[-1]['iteration']}, test at {losses['iteration']})"
    )
    return "\n".join([*aligned(rows), iterations])


def task_line(results: Mapping[str, Any], name: str) -> str:
    """The accuracy on a multiple-choice task beside that of guessing.

    Args:
        results: Result file of evaluate.py.
        name: Name of a task of `tools.cloze_task`.
    """
    scores = results["results"][name]
    questions = results["n-samples"][name]["effective"]
    chance = results["configs"][name]["metadata"]["chance"]
    return (
        f"{name}: {scores['acc,none']:.3f} of {questions} questions right "
        f"(+- {scores['acc_stderr,none']:.3f}); guessing gives {chance}"
    )


def samples(path: Path) -> str:
    """Each prompt in brackets and the text that the model put after it."""
    shown = []
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        text = f"[{sample['context']}]{sample['text'] or ''}"
        shown.append(textwrap.indent(text.rstrip(), "  "))
    return "\n\n".join(shown)


def newest(folder: Path, pattern: str) -> Any:
    """Reads the newest JSON file among those whose names match."""
    path = max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(path.read_text(encoding="utf-8"))
