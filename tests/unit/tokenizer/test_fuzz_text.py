"""Damaged and hostile text files: read, or refused in one line that names the file."""

import pytest

from tools.benchmark.fuzz.text import cases, run_case

pytest.importorskip("pyarrow")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_file_holds_only_errors_for_users_come_out(tmp_path, seed):
    outcomes = [run_case(case, tmp_path) for case in cases(seed, 400)]
    assert {"read", "refused"} == set(outcomes)
    assert min(map(outcomes.count, ("read", "refused"))) > 80


def test_a_case_follows_from_its_seed_and_number():
    assert list(cases(5, 30)) == list(cases(5, 30))
    assert list(cases(5, 30)) != list(cases(6, 30))
