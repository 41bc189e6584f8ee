"""Scoring leaves no trace: the fit is bit for bit that of masks which were made beforehand."""

import random

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from lightning_signin.masks import SNIP
from lightning_signin.randomness import generators
from tests.small import Masks, Small, callback, copies, data, differing, loader, seeded, trainer


class Recorded(Logger):
    """Notes all that it is told."""

    name, version = "recorded", "0"

    def __init__(self):
        super().__init__()
        self.calls = []

    @property
    def experiment(self):
        return self

    def add_scalar(self, *values):
        self.calls.append(values)

    def log_metrics(self, metrics, step=None):
        self.calls.append((metrics, step))

    def log_hyperparams(self, *values):
        self.calls.append("hyperparameters")


def everything(make, options: dict) -> tuple[dict, Masks]:
    """All that a fit leaves behind, in comparable form."""
    noted, recorded = Masks(), Recorded()
    seeded()
    module, train, extra = make()
    runner = trainer(callback(**options), noted, epochs=2, logger=recorded, log_every_n_steps=1, **extra)
    runner.fit(module, datamodule=train) if isinstance(train, LightningDataModule) else runner.fit(module, train)
    kinds = (int, float, list, dict, str)
    kept = {n: v for n, v in vars(module).items() if not n.startswith("_") and isinstance(v, kinds)}
    return {
        "weights": copies(module),
        "optimizer": [optimizer.state_dict() for optimizer in runner.optimizers],
        "generators": generators.capture(),
        "attributes": kept,
        "logs": recorded.calls,
        "metrics": dict(runner.callback_metrics),
    }, noted


def same(a: object, b: object) -> bool:
    """Equality of nested containers, bit for bit."""
    (leaves, shape), (others, other_shape) = tree_flatten(a), tree_flatten(b)
    pairs = zip(leaves, others, strict=True)
    equal = (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)
    return shape == other_shape and all(equal)


class Noisy(Dataset):
    """Draws from a generator of its own, or from all three of the process."""

    def __init__(self, generator=None):
        self.samples, self.generator = data(), generator

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        own = self.generator
        noise = np.random.normal() + random.random() + float(torch.randn(())) if own is None else own.normal()
        return self.samples[index][0] + 0.1 * noise, self.samples[index][1]


class Stream(IterableDataset):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self):
        return (data()[int(index)] for index in torch.randperm(80, generator=self.generator))


class Module(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def train_dataloader(self):
        return DataLoader(data(), 8, shuffle=True, generator=self.generator)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 0.1 * torch.randn(()), batch[1]


class Busy(Small):
    """Does all that a training step can do besides the loss."""

    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.register_buffer("steps", torch.zeros(()))
        self.count, self.notes, self.transfers = 0, [], 0
        self.generator = np.random.default_rng(0)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.transfers += 1
        return {"x": batch[0], "y": batch[1]}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transfers += 1
        return batch

    def training_step(self, batch, batch_idx):
        self.count += 1
        self.steps += 1
        out = self.trainer.model(batch["x"] + self.generator.normal() + random.random())
        loss = F.cross_entropy(out, batch["y"])
        self.accuracy(out, batch["y"])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"loss": loss.detach()}, on_epoch=True)
        self.logger.experiment.add_scalar("loss", loss.item(), self.global_step)
        for logger in (self.trainer.logger, *self.loggers):
            logger.log_metrics({"loss": 1.0}, self.global_step)
        rates = [self.optimizers().param_groups[0]["lr"], self.trainer.optimizers[0].param_groups[0]["lr"]]
        rates += self.lr_schedulers().get_last_lr()
        rates += self.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
        self.notes.append((self.current_epoch, self.global_step, self.trainer.num_training_batches, *rates))
        assert self.trainer.num_training_batches == len(self.trainer.train_dataloader) == 10
        return {"loss": loss, "more": out}


class OneCycle(Small):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch):
        self.losses.append(self.optimizers().param_groups[0]["lr"])
        return F.cross_entropy(self(batch[0]), batch[1])


class Two(Small):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)


class Late(Small):
    def configure_model(self):
        if not hasattr(self, "first"):
            self.first = nn.Linear(10, 10)

    def forward(self, x):
        return super().forward(self.first(x))


class Recurrent(LightningModule):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.head(self.lstm(batch[0].unsqueeze(2))[0][:, -1]).squeeze(1), batch[1].float())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def ordered(**options) -> DataLoader:
    return DataLoader(data(), 8, shuffle=True, **options)


FITS = {
    "plain": lambda: (Small(), loader(), {}),
    "workers": lambda: (Small(), loader(2), {}),
    "persistent workers": lambda: (OneCycle(), ordered(num_workers=1, persistent_workers=True), {}),
    "own generator": lambda: (OneCycle(), ordered(generator=torch.Generator().manual_seed(4)), {}),
    "own sampler": lambda: (
        Small(),
        DataLoader(data(), 8, sampler=RandomSampler(data(), generator=torch.Generator().manual_seed(4))),
        {},
    ),
    "noisy data": lambda: (Small(), DataLoader(Noisy(), 8), {}),
    "noisy data of its own": lambda: (Small(), DataLoader(Noisy(np.random.default_rng(1)), 8, num_workers=1), {}),
    "iterable": lambda: (Small(), DataLoader(Stream(), 8), {}),
    "datamodule": lambda: (OneCycle(), Module(), {"reload_dataloaders_every_n_epochs": 1}),
    "busy step": lambda: (Busy(), loader(), {}),
    "two loaders": lambda: (Two(), {"a": loader(), "b": DataLoader(data(), 16, shuffle=True)}, {}),
    "configure_model": lambda: (Late(), loader(), {}),
    "recurrent regression": lambda: (Recurrent(), loader(), {}),
    "limited": lambda: (Small(), loader(), {"limit_train_batches": 3, "accumulate_grad_batches": 2}),
    "overfit": lambda: (Small(), loader(), {"overfit_batches": 2}),
}


@pytest.mark.parametrize("fit", FITS)
def test_training_equals_that_of_masks_made_beforehand(fit, tmp_path):
    scored, noted = everything(FITS[fit], {"mask": SNIP(num_batches=12)})
    torch.save(noted.found, tmp_path / "masks.pt")
    given, noted_again = everything(FITS[fit], {"sparsity": None, "mask_from": tmp_path / "masks.pt"})
    assert differing(noted.found, noted_again.found) == []
    assert same(noted.generators, noted_again.generators)
    assert [name for name, value in given.items() if not same(scored[name], value)] == []


def test_persistent_workers_that_run_already_go_on_as_if_nothing_was_scored(tmp_path):
    def fit(**options) -> tuple[dict, Masks]:
        noisy = Noisy(np.random.default_rng(1))
        train, noted = DataLoader(noisy, 8, num_workers=1, persistent_workers=True), Masks()
        module = seeded()
        assert len(list(train)) == 10
        trainer(callback(**options), noted, epochs=1).fit(module, train)
        return copies(module), noted

    scored, noted = fit(mask="snip")
    torch.save(noted.found, tmp_path / "masks.pt")
    assert differing(scored, fit(sparsity=None, mask_from=tmp_path / "masks.pt")[0]) == []
