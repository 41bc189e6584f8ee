"""Masks that are scored with the user's training step and data: which they are, and what cannot be scored."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin import masks, sparsify
from lightning_signin.masks import SCORES, Task, TrainingData
from tests.small import Masks, Small, callback, data, differing, loader, seeded, trainer


@pytest.mark.parametrize("name", SCORES)
def test_masks_are_those_of_plain_pytorch(name):
    plain = copy.deepcopy(module := seeded())
    module.dropout.p = plain.dropout.p = 0.0
    noted = Masks()
    trainer(callback(mask=name, seed=3), noted, epochs=1).fit(module, DataLoader(data(), 8))
    task = TrainingData(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), DataLoader(data(), 8))
    sparsify(plain, sparsity=0.7, mask=name, seed=3, data=task)
    assert differing(masks(plain), noted.found) == []
    assert sum(int(mask.sum()) for mask in noted.found.values()) == round(0.3 * 1242)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_step_is_scored_in_the_precision_that_it_trains_in(precision):
    class Typed(Small):
        def training_step(self, batch, batch_idx):
            out = self(batch[0] + torch.zeros(10))  # a new tensor has the precision's default type
            assert out.dtype == (torch.bfloat16 if "mixed" in precision else self.dtype)
            return F.cross_entropy(out.float(), batch[1])

    seeded()
    module, noted = Typed(), Masks()
    trainer(callback(mask="snip"), noted, epochs=1, precision=precision).fit(module, loader())
    assert sum(int(mask.sum()) for mask in noted.found.values()) == round(0.3 * 1242)
    assert type(module.fc1) is nn.Linear


def scored_with(train, **extra) -> list:
    """The batches that a score sees."""
    seen = []

    def look(task: Task):
        seen.extend(batch[0] for batch in task.batches(4))
        return {name: weight.abs() for name, weight in task.weights.items()}

    trainer(callback(mask=look), epochs=1, **extra).fit(seeded(), train)
    return seen


def test_scores_see_the_batches_that_the_run_is_limited_to():
    first, second, third, _ = scored_with(DataLoader(data(), 8), limit_train_batches=2)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    in_order = data().tensors[0]
    assert torch.equal(torch.cat(scored_with(loader(), overfit_batches=2)[:2]), in_order[:16])


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda module, batch: None, "The training step returned None instead of a loss"),
        (lambda module, batch: {"los": 1}, r"The training step returned \{'los': 1\} instead of a loss"),
        (lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]) * float("nan"), "The training loss is nan"),
    ],
    ids=["None", "no loss", "nan"],
)
def test_step_without_a_loss_is_refused(result, text):
    class Odd(Small):
        def training_step(self, batch, batch_idx):
            return result(self, batch)

    with pytest.raises(ValueError, match=text):
        trainer(callback(mask="snip")).fit(Odd(), loader())


class SetsUpLate(Small):
    def on_train_start(self):
        self.outputs = []

    def training_step(self, batch, batch_idx):
        self.outputs.append(1)


class Reads(Small):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


class HoldsGenerator(Small):
    def __init__(self):
        super().__init__()
        self.generator = (number for number in range(3))


@pytest.mark.parametrize(
    ("module", "train", "error", "text"),
    [
        (
            SetsUpLate,
            loader,
            ValueError,
            "^mask='snip' could not be computed: RuntimeError: The training step failed during scoring, with "
            "AttributeError: .*'outputs'. It runs on a copy of the module before `on_fit_start`",
        ),
        (Reads, loader, ValueError, r"cannot be scored with a training_step\(dataloader_iter\)"),
        (HoldsGenerator, loader, ValueError, "on a copy of the module, but it cannot be copied: cannot pickle"),
        (Small, lambda: DataLoader([], 8), ValueError, "mask='snip' needs training batches, and there are none"),
        (Small, lambda: iter(loader()), ValueError, "is an iterator, which gives its batches only once"),
    ],
    ids=["hook before", "dataloader_iter", "no copy", "no batches", "iterator"],
)
def test_what_cannot_be_scored_is_said(module, train, error, text):
    with pytest.raises(error, match=text):
        trainer(callback(mask="snip")).fit(module(), train())
