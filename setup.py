"""The distribution ``odm-neox``: the mixing library ``odm`` and the framework ``megatron``.

The core needs numpy alone, so that ``pip install .`` gives ``import odm`` anywhere; all else is an
extra whose requirements are read from ``requirements/``.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

EXTRAS = {
    "train": "requirements.txt",
    "dev": "requirements-dev.txt",
    "eval": "requirements-eval.txt",
    "flashattention": "requirements-flashattention.txt",
    "mpi": "requirements-mpi.txt",
    "onebitadam": "requirements-onebitadam.txt",
    "parquet": "requirements-parquet.txt",
    "remote": "requirements-remote.txt",
    "sentencepiece": "requirements-sentencepiece.txt",
    "tensorboard": "requirements-tensorboard.txt",
    "tiktoken": "requirements-tiktoken.txt",
    "wandb": "requirements-wandb.txt",
}
"""Extra -> its requirement file."""

SCRIPTS = ("deepy.py", "train.py", "evaluate.py", "eval.py", "generate.py")


def requirements(file_name: str) -> list[str]:
    """Reads one requirement file: a requirement a line, comments on lines of their own."""
    lines = (ROOT / "requirements" / file_name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name="odm-neox",
    version="0.1.0",
    description="GPT-NeoX training with online data mixing",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["odm", "odm.*", "megatron", "megatron.*"]),
    package_data={"odm": ["py.typed"], "odm.gym": ["*.json"]},
    install_requires=["numpy>=1.24"],  # as odm/pyproject.toml says
    extras_require={extra: requirements(file_name) for extra, file_name in EXTRAS.items()},
    entry_points={"console_scripts": ["odm-replay = odm.replay:main"]},
    scripts=[name for name in SCRIPTS if (ROOT / name).is_file()],
)
