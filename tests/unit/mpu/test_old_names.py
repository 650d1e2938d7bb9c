import pytest

from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.distributed


def use_old_names() -> dict[str, int]:
    import torch.distributed as dist

    from megatron import mpu

    dist.init_process_group("gloo")
    with pytest.raises(ValueError, match="call initialize_model_parallel first"):
        mpu.current_topology()
    mpu.initialize_model_parallel(2)
    topology = mpu.current_topology()
    with pytest.raises(ValueError, match="initialized already"):
        mpu.initialize_model_parallel(2)
    result = {"model": topology.model_rank, "data": topology.data_rank}
    mpu.destroy_model_parallel()
    assert not mpu.model_parallel_is_initialized()
    dist.destroy_process_group()
    return result


def test_groups_can_be_made_and_forgotten_under_gpt_neox_names():
    ranks = run_ranks("tests.unit.mpu.test_old_names:use_old_names", 2)
    assert [rank.value for rank in ranks] == [{"model": 0, "data": 0}, {"model": 1, "data": 0}]
