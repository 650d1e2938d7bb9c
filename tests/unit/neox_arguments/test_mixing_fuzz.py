"""Hostile settings of mixing: refused in one line, or a mixture that draws and observes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from megatron.data.errors import DataError
from megatron.data.shares import weights_by_num_docs
from megatron.errors import UserError
from megatron.neox_arguments import NeoXArgs, resolve
from tools.benchmark.fuzz.mixing import MODEL, run_cases, settings_of


def test_settings_that_are_not_refused_make_a_mixture():
    assert list(run_cases(250, seed=0)) == []


def test_settings_are_refused_and_taken():
    outcomes = Counter[str]()
    for number in range(60):
        try:
            resolve(NeoXArgs.from_dict({**MODEL, **settings_of(Random(number))}))
        except UserError:
            outcomes["refused"] += 1
        else:
            outcomes["taken"] += 1
    assert min(outcomes["refused"], outcomes["taken"]) > 10


def test_an_exponent_that_leaves_no_weight_is_refused():
    with pytest.raises(DataError, match="weighted_sampler_alpha"):
        weights_by_num_docs([2, 5, 3], alpha=1e300)
