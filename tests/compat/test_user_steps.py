"""Parameters in a training step: they stand for θ, and a gradient goes on to the factors."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from lightning_signin import effective_weights, masks
from lightning_signin.core.weights import sparse_weights
from lightning_signin.parametrizations import STR
from tests.small import Small, callback, loader, trainer

WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]
FORMS = pytest.mark.parametrize(
    "options",
    [{}, {"parametrization": "plain"}, {"storage": "dense"}, {"parametrization": STR(s_init=-3.0)}],
    ids=["sign-in", "plain", "dense", "str"],
)


def fit(module: Small, *callbacks: Callback, epochs: int = 1, **options: object) -> Small:
    torch.manual_seed(2)
    trainer(callback(**options), *callbacks, epochs=epochs).fit(module, loader())
    return module


def made(kind: type[Small], *args: object) -> Small:
    torch.manual_seed(1)
    return kind(*args)


class Penalized(Small):
    """A penalty on the distance to the start, as of elastic weight consolidation and L2-SP."""

    def __init__(self, penalty) -> None:
        super().__init__(epochs=1)
        self.__dict__["penalty"] = penalty
        self.old = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.1 * self.penalty(self)


def by_attribute(module: Penalized) -> Tensor:  # the slow way: θ as each layer computes it
    return sum((module.get_submodule(n[:-7]).weight - module.old[n]).square().sum() for n in WEIGHTS)


def by_names(module: Penalized) -> Tensor:
    return sum((p - module.old[n]).square().sum() for n, p in module.named_parameters() if n in WEIGHTS)


def by_asking(module: Penalized) -> Tensor:
    return sum((module.get_parameter(n) - module.old[n]).square().sum() for n in WEIGHTS)


def by_order(module: Penalized) -> Tensor:
    pairs = zip(module.old.items(), module.parameters(), strict=True)
    return sum((p - old).square().sum() for (name, old), p in pairs if name in WEIGHTS)


@FORMS
@pytest.mark.parametrize("penalty", [by_names, by_asking, by_order])
def test_penalties_on_parameters_are_those_on_theta(penalty, options):
    module, expected = (fit(made(Penalized, way), **options) for way in (penalty, by_attribute))
    for name in WEIGHTS:
        torch.testing.assert_close(module.get_parameter(name), expected.get_parameter(name))


class Manual(Small):
    """Manual optimization: what is done after the backward pass, and after the step."""

    def __init__(self, after_backward=None, after_step=None) -> None:
        super().__init__(epochs=1)
        self.automatic_optimization = False
        self.__dict__.update(after_backward=after_backward, after_step=after_step)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        parameters = list(self.parameters())  # of the start: they show the weights after the step as well
        self.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        if self.after_backward:
            self.after_backward(self, parameters)
        optimizer.step()
        if self.after_step:
            with torch.no_grad():
                self.after_step(self, parameters)


class Largest(Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, module, *_):
        self.found.append(max(float(theta.abs().max()) for theta in effective_weights(module).values()))


def clip_data(module: nn.Module, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.data.clamp_(-0.05, 0.05)


def clip_in_place(module: nn.Module, parameters: list[nn.Parameter]) -> None:
    for parameter in module.parameters():
        parameter.clamp_(-0.05, 0.05)


@FORMS
@pytest.mark.parametrize("act", [clip_data, clip_in_place])
def test_weights_are_clipped_in_a_step(act, options):
    largest = Largest()
    module = fit(made(Manual, None, act), largest, **options)
    assert max(largest.found) <= 0.05 * (1 + 1e-6)
    assert min(largest.found) > 0.04
    assert type(module.fc1) is nn.Linear


@FORMS
def test_gradients_are_clipped_in_a_step(options):
    norms = []

    def clip(module: nn.Module, parameters: list[nn.Parameter]) -> None:
        clip_grad_norm_(module.parameters(), 0.01)
        norms.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())

    fit(made(Manual, clip), **options)
    torch.testing.assert_close(torch.stack(norms), torch.full((10,), 0.01), atol=1e-6, rtol=1e-4)


def test_gradients_by_autograd_are_those_of_theta():
    """`torch.autograd.grad` after the forward pass, twice, as gradient penalties and Hessian products do."""

    class Products(Small):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.eval()
            output = self(batch[0]).square().mean()
            first = torch.autograd.grad(output, list(self.parameters()), create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), self.fc2.parameters(), retain_graph=True)
            hidden = self.fc1(self.norm(self.conv(batch[0].unsqueeze(1))).relu().flatten(1)).relu()
            by_hand = 2 * self.fc2(hidden) / output.numel() / hidden.shape[0] / 3
            self.train()
            named = dict(zip(dict(self.named_parameters()), first, strict=True))
            kept = masks(self)["fc2.weight"]
            torch.testing.assert_close(named["fc2.weight"], by_hand.T @ hidden * kept)
            assert second[0].shape == self.fc2.weight.shape
            assert second[0].abs().sum() > 0
            return loss

    fit(made(Products, "SGD", 1))


class Momentum(Small):
    """A momentum encoder that follows in the training step, as in MoCo."""

    def __init__(self) -> None:
        super().__init__(epochs=1)
        self.target = copy.deepcopy(self.fc1).requires_grad_(False)
        self.expected = self.target.weight.clone()

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.expected.mul_(0.9).add_(effective_weights(self)["fc1.weight"], alpha=0.1)
            for own, followed in zip(self.target.parameters(), self.fc1.parameters(), strict=True):
                own.data = own.data * 0.9 + followed.data * 0.1
        return super().training_step(batch, batch_idx)


@FORMS
def test_momentum_encoder_follows_theta_in_a_step(options):
    module = fit(made(Momentum), **options)
    torch.testing.assert_close(module.target.weight.detach(), module.expected)


def test_copy_made_in_a_step_is_plain():
    class Lazy(Small):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                list(self.parameters())
                self.target, self.start = copy.deepcopy(self.fc1), effective_weights(self)["fc1.weight"]
            return super().training_step(batch, batch_idx)

    module = fit(made(Lazy, "SGD", 1))
    assert type(module.target) is nn.Linear
    assert torch.equal(module.target.weight, module.start)
    assert list(vars(module.target)) == list(vars(nn.Linear(2, 2)))


class Frozen(Small):
    """Flags that a step turns off and on, as for a discriminator."""

    def training_step(self, batch, batch_idx):
        self.fc1.requires_grad_(False)
        hidden = self.norm(self.conv(batch[0].unsqueeze(1))).relu().flatten(1)
        assert self.fc1(hidden.detach()).grad_fn is None
        self.fc1.requires_grad_(True)
        assert self.fc1(hidden.detach()).requires_grad
        return super().training_step(batch, batch_idx)


def test_flags_change_within_a_step():
    fit(made(Frozen, "SGD", 1))


class Asks(nn.LSTM):
    """A layer that asks for its own parameters when it runs."""

    def forward(self, x: Tensor) -> tuple:
        return super().forward(x.to(next(self.parameters()).device))


class Layers(Small):
    """Layers that keep their weights in ways of their own, run after their parameters were asked for."""

    def __init__(self) -> None:
        super().__init__(epochs=1)
        self.lstm, self.asks = nn.LSTM(6, 8, batch_first=True), Asks(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def training_step(self, batch, batch_idx):
        norm = sum(parameter.square().sum() for parameter in self.parameters())
        x = self.lstm(self.conv(batch[0].unsqueeze(1)).transpose(1, 2))[0]
        x = self.asks(x)[0]
        x = self.attention(x, x, x, need_weights=False)[0]
        with torch.no_grad():
            assert torch.equal(self.asks(x)[0], self.asks(x)[0])
        return super().training_step(batch, batch_idx) + 0.01 * norm + x.square().mean()


def test_layers_of_all_kinds_run_after_they_were_asked():
    start, module = made(Layers), fit(made(Layers))
    for name in ("lstm.weight_hh_l0", "asks.weight_hh_l0", "attention.in_proj_weight"):
        kept = module.get_parameter(name) != 0
        assert 0 < kept.sum() < kept.numel()
        assert not torch.equal(module.get_parameter(name)[kept], start.get_parameter(name)[kept])


def test_steps_without_parameters_open_nothing():
    class Plain(Small):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            assert type(self.fc1) is not nn.Linear
            assert "forward" not in vars(self.fc1)
            return loss

    fit(made(Plain, "SGD", 1))


def clip_layers(module: nn.Module, parameters: list[nn.Parameter]) -> None:
    for layer in (module.conv, module.fc1, module.fc2):
        layer.weight.data.clamp_(-0.05, 0.05)


def clip_views(module: nn.Module, parameters: list[nn.Parameter]) -> None:
    for layer in (module.conv, module.fc1, module.fc2):
        layer.weight.view(-1)[:].clamp_(-0.05, 0.05)


@pytest.mark.parametrize("act", [clip_layers, clip_views])
def test_weights_of_layers_are_clipped_in_a_step(act):
    largest = Largest()
    fit(made(Manual, None, act), largest)
    assert max(largest.found) <= 0.05 * (1 + 1e-6)
    assert min(largest.found) > 0.04


def test_weight_of_a_layer_has_gradient_and_flag_in_a_step():
    def look(module: nn.Module, parameters: list[nn.Parameter]) -> None:
        assert torch.equal(module.fc1.weight.grad, module.get_parameter("fc1.weight").grad)
        module.fc2.weight.grad = None
        module.conv.weight.requires_grad = False
        assert all(tensor.grad is None for tensor in sparse_weights(module)["fc2.weight"].tensors)
        assert not module.conv.weight.requires_grad

    fit(made(Manual, look))


class Doubled(torch.autograd.Function):
    """A function of the user's, which sees memory and not parameters."""

    @staticmethod
    def forward(ctx, weight):
        return 2 * weight

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_weight_of_a_layer_is_a_tensor_in_a_step():
    class Tied(Small):
        def training_step(self, batch, batch_idx):
            hidden = F.linear(batch[0][:, :3], self.fc2.weight.t())
            twice = Doubled.apply(self.fc2.weight)
            torch.testing.assert_close(twice.detach(), 2 * effective_weights(self)["fc2.weight"])
            assert hidden.requires_grad
            return super().training_step(batch, batch_idx) + hidden.square().mean() + twice.square().mean()

    fit(made(Tied, "SGD", 1))


def inner_steps(module: nn.Module, parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss after a step of gradient descent that is part of the graph, as in MAML."""
    hidden = module.norm(module.conv(batch[0].unsqueeze(1))).relu().flatten(1)
    for _ in range(2):
        loss = F.cross_entropy(functional_call(module.fc1, parameters, hidden)[:, :3], batch[1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        parameters = {n: p - 0.5 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    return loss


class Adapts(Small):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + inner_steps(self, dict(self.fc1.named_parameters()), batch)


class AdaptsByHand(Small):
    def training_step(self, batch, batch_idx):
        parameters = {"weight": 1 * self.fc1.weight, "bias": self.fc1.bias}
        return super().training_step(batch, batch_idx) + inner_steps(self, parameters, batch)


@pytest.mark.parametrize("options", [{"parametrization": "plain", "sparsity": 0.0}, {"sparsity": 0.0}])
def test_steps_of_gradient_descent_within_a_step(options):
    module, expected = (fit(made(kind, "SGD", 1), **options) for kind in (Adapts, AdaptsByHand))
    for name in WEIGHTS:
        torch.testing.assert_close(module.get_parameter(name), expected.get_parameter(name))
