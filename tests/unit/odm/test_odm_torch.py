import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import ConcatDataset, DataLoader  # noqa: E402

from odm import MixtureController, MixtureSchedule, Signal, make_mixer  # noqa: E402
from odm.integrations.torch_data import (  # noqa: E402
    HeldOutSamples,
    MixtureBatchSampler,
    MixtureIterableDataset,
)

DOMAINS = ["low", "high"]
SIZES = [30, 50]


class Numbers(torch.utils.data.Dataset):
    """Samples (domain, number)."""

    def __init__(self, domain, size):
        self.domain, self.size = domain, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"owner": self.domain, "number": index}


def controller(method="static", **options):
    return MixtureController(DOMAINS, make_mixer(method), MixtureSchedule(3, 2), **options)


def datasets():
    return [Numbers(domain, size) for domain, size in enumerate(SIZES)]


def sampler_loader(mixture, num_steps, first_step=1, **options):
    sampler = MixtureBatchSampler(
        mixture, SIZES, batch_size=8, num_steps=num_steps, first_step=first_step
    )
    return sampler, DataLoader(ConcatDataset(datasets()), batch_sampler=sampler, **options)


def test_batch_sampler_reads_every_sample_of_an_epoch_once():
    mixture = controller(initial_weights=SIZES)
    _, loader = sampler_loader(mixture, num_steps=40)
    seen = {0: [], 1: []}
    for batch in loader:
        for owner, number in zip(batch["owner"].tolist(), batch["number"].tolist(), strict=True):
            seen[owner].append(number)
    for domain, size in enumerate(SIZES):
        assert len(seen[domain]) > size
        assert sorted(seen[domain][:size]) == list(range(size))
        assert seen[domain][:size] != sorted(seen[domain][:size])


def test_domain_of_finds_the_owner_of_every_index():
    mixture = controller()
    sampler, loader = sampler_loader(mixture, num_steps=5)
    assert len(loader) == 5
    data = ConcatDataset(datasets())
    for indices in sampler:
        owners = [data[index]["owner"] for index in indices]
        assert sampler.domain_of(indices).tolist() == owners


def test_iterable_dataset_and_batch_sampler_read_the_same_samples():
    _, loader = sampler_loader(controller(), num_steps=20)
    stream = MixtureIterableDataset(controller(), datasets(), batch_size=8, num_steps=20)
    other = DataLoader(stream, batch_size=8)
    assert len(other) == 20
    for one, two in zip(loader, other, strict=True):
        assert one["number"].tolist() == two["number"].tolist()
        assert two["domain_ids"].tolist() == two["owner"].tolist() == one["owner"].tolist()


def test_a_restart_goes_on_with_the_next_unread_sample():
    def run(mixture, loader, first_step):
        history = []
        for step, batch in enumerate(loader, start=first_step):
            history.append((batch["owner"].tolist(), batch["number"].tolist()))
            losses = np.where(np.bincount(batch["owner"], minlength=2) > 0, [2.0, 3.0], np.nan)
            mixture.observe(step, losses)
        return history

    whole = controller("smoothed_mean")
    expected = run(whole, sampler_loader(whole, num_steps=30)[1], 1)
    first = controller("smoothed_mean")
    run(first, sampler_loader(first, num_steps=17)[1], 1)
    second = controller("smoothed_mean")
    second.load_state_dict(first.state_dict())
    loader = sampler_loader(second, num_steps=13, first_step=18)[1]
    assert run(second, loader, 18) == expected[17:]


def test_the_batch_sampler_works_with_worker_processes():
    expected = [batch["number"].tolist() for batch in sampler_loader(controller(), 6)[1]]
    workers = sampler_loader(controller(), 6, num_workers=1)[1]
    assert [batch["number"].tolist() for batch in workers] == expected


def test_the_iterable_dataset_refuses_worker_processes():
    stream = MixtureIterableDataset(controller(), datasets(), batch_size=8, num_steps=2)
    with pytest.raises(ValueError, match="needs num_workers=0"):
        list(DataLoader(stream, batch_size=8, num_workers=1))


def test_empty_and_missing_datasets_are_refused():
    with pytest.raises(ValueError, match="1 dataset for 2 domains"):
        MixtureBatchSampler(controller(), [5], batch_size=4, num_steps=1)
    with pytest.raises(ValueError, match="dataset of domain 'high' is empty"):
        MixtureBatchSampler(controller(), [5, 0], batch_size=4, num_steps=1)


def test_a_small_model_trains_on_the_mixture_it_asks_for():
    # Domain "high" has noise of variance 4 that nobody can predict, "low" has none.
    torch.manual_seed(0)
    mixture = controller("smoothed_mean")
    _, loader = sampler_loader(mixture, num_steps=200)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, batch in enumerate(loader, start=1):
        noise = 2.0 * torch.randn(8) * batch["owner"]
        inputs = batch["number"].float()[:, None] / 50
        losses = (model(inputs)[:, 0] - inputs[:, 0] - noise) ** 2
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        owner = batch["owner"].numpy()
        sums = np.bincount(owner, losses.detach().numpy(), minlength=2)
        counts = np.bincount(owner, minlength=2)
        mixture.observe(step, Signal(sums, np.zeros(2), counts, counts))
    assert mixture.weights[1] > 0.7


