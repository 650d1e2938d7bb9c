"""The model card: README.md of a model on the Hub, made from the files of the run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from tools.hf.run_facts import DomainFacts, RunFacts

__all__ = ["model_card"]

_COLUMNS: tuple[tuple[str, Callable[[DomainFacts], float | None], str], ...] = (
    ("final weight", lambda domain: domain.weight, ".4f"),
    ("share of samples", lambda domain: domain.share, ".4f"),
    ("epochs", lambda domain: domain.epochs, ".2f"),
    ("validation loss", lambda domain: domain.loss, ".4f"),
    ("perplexity", lambda domain: _perplexity(domain.loss), ".5g"),
    ("bits per byte", lambda domain: domain.bits_per_byte, ".4f"),
)

_SETTINGS: tuple[tuple[str, str, str], ...] = (
    ("layers", "model", "num_layers"),
    ("width", "model", "hidden_size"),
    ("attention heads", "model", "num_attention_heads"),
    ("MLP width", "model", "mlp_inner_size"),
    ("positions", "model", "pos_emb"),
    ("context (tokens)", "model", "max_position_embeddings"),
    ("training sequence (tokens)", "data", "seq_length"),
    ("batch (sequences)", "batch", "train_batch_size"),
    ("optimizer", "optimizer", "type"),
    ("learning rate", "optimizer", "learning_rate"),
    ("weight decay", "optimizer", "weight_decay"),
    ("precision of training", "precision", "dtype"),
    ("tokenizer", "data", "tokenizer_type"),
)


def model_card(
    name: str,
    *,
    run: RunFacts | None,
    config: Mapping[str, Any] | None,
    license_id: str | None = None,
) -> str:
    """Writes the card.

    Args:
        name: Identifier of the repository, such as ``someone/model``.
        run: The run that made the model; None leaves out what is known only from it.
        config: The folder's config.json; None if the folder is not for transformers.
        license_id: Identifier of a licence as the Hub knows it.

    Returns:
        Markdown with a YAML head. No path of the machine is in it.
    """
    sections = [_head(config, license_id), f"# {name.rpartition('/')[2]}", _summary(run, config)]
    if run is not None:
        sections += [_domain_section(run), _mixture_section(run), _settings_section(run)]
        sections.append(_training_section(run))
    sections.append(_loading_section(name, config))
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(config: Mapping[str, Any] | None, license_id: str | None) -> str:
    lines = ["---"]
    if license_id:
        lines.append(f"license: {license_id}")
    if config is not None:
        lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    tags = ["odm-neox", "online-data-mixing"]
    if config is not None and config.get("model_type"):
        tags.insert(0, str(config["model_type"]))
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _summary(run: RunFacts | None, config: Mapping[str, Any] | None) -> str:
    architecture = ", ".join((config or {}).get("architectures") or []) or "GPT-NeoX"
    text = f"A language model ({architecture}) trained with ODM-NeoX"
    if run is None:
        return f"{text}."
    return (
        f"{text}: {run.num_parameters:,} parameters, {run.num_tokens:,} tokens seen in "
        f"{run.iteration:,} iterations."
    )


def _domain_section(run: RunFacts) -> str:
    if not run.domains:
        return ""
    columns = [
        (title, read, form)
        for title, read, form in _COLUMNS
        if any(read(domain) is not None for domain in run.domains)
    ]
    rows = [("domain", *(title for title, _, _ in columns))]
    for domain in run.domains:
        cells = (_number(read(domain), form) for _, read, form in columns)
        rows.append((domain.name, *cells))
    note = ""
    if run.validation_iteration is not None:
        note = (
            "\n\nLosses in nats per token on held-out text of each domain, after iteration "
            f"{run.validation_iteration:,}."
        )
    return f"## Domains\n\n{_table(rows)}{note}"


def _mixture_section(run: RunFacts) -> str:
    if not run.mixture:
        return ""
    facts = {
        "method": run.mixture.get("method"),
        **run.mixture.get("options", {}),
        "warm-up iterations": run.mixture.get("warmup_steps"),
        "iterations between updates": run.mixture.get("update_frequency"),
        "constraints": run.mixture.get("constraints") or None,
        "stratified draws": run.mixture.get("stratified"),
    }
    return f"## Data mixing\n\n{_two_columns(facts)}"


def _settings_section(run: RunFacts) -> str:
    facts = {title: run.setting(section, field) for title, section, field in _SETTINGS}
    return f"## Network and optimizer\n\n{_two_columns(facts)}" if run.settings else ""


def _training_section(run: RunFacts) -> str:
    if not run.config_names:
        return ""
    command = shlex.join(["./deepy.py", "train.py", *run.config_names])
    return f"## Training\n\n```bash\n{command}\n```"


def _loading_section(name: str, config: Mapping[str, Any] | None) -> str:
    if config is None:
        return (
            "## Loading\n\nThese are files of ODM-NeoX: download them and set `load` to the "
            f"folder.\n\n```bash\nhf download {name} --local-dir model\n```"
        )
    return f"""## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```"""


def _two_columns(facts: Mapping[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in facts.items() if value is not None]
    return _table([("setting", "value"), *rows])


def _table(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a bar in a cell would end it."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))  # as in evaluation: no overflow
