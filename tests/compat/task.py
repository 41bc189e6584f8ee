"""The task of every row: two epochs of six batches of scikit-learn's digits, with any network and any optimizer."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_signin.recipes.datasets import digits

EPOCHS, BATCHES, BATCH = 2, 6, 16


@cache
def splits() -> tuple[TensorDataset, TensorDataset]:
    (x, y), (val_x, val_y), _ = digits()
    return TensorDataset(x[: BATCHES * BATCH], y[: BATCHES * BATCH]), TensorDataset(val_x[:32], val_y[:32])


def train_loader() -> DataLoader:
    return DataLoader(splits()[0], BATCH, shuffle=True)


def val_loader() -> DataLoader:
    return DataLoader(splits()[1], 32)


class Net(nn.Module):
    """Convolution, batch norm, dropout and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.1)
        self.hidden = nn.Linear(54, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.dropout(self.hidden(x).relu()))


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


class Steps:
    """What a classifier does, for the `LightningModule` of either import name."""

    def __init__(self, net: Callable[[], nn.Module] = Net, optimizers: Callable[[Any], Any] = sgd) -> None:
        super().__init__()
        self.net, self.optimizers_of, self.losses = net(), optimizers, []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return self.optimizers_of(self)


class Task(Steps, LightningModule):
    """The task with `lightning.pytorch`."""