def squared_errors(model, samples):
    """Loss and count of samples whose domain cannot be predicted from their number."""
    numbers = torch.tensor([[sample["number"] / 50] for sample in samples])
    owners = torch.tensor([float(sample["owner"]) for sample in samples])
    losses = (model(numbers)[:, 0] - numbers[:, 0] - 2.0 * owners) ** 2
    return losses, torch.ones(len(samples))


def test_held_out_samples_are_spread_evenly_and_measured_in_parts():
    seen = []

    def losses_of(samples):
        seen.append([(sample["owner"], sample["number"]) for sample in samples])
        return torch.ones(len(samples)), torch.full((len(samples),), 2.0)

    held_out = HeldOutSamples(datasets(), num_samples=2, num_parts=2)
    measured = held_out.measure(1, losses_of)
    held_out.measure(2, losses_of)
    first, second = (set(batch) for batch in seen)
    assert first == {(0, 7), (0, 22), (1, 12), (1, 37)}
    assert second == {(0, 22), (1, 37)}
    assert measured.mean_loss.tolist() == [0.5, 0.5]


def test_a_small_model_trains_with_a_held_out_reward():
    torch.manual_seed(0)
    mixture = controller("smoothed_mean", reward="heldout")
    _, loader = sampler_loader(mixture, num_steps=60)
    held_out = HeldOutSamples(datasets(), num_samples=4, num_parts=2)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, batch in enumerate(loader, start=1):
        inputs = batch["number"].float()[:, None] / 50
        ((model(inputs) - inputs) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        measured = None
        if step % 3 == 0:
            measured = held_out.measure(step, lambda samples: squared_errors(model, samples))
        mixture.observe(step, [np.nan, np.nan], held_out=measured)
    assert mixture.weights[1] > 0.7, "its held-out loss is higher; training losses were not given"


def test_a_small_model_trains_with_the_held_out_curves_of_learning_curve():
    torch.manual_seed(0)
    mixture = controller("learning_curve", reward="heldout", total_steps=120)
    _, loader = sampler_loader(mixture, num_steps=120)
    held_out = HeldOutSamples(datasets(), num_samples=4, num_parts=2)
    table = torch.zeros(2, 2, requires_grad=True)  # a level and a slope per domain
    optimizer = torch.optim.SGD([table], lr=0.05)

    def losses_of(samples):
        owners = torch.tensor([sample["owner"] for sample in samples])
        numbers = torch.tensor([sample["number"] / 50 for sample in samples])
        chance = torch.where(owners == 1, torch.cos(37.0 * numbers), 0.0)  # nobody can predict it
        wanted = torch.where(owners == 0, 2.0 + numbers, 0.0) + chance
        made = table[owners, 0] + table[owners, 1] * numbers
        return (made - wanted) ** 2, torch.ones(len(samples))

    for step, batch in enumerate(loader, start=1):
        rows = zip(batch["owner"].tolist(), batch["number"].tolist(), strict=True)
        losses, _ = losses_of([{"owner": owner, "number": number} for owner, number in rows])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        measured = held_out.measure(step, losses_of) if step % 2 == 0 else None
        mixture.observe(step, [np.nan, np.nan], held_out=measured)
    assert mixture.weights[0] > 0.6, "the other domain is noise"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4.5}, "batch_size must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"batch_size": 4, "run_length": 3}, "batch_size 4 must be a multiple of run_length 3"),
        ({"num_steps": "2"}, "num_steps must be a whole number"),
        ({"num_steps": -1}, "num_steps must be a whole number of at least 0"),
        ({"first_step": 0}, "first_step must be a whole number of at least 1"),
    ],
)
def test_a_loader_that_cannot_work_is_refused_when_it_is_made(changes, message):
    options = {"batch_size": 4, "num_steps": 2, **changes}
    with pytest.raises(ValueError, match=message):
        MixtureBatchSampler(controller(), SIZES, **options)
    with pytest.raises(ValueError, match=message):
        MixtureIterableDataset(controller(), datasets(), **options)


@pytest.mark.parametrize("given", [5, [1, 2], None])
def test_what_is_not_a_list_of_datasets_is_refused(given):
    with pytest.raises(ValueError, match="a list of datasets that have a length"):
        MixtureIterableDataset(controller(), given, batch_size=4, num_steps=2)
    with pytest.raises(ValueError, match="a list of datasets that have a length"):
        HeldOutSamples(given)


@pytest.mark.parametrize("sizes", [[30, "50"], [30, 5.5], [30, -1], "ab"])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes of the datasets"):
        MixtureBatchSampler(controller(), sizes, batch_size=4, num_steps=2)


def test_a_loop_that_begins_again_after_a_restart_is_told_the_next_step():
    mixture = controller()
    mixture.draw(1, 4)
    mixture.observe(1, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"step 1 comes after step 1, .*: the next one is 2"):
        next(iter(MixtureBatchSampler(mixture, SIZES, batch_size=4, num_steps=2)))


@pytest.mark.parametrize(
    "result", [torch.ones(2), (torch.ones(3), torch.ones(2)), (1.0, 2), (torch.ones(2),) * 3, None]
)
def test_losses_of_another_form_are_refused(result):
    held_out = HeldOutSamples([[1], [2]])
    with pytest.raises(ValueError, match="losses_of of 2 samples must be two tensors"):
        held_out.measure(1, lambda samples: result, batch_size=2)
