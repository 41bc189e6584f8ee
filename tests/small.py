"""A small real task for tests that need a Trainer: no mocks, a few milliseconds a step."""

import logging
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_signin import SignInCallback, masks
from lightning_signin.randomness import generators

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
BATCHES, BATCH = 10, 8  # of an epoch


class Small(LightningModule):
    """Convolution, batch norm, dropout and two linear layers, with any torch optimizer and a step-wise schedule."""

    def __init__(self, optimizer: str = "SGD", epochs: int = 4, **options: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.2)
        self.fc1 = nn.Linear(48, 24)
        self.fc2 = nn.Linear(24, 3)
        self.optimizer, self.epochs = optimizer, epochs
        self.options = options or ({"lr": 0.1, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01})
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.unsqueeze(1))).relu().flatten(1)
        return self.fc2(self.dropout(self.fc1(x).relu()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> dict:
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), **self.options)
        total = self.epochs * BATCHES
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES * BATCH, 10, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


class Counted(Dataset):
    """Counts the samples that are drawn."""

    def __init__(self, samples=None):
        self.samples, self.drawn = data() if samples is None else samples, 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.drawn += 1
        return self.samples[index]


def loader(workers: int = 0) -> DataLoader:
    return DataLoader(data(), BATCH, shuffle=True, num_workers=workers)


def trainer(*callbacks: object, epochs: int = 4, **options: object) -> Trainer:
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **{**quiet, **options})


def callback(**options: object) -> SignInCallback:
    return SignInCallback(**{"sparsity": 0.7, "rescale_every_n_epochs": 1, "rescale_until": 1.0, **options})


def seeded(
    optimizer: str = "SGD", seed: int = 1, epochs: int = 4, kind: type[Small] = Small, **options: float
) -> Small:
    seed_everything(seed, verbose=False)
    return kind(optimizer, epochs, **options)


class Masks(Callback):
    """Notes the masks of a fit, and where the random generators are when it starts."""

    def on_fit_start(self, trainer, module):
        self.found, self.generators = masks(module), generators.capture()


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names whose tensors are not equal bit for bit."""
    assert list(a) == list(b)
    return [name for name in a if not torch.equal(a[name], b[name])]
