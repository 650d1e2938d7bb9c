"""Fixtures that the tests of conversions share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conversions import model_fields, write_run, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def run(tokenizer_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, model_fields(tokenizer_file))
    return folder
