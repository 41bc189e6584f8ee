"""Every test starts from the same seed, on one thread."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

collect_ignore = [] if find_spec("torch_xla") else ["xla_run.py"]  # a script, which pytest looks through for doctests

torch.set_num_threads(1)
ADDRESSES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK", "GROUP_RANK")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_rank() -> Iterator[None]:
    """Leave no process group behind: a Trainer with ``strategy="ddp"`` does, and its address in the environment.

    Scripts that a later test starts would connect to it, and wait for ever.
    """
    within = torch.distributed.is_initialized()
    addresses = {name: os.environ.get(name) for name in ADDRESSES}
    yield
    if torch.distributed.is_initialized() and not within:
        torch.distributed.destroy_process_group()
    for name, value in addresses.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


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
