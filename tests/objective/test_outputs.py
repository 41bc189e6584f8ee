"""Networks that are called with their targets and return more than logits, or anything else."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin.masks import Task as Scored
from tests.small import callback, trainer

CUTS, UNCHECKED = "The mask cuts the network from input to output", "could not be checked that the mask leaves a path"


class Named(NamedTuple):
    loss: Tensor
    scores: Tensor


@dataclass
class Data:
    scores: Tensor
    loss: Tensor
    more: Any = None


class Plain:
    def __init__(self, loss: Tensor, scores: Tensor) -> None:
        self.loss, self.scores = loss, scores


# What a network makes of its loss and scores, and how a step reads the loss.
OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "loss first": (lambda loss, scores: (loss, scores), lambda out: out[0]),
    "loss last": (lambda loss, scores: [scores, loss], lambda out: out[-1]),
    "dict": (lambda loss, scores: {"loss": loss, "scores": scores}, lambda out: out["loss"]),
    "NamedTuple": (Named, lambda out: out.loss),
    "dataclass": (lambda loss, scores: Data(scores, loss), lambda out: out.loss),
    "nested": (lambda loss, scores: {"out": Data(scores, loss, Named(loss, scores))}, lambda out: out["out"].loss),
    "list of dicts": (lambda loss, scores: [{"scores": scores}, {"loss": loss}], lambda out: out[1]["loss"]),
    "None beside": (lambda loss, scores: (None, scores, loss, "text", 3), lambda out: out[2]),
    "cache beside": (lambda loss, scores: (loss, scores, ((scores, scores), None)), lambda out: out[0]),
    "batch second": (lambda loss, scores: (loss, scores.T), lambda out: out[0]),
    "loss alone": (lambda loss, scores: loss, lambda out: out),
    "vector of one loss": (lambda loss, scores: loss.view(1), lambda out: out[0]),
}


class Net(nn.Module):
    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.give = nn.Linear(20, 32), nn.Linear(32, 4), give

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        scores = self.two(self.one(x).relu())
        return self.give(F.cross_entropy(scores, labels), scores)


class Task(LightningModule):
    def __init__(self, net: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.net, self.read, self.losses = net, read, []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.read(self.net(batch[0], labels=batch[1]))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(task: Task, train: Any = None, **options: Any) -> list[str]:
    """Fit, and return what was said of the check for cuts."""
    batches = [(torch.randn(6, 20), torch.arange(6) % 4) for _ in range(2)]
    train = DataLoader(batches, batch_size=None) if train is None else train
    given = {"sparsity": 0.9, "distribution": "balanced", "rescale_every_n_epochs": None, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback(**given), epochs=1).fit(task, train)
    assert len(task.losses) == 2
    assert all(math.isfinite(loss) for loss in task.losses)
    return [str(warning.message) for warning in caught if UNCHECKED in str(warning.message)]


def halves(task: Scored) -> dict[str, Tensor]:
    """What the first layer gives, the second does not read."""
    scores = {name: torch.zeros_like(weight) for name, weight in task.weights.items()}
    scores["net.one.weight"][:16] = scores["net.two.weight"][:, 16:] = 1
    return scores


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_checked_and_trained(name):
    give, read = OUTPUTS[name]
    assert fit(Task(Net(give), read)) == []


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_cut_is_found_whatever_the_output(name):
    give, read = OUTPUTS[name]
    with pytest.raises(ValueError, match=rf"{CUTS}: no path leads through net\.one\.weight, net\.two\.weight\. Lower"):
        fit(Task(Net(give), read), mask=halves, sparsity=0.5, distribution="global")


@pytest.mark.parametrize("mask", ["synflow", "npb", "phew"])
@pytest.mark.parametrize("name", ["loss first", "nested", "list of dicts"])
def test_scores_of_the_network_alone_leave_the_loss_out(name, mask):
    give, read = OUTPUTS[name]
    assert fit(Task(Net(give), read), mask=mask) == []


class Odd(Net):
    """A network that cannot be traced, each for a reason of its own."""

    def __init__(self, why: str) -> None:
        super().__init__(Plain if why == "object" else Named)
        self.why = why

    def forward(self, x: Any, labels: Tensor) -> Any:
        if self.why == "values":
            return super().forward(x if x.sum() > 1e9 else x + 1, labels)
        if self.why == "strings":
            x = torch.tensor([[float(len(word))] * 20 for word in x])
        if self.why == "objects":
            x = torch.stack([part.scores for part in x])
        if self.why == "numbers":
            x = x * x.sum().item()
        return super().forward(x, labels)


@pytest.mark.parametrize("why", ["object", "values", "strings", "objects", "numbers"])
def test_what_cannot_be_traced_is_one_line_of_warning(why):
    inputs = {"strings": list("abcdef"), "objects": [Plain(None, torch.randn(20)) for _ in range(6)]}
    batches = [(inputs.get(why, torch.randn(6, 20)), torch.arange(6) % 4) for _ in range(2)]
    said = fit(Task(Odd(why), lambda out: out.loss), DataLoader(batches, batch_size=None))
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "cannot be traced to its units" in said[0]


class Lists(Net):
    """Reads a list of dicts, one for each sample."""

    def forward(self, x: list[dict[str, Tensor]], labels: list[Tensor]) -> Any:
        return super().forward(torch.stack([part["x"] for part in x]), torch.stack(labels))


def test_a_batch_of_dicts_is_traced_whole():
    batches = [([{"x": torch.randn(20)} for _ in range(6)], list(torch.arange(6) % 4)) for _ in range(2)]
    assert fit(Task(Lists(Named), lambda out: out.loss), DataLoader(batches, batch_size=None)) == []


@pytest.mark.parametrize(
    "error", [TypeError("none\nof that"), AssertionError(), KeyError("labels"), IndexError("end"), OSError("no file")]
)
def test_whatever_a_forward_raises_out_of_training_is_one_line_of_warning(error):
    class Trains(Net):
        def forward(self, x: Tensor, labels: Tensor) -> Any:
            if not self.training:
                raise error
            return super().forward(x, labels)

    (said,) = fit(Task(Trains(Named), lambda out: out.loss))
    assert f"cannot be traced to its units ({type(error).__name__}" in said
    assert "\n" not in said


class Forgot(Task):
    def __init__(self, loader: Any = None) -> None:
        super().__init__(Net(Named), lambda out: out.loss)
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


@pytest.mark.filterwarnings("ignore:It could not be checked")
@pytest.mark.parametrize("mask", ["random", "snip"])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, r"An invalid dataloader was returned from `Forgot.train_dataloader\(\)`. Found None"),
        ({"train_dataloaders": 5}, r"was passed to `Trainer.fit\(train_dataloaders=...\)`. Found 5"),
        ({"train_dataloaders": [1, object()]}, r"was passed to `Trainer.fit\(train_dataloaders=...\)`. Found 1"),
    ],
)
def test_wrong_data_is_refused_in_the_words_of_lightning(given, text, mask):
    with pytest.raises(TypeError, match=text):
        trainer(callback(sparsity=0.9, mask=mask), epochs=1).fit(Forgot(), **given)
