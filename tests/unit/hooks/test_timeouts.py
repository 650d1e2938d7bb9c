"""How long a hanging rank may block the others: longer at the start than after the first step."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import distributed_c10d

from megatron.engine.state import TrainState
from megatron.hooks.timeouts import TimeoutHook
from megatron.runtime.initialize import START_FACTOR, set_timeout_on_all_groups

CONFIG = SimpleNamespace(launch=SimpleNamespace(distributed_timeout_minutes=10.0))


@pytest.fixture
def timeouts(monkeypatch) -> list[tuple[str, timedelta]]:
    """Every timeout that is set, with its group."""
    found: list[tuple[str, timedelta]] = []
    world = SimpleNamespace(pg_map={"world": None, "data": None})
    monkeypatch.setattr(distributed_c10d, "_world", world)
    monkeypatch.setattr(
        distributed_c10d, "_set_pg_timeout", lambda timeout, group: found.append((group, timeout))
    )
    return found


def test_the_start_may_wait_three_times_as_long(timeouts):
    assert START_FACTOR == 3
    set_timeout_on_all_groups(CONFIG, is_start=True)
    assert timeouts == [("world", timedelta(minutes=30)), ("data", timedelta(minutes=30))]


def test_the_first_step_shortens_the_timeout_of_every_group_once(timeouts):
    hook = TimeoutHook(CONFIG)
    hook.before_step(1)
    assert timeouts == []
    for _ in range(3):
        hook.after_step(TrainState(), None)
    assert timeouts == [("world", timedelta(minutes=10)), ("data", timedelta(minutes=10))]
