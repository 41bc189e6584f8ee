"""Whether a mask cuts the network is known at its first call in training, which costs the user nothing."""

import random
import warnings
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.callback.test_start_cut import halves
from tests.small import Counted, Small, callback, copies, differing, loader, seeded, trainer

CUTS = r"The mask cuts the network .* no path leads through .*fc1\.weight"
HALVES = {"mask": halves, "distribution": "global", "sparsity": 0.5}


class Counting(Small):
    """Counts what the user may see of a fit: steps, loaders, optimizers, samples."""

    def __init__(self, manual: bool) -> None:
        super().__init__()
        self.automatic_optimization, self.samples, self.calls = not manual, Counted(), Counter()

    def train_dataloader(self):
        self.calls["train_dataloader"] += 1
        return DataLoader(self.samples, 8)

    def configure_optimizers(self):
        self.calls["configure_optimizers"] += 1
        return super().configure_optimizers()

    def training_step(self, batch, batch_idx):
        self.calls["training_step"] += 1
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("options", [{"sparsity": 0.98}, {"mask": "magnitude"}, {"update": "rigl"}])
def test_a_mask_without_data_hides_no_step_batch_loader_or_optimizer(manual, options):
    module = Counting(manual)
    options = {"sparsity": 0.9, "rescale_every_n_epochs": None, **options}
    trainer(callback(**options), epochs=1).fit(module)
    assert module.calls == {"training_step": 10, "train_dataloader": 1, "configure_optimizers": 1}
    assert module.samples.drawn == 80


@pytest.mark.parametrize("manual", [False, True])
def test_an_example_input_is_enough(manual):
    module = Counting(manual)
    module.example_input_array = torch.randn(2, 10)
    with pytest.raises(ValueError, match=CUTS):
        trainer(callback(**HALVES)).fit(module)
    assert not module.calls
    assert type(module.fc1) is nn.Linear


class Watched(Small):
    """Draws and writes into its input where torch.export cannot see it; notes what it is given in training."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append((x.sum().item(), torch.rand(1).item(), random.random()))
        random.random()
        torch.rand(1)
        x.add_(1)
        return super().forward(x)


def test_the_check_draws_nothing_and_leaves_the_batch_alone():
    ends = []
    for example in (None, torch.randn(2, 10)):  # looked at in the first step, and before
        module = seeded(kind=Watched)
        module.example_input_array = example
        trainer(callback(sparsity=0.9), epochs=2).fit(module, loader())
        ends.append((copies(module), module.seen, module.losses))
    assert not differing(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


class Iterator(Small):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


class Inner(LightningModule):
    """The network is a part of the module, called by keyword, and knows no batch."""

    def __init__(self):
        super().__init__()
        self.net, self.losses = Small(), []

    def training_step(self, batch, batch_idx):
        self.losses.append(0)
        return F.cross_entropy(self.net(x=batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def inner_halves(task) -> dict[str, Tensor]:
    found = halves({name.removeprefix("net."): weight for name, weight in task.weights.items()})
    return {f"net.{name}": score for name, score in found.items()}


@pytest.mark.parametrize(
    ("kind", "mask", "options"),
    [
        (Iterator, halves, {}),
        (Inner, inner_halves, {}),
        (Small, halves, {"precision": "bf16-mixed"}),
        (Small, halves, {"precision": "64-true"}),
        (Small, halves, {"strategy": "ddp", "devices": 1}),
        (Inner, inner_halves, {"strategy": "ddp", "devices": 1}),
        (Small, halves, {"accumulate_grad_batches": 4}),
    ],
)
def test_a_mask_that_cuts_is_refused_before_any_optimizer_step(kind, mask, options):
    module, run = kind(), trainer(callback(**{**HALVES, "mask": mask}), **options)
    with pytest.raises(ValueError, match=r"The mask cuts the network .* no path leads through .*fc1\.weight"):
        run.fit(module, loader())
    assert run.global_step == 0
    assert {type(part).__name__ for part in module.modules()} >= {"Conv1d", "Linear"}  # plain again
    assert not any(part._forward_pre_hooks for part in module.modules())


class Two(LightningModule):
    """No call runs all weights."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(10, 30), nn.Linear(30, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.two(self.one(batch[0]).relu()), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Compiled(Small):
    """Its step is compiled as a whole, so that no call can be seen."""

    def __init__(self):
        super().__init__()
        self.training_step = torch.compile(self.training_step, backend="eager")


def test_a_step_without_a_call_of_the_whole_network_is_a_warning_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback(sparsity=0.97), epochs=1).fit(Two(), loader())
    (said,) = [str(w.message) for w in caught if "It could not be checked" in str(w.message)]
    assert "No single call in the training step runs all the selected weights" in said


@pytest.mark.parametrize("sparsity", [0.7, 0.98])
def test_the_network_is_looked_at_only_where_a_mask_could_cut_it(sparsity):
    looked = []
    module = Small()
    module.norm.register_forward_hook(lambda part, *_: looked.append(part.training))
    trainer(callback(sparsity=sparsity, seed=1), epochs=1).fit(module, loader())
    assert looked.count(True) == 10
    assert (False in looked) == (sparsity == 0.98)
