import numpy as np
import pytest

from megatron.data.errors import DataError
from megatron.data.gpt2_dataset import GPT2Dataset
from megatron.data.mixed_batches import MixedBatches
from odm.controller import MixtureController
from odm.schedule import MixtureSchedule

NAMES = ("books", "code", "news")
SEQ_LENGTH = 4
MICRO_BATCH_SIZE = 2


@pytest.fixture
def datasets(write_dataset):
    """Three domains whose tokens say where they come from: 1000 * domain + place."""
    return [
        GPT2Dataset(
            name, name, None, write_dataset(name, np.split(base + np.arange(60), 6)), None, 4, 7
        )
        for name, base in zip(NAMES, (0, 1000, 2000), strict=True)
    ]


def make_source(datasets, *, dp_rank=0, dp_size=1, accumulation=4, run_length=1, **options):
    weights = options.pop("weights", [0.5, 0.3, 0.2])
    controller = MixtureController(
        NAMES, "static", MixtureSchedule(7, len(NAMES)), initial_weights=weights
    )
    return MixedBatches(
        datasets,
        controller,
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch_size=MICRO_BATCH_SIZE,
        gradient_accumulation_steps=accumulation,
        run_length=run_length,
        eod_token=0,
        **options,
    )


def rows_of_step(sources, step):
    """Rows of the global batch in the order of the plan."""
    per_rank = [list(source.batches(source.draw(step))) for source in sources]
    return [
        (int(domain), *tokens.tolist())
        for micro_batch in zip(*per_rank, strict=True)
        for batch in micro_batch
        for domain, tokens in zip(batch.domain_ids, batch.tokens, strict=True)
    ]


@pytest.mark.parametrize("run_length", [1, MICRO_BATCH_SIZE, 8])
@pytest.mark.parametrize("dp_size", [2, 4])
def test_the_number_of_ranks_does_not_change_the_samples_of_a_step(datasets, run_length, dp_size):
    single = [make_source(datasets, run_length=run_length)]
    ranks = [
        make_source(
            datasets,
            dp_rank=rank,
            dp_size=dp_size,
            accumulation=4 // dp_size,
            run_length=run_length,
        )
        for rank in range(dp_size)
    ]
    for step in range(1, 15):
        assert rows_of_step(ranks, step) == rows_of_step(single, step)


def test_rows_come_from_the_domain_and_position_of_their_slot(datasets):
    source = make_source(datasets)
    for step in range(1, 8):
        draw = source.draw(step)
        rows = [
            (int(domain), [*tokens.tolist(), int(labels[-1])])
            for batch in source.batches(draw)
            for domain, tokens, labels in zip(
                batch.domain_ids, batch.tokens, batch.labels, strict=True
            )
        ]
        expected = [
            (domain, datasets[domain][position]["text"].tolist())
            for domain, position in zip(draw.domains.tolist(), draw.positions.tolist(), strict=True)
        ]
        assert rows == expected


def test_each_sample_of_a_domain_is_read_once_an_epoch_over_steps_and_ranks(datasets):
    sources = [
        make_source(datasets, dp_rank=rank, dp_size=2, accumulation=2, weights=[1, 0, 0])
        for rank in range(2)
    ]
    size = len(datasets[0])
    rows = [row for step in range(1, 30) for row in rows_of_step(sources, step)]
    for first in range(0, len(rows) - size + 1, size):
        assert len(set(rows[first : first + size])) == size


@pytest.mark.parametrize("run_length", [MICRO_BATCH_SIZE, 8])
def test_slots_of_one_run_share_a_domain(datasets, run_length):
    source = make_source(datasets, run_length=run_length)
    drawn = set()
    for step in range(1, 30):
        runs = source.draw(step).domains.reshape(-1, run_length)
        assert (runs == runs[:, :1]).all()
        drawn |= set(runs.ravel().tolist())
    assert drawn == {0, 1, 2}


def test_a_step_has_the_accumulation_steps_and_shapes_that_were_asked(datasets):
    source = make_source(datasets, dp_rank=1, dp_size=2, accumulation=3)
    batches = list(source.batches(source.draw(1)))
    assert len(batches) == 3
    assert source.global_batch_size == 12
    assert all(batch.tokens.shape == (MICRO_BATCH_SIZE, SEQ_LENGTH) for batch in batches)
    assert source.domains == NAMES
    assert source.seq_length == SEQ_LENGTH
    assert source.samples_per_epoch.tolist() == [14, 14, 14]


def test_a_token_outside_the_vocabulary_names_its_domain(datasets):
    source = make_source(datasets, vocab_size=2000, weights=[0, 0, 1])
    with pytest.raises(DataError, match="domain news: token id 20"):
        next(source.batches(source.draw(1)))


def test_data_and_mixture_must_name_the_same_domains(datasets):
    with pytest.raises(DataError, match="are not the domains of the mixture"):
        make_source(datasets[::-1])
