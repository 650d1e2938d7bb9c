import pytest

from megatron.neox_arguments import ConfigError, NeoXArgs, resolve

MINIMAL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "train_iters": 100,
    "train_micro_batch_size_per_gpu": 4,
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """A launcher's environment must not reach the tests."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "DLTS_HOSTFILE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_config():
    """Resolves a small valid configuration with some values replaced."""

    def make(world_size=None, **values):
        return resolve(NeoXArgs.from_dict({**MINIMAL, **values}), world_size=world_size)

    return make


@pytest.fixture
def problems(make_config):
    """Returns the messages that a configuration is refused with; none when it is accepted."""

    def find(world_size=None, **values):
        try:
            make_config(world_size, **values)
        except ConfigError as error:
            return list(error.messages)
        return []

    return find


@pytest.fixture
def problem(problems):
    """Returns the only message that a configuration is refused with."""

    def find(world_size=None, **values):
        messages = problems(world_size, **values)
        assert len(messages) == 1, messages
        return messages[0]

    return find


@pytest.fixture
def write(tmp_path):
    """Writes a file of a temporary folder and returns its path."""

    def write_text(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_text


@pytest.fixture
def minimal():
    return dict(MINIMAL)
