"""A request to stop in lm-eval tasks of a training run."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megatron.errors import EvaluationStopped
from megatron.eval_tasks import in_training
from megatron.eval_tasks.in_training import TaskEvaluationHook
from megatron.state import TrainState


def test_broken_off_tasks_stop_the_run_and_leave_the_model_in_training(monkeypatch):
    def ask(adapter, config, tasks):
        torch.rand(3)  # as an evaluation that samples
        raise EvaluationStopped

    monkeypatch.setattr(in_training, "run_tasks", ask)
    monkeypatch.setattr(in_training, "make_adapter", lambda *args, **options: None)
    said: list[str] = []
    module = torch.nn.Linear(2, 2).train()
    hook = TaskEvaluationHook(
        SimpleNamespace(engine=SimpleNamespace(module=module), topology=None),
        SimpleNamespace(
            training=SimpleNamespace(eval_harness_interval=2),
            parallelism=SimpleNamespace(sequence_parallel=False),
            derived=SimpleNamespace(pipe_parallel_size=1, zero_stage=0, model_parallel_size=1),
        ),
        tokenizer=None,
        tasks={},
        logger=SimpleNamespace(say=said.append),
    )
    state = TrainState()
    state.step = 2
    before = torch.random.get_rng_state()
    hook.after_step(state, report=None)
    assert state.stop
    assert said == [" tasks at iteration 2 broken off: asked to stop"]
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), before)
    hook.at_end(state)  # not again
    assert len(said) == 1
