"""Networks of every shape that the unit graph has to follow, and how tests build and trace them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin.units.graph import Graph
from lightning_signin.units.tracing import trace


class Residual(nn.Module):
    """An identity shortcut, a 1×1 shortcut, normalization, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.fc = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.a(x).relu()
        x = self.b(x).relu() + self.shortcut(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Concatenation, slices, a grouped, a depthwise and a transposed convolution, and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 1, bias=False)
        self.b = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(3, 4, 2, groups=1, bias=False)
        self.rest = nn.Conv2d(1, 2, 1, bias=False)
        self.fc = nn.Linear(4 * 9 + 2 * 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.cat([self.b(x).relu(), self.a(x)], 1), 2)
        x = self.depthwise(self.grouped(x).relu())
        return self.fc(torch.cat([self.up(x[:, 1:]).flatten(1), self.rest(x[:, :1]).permute(0, 2, 3, 1).flatten(1)], 1))


class TwoInputs(nn.Module):
    """Two inputs, a layer used twice, a padded shortcut, and a part of the output that needs only one input."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4, bias=False)
        self.right = nn.Linear(2, 4, bias=False)
        self.twice = nn.Linear(4, 4, bias=False)
        self.wide = nn.Linear(4, 6, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = self.left(x).relu(), self.right(y)
        once = self.twice(x + y)
        again = self.twice(once.relu())
        return self.wide(again) + F.pad(once, (0, 2)), {"left": x}


NETS = {
    "residual": (Residual, [(1, 2, 8, 8)]),
    "concat": (Concat, [(1, 2, 4, 4)]),
    "two inputs": (TwoInputs, [(1, 3), (1, 2)]),
}

EVERY_NET = pytest.mark.parametrize("name", NETS)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    kind, shapes = NETS[name]
    return kind().double().eval(), tuple(torch.rand(shape, dtype=torch.float64) for shape in shapes)


def weight_names(net: nn.Module) -> dict[str, str]:
    return {name: name for name, parameter in net.named_parameters() if parameter.dim() > 1}


def graph_of(net: nn.Module, *args: Tensor) -> Graph:
    return trace(net, args, {}, weight_names(net))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.first(x))[0][:, -1])


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x
