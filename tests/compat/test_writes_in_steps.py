"""What a training step, or a layer's own forward, writes into a weight of a layer that is none of torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import SignInCallback, SignInError
from tests.small import Small, copies, differing, loader, seeded, trainer


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


class Written(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Standardized(nn.Linear):
    """Weight standardization."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return F.linear(x, weight - weight.mean(1, keepdim=True), self.bias)


class Transposed(nn.Module):
    """As transformers' Conv1D, of the layout (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Attention(nn.Module):
    """Attention, of which the output projection is written into."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(inputs, 2, batch_first=True), nn.Linear(inputs, outputs)

    @property
    def weight(self) -> Tensor:
        return self.attention.out_proj.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (1, -1))
        return self.last(self.attention(x, x, x)[0].flatten(1))


class AttentionInside(Attention):
    """Attention, of which the input projection is written into."""

    @property
    def weight(self) -> Tensor:
        return self.attention.in_proj_weight


class Recurrent(nn.LSTM):
    """A subclass of a recurrent layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, batch_first=True)

    @property
    def weight(self) -> Tensor:
        return self.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(1))[0].squeeze(1)


def assigned(layer: Any) -> None:
    layer.weight.data = 0.9 * layer.weight.data


def assigned_and_changed(layer: Any) -> None:
    weight = layer.weight
    weight.data = 0.9 * weight.data
    with torch.no_grad():
        weight.mul_(0.5)


@torch.no_grad()
def multiplied(layer: Any) -> None:
    layer.weight.mul_(0.9)


@torch.no_grad()
def copied(layer: Any) -> None:
    layer.weight.copy_(F.normalize(layer.weight))


LAYERS = [nn.Linear, Renamed, Written, Standardized, Transposed, Attention, AttentionInside, Recurrent]
WRITES: list[Callable[[Any], object]] = [
    lambda layer: layer.weight.data.mul_(0.9),
    lambda layer: layer.weight.data[:3].zero_(),
    lambda layer: layer.weight.detach().clamp_(-0.01, 0.01),
    assigned,
    assigned_and_changed,
    multiplied,
    copied,
]


INCLUDE = ["fc1.*weight*"]


def fitted(layer: type[nn.Module], write: Callable[[Any], object], *callbacks: object) -> Small:
    class Writes(Small):
        def __init__(self, *args: Any, **options: float) -> None:
            super().__init__(*args, **options)
            self.fc1 = layer(48, 24)

        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                write(self.fc1)
            return super().training_step(batch, batch_idx)

    module = seeded(kind=Writes)
    trainer(*callbacks, epochs=1, limit_train_batches=4).fit(module, loader())
    return module


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_step_writes_is_what_it_writes_without_the_callback(layer, write):
    unmasked = SignInCallback(sparsity=0.0, parametrization="plain", include=INCLUDE)
    assert differing(copies(fitted(layer, write, unmasked)), copies(fitted(layer, write))) == []


@pytest.mark.parametrize("write", [assigned, copied])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_step_writes_into_products(layer, write):
    def last_step(held: Any) -> None:
        write(held)
        after.append(held.weight.detach().clone())

    after: list[Tensor] = []
    callback = SignInCallback(sparsity=0.5, include=INCLUDE, rescale_every_n_epochs=None)
    weight = fitted(layer, last_step, callback).fc1.weight
    assert torch.equal(weight == 0, after[0] == 0)
    torch.testing.assert_close(weight, after[0], atol=0.1, rtol=0.1)
    if write is copied:
        torch.testing.assert_close(after[0].norm(dim=1).clamp(max=1), (after[0] != 0).any(1).float())


class MaxNorm(nn.Linear):
    """Limits the norm of its rows before it runs, as networks for EEG do."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.1)
        return super().forward(x)


class MaxNormInPlace(nn.Linear):
    """The same in place."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(torch.renorm(self.weight, p=2, dim=0, maxnorm=0.1))
        return F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("layer", [MaxNorm, MaxNormInPlace])
@pytest.mark.parametrize(
    "options", [{"sparsity": 0.0, "parametrization": "plain"}, {"sparsity": 0.5, "rescale_every_n_epochs": 1}]
)
def test_a_layer_that_limits_its_norm_when_it_runs(layer, options):
    module = fitted(layer, lambda layer: None, SignInCallback(**options))
    dense = fitted(layer, lambda layer: None)
    if not options["sparsity"]:
        assert differing(copies(module), copies(dense)) == []
    largest = module.fc1.weight.norm(dim=1).max().item()
    assert largest < 0.2, "up to one step of the optimizer"


def test_data_of_another_shape_are_refused_at_the_place():
    def write(layer: Any) -> None:
        layer.weight.data = torch.zeros(2, 2)

    with pytest.raises(SignInError, match=r"was given the shape \(2, 2\)"):
        fitted(Written, write, SignInCallback(sparsity=0.5))
