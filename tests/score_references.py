"""Slow, obvious scores, from their definitions, and the small networks that they are compared on."""

import copy
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin.core.selection import select_weights
from lightning_signin.masks import TrainingData, build_masks
from tests import reference

Values = dict[str, Tensor]
Loss = Callable[[Values, Any], Tensor]
ModuleLoss = Callable[[nn.Module, Any], Tensor]


class Residual(nn.Module):
    """Convolution, batch norm, a residual sum of a convolution and a 1×1 shortcut, pooling, a linear layer; biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(24, 3)
        for tensor in (self.norm.weight, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
        nn.init.normal_(self.norm.bias, std=0.2)
        self.norm.running_mean.copy_(torch.tensor([-0.3, 0.2, -0.1, 0.1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (self.branch(x) + self.shortcut(x)).relu()
        return self.head(F.avg_pool2d(x, 2).flatten(1))


class Recurrent(nn.Module):
    """An LSTM, of which no weight is selected, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


def residual_loss(p: Values, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of `Residual` in training mode as a function of its parameters."""
    x, y = batch
    x = F.conv2d(x, p["stem.weight"], padding=1)
    x = F.batch_norm(x, None, None, p["norm.weight"], p["norm.bias"], training=True).relu()
    x = F.conv2d(x, p["branch.weight"], p["branch.bias"], padding=1) + F.conv2d(x, p["shortcut.weight"])
    return F.cross_entropy(F.linear(F.avg_pool2d(x.relu(), 2).flatten(1), p["head.weight"], p["head.bias"]), y)


def classify(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A user's ``loss_fn``."""
    return F.cross_entropy(module(batch[0]), batch[1])


def labelled(shape: Sequence[int], number: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Batches for `classify` into three classes, in float64."""
    return [(torch.randn(size, *shape, dtype=torch.float64), torch.randint(3, (size,))) for _ in range(number)]


def selected(module: nn.Module) -> list[str]:
    return list(select_weights(module))


def parameters(module: nn.Module) -> Values:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def scored(module: nn.Module, score: Callable, data: TrainingData, **options: Any) -> tuple[Values, Values]:
    """What a score gives, and the masks that are made of it."""
    seen: Values = {}

    def remembered(task: Any) -> Values:
        seen.update(score(task))
        return dict(seen)

    found = {name: owners[0][0]._parameters[owners[0][1]] for name, owners in select_weights(module).items()}
    options = {"sparsity": 0.5, "distribution": getattr(score, "distribution", None)} | options
    return seen, build_masks(found, mask=remembered, module=module, data=data, **options)


def differentiate(loss: Loss, values: Values, names: Sequence[str], batches: Sequence[Any]) -> Values:
    """The gradient of the mean loss with respect to gates c = 1 on the named values."""
    gates = {name: torch.ones_like(values[name], requires_grad=True) for name in names}
    gated = values | {name: values[name] * gate for name, gate in gates.items()}
    total = sum(loss(gated, batch) for batch in batches) / len(batches)
    return dict(zip(names, torch.autograd.grad(total, list(gates.values())), strict=True))


def best(scores: Values, count: int) -> Values:
    """The masks of the highest scores of all layers, by sorting."""
    kept = reference.top(torch.cat([score.flatten() for score in scores.values()]).tolist(), count)
    masks, start = {}, 0
    for name, score in scores.items():
        places = [start + i in kept for i in range(score.numel())]
        masks[name], start = torch.tensor(places).view(score.shape), start + score.numel()
    return masks


def iterative(
    loss: Loss, values: Values, names: Sequence[str], batches: Sequence[Any], density: float, steps: int, back: bool
) -> Values:
    """The masks of FORCE (``back``) or IterativeSNIP, with one batch a step."""
    size = sum(values[name].numel() for name in names)
    masks = {name: torch.ones_like(values[name], dtype=torch.bool) for name in names}
    for step, batch in zip(range(1, steps + 1), batches, strict=True):
        pruned = {n: v * masks[n] if n in masks else v.clone() for n, v in values.items()}
        leaves = {name: value.requires_grad_() for name, value in pruned.items()}
        loss(leaves, batch).backward()
        scores = {n: (leaves[n].grad * values[n]).abs() for n in names}
        if not back:
            scores = {n: torch.where(masks[n], score, -1.0) for n, score in scores.items()}
        masks = best(scores, round(size * density ** (step / steps)))
        assert all(mask.any() for mask in masks.values())
    return masks


def grasp(loss: Loss, values: Values, names: Sequence[str], batches: Sequence[Any]) -> Values:
    """θ ⊙ Hg with the Hessian of the mean loss written out."""
    flat = torch.cat([values[name].flatten() for name in names])

    def of_flat(flat: Tensor) -> Tensor:
        parts = flat.split([values[name].numel() for name in names])
        changed = values | {n: part.view_as(values[n]) for n, part in zip(names, parts, strict=True)}
        return sum(loss(changed, batch) for batch in batches) / len(batches)

    gradient = torch.autograd.functional.jacobian(of_flat, flat)
    hessian = torch.autograd.functional.hessian(of_flat, flat)
    parts = (flat * (hessian @ gradient)).split([values[name].numel() for name in names])
    return {name: part.view_as(values[name]) for name, part in zip(names, parts, strict=True)}


def grasp_by_differences(
    module: nn.Module, loss: ModuleLoss, names: Sequence[str], batch: Any, step: float = 1e-5
) -> Values:
    """θ ⊙ (g(θ + εg) − g(θ − εg)) / 2ε, with the gradients of a loss of any module."""

    def gradients(moved: Values, by: float) -> Values:
        module_ = copy.deepcopy(module)
        own = dict(module_.named_parameters())
        with torch.no_grad():
            for name, direction in moved.items():
                own[name].add_(direction, alpha=by)
        return dict(zip(names, torch.autograd.grad(loss(module_, batch), [own[n] for n in names]), strict=True))

    direction, own = gradients({}, 0.0), dict(module.named_parameters())
    up, down = gradients(direction, step), gradients(direction, -step)
    return {name: own[name].detach() * (up[name] - down[name]) / (2 * step) for name in names}


def prospr_by_differences(
    module: nn.Module, loss: ModuleLoss, batches: Sequence[Any], places: Mapping[str, Sequence[int]], **sgd: float
) -> dict[str, list[float]]:
    """|∂L/∂c| at some places: train with one gate a little off 1 on all batches but the last, which gives the loss."""

    def trained(name: str, place: int, gate: float) -> float:
        module_ = copy.deepcopy(module)
        with torch.no_grad():
            dict(module_.named_parameters())[name].view(-1)[place] *= gate
        optimizer = torch.optim.SGD([p for p in module_.parameters() if p.requires_grad], **sgd)
        for batch in batches[:-1]:
            optimizer.zero_grad()
            loss(module_, batch).backward()
            optimizer.step()
        return loss(module_, batches[-1]).item()

    step = 1e-5
    return {
        name: [abs(trained(name, i, 1 + step) - trained(name, i, 1 - step)) / (2 * step) for i in chosen]
        for name, chosen in places.items()
    }


def positive(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, its state without signs."""
    network = copy.deepcopy(module).double().eval()
    network.load_state_dict({name: tensor.abs() for name, tensor in network.state_dict().items()})
    return network


def synflow(
    module: nn.Module, x: Tensor, names: Sequence[str], density: Fraction, iterations: int, balanced: bool = False
) -> list[Values]:
    """The masks after each iteration. Nothing is repaired: a layer may end up without any weight."""
    network, x = positive(module), torch.ones_like(x[:1], dtype=torch.float64)
    own = dict(network.named_parameters())
    shapes = [tuple(own[name].shape) for name in names]
    size, found = sum(own[name].numel() for name in names), []
    for k in range(1, iterations + 1):
        output = network(x).sum()
        gradients = torch.autograd.grad(output, [own[name] for name in names])
        scores = [(g * own[name].detach()).abs().flatten() for g, name in zip(gradients, names, strict=True)]
        scores = [s.masked_fill(own[n].detach().flatten() == 0, -1.0) for s, n in zip(scores, names, strict=True)]
        total = round(size * density) if k == iterations else round(size * float(density) ** (k / iterations))
        if balanced:
            kept = [_highest(s, c) for s, c in zip(scores, reference.balanced(shapes, total), strict=True)]
        else:
            kept = list(_highest(torch.cat(scores), total).split([len(s) for s in scores]))
        masks = {name: mask.view(shape) for name, mask, shape in zip(names, kept, shapes, strict=True)}
        with torch.no_grad():
            for name, mask in masks.items():
                own[name].mul_(mask)
        found.append(masks)
    return found


def _highest(flat: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:count]] = True
    return mask
