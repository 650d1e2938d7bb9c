import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve
from megatron.neox_arguments.hostfile import parse_filter, read_hostfile

BATCH = ("train_batch_size", "micro_batch_size", "gradient_accumulation_steps")
ALONE = {"train_micro_batch_size_per_gpu": None}


def batch(config):
    return tuple(getattr(config.batch, name) for name in BATCH)


@pytest.mark.parametrize(
    ("train", "micro", "steps", "expected"),
    [
        (None, 4, None, (8, 4, 1)),
        (None, 4, 3, (24, 4, 3)),
        (24, None, None, (24, 12, 1)),
        (24, None, 3, (24, 4, 3)),
        (24, 4, None, (24, 4, 3)),
        (24, 4, 3, (24, 4, 3)),
    ],
)
def test_two_batch_sizes_give_the_third(make_config, train, micro, steps, expected):
    config = make_config(
        world_size=2,
        train_batch_size=train,
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=steps,
    )
    assert batch(config) == expected


@given(micro=st.integers(1, 64), steps=st.integers(1, 64), world=st.integers(1, 64), data=st.data())
def test_any_subset_of_a_solution_gives_the_same_solution(micro, steps, world, data):
    solution = {
        "train_batch_size": micro * steps * world,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
    }
    kept = data.draw(st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 1, 2)]))
    names = [list(solution)[i] for i in kept]
    args = NeoXArgs.from_dict(
        {
            "num_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "train_iters": 1,
            **{name: solution[name] for name in names},
        }
    )
    assert batch(resolve(args, world_size=world)) == tuple(solution.values())


def test_an_impossible_batch_prints_the_equation_and_two_ways_to_mend_it(problem):
    message = problem(
        world_size=2,
        train_batch_size=30,
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=3,
    )
    assert message == (
        "train_batch_size 30 = train_micro_batch_size_per_gpu 4 x gradient_accumulation_steps 3 x "
        "data-parallel processes 2 does not hold (the right side is 24); set train_batch_size: 24, "
        "or train_micro_batch_size_per_gpu: 5"
    )


def test_a_wrong_accumulation_is_mended_by_the_right_one(problem):
    message = problem(
        world_size=2,
        train_batch_size=32,
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=3,
    )
    assert message.endswith("set train_batch_size: 24, or gradient_accumulation_steps: 4")


def test_a_batch_that_no_process_count_divides_names_one_that_does(problem):
    message = problem(world_size=4, train_batch_size=9, train_micro_batch_size_per_gpu=4)
    assert message.endswith(
        "set train_batch_size: 16, or start 3 data-parallel processes with "
        "train_micro_batch_size_per_gpu: 3 and gradient_accumulation_steps: 1"
    )


def test_mending_an_impossible_batch_as_told_works(make_config):
    mended = {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 5}
    assert batch(make_config(2, **mended, gradient_accumulation_steps=3)) == (30, 5, 3)


def test_no_batch_size_at_all_is_refused(problem):
    assert problem(**ALONE) == (
        "train_batch_size and train_micro_batch_size_per_gpu are both missing; set one of them"
    )


def test_a_batch_size_below_one_is_refused(problem):
    message = problem(gradient_accumulation_steps=0)
    assert message == "gradient_accumulation_steps must be at least 1, got 0"


def test_the_world_size_comes_from_the_first_that_says_it(make_config, monkeypatch, write):
    hostfile = write("hosts", "a slots=2\nb slots=3\n")
    keys = {"num_gpus": 2, "hostfile": "/none"}
    assert make_config().layout.world_size == 1
    assert make_config(**keys).layout.world_size == 2
    assert make_config(**{**keys, "num_gpus": None, "hostfile": hostfile}).layout.world_size == 5
    assert make_config(**keys, global_num_gpus=6).layout.world_size == 6
    monkeypatch.setenv("WORLD_SIZE", "7")
    assert make_config(**keys, global_num_gpus=6).layout.world_size == 7
    assert make_config(8, **keys).layout.world_size == 8


def test_a_world_size_beyond_any_machine_is_refused_wherever_it_comes_from(
    problem, make_config, minimal, monkeypatch
):
    assert problem(2**31) == "world_size must be at most 1048576, got 2147483648"
    with pytest.raises(ConfigError, match=r"^world_size must be 1 to 1048576, got 2147483648"):
        resolve(NeoXArgs.from_dict({**minimal, "world_size": 2**31, "train_batch_size": 6}))
    monkeypatch.setenv("WORLD_SIZE", "9" * 5000)
    assert make_config().layout.world_size == 1


