"""A checkpoint of each version of the format resumes as it would have continued there."""

import json
import shutil

import pytest

from megatron.checkpoint.schema import FORMAT_VERSION, READ_VERSIONS
from tests.golden.make_checkpoint import KEPT, LAST, SAVED, losses, train, write_run

TODAY = pytest.param(FORMAT_VERSION, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[*READ_VERSIONS[:-1], TODAY])
def resumed(request, tmp_path_factory):
    """The version, a folder with the continued run, and what the run printed."""
    folder = tmp_path_factory.mktemp("resumed")
    write_run(folder)
    saved = f"global_step{SAVED}"
    shutil.copytree(KEPT[request.param] / saved, folder / "run" / saved)
    return request.param, folder, train(folder)


def test_an_older_checkpoint_gives_the_losses_of_the_run_that_wrote_it(resumed):
    version, folder, _ = resumed
    expected = json.loads((KEPT[version] / "losses.json").read_text())
    found = losses(folder)
    assert list(found) == [str(step) for step in range(SAVED + 1, LAST + 1)]
    for step, event in expected.items():
        # to the bit on the machine that made it; others add in another order
        assert found[step] == {key: approximately(value) for key, value in event.items()}


def approximately(value):
    return pytest.approx(value, rel=1e-6, abs=1e-9)


def test_network_and_schedule_of_an_older_checkpoint_are_those_of_the_run(resumed):
    *_, printed = resumed
    assert f"global_step{SAVED}" in printed
    for complaint in (
        "another network",
        "schedule is another",
        "does not tell",
        "but names",
    ):
        assert complaint not in printed
