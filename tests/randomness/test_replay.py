"""The order of loaders and the random generators across an interruption: resumed equals uninterrupted."""

import io
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_signin import SignInError
from lightning_signin.randomness import generators, replay
from tests.pruning import At
from tests.small import Small, callback, data, loader, trainer


class Noisy(Dataset):
    """Numbers with noise from all three generators, as data augmentation draws it."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()), random.random(), np.random.rand()], dtype=torch.float64)


DATA, BATCH, BATCHES = Noisy(), 4, 6
WEIGHTS = [1.0 + i for i in range(21)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS = {
    "in order": lambda data, seed: DataLoader(data, BATCH),
    "shuffled": lambda data, seed: DataLoader(data, BATCH, shuffle=True),
    "shuffled by its own": lambda data, seed: DataLoader(data, BATCH, shuffle=True, generator=seeded(seed)),
    "weighted": lambda data, seed: DataLoader(data, BATCH, sampler=WeightedRandomSampler(WEIGHTS, 21)),
    "weighted by its own": lambda data, seed: DataLoader(
        data, BATCH, sampler=WeightedRandomSampler(WEIGHTS, 21, generator=seeded(seed))
    ),
    "subset": lambda data, seed: DataLoader(data, BATCH, sampler=SubsetRandomSampler(range(21))),
    # 90 draws with replacement: the sampler asks its generator again every 32.
    "replacing": lambda data, seed: DataLoader(
        data, 15, sampler=RandomSampler(data, replacement=True, num_samples=90, generator=seeded(seed))
    ),
    "batch sampler": lambda data, seed: DataLoader(
        data, batch_sampler=BatchSampler(RandomSampler(data, generator=seeded(seed)), BATCH, drop_last=False)
    ),
}
EVERY_LOADER = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


def through_a_file(state: object) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def new_process(seed: int = 99) -> None:
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)


def same_generators(one: dict, other: dict) -> bool:
    numpy = [(*state["numpy"][2:], *state["numpy"][1].tolist()) for state in (one, other)]
    return torch.equal(one["torch"], other["torch"]) and numpy[0] == numpy[1] and one["python"] == other["python"]


def interrupted(make, position: int) -> tuple[dict, dict, list[torch.Tensor], dict]:
    """State and generators after some batches of the second epoch, what follows to the third's end, generators then."""
    new_process(1)
    loader = make(DATA, 1)
    recorder = replay.attach(loader)
    list(loader)
    iterator = iter(loader)
    torch.rand(3)  # as hooks do between the iterator and its first batch
    for _ in range(position):
        next(iterator)
    saved, now = through_a_file(recorder.state()), through_a_file(generators.capture())
    following = [*iterator, *loader]
    return saved, now, following, generators.capture()


def resumed(make, saved: dict, now: dict, epoch_complete: bool = False) -> tuple[list[torch.Tensor], dict]:
    new_process()
    loader = make(DATA, 7)
    replay.attach(loader).resume(saved, epoch_complete)
    iterator = iter(loader)
    generators.restore(now)  # the trainer does so when it starts, after the iterator was made
    following = list(iterator) if epoch_complete else [*iterator, *loader]
    return following, generators.capture()


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@EVERY_LOADER
@pytest.mark.parametrize("position", range(BATCHES))
def test_resumed_loader_gives_the_remaining_batches(make, position):
    saved, now, following, end = interrupted(make, position)
    assert len(following) == 2 * BATCHES - position
    batches, its_end = resumed(make, saved, now)
    assert equal(batches, following)
    assert same_generators(its_end, end)


@EVERY_LOADER
def test_resumed_loader_begins_the_next_epoch_after_a_whole_one(make):
    saved, now, following, end = interrupted(make, BATCHES)
    batches, its_end = resumed(make, saved, now, epoch_complete=True)
    assert equal(batches, following)
    assert same_generators(its_end, end)


@EVERY_LOADER
def test_replay_leaves_the_global_generators_untouched(make):
    saved, _, _, _ = interrupted(make, 3)
    loader = make(TensorDataset(torch.arange(21)), 7)  # fetching a batch draws nothing
    replay.attach(loader).resume(saved)
    new_process()
    before = generators.capture()
    next(iter(loader))
    assert same_generators(generators.capture(), before)