def test_the_key_world_size_is_a_hint(minimal):
    args = NeoXArgs.from_dict({**minimal, "world_size": 3})
    assert resolve(args).layout.world_size == 3


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 6),
        ({"include": "a@b:0,2"}, 4),
        ({"exclude": "a:1@c"}, 4),
        ({"num_nodes": 2}, 5),
        ({"num_gpus": 1}, 3),
    ],
)
def test_filters_choose_slots_of_the_hostfile(make_config, write, filters, expected):
    path = write("hosts", "a slots=2\n\n# spare\nb slots=3  # new\nc slots=1\n")
    assert make_config(hostfile=path, **filters).layout.world_size == expected


def test_include_counts_without_a_hostfile(make_config):
    config = make_config(hostfile="None", include="localhost:1")
    assert config.layout.world_size == 1
    assert make_config(include="localhost:0,1").layout.world_size == 2


def test_a_missing_hostfile_is_noted(make_config):
    assert make_config(hostfile="/mock_path").notes == (
        "there is no hostfile /mock_path; the run uses this machine alone",
    )


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("a slots=2\na slots=1\n", {}, ":2: host 'a' is named twice; give it one line"),
        ("a slots=two\n", {}, ":1: must be 'host slots=N', N from 1 to 4096, got 'a slots=two'"),
        ("\n", {}, ": names no host; write lines 'host slots=N'"),
        ("a slots=1\n", {"include": "b"}, "include names host 'b'; known hosts: a"),
        ("a slots=1\n", {"include": "a:3"}, "include names slots 3 of 'a', which has 0"),
        ("a slots=1\n", {"include": "a:x"}, "include must look like 'host1@host2:0,2', got 'a:x'"),
        ("a slots=1\n", {"include": "a", "exclude": "a"}, "include and exclude are both set"),
        ("a slots=1\n", {"exclude": "a"}, "exclude leaves no slot to run on"),
        ("a slots=1\n", {"num_nodes": 2}, "num_nodes is 2, the run has 1 host"),
        ("a slots=1\n", {"num_gpus": 2}, "num_gpus is 2, host 'a' has 1 slot"),
    ],
)
def test_a_wrong_hostfile_or_filter_is_refused(problem, write, text, keys, expected):
    assert expected in problem(hostfile=write("hosts", text), **keys)


def test_a_hostfile_that_is_no_text_is_refused(problem, tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes(b"a slots=2 # caf\xe9\n")
    assert problem(hostfile=str(path)) == f"{path}:1: hostfile is not UTF-8 text; convert it"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 0, "seed must be at least 1, got 0"),
        ("master_port", 0, "master_port must be 1 to 65535, got 0"),
        (
            "distributed_timeout_minutes",
            0,
            "distributed_timeout_minutes must be above 0, got 0.0",
        ),
        (
            "distributed_backend",
            "tcp",
            "distributed_backend must be one of nccl, gloo, mpi, ccl, hccl, got 'tcp'",
        ),
        ("deepspeed", False, "deepspeed must be true, got False; it is the engine; remove the key"),
    ],
)
def test_processes_are_checked(problem, key, value, expected):
    assert problem(**{key: value}) == expected


def test_a_backend_may_be_written_in_capitals(make_config):
    assert make_config(distributed_backend="NCCL").launch.distributed_backend == "nccl"


