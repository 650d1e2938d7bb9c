"""Stands in for train.py in tests of process life: ranks meet at a collective, save and stop.

``stand_in_run.py --megatron_config FILE``; the run's ``save`` is where it reports. The variable
STAND_IN makes a rank misbehave: ``fail:1`` raises on rank 1, ``refuse:1`` exits with 2 there,
``deaf`` ignores the request to stop, ``child`` starts a grandchild that sleeps. With
STAND_IN_MEETS=1 the ranks join a process group and agree on every step; else each runs alone,
without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    """Runs up to 60 s of steps."""
    from megatron.runtime.initialize import (
        initialize_megatron,
        prepare_process,
        shutdown,
        stop_requested,
    )

    prepare_process()
    parser = argparse.ArgumentParser()
    parser.add_argument("--megatron_config")
    values = json.loads(Path(parser.parse_args().megatron_config).read_text())
    folder = Path(values["save"])
    rank = int(os.environ["RANK"])
    behaviour = os.environ.get("STAND_IN", "")
    is_alone = os.environ.get("STAND_IN_MEETS") != "1"
    if is_alone:
        from megatron.runtime.process_life import handle_stop_signals

        handle_stop_signals()
    else:
        other = SimpleNamespace(seed=1, distributed_backend=None, distributed_timeout_minutes=1.0)
        initialize_megatron(SimpleNamespace(launch=other))
    if behaviour == "child":
        child = subprocess.Popen(["sleep", "60"])
        (folder / f"child_{rank}").write_text(str(child.pid))
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    for step in range(600):
        stop = stop_requested() if is_alone else agree(stop_requested())
        if step == 5 and behaviour == f"fail:{rank}":
            raise RuntimeError(f"rank {rank} meets its fate")
        if step == 5 and behaviour == f"refuse:{rank}":
            sys.stderr.write(f"data_path: refused by rank {rank}\n")
            sys.exit(2)
        if stop and behaviour != "deaf":
            (folder / f"saved_{rank}").write_text(str(step))
            if rank == 0:
                print(f"saved at step {step}", flush=True)
            break
        time.sleep(0.1)
    shutdown()


def agree(stop: bool) -> bool:
    """Tells whether any rank wants to stop."""
    import torch
    import torch.distributed as dist

    wish = torch.tensor([float(stop)])
    dist.all_reduce(wish)
    return bool(wish.item())


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # as train.py does: interpreter shutdown aborts while a process group is open
    # and a signal that the launcher passes on would kill an interpreter that shuts down
    sys.stdout.flush()
    os._exit(0)
