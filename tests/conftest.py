"""Every test starts from the same seed, on one thread, in a process as it was before the tests before it."""

import os
import random
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

collect_ignore = [] if find_spec("torch_xla") else ["xla_run.py"]  # a script, which pytest looks through for doctests

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


def pytest_runtest_setup() -> None:
    """Seeds what fixtures of a whole module draw, whichever test asks for them first."""
    seed_all()


@pytest.fixture(autouse=True)
def seed() -> None:
    seed_all()


def seed_all() -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """What Lightning changes in the whole process, for ranks, seeds and determinism, ends with the test.

    A process that a later test starts would take itself for a rank, and wait for the others without end.
    """
    environment, grouped = dict(os.environ), distributed.is_initialized()
    deterministic = torch.get_deterministic_debug_mode()
    yield
    if distributed.is_initialized() and not grouped:
        distributed.destroy_process_group()
    torch.set_deterministic_debug_mode(deterministic)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


class Zoo(nn.Module):
    """What state dicts stumble over: buffers, attention, a module under two names, a parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.encoder = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 8)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.decoder(self.encoder(self.again(self.first(x))).tanh())


@pytest.fixture
def zoo() -> nn.Module:
    return Zoo().double()


@pytest.fixture
def images() -> Tensor:
    """A batch for `zoo`."""
    return torch.randn(5, 4, 6, dtype=torch.float64)
