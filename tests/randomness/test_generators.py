"""Generators that objects hold, wherever they keep them."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler, Subset, TensorDataset

from lightning_signin.randomness import generators
from tests.counting import lines_run

IN_THIS_FILE = np.random.default_rng(0)


def data() -> TensorDataset:
    return TensorDataset(torch.arange(12.0))


class Noise:
    def __init__(self, draw):
        self.draw = draw

    def __call__(self, x):
        return x + float(self.draw())


class Slots:
    __slots__ = ("__weakref__", "generator", "unset")

    def __init__(self):
        self.generator = random.Random(3)

    def __call__(self, x):
        return x + self.generator.random()


class Transformed(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.transform(torch.tensor(float(index)))


class FromFile(Transformed):
    def __getitem__(self, index):
        return index + float(IN_THIS_FILE.normal())


def closure():
    generator = np.random.default_rng(1)
    return lambda x: x + float(generator.normal())


def with_default(x, generator=random.Random(2)):  # noqa: B008 — what is tested
    return x + generator.random()


def nested(transform, times: int):
    for _ in range(times):
        transform = Noise(partial(transform, 0.0))
    return transform


def noisy(generator, samples):
    return torch.stack(samples) + float(generator.normal())


def transformed(transform) -> DataLoader:
    return DataLoader(Transformed(transform), 4)


HOLDERS = {
    "loader": lambda: DataLoader(data(), 4, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "sampler": lambda: DataLoader(data(), 4, sampler=RandomSampler(data(), generator=torch.Generator().manual_seed(1))),
    "numpy Generator": lambda: transformed(Noise(np.random.default_rng(0).normal)),
    "numpy RandomState": lambda: transformed(Noise(np.random.RandomState(0).normal)),
    "random.Random": lambda: transformed(Noise(random.Random(0).random)),
    "torch.Generator": lambda: transformed(Noise(partial(torch.randn, 1, generator=torch.Generator()))),
    "slots": lambda: transformed(Slots()),
    "closure": lambda: transformed(closure()),
    "default": lambda: transformed(with_default),
    "variable of a file": lambda: DataLoader(FromFile(None), 4),
    "collate_fn": lambda: DataLoader(Transformed(torch.sqrt), 4, collate_fn=partial(noisy, np.random.default_rng(0))),
    "deep": lambda: DataLoader(Subset(ConcatDataset([Transformed(nested(closure(), 5))]), range(12)), 4),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_held_generators_are_put_back(holder):
    loader = HOLDERS[holder]()
    with generators.untouched():
        held = generators.Held()
        held.remember(loader)
        first = [torch.as_tensor(batch[0]).tolist() for batch in loader]
        held.restore()
    with generators.untouched():
        assert [torch.as_tensor(batch[0]).tolist() for batch in loader] == first
    with generators.untouched():
        assert [torch.as_tensor(batch[0]).tolist() for batch in loader] != first


def test_the_first_remembered_state_counts():
    generator = torch.Generator().manual_seed(1)
    held = generators.Held()
    held.remember(generator)
    first = torch.rand(1, generator=generator)
    held.remember(generator)
    held.restore()
    assert torch.equal(torch.rand(1, generator=generator), first)


def test_cycles_empty_cells_and_the_operating_systems_generator_are_no_trouble():
    holder = Noise(random.SystemRandom().random)
    holder.itself = [holder]

    def recursive(x):
        return later(x)

    holder.function = recursive
    held = generators.Held()
    held.remember(holder)
    held.restore()

    def later(x):
        return x


def test_large_holders_are_not_searched_sample_by_sample():
    class Samples:
        def __init__(self, count):
            self.samples = [{"path": str(i), "label": i} for i in range(count)]

    _, few = lines_run(partial(generators.Held().remember, Samples(200)))
    _, many = lines_run(partial(generators.Held().remember, Samples(20_000)))
    assert few == many


def test_search_of_many_small_holders_ends():
    class Nested:
        def __init__(self, depth):
            self.parts = [Nested(depth - 1) for _ in range(50)] if depth else []

    lines_run(partial(generators.Held().remember, Nested(3)), at_most=2_500_000)  # of 127,551 holders


def test_untouched_restores_all_three():
    before = generators.capture()
    with generators.untouched():
        torch.rand(1), np.random.rand(), random.random()
    after = generators.capture()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["python"] == after["python"]
