"""Operations of a forward, and rules that could explain the sparse counts of the paper, for its Table 15.

    python -m benchmarks.flops    # operations and bytes of four models

Each hypothesis is a rule that gives every layer a density; the count is Σ dense operations of a layer · its density, on
torchvision's ResNet-50 and images of 224×224. Rules of other code are written anew from their description.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import product

import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_signin import masks, sparsify
from lightning_signin.masks.distributions import DISTRIBUTIONS, allocate, budget
from lightning_signin.metrics.flops import flops
from lightning_signin.metrics.memory import memory
from lightning_signin.recipes.models import MLP

SPARSITIES = (0.8, 0.9)
IMAGE = (1, 3, 224, 224)
Shapes = Mapping[str, tuple[int, ...]]
Densities = Mapping[str, float]
Rule = Callable[[Shapes, float], Densities]


def size(shape: Iterable[int]) -> int:
    return torch.Size(shape).numel()


def ours(distribution: str) -> Rule:
    """Exact counts of this package."""

    def densities(shapes: Shapes, sparsity: float) -> Densities:
        sizes = [size(shape) for shape in shapes.values()]
        shares = [DISTRIBUTIONS[distribution](shape) for shape in shapes.values()]
        kept = allocate(shares, [1] * len(sizes), sizes, budget(sparsity, sum(sizes)))
        return {name: k / n for name, k, n in zip(shapes, kept, sizes, strict=True)}

    return densities


def left_over_to_later(shapes: Shapes, sparsity: float) -> Densities:
    """Balanced as in TurboPrune: what a small layer leaves over is shared by it and the later layers."""
    share = (1 - sparsity) * sum(map(size, shapes.values())) / len(shapes)
    found = {}
    for index, (name, shape) in enumerate(shapes.items()):
        found[name] = min(1.0, share / size(shape))
        share += max(0.0, share - size(shape)) / (len(shapes) - index)
    return found


def left_over_lost(shapes: Shapes, sparsity: float) -> Densities:
    """Balanced as in the code of Gadhikar et al. (2023): what a small layer leaves over is lost."""
    share = (1 - sparsity) * sum(map(size, shapes.values())) / len(shapes)
    return {name: min(1.0, share / size(shape)) for name, shape in shapes.items()}


def erk_clamped(shapes: Shapes, sparsity: float) -> Densities:
    """ERK as in TurboPrune: one factor for all layers, then a clamp."""
    factor = (1 - sparsity) * sum(map(size, shapes.values())) / sum(map(sum, shapes.values()))
    return {name: min(1.0, factor * sum(shape) / size(shape)) for name, shape in shapes.items()}


def except_for(rule: Rule, dense: Callable[[str], bool], whole_budget: bool = False) -> Rule:
    """Some layers are dense: the sparsity is that of the others, or that of all layers together."""

    def densities(shapes: Shapes, sparsity: float) -> Densities:
        others = {name: shape for name, shape in shapes.items() if not dense(name)}
        if whole_budget:
            total, free = (sum(map(size, part.values())) for part in (shapes, others))
            sparsity = 1 - ((1 - sparsity) * total - (total - free)) / free
            if sparsity >= 1:
                return {}
        return dict.fromkeys(shapes, 1.0) | dict(rule(others, sparsity))

    return densities


def magnitude_at_start(shapes: Shapes, sparsity: float) -> Densities:
    """The largest weights of torchvision's initialization over all layers."""
    torch.manual_seed(0)
    found = masks(sparsify(torchvision.models.resnet50(), sparsity=sparsity, mask="magnitude", distribution="global"))
    return {name: int(mask.sum()) / mask.numel() for name, mask in found.items()}


def first(name: str) -> bool:
    return name == "conv1.weight"


def last(name: str) -> bool:
    return name == "fc.weight"


def downsample(name: str) -> bool:
    return "downsample" in name


HYPOTHESES: dict[str, Rule] = {
    "balanced, exact (this package)": ours("balanced"),
    "balanced, left over to later layers (TurboPrune)": left_over_to_later,
    "balanced, left over lost (Gadhikar et al., 2023)": left_over_lost,
    "balanced, first convolution dense": except_for(ours("balanced"), first),
    "balanced, last layer dense": except_for(ours("balanced"), last),
    "balanced, first and last dense": except_for(ours("balanced"), lambda name: first(name) or last(name)),
    "balanced, downsample layers dense": except_for(ours("balanced"), downsample),
    "balanced, downsample layers dense, in the budget": except_for(ours("balanced"), downsample, whole_budget=True),
    "TurboPrune, downsample layers dense": except_for(left_over_to_later, downsample),
    "TurboPrune, downsample and last dense": except_for(left_over_to_later, lambda n: downsample(n) or last(n)),
    "balanced, 3×3 convolutions alone sparse": except_for(ours("balanced"), lambda name: "conv2" not in name),
    "ERK, exact (this package)": ours("erk"),
    "ERK, clamped (TurboPrune)": erk_clamped,
    "uniform": ours("uniform"),
    "uniform, first convolution dense": except_for(ours("uniform"), first),
    "largest magnitudes at the start, over all layers": magnitude_at_start,
}


@cache
def resnet50() -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Dense operations of each weight, and its shape."""
    net = torchvision.models.resnet50()
    dense = {layer.name: layer.dense for layer in flops(net, torch.zeros(IMAGE)).layers}
    return dense, {name: tuple(net.get_parameter(name).shape) for name in dense}


def count(rule: Rule, sparsity: float) -> tuple[float, float] | None:
    """Operations of a forward in G and the sparsity that the rule reaches; None if the dense part is too large."""
    dense, shapes = resnet50()
    found = rule(shapes, sparsity)
    if not found:
        return None
    kept = sum(size(shapes[name]) * density for name, density in found.items())
    operations = sum(dense[name] * density for name, density in found.items())
    return operations / 1e9, 1 - kept / sum(map(size, shapes.values()))


def fitted_sparsity(operations: float) -> float:
    """The sparsity at which an exactly balanced mask has this many operations, in G, to 1/10,000."""

    def balanced(density: int) -> float:
        found = count(ours("balanced"), round(1 - density / 10_000, 4))
        return found[0] if found else math.inf

    # The first density at which the count reaches the target.
    return 1 - bisect_left(range(10_000), operations, lo=1, key=balanced) / 10_000


def models() -> None:
    makers: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "ResNet-18": (torchvision.models.resnet18, torch.zeros(IMAGE)),
        "ResNet-50": (torchvision.models.resnet50, torch.zeros(IMAGE)),
        "DeiT-small": (lambda: timm.create_model("deit_small_patch16_224"), torch.zeros(IMAGE)),
        "MLP 40-300-300-10": (lambda: MLP([40, 300, 300, 10]), torch.zeros(1, 40)),
    }
    print("| model | sparsity | dense, M | sparse, M | Sign-In, M | Sign-In (Appendix N), M | MiB, dense | MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, (make, x)), sparsity in product(makers.items(), SPARSITIES):
        net = sparsify(make(), sparsity=sparsity)
        total, held = flops(net, x).total, memory(net).total
        counts = (total.dense, total.sparse, total.sign_in, total.paper_sign_in)
        mib = (held.dense.total / 2**20, held.sparse.total / 2**20)
        cells = [f"{count / 1e6:,.2f}" for count in counts] + [f"{value:.2f}" for value in mib]
        print(f"| {name} | {100 * sparsity:.0f} % | {' | '.join(cells)} |")


if __name__ == "__main__":
    models()
