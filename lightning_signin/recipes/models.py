"""The recipes' networks, and a classifier that trains any network. Nothing here depends on sparsity."""

from itertools import pairwise
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 (He et al., 2016): three stages of three blocks, of width, 2·width and 4·width channels.

    Args:
        channels: Input channels.
        classes: Output classes.
        width: Channels of the first stage; 16 in the original.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16) -> None:
        stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        blocks = []
        for stage, (inputs, outputs) in enumerate(pairwise([width, width, 2 * width, 4 * width])):
            blocks += [ResidualBlock(inputs, outputs, stride=1 if stage == 0 else 2)]
            blocks += [ResidualBlock(outputs, outputs, stride=1) for _ in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
        super().__init__()
        self.layers = nn.Sequential(*stem, *blocks, *head)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) to logits (batch, classes)."""
        return self.layers(x)


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: Sizes from input to output.
    """

    def __init__(self, widths: list[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__()
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, widths[0]) to (batch, widths[-1])."""
        return self.layers(x)


class Classifier(LightningModule):
    """Trains a network with cross-entropy and a triangular learning rate.

    Args:
        network: Maps a batch of inputs to logits (batch, classes).
        classes: Number of classes.
        lr: Peak learning rate, reached after ``warmup`` of the steps and then falling linearly to 0.
        momentum: Momentum of SGD.
        weight_decay: For all parameters, on θ of sparse ones unless the callback says otherwise; keep it 0 if its
            ``frobenius_decay`` takes its place (Table 5).
        warmup: Fraction of the steps, in (0, 1).
        optimizer: "sgd", or "adamw", whose decay is decoupled from the gradient.
        label_smoothing: Share of each label that is spread evenly over all classes, in training.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int = 10,
        lr: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup: float = 0.2,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.lr, self.momentum, self.weight_decay, self.warmup = lr, momentum, weight_decay, warmup
        self.optimizer, self.label_smoothing = optimizer, label_smoothing
        metrics = {stage: MulticlassAccuracy(classes, average="micro") for stage in ("val", "test")}
        self.accuracy = nn.ModuleDict(metrics)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        return self.network(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val_acc``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test_acc``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Predicted classes."""
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule."""
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adamw":
            optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        peak = max(1, round(self.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (step + 1) / peak if step < peak else max(0, steps - step) / max(1, steps - peak)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        accuracy = cast(MulticlassAccuracy, self.accuracy[stage])
        accuracy(self(batch[0]), batch[1])
        self.log(f"{stage}_acc", accuracy, prog_bar=True)
