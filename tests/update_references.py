"""Training with a moving mask, slowly: full-shape factors, a dense gradient, and update rules on lists of numbers."""

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from tests import reference

Rule = Callable[["Reference", int], bool]


class Reference:
    """Two linear layers whose weights are full-shape tensors, zero where masked, and any optimizer on them.

    The rule is called before every optimizer step, when all gradients are there, and before every batch without them.
    """

    def __init__(self, net: nn.Sequential, masks: list[Tensor], beta: float | None, seed: int) -> None:
        self.layers = [layer for layer in net if isinstance(layer, nn.Linear)]
        self.masks, self.beta, self.seed = [mask.clone() for mask in masks], beta, seed
        self.targets = [int(mask.sum()) for mask in masks]
        self.biases = [nn.Parameter(layer.bias.detach().clone()) for layer in self.layers]
        self.factors: list[list[nn.Parameter]] = []
        for layer, mask in zip(self.layers, masks, strict=True):
            theta = layer.weight.detach() * mask
            pairs = [theta]
            if beta is not None:
                both = torch.tensor(
                    [reference.factorize(t, beta) for t in theta.flatten().tolist()], dtype=torch.float64
                )
                pairs = [part.view(theta.shape).to(theta) * mask for part in both.unbind(1)]
            self.factors.append([nn.Parameter(part.clone()) for part in pairs])

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*[factor for pair in self.factors for factor in pair], *self.biases]

    def thetas(self) -> list[Tensor]:
        return [math.prod(pair) if len(pair) == 2 else pair[0] for pair in self.factors]

    def backward(self, x: Tensor, y: Tensor) -> None:
        thetas = [theta.detach().requires_grad_() for theta in self.thetas()]
        hidden = nn.functional.linear(x, thetas[0], self.biases[0]).relu()
        loss = nn.functional.cross_entropy(nn.functional.linear(hidden, thetas[1], self.biases[1]), y)
        gradients = torch.autograd.grad(loss, [*thetas, *self.biases])
        self.dense = gradients[: len(thetas)]
        for bias, gradient in zip(self.biases, gradients[len(thetas) :], strict=True):
            bias.grad = gradient
        for pair, gradient, mask in zip(self.factors, self.dense, self.masks, strict=True):
            for factor, other in zip(pair, reversed(pair), strict=True):
                factor.grad = gradient * mask * (other.detach() if len(pair) == 2 else 1)

    @torch.no_grad()
    def set_masks(self, masks: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Entries that go are zero in everything; entries that come start at (√β, 0) with zeros for all else."""
        for i, mask in enumerate(masks):
            stays, comes = mask & self.masks[i], mask & ~self.masks[i]
            starts = [0.0] if self.beta is None else [math.sqrt(self.beta), 0.0]
            for factor, start in zip(self.factors[i], starts, strict=True):
                factor.copy_(factor * stays + start * comes.double())
                for value in optimizer.state[factor].values():
                    if isinstance(value, Tensor) and value.shape == factor.shape:
                        value.mul_(stays)
                if factor.grad is not None:
                    factor.grad.mul_(stays)
            self.masks[i] = mask.clone()

    def random(self, step: int) -> list[Tensor]:
        """The numbers that random growth draws at a step."""
        import numpy as np

        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]))
        return [torch.rand(mask.shape, generator=generator, dtype=torch.float64) for mask in self.masks]


def indices(mask: Tensor) -> list[int]:
    return [i for i, keep in enumerate(mask.flatten().tolist()) if keep]


def to_mask(chosen: set[int] | list[int], like: Tensor) -> Tensor:
    flat = [i in set(chosen) for i in range(like.numel())]
    return torch.tensor(flat).view(like.shape)


def best(candidates: list[int], scores: list[float], count: int) -> list[int]:
    return sorted(candidates, key=lambda i: (-scores[i], i))[:count]


def drop_and_grow(mask: Tensor, drop: Tensor, grow: Tensor, keep: int, count: int) -> Tensor:
    drops, grows = drop.flatten().tolist(), grow.flatten().tolist()
    survivors = best(indices(mask), drops, keep)
    others = [i for i in range(mask.numel()) if i not in survivors]
    return to_mask(survivors + best(others, grows, count - len(survivors)), mask)


def growth(theta: Tensor, mask: Tensor, gradient: Tensor) -> Tensor:
    """Places in the order in which they grow: by gradient; where it is 0, weights of the mask by magnitude; others."""
    values, kept, found = (tensor.flatten().tolist() for tensor in (theta, mask, gradient))
    key = lambda i: (-abs(found[i]), not kept[i], -abs(values[i]) if kept[i] and not found[i] else 0, i)  # noqa: E731
    places = sorted(range(len(values)), key=key)
    return torch.tensor([len(values) - places.index(i) for i in range(len(values))]).view(mask.shape)


def rigl(net: Reference, step: int, end: int, alpha: float) -> list[Tensor]:
    fraction = alpha / 2 * (1 + math.cos(math.pi * step / end))
    masks = []
    for theta, mask, gradient in zip(net.thetas(), net.masks, net.dense, strict=True):
        kept = len(indices(mask))
        grow = growth(theta, mask, gradient)
        new = drop_and_grow(mask, theta.abs(), grow, kept - int(fraction * kept), kept)
        masks.append(new if gradient.any() else mask)
    return masks


def srigl(net: Reference, step: int, end: int, alpha: float, min_salient: float) -> list[Tensor]:
    fraction = alpha / 2 * (1 + math.cos(math.pi * step / end))
    masks = []
    for layer, (theta, mask, gradient) in enumerate(zip(net.thetas(), net.masks, net.dense, strict=True)):
        active, inputs = indices(mask), mask.shape[1]
        if len(active) == mask.numel() or not gradient.any():
            masks.append(mask)
            continue
        drops, grows = theta.abs().flatten().tolist(), growth(theta, mask, gradient).flatten().tolist()
        k = int(fraction * len(active))
        survivors = best(active, drops, len(active) - k)
        wanted = best([i for i in range(mask.numel()) if i not in survivors], grows, k)
        neurons = {i // inputs for i in active}
        salient = {n: sum(i // inputs == n for i in survivors + wanted) for n in neurons}
        left = [n for n in neurons if salient[n] >= min_salient * len(active) / len(neurons)]
        left = left or [max(sorted(neurons), key=lambda n: salient[n])]
        fan_in = min(round(net.targets[layer] / len(left)), inputs)
        chosen = []
        for neuron in left:
            own = [i for i in survivors if i // inputs == neuron]
            rest = [i for i in range(neuron * inputs, (neuron + 1) * inputs) if i not in own]
            chosen += own + best(rest, grows, fan_in - len(own))
        masks.append(to_mask(chosen, mask))
    return masks


def set_(net: Reference, step: int, zeta: float) -> list[Tensor]:
    masks = []
    for theta, mask, numbers in zip(net.thetas(), net.masks, net.random(step), strict=True):
        values, survivors = theta.flatten().tolist(), []
        for of_sign in ([i for i in indices(mask) if values[i] >= 0], [i for i in indices(mask) if values[i] < 0]):
            count = len(of_sign) - int(zeta * len(of_sign))
            survivors += best(of_sign, [abs(value) for value in values], count)
        others = [i for i in range(mask.numel()) if i not in survivors]
        grown = best(others, numbers.flatten().tolist(), len(indices(mask)) - len(survivors))
        masks.append(to_mask(survivors + grown, mask))
    return masks


def mest(net: Reference, step: int, total: int, mutation: float, soft: bool, weight: float) -> list[Tensor]:
    now = mutation if step < total * 90 / 160 else mutation / 2 if step < total * 120 / 160 else 0.0
    sizes = [mask.numel() for mask in net.masks]
    other = sum(net.targets) + round((now if soft else -now) * sum(sizes))
    ideal = reference.water_fill(net.targets, [1] * len(sizes), sizes, other)
    others = reference.largest_remainder(ideal, sizes, other)
    keep, count = (net.targets, others) if soft else (others, net.targets)
    parts = zip(net.thetas(), net.masks, net.dense, net.random(step), keep, count, strict=True)
    return [
        drop_and_grow(mask, theta.abs() + weight * gradient.abs(), numbers, min(k, len(indices(mask))), c)
        for theta, mask, gradient, numbers, k, c in parts
    ]


def gmp(net: Reference, step: int, steps: list[int], final: str, initial: float) -> list[Tensor]:
    sizes, kept = [m.numel() for m in net.masks], [len(indices(m)) for m in net.masks]
    left = (steps[-1] - step) / (steps[-1] - steps[0])
    sparsity = float(final) + (initial - float(final)) * left**3
    total = reference.budget(final, sum(sizes)) if step == steps[-1] else round(sum(sizes) * (1 - sparsity))
    ideal = reference.water_fill(sizes, [1] * len(sizes), kept, total)
    counts = reference.largest_remainder(ideal, kept, total)
    parts = zip(net.thetas(), net.masks, counts, strict=True)
    return [to_mask(best(indices(m), t.abs().flatten().tolist(), c), m) for t, m, c in parts]


def largest_of_all(net: Reference, final: str) -> list[Tensor]:
    """Global magnitude; every layer keeps its best."""
    values = [theta.abs().flatten().tolist() for theta in net.thetas()]
    first = [(layer, best(list(range(len(v))), v, 1)[0]) for layer, v in enumerate(values)]
    rest = [(layer, i) for layer, v in enumerate(values) for i in range(len(v)) if (layer, i) not in first]
    total = reference.budget(final, sum(map(len, values)))
    chosen = first + sorted(rest, key=lambda at: (-values[at[0]][at[1]], at))[: total - len(first)]
    return [to_mask([i for at, i in chosen if at == layer], mask) for layer, mask in enumerate(net.masks)]


def everything(net: Reference) -> list[Tensor]:
    return [torch.ones_like(mask) for mask in net.masks]


def acdc_starts(total: int, warmup: str, phase: str, final_dense: str, final_sparse: str) -> dict[int, bool]:
    """The steps at which a phase begins, and whether it is sparse, from whether each step of the run is."""
    first, length, dense, sparse = (
        max(round(Fraction(share) * total), 1) for share in (warmup, phase, final_dense, final_sparse)
    )

    def is_sparse(step: int) -> bool:
        number = (step - first) // length  # of the phase after the warm-up
        in_turn = step >= first and number % 2 == 0 and first + (number + 1) * length <= total - sparse - dense
        return in_turn or step >= total - sparse

    return {step: is_sparse(step) for step in range(1, total) if is_sparse(step) != is_sparse(step - 1)}
