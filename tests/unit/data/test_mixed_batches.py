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


def make_mixture(weights=(0.5, 0.3, 0.2)):
    return MixtureController(
        NAMES, "static", MixtureSchedule(7, len(NAMES)), initial_weights=weights
    )


def make_source(datasets, *, dp_rank=0, dp_size=1, accumulation=4, **options):
    return MixedBatches(
        datasets,
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch_size=MICRO_BATCH_SIZE,
        gradient_accumulation_steps=accumulation,
        eod_token=0,
        **options,
    )


def rows_of_plan(sources, draw):
    """Rows of the global batch in the order of the plan."""
    per_rank = [list(source.batches(draw)) for source in sources]
    return [
        (int(domain), *tokens.tolist())
        for micro_batch in zip(*per_rank, strict=True)
        for batch in micro_batch
        for domain, tokens in zip(batch.domain_ids, batch.tokens, strict=True)
    ]


@pytest.mark.parametrize("run_length", [1, MICRO_BATCH_SIZE, 8])
@pytest.mark.parametrize("dp_size", [2, 4])
def test_the_number_of_ranks_does_not_change_the_samples_of_a_step(datasets, run_length, dp_size):
    single, mixture = [make_source(datasets)], make_mixture()
    ranks = [
        make_source(
            datasets,
            dp_rank=rank,
            dp_size=dp_size,
            accumulation=4 // dp_size,
        )
        for rank in range(dp_size)
    ]
    for step in range(1, 15):
        draw = mixture.draw(step, single[0].global_batch_size, run_length)
        assert rows_of_plan(ranks, draw) == rows_of_plan(single, draw)


def test_rows_come_from_the_domain_and_position_of_their_slot(datasets):
    source, mixture = make_source(datasets), make_mixture()
    for step in range(1, 8):
        draw = mixture.draw(step, source.global_batch_size)
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
    sources = [make_source(datasets, dp_rank=rank, dp_size=2, accumulation=2) for rank in range(2)]
    mixture, size = make_mixture([1, 0, 0]), len(datasets[0])
    plans = [mixture.draw(step, sources[0].global_batch_size) for step in range(1, 30)]
    rows = [row for draw in plans for row in rows_of_plan(sources, draw)]
    for first in range(0, len(rows) - size + 1, size):
        assert len(set(rows[first : first + size])) == size


@pytest.mark.parametrize("run_length", [MICRO_BATCH_SIZE, 8])
def test_slots_of_one_run_share_a_domain(datasets, run_length):
    source, mixture = make_source(datasets), make_mixture()
    drawn = set()
    for step in range(1, 30):
        batches = source.batches(mixture.draw(step, source.global_batch_size, run_length))
        domain_ids = np.concatenate([batch.domain_ids for batch in batches])
        runs = domain_ids.reshape(-1, run_length)
        assert (runs == runs[:, :1]).all()
        drawn |= set(runs.ravel().tolist())
    assert drawn == {0, 1, 2}


def test_a_step_has_the_accumulation_steps_and_shapes_that_were_asked(datasets):
    source = make_source(datasets, dp_rank=1, dp_size=2, accumulation=3)
    batches = list(source.batches(make_mixture().draw(1, source.global_batch_size)))
    assert len(batches) == 3
    assert source.global_batch_size == 12
    assert all(batch.tokens.shape == (MICRO_BATCH_SIZE, SEQ_LENGTH) for batch in batches)
    assert source.domains == NAMES
    assert source.seq_length == SEQ_LENGTH
    assert source.samples_per_epoch.tolist() == [14, 14, 14]


def test_a_token_outside_the_vocabulary_names_its_domain(datasets):
    source = make_source(datasets, vocab_size=2000)
    with pytest.raises(DataError, match="domain news: token id 20"):
        next(source.batches(make_mixture([0, 0, 1]).draw(1, source.global_batch_size)))
