"""What every test file is protected from: the traces of the others in the same process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine fails no test: what an example may take is bounded by the test's timeout. Everybody
# who runs the tests tries new examples; CI tries the same ones for the same code, so that it never
# blames a change for what another one did.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("any machine")


@pytest.fixture(scope="module", autouse=True)
def environment_of_the_file() -> Iterator[None]:
    """Takes back what a file's tests set, such as the rank and the port of a process group.

    A program that another file starts would meet at that port, where the group still listens.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