@EVERY_LOADER
def test_resumed_loader_can_be_interrupted_again(make):
    saved, now, following, _ = interrupted(make, 1)
    new_process()
    loader = make(DATA, 7)
    recorder = replay.attach(loader)
    recorder.resume(saved)
    iterator = iter(loader)
    generators.restore(now)
    first = [next(iterator) for _ in range(3)]
    batches, _ = resumed(make, through_a_file(recorder.state()), through_a_file(generators.capture()))
    assert equal(first + batches, following)


@pytest.mark.parametrize("seen", [7, 10**30])
@EVERY_LOADER
def test_position_after_the_end_of_the_loader_is_refused(make, seen):
    saved, _, _, _ = interrupted(make, 3)
    loader = make(DATA, 7)
    replay.attach(loader).resume({**saved, "seen": seen})
    text = f"position in the data is after batch {seen} of an epoch, but the training loader gives only 6. Resume with"
    with pytest.raises(SignInError, match=text):
        list(loader)


def test_position_in_more_data_than_there_is_now_is_refused_by_the_fit(tmp_path):
    saving = OnExceptionCheckpoint(tmp_path, "cut")
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(callback(), At(4), saving, enable_checkpointing=True).fit(Small(), loader())
    shorter = DataLoader(Subset(data(), range(16)), 8, shuffle=True)
    with pytest.raises(SignInError, match="is after batch 4 of an epoch, but the training loader gives only 2"):
        trainer(callback()).fit(Small(), shorter, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)


@pytest.mark.parametrize("position", [1, 4])
@pytest.mark.parametrize("kind", ["shuffled", "replacing"])
def test_resumed_loader_with_workers_gives_the_remaining_batches(kind, position):
    def make(data: Dataset, seed: int) -> DataLoader:
        plain = LOADERS[kind](data, seed)
        return DataLoader(data, plain.batch_size, sampler=plain.sampler, num_workers=2)

    saved, now, following, end = interrupted(make, position)
    batches, its_end = resumed(make, saved, now)
    assert equal(batches, following)
    assert same_generators(its_end, end)


def test_interrupted_batch_can_be_run_again():
    loader = LOADERS["shuffled"](DATA, 0)
    recorder = replay.attach(loader)
    iterator = iter(loader)
    next(iterator), next(iterator)
    before = generators.capture()
    next(iterator)
    torch.rand(1)  # the batch fails on its way
    assert same_generators(recorder.before_fetch, before)


def test_recording_changes_no_batch_and_detaching_restores_the_class():
    class Custom(DataLoader):
        pass

    loader, plain = Custom(DATA, BATCH, shuffle=True), Custom(DATA, BATCH, shuffle=True)
    recorder = replay.attach(loader)
    assert isinstance(loader, Custom)
    assert len(loader) == BATCHES
    new_process()
    recorded = list(loader)
    new_process()
    assert equal(recorded, list(plain))
    recorder.detach()
    assert type(loader) is Custom


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(5))


class Stateful(DataLoader):
    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


@pytest.mark.parametrize("loader", [DataLoader(Numbers()), Stateful(DATA), [1, 2, 3]])
def test_attach_leaves_what_it_cannot_replay_alone(loader):
    before = type(loader)
    assert replay.attach(loader) is None
    assert type(loader) is before


def test_persistent_workers_are_inexact():
    assert replay.attach(DataLoader(DATA, num_workers=2)).inexact is None
    text = "persistent loader workers keep random generators that cannot be saved"
    assert replay.attach(DataLoader(DATA, num_workers=2, persistent_workers=True)).inexact == text


def test_generators_are_restored_from_a_file():
    random.gauss(0, 1), np.random.randn()  # both keep a second draw for later
    state = through_a_file(generators.capture())
    draws = [torch.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)]
    generators.restore(state)
    assert [torch.rand(3).tolist(), np.random.randn(), random.gauss(0, 1)] == draws
