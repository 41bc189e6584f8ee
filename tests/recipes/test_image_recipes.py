"""The recipes for CIFAR and ImageNet: the paper's values and methods. Runs: `test_image_recipe_runs.py`."""

from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_signin.callback import SignInCallback
from lightning_signin.cli.main import with_recipes
from lightning_signin.lightning_cli.fit import SignInCLI
from lightning_signin.recipes.models import MLP, Classifier
from lightning_signin.updates import UPDATES

SIGN_IN = "--trainer.callbacks.init_args."


class Values(NamedTuple):
    """A row of Tables 4 and 5; the sparsity of Tables 3 and 10, and the end of the warm-up, which is an epoch."""

    lr: float
    epochs: int
    batch: int
    optimizer: type
    t2: int
    frobenius_decay: float
    weight_decay: float
    smoothing: float
    sparsity: float
    warm: int


SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
PAPER = {
    "cifar10-resnet20": Values(0.2, 150, 512, SGD, 75, 1e-4, 0, 0, 0.9, 30),
    "cifar100-resnet18": Values(0.2, 150, 512, SGD, 75, 1e-4, 0, 0, 0.9, 30),
    "imagenet-resnet50": Values(0.25, 100, 1024, SGD, 75, 0, 5e-5, 0.1, 0.9, 10),
    "imagenet-deit-small": Values(0.001, 300, 1024, ADAMW, 225, 0, 0.1, 0.1, 0.5, 30),
}
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
EVERY_RECIPE = pytest.mark.parametrize("recipe", PAPER)


def configured(recipe: str, *options: str) -> SignInCLI:
    return SignInCLI(args=with_recipes(["--config", recipe, *options]), run=False)


@lru_cache
def unchanged(recipe: str) -> SignInCLI:
    return configured(recipe)


def callback_of(cli: SignInCLI) -> SignInCallback:
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, SignInCallback))
    return callback


@EVERY_RECIPE
def test_recipe_has_the_values_of_tables_4_and_5(recipe):
    cli, paper = unchanged(recipe), PAPER[recipe]
    arguments = callback_of(cli).arguments
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size) == (paper.epochs, paper.batch)
    assert (arguments.sparsity, arguments.mask, arguments.distribution, arguments.beta) == (
        paper.sparsity,
        "random",
        None,
        1.0,
    )
    assert (arguments.schedule.until, arguments.frobenius_decay) == (paper.t2, paper.frobenius_decay)
    assert cli.model.label_smoothing == paper.smoothing
    assert cli.model.accuracy["val"].num_classes == list(cli.model.network.parameters())[-1].numel()


@EVERY_RECIPE
def test_learning_rate_is_the_papers_triangle(recipe):
    cli, paper = unchanged(recipe), PAPER[recipe]
    cli.model.trainer = SimpleNamespace(estimated_stepping_batches=10 * paper.epochs)
    configuration = cli.model.configure_optimizers()
    optimizer, schedule = configuration["optimizer"], configuration["lr_scheduler"]["scheduler"]
    (group,) = optimizer.param_groups
    assert type(optimizer) is paper.optimizer
    assert group["weight_decay"] == paper.weight_decay
    assert group.get("momentum") == (0.9 if paper.optimizer is SGD else None)
    assert configuration["lr_scheduler"]["interval"] == "step"
    rates = [paper.lr * factor(step) for factor in schedule.lr_lambdas for step in range(10 * paper.epochs + 1)]
    peak = 10 * paper.warm
    assert group["lr"] == rates[0] == pytest.approx(paper.lr / peak)
    assert max(rates) == rates[peak] == paper.lr
    assert rates[-1] == 0
    falls = np.diff(rates[peak:])
    assert np.allclose(np.diff(rates[: peak - 1]), paper.lr / peak)
    assert np.allclose(falls, falls[0])


def plain(callback):
    return callback.arguments.parametrization == "plain"


def update_is(name):
    return lambda callback: callback.arguments.rule == UPDATES[name]()


ANYWHERE = [
    (["sparsity=0.8"], lambda callback: callback.arguments.sparsity == 0.8),
    (["parametrization=plain"], plain),
    (["rescale_every_n_epochs=null"], lambda callback: not callback.arguments.schedule.ever),
]
TABLE_7 = [([f"mask={mask}"], lambda c, mask=mask: c.arguments.mask == mask) for mask in ("snip", "synflow", "npb")]
TABLES_11_TO_13 = [([f"update={rule}"], update_is(rule)) for rule in ("acdc", "rigl", "mest")]
FROM_FILE = [
    (["mask_from=acdc.ckpt"], lambda callback: callback.arguments.mask_from == "acdc.ckpt"),
    (
        ["mask_from=a.ckpt", "signs_from=a.ckpt", "flip_signs=0.05", "parametrization=plain"],
        lambda callback: callback.arguments.flip_signs == 0.05 and plain(callback),
    ),
]
METHODS = {
    "cifar10-resnet20": ANYWHERE + TABLE_7,
    "cifar100-resnet18": ANYWHERE + TABLE_7,
    "imagenet-resnet50": ANYWHERE + TABLE_7[:2] + TABLES_11_TO_13 + FROM_FILE,
    "imagenet-deit-small": ANYWHERE,
}


@pytest.mark.parametrize(
    ("recipe", "arguments", "is_method"),
    [
        pytest.param(recipe, arguments, is_method, id=f"{recipe} {' '.join(arguments)}")
        for recipe, rows in METHODS.items()
        for arguments, is_method in rows
    ],
)
def test_methods_of_the_paper_are_arguments_of_the_callback(recipe, arguments, is_method):
    assert not is_method(callback_of(unchanged(recipe)))
    assert is_method(callback_of(configured(recipe, *(SIGN_IN + argument for argument in arguments))))


@EVERY_RECIPE
def test_recipe_shows_how_devices_and_nodes_are_chosen(recipe):
    trainer = unchanged(recipe).config.trainer
    if recipe.startswith("imagenet"):
        assert (trainer.devices, trainer.num_nodes, trainer.strategy) == ("auto", 1, "auto")
    text = Path(with_recipes(["--config", recipe])[1]).read_text(encoding="utf-8")
    assert "--trainer.num_nodes=4" in text or "--trainer.strategy=ddp" in text


def test_label_smoothing_mixes_in_all_classes():
    model = Classifier(MLP([4, 3]), classes=3, label_smoothing=0.1)
    inputs, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    logs = F.log_softmax(model(inputs), 1)
    expected = -(0.9 * logs[range(5), labels] + 0.1 * logs.mean(1)).mean()
    assert torch.allclose(model.training_step((inputs, labels), 0), expected)