def test_a_message_says_where_the_value_was_written(write, minimal):
    path = write("a.yml", "\n".join(f"{k}: {v}" for k, v in minimal.items()) + "\nseed: 0\n")
    with pytest.raises(ConfigError, match=rf"^{path}:7: seed must be at least 1, got 0$"):
        resolve(NeoXArgs.from_ymls([path]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("gas: 0", "gas must be at least 1, got 0"),
        ("clip_grad: -1", "clip_grad must be at least 0, got -1.0; 0 clips nothing"),
        ("save_interval: 0", "save_interval must be a whole number of at least 1, got 0"),
        ("save_iters: [-1]", "save_iters must be at least 0, got [-1]"),
        ("zero_stage: 7", "zero_stage must be a whole number, 0 to 3, got 7"),
        (
            "zero_optimization: {stage: 7}",
            "zero_optimization.stage must be a whole number, 0 to 3, got 7",
        ),
        (
            "zero_reduce_bucket_size: 0",
            "zero_reduce_bucket_size must be a whole number, at least 1, got 0",
        ),
        (
            "lr_decay_fraction: 0.001",
            "lr_decay_fraction 0.001 of train_iters 100 is less than one iteration; raise it",
        ),
        (
            "num_gpus: 2\npipe_parallel_size: 2\nzero_stage: 2",
            "zero_stage 2 does not work with pipe_parallel_size 2: ",
        ),
        ("optimizer_type: Foo", "optimizer_type 'Foo': it is unknown; use Adam, Lion or SGD"),
        ("lr: -1", "lr must be at least 0, got -1.0"),
        (
            "optimizer: {type: Adam, params: {lr: -1}}",
            "optimizer.params.lr must be a number, at least 0, got -1",
        ),
        (
            "optimizer: {type: Adam, params: {weight_decay: -1}}",
            "optimizer.params.weight_decay must be a number, at least 0, got -1",
        ),
        ("precision: fp16\nloss_scale: -1", "loss_scale must be a number, at least 0, got -1.0"),
        ("precision: fp16\nmin_loss_scale: -1", "min_loss_scale must be a number, at least 0"),
        ("include: a:x", "include must look like 'host1@host2:0,2', got 'a:x'"),
        ("include: a\nexclude: b", "include and exclude are both set; keep one"),
    ],
)
def test_a_message_names_the_key_that_was_written_and_its_line(write, minimal, lines, message):
    text = "".join(f"{k}: {v}\n" for k, v in minimal.items()) + lines
    path = write("a.yml", text)
    with pytest.raises(ConfigError) as caught:
        resolve(NeoXArgs.from_ymls([path]))
    assert str(caught.value).startswith(f"{path}:{len(text.splitlines())}: {message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_gpus", 0, "num_gpus must be 1 to 4096, got 0; remove it to use all GPUs"),
        ("num_gpus", -1, "num_gpus must be 1 to 4096, got -1; remove it to use all GPUs"),
        ("num_gpus", 10**9, "num_gpus must be 1 to 4096, got 1000000000; remove it to use"),
        ("num_nodes", 0, "num_nodes must be at least 1, or -1 for all, got 0"),
        ("global_num_gpus", -2, "global_num_gpus must be 1 to 1048576, got -2; remove it"),
        ("global_num_gpus", 2**31, "global_num_gpus must be 1 to 1048576, got 2147483648; remove"),
        ("master_addr", "-oProxyCommand=x", "master_addr must be a name or an address, got '-oPr"),
        ("num_layers", 10**9, "num_layers must be at most 100000, got 1000000000"),
        ("distributed_timeout_minutes", 1e9, "must be at most 525600, got 1000000000"),
        ("gradient_predivide_factor", 0, "gradient_predivide_factor must be above 0, got 0"),
    ],
)
def test_impossible_numbers_are_refused(problem, key, value, message):
    assert message in problem(1, **{key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h:0@h:1", "include names host 'h' twice; write 'host:0,2' once"),
        ("h:0,1,00", "include names a slot of 'h' twice, got 'h:0,1,00'"),
        ("h:\u00b2", "include must look like 'host1@host2:0,2'"),
        ("h:0,", "include must look like 'host1@host2:0,2'"),
        ("h:" + "9" * 5000, "include must look like 'host1@host2:0,2'"),
    ],
)
def test_a_filter_that_says_a_thing_twice_or_wrongly_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_filter(text, "include")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("count", ["0", "\u00b2", "5000", "9" * 5000, "4 max_slots=8", ""])
def test_a_hostfile_with_an_impossible_number_of_slots_is_refused(write, count):
    path = write("hosts", f"alpha slots=2\nbeta slots={count}\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert str(caught.value).startswith(f"{path}:2: must be 'host slots=N', N from 1 to 4096, got ")


def test_a_hostfile_of_a_windows_editor_names_its_hosts(tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbfalpha slots=2\r\n\r\nbeta slots=1 # last\r\n")
    assert read_hostfile(path) == {"alpha": (0, 1), "beta": (0,)}
