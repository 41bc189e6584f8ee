"""GraSP's temperature: the network's outputs are divided by it, wherever the training step computes the loss."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin import masks, sparsify
from lightning_signin.errors import SignInError
from lightning_signin.masks import GraSP, TrainingData
from tests import score_references as slow
from tests.score_references import Residual, classify, labelled, scored
from tests.small import Masks, Small, callback, data, seeded, trainer

T = 200.0


def divided(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a network of two layers, its logits divided by hand."""
    hidden = F.linear(batch[0], p["0.weight"], p["0.bias"]).tanh()
    return F.cross_entropy(F.linear(hidden, p["2.weight"], p["2.bias"]) / T, batch[1])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("number", [1, 3])
def test_logits_are_divided_while_g_and_hg_are_computed(number):
    net, batches = network(), labelled((4,), 3)
    found, built = scored(net, GraSP(number, temperature=T), TrainingData(classify, batches))
    expected = slow.grasp(divided, slow.parameters(net), slow.selected(net), batches[:number])
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=0)
    for name, mask in slow.best(expected, 21).items():
        assert torch.equal(built[name], mask)
    plain, _ = scored(net, GraSP(number), TrainingData(classify, batches))
    assert not torch.allclose(
        plain["0.weight"] / plain["0.weight"].norm(), found["0.weight"] / found["0.weight"].norm()
    )


class Divides(nn.Module):
    """The same network, which divides its own logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / T


class Keeps(Divides):
    """It returns the logits in a dict, beside whole numbers, and calls the network inside."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "tokens": torch.arange(3)}


def test_the_outermost_call_is_divided_once():
    net, batches = Residual().double(), labelled((2, 4, 4), 2)
    expected, _ = scored(Divides(net), GraSP(2), TrainingData(classify, batches))
    step = TrainingData(lambda module, batch: F.cross_entropy(module(batch[0])["logits"], batch[1]), batches)
    found, _ = scored(Keeps(net), GraSP(2, temperature=T), step)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=0)


def test_every_call_of_a_step_is_divided():
    def twice(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (module(batch[0]) - module(-batch[0])).square().sum() + classify(module, batch)

    net, batches = network(), labelled((4,), 1)
    found, _ = scored(net, GraSP(temperature=T), TrainingData(twice, batches))
    expected, _ = scored(Divides(net), GraSP(), TrainingData(twice, batches))
    for name, score in found.items():
        torch.testing.assert_close(score, expected[f"net.{name}"], rtol=1e-9, atol=0)


class Calls(Small):
    """Its training step calls the module itself."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def test_the_forward_of_a_lightning_module_counts():
    plain, noted = seeded(), Masks()
    plain.dropout.p = 0.0
    module = Calls()
    module.load_state_dict(plain.state_dict())
    module.dropout.p = 0.0
    trainer(callback(mask=GraSP(temperature=T)), noted, epochs=1).fit(module, DataLoader(data(), 8))
    task = TrainingData(lambda net, batch: F.cross_entropy(net(batch[0]) / T, batch[1]), DataLoader(data(), 8))
    expected = masks(sparsify(plain, sparsity=0.7, mask="grasp", data=task))
    assert all(torch.equal(mask, expected[name]) for name, mask in noted.found.items())


class Loses(nn.Module):
    """A network that returns its loss."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.net, self.beside = network(), beside

    def forward(self, batch: tuple[Tensor, Tensor]) -> object:
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        return (loss, logits) if self.beside else loss


@pytest.mark.parametrize("beside", [True, False])
def test_a_network_that_returns_its_loss_has_no_logits_to_divide(beside):
    def loss(module: nn.Module, batch: object) -> Tensor:
        return module(batch)[0] if beside else module(batch)

    task = TrainingData(loss, labelled((4,), 1))
    text = (
        r"^mask='GraSP\(.*\)': there are no logits to divide by `temperature`, since the network returns a single "
        r"number, the loss, itself\. Let the training step compute the loss from what the network returns, or pass temp"
    )
    with pytest.raises(SignInError, match=text):
        sparsify(Loses(beside), mask=GraSP(temperature=T), data=task)
    assert sparsify(Loses(beside), sparsity=0.5, mask=GraSP(), data=task) is not None


def test_a_network_in_several_calls_has_no_logits_to_divide():
    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module[2](module[1](module[0](batch[0]))), batch[1])

    task = TrainingData(loss, labelled((4,), 1))
    with pytest.raises(SignInError, match="since no single call in the training step runs all the selected weights"):
        sparsify(network(), mask=GraSP(temperature=T), data=task)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_are_positive_and_finite(value):
    with pytest.raises(ValueError, match=f"`temperature` must be above 0.*, got {value}. Pass 200 for that"):
        GraSP(temperature=value)
