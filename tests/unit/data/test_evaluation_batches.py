import numpy as np
import pytest

from megatron.data.evaluation_batches import EvaluationBatches, EvaluationDomain
from megatron.data.held_out import HeldOutSamples


@pytest.fixture
def domains(write_dataset):
    """A domain of 11 samples and one of 3, of which 2 are evaluated."""
    sizes = {"books": (45, 11, 2.5), "code": (13, 2, None)}
    return [
        EvaluationDomain(
            HeldOutSamples(
                name,
                name,
                None,
                write_dataset(name, [np.arange(size)]),
                seq_length=4,
                max_samples=num_samples,
            ),
            bytes_per_token,
        )
        for name, (size, num_samples, bytes_per_token) in sizes.items()
    ]


def make_batches(domains, dp_rank=0, dp_size=1, *, eod_token=9999, **options):
    return EvaluationBatches(
        domains,
        dp_rank=dp_rank,
        dp_size=dp_size,
        micro_batch_size=2,
        eod_token=eod_token,
        **options,
    )


def counted_rows(sources, domain_id):
    """Rows with a loss, in the order of the domain, and the number of batches of each rank."""
    per_rank = [list(source.batches(domain_id)) for source in sources]
    rows = []
    for round_of_ranks in zip(*per_rank, strict=True):
        for batch in round_of_ranks:
            assert batch.domain_ids.tolist() == [domain_id] * 2
            rows += [
                tokens.tolist()
                for tokens, mask in zip(batch.tokens, batch.loss_mask, strict=True)
                if mask.all()
            ]
            assert all(mask.all() or not mask.any() for mask in batch.loss_mask)
    return rows, [len(batches) for batches in per_rank]


@pytest.mark.parametrize(("dp_size", "num_batches"), [(1, (6, 1)), (2, (3, 1)), (4, (2, 1))])
def test_ranks_share_the_same_samples_with_equal_numbers_of_batches(domains, dp_size, num_batches):
    for domain_id, domain in enumerate(domains):
        sources = [make_batches(domains, rank, dp_size) for rank in range(dp_size)]
        rows, batches_per_rank = counted_rows(sources, domain_id)
        expected = domain.samples.get_many(np.arange(domain.num_samples))[:, :-1]
        assert rows == expected.tolist()
        assert batches_per_rank == [num_batches[domain_id]] * dp_size
        assert sources[0].num_batches(domain_id) == num_batches[domain_id]


def test_every_evaluation_reads_the_same(domains):
    source = make_batches(domains)
    first, _ = counted_rows([source], 0)
    second, _ = counted_rows([source], 0)
    assert first == second


def test_what_is_known_of_the_domains(domains):
    source = make_batches(domains)
    assert source.domains == ("books", "code")
    assert source.num_samples == (11, 2)
    assert source.text_bytes_per_token == (2.5, None)


@pytest.mark.parametrize(("masks", "expected"), [(True, [1, 1, 0, 1]), (False, [1, 1, 1, 1])])
def test_what_follows_the_end_of_a_document_counts_unless_it_is_masked(domains, masks, expected):
    source = make_batches(domains, eod_token=2, eod_mask_loss=masks)
    first = next(source.batches(0))
    assert first.tokens[0].tolist() == [0, 1, 2, 3]
    assert first.loss_mask[0].tolist() == expected
