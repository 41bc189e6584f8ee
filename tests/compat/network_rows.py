"""Layers and how they are used: tied, recurrent, attention, transposed, grouped, shared, checkpointed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.compat.rows import Row
from tests.compat.task import Net, Task


class Tokens(nn.Module):
    """Reads the eight rows of a digit as tokens."""

    def __init__(self, between: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.between, self.head = nn.Linear(8, 16), between, nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.between(self.embed(x.squeeze(1)))
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """The weight of the first layer is that of the last but one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.again.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.first(x.flatten(1)).relu()).relu())


class Words(nn.Module):
    """An embedding that is the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(10, 16), nn.Linear(16, 16), nn.Linear(16, 10, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.embedding(x.flatten(1).abs().round().long() % 10).mean(1)).relu())


class Shared(nn.Module):
    """One layer that is run twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embed(x.flatten(1))).relu()))


class Checkpointed(Net):
    """With activation checkpointing, dropout within."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class ChannelsLast(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 6, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.norm(self.second(self.conv(x).relu()))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return self.head(self.hidden(x.flatten(1)).relu())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pair = nn.Linear(64, 8), nn.Bilinear(8, 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        return self.pair(x, x)


def images(*middle: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(features, 10))


def normed(normalize: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: images(normalize(nn.Conv2d(8, 8, 3)), features=128)


def scripted() -> nn.Module:
    return images(torch.jit.script(nn.Conv2d(8, 8, 3)), features=128)


def frozen() -> nn.Module:
    net = Net()
    net.conv.requires_grad_(False)
    return net


BATCH_FIRST: dict[str, Any] = {"batch_first": True}
NETS: dict[str, Callable[[], nn.Module]] = {
    "tied linear layers": Tied,
    "a layer under two names": Shared,
    "LSTM": lambda: Tokens(nn.LSTM(16, 16, **BATCH_FIRST)),
    "GRU of two directions": lambda: Tokens(nn.GRU(16, 8, bidirectional=True, **BATCH_FIRST)),
    "attention": lambda: Tokens(Attention(16, 2, **BATCH_FIRST)),
    "TransformerEncoder": lambda: Tokens(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, **BATCH_FIRST), 2, enable_nested_tensor=False)
    ),
    "ConvTranspose": lambda: images(nn.ConvTranspose2d(8, 4, 3, stride=2), features=676),
    "grouped convolution": lambda: images(nn.Conv2d(8, 8, 3, groups=2), features=128),
    "grouped ConvTranspose": lambda: images(nn.ConvTranspose2d(8, 8, 3, groups=4), features=512),
    "depthwise and 1×1 convolution": lambda: images(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), features=64),
    "dilated convolution without bias": lambda: images(nn.Conv2d(8, 8, 3, dilation=2, bias=False), features=32),
    "padding_mode": lambda: images(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), features=288),
    "Conv1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 9), nn.ReLU(), nn.Flatten(), nn.Linear(224, 10)),
    "Conv3d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    ),
    "channels_last": ChannelsLast,
    "activation checkpointing": Checkpointed,
}


def included(name: str, net: Callable[[], nn.Module], *patterns: str) -> Row:
    return Row(name, lambda: Task(net), sign_in={"include": list(patterns)})


def excluded(name: str, net: Callable[[], nn.Module], pattern: str) -> Row:
    return Row(name, lambda: Task(net), sign_in={"exclude": [pattern]})


NETWORKS = [
    *(Row(name, lambda net=net: Task(net)) for name, net in NETS.items()),
    included("attention with its in_proj_weight", NETS["attention"], "net.*.in_proj_weight", "net.*.weight"),
    included("embedding tied to the output", Words, "net.embedding.weight", "net.*.weight"),
    included("Bilinear", Pair, "net.embed.weight", "net.pair.weight"),
    Row("scripted part", lambda: Task(scripted), says="entries stay dense: net.1.weight."),
    excluded("weight_norm beside", normed(nn.utils.parametrizations.weight_norm), "net.1.weight"),
    excluded("spectral_norm beside", normed(nn.utils.parametrizations.spectral_norm), "net.1.weight"),
    Row("frozen layer", lambda: Task(frozen), says="net.conv.weight is frozen"),
]
