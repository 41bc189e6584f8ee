"""Many small networks side by side: the training loop of `benchmarks.mnist1d_table` and `benchmarks.mask_table`.

The networks of several seeds are stacked in one tensor a layer, (seeds, out, in), and trained by one batched matrix
product. Masks, factors and rescales are elementwise, so the package's own functions act on the stack as they act on
one network (`tests/benchmarks/test_stacked_benchmark.py` compares them).
"""

import warnings
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import rescale_, sparsify
from lightning_signin.core.optimizers import add_frobenius_decay_
from lightning_signin.core.weights import sparse_weights
from lightning_signin.masks import SCORES, TrainingData, build_masks

KINDS = ("weight", "bias")
BATCH, WARMUP = 100, 0.2  # the learning rate rises linearly for 20 % of the steps, then falls to 0
NUM_BATCHES = 10  # of scores that look at data
DECAY, MOMENTUM = 1e-4, 0.9  # Table 5: Frobenius decay of θ for every method, no decay of anything else


@dataclass(frozen=True)
class Problem:
    """What is learned, and how long.

    Attributes:
        widths: Of the MLP, from input to output.
        epochs: Length of the run.
        inputs: Training inputs (samples, features).
        labels: Training labels (samples,).
    """

    widths: tuple[int, ...]
    epochs: int
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Settings:
    """One method at one learning rate.

    Attributes:
        method: "plain" (θ on a mask), "mw" (m ⊙ w, never rescaled) or "signin".
        rescale_every: p, in epochs.
        rescale_until: T₂, as a fraction of the epochs.
        momentum: What a rescale does to the momentum.
        beta: β.
        mask: The score that chooses the mask, with the distribution of its own paper.
    """

    method: str
    sparsity: float
    lr: float
    rescale_every: int = 5
    rescale_until: float = 0.5
    momentum: str = "keep"
    beta: float = 1.0
    mask: str = "random"


class StackedMLP(nn.Module):
    """One MLP a seed, each with the start that a single network gets from ``torch.manual_seed(seed)``."""

    def __init__(self, widths: tuple[int, ...], seeds: list[int]) -> None:
        super().__init__()
        singles = [single(widths, seed) for seed in seeds]
        weights, biases = ([[layer.get_parameter(kind).data for layer in net] for net in singles] for kind in KINDS)
        self.weights, self.biases = (
            nn.ParameterList(nn.Parameter(torch.stack(layer)) for layer in zip(*stacks, strict=True))
            for stacks in (weights, biases)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (seeds, 10, batch) for inputs (seeds, 40, batch): with features first, gradients come contiguous."""
        for layer, bias in enumerate(self.biases):
            x = torch.baddbmm(bias.unsqueeze(2), getattr(self.weights, str(layer)), x)
            x = x.relu() if layer + 1 < len(self.biases) else x
        return x


def single(widths: tuple[int, ...], seed: int) -> list[nn.Linear]:
    """The layers of one network as it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]


def masks_of(settings: Settings, seed: int, problem: Problem) -> list[Tensor]:
    """The masks of one network's layers."""
    layers = single(problem.widths, seed)
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    order = torch.randperm(len(problem.labels), generator=torch.Generator().manual_seed(seed))
    batches = [(problem.inputs[batch], problem.labels[batch]) for batch in order.split(BATCH)]
    data = TrainingData(lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]), batches, batches[0][0][:1])
    weights = {f"{2 * i}.weight": layer.weight for i, layer in enumerate(layers)}
    score = SCORES[settings.mask]()
    if hasattr(score, "num_batches"):
        score = replace(score, num_batches=NUM_BATCHES)  # type: ignore[type-var]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="distribution='global' would leave")
        built = build_masks(weights, sparsity=settings.sparsity, mask=score, seed=seed, module=net, data=data)
    return list(built.values())


def train(settings: Settings, seeds: list[int], problem: Problem) -> StackedMLP:
    """Train one network a seed; the seed decides start, mask and batches, the same for every method."""
    net, inputs, labels = StackedMLP(problem.widths, seeds), problem.inputs, problem.labels
    layers = zip(*(masks_of(settings, seed, problem) for seed in seeds), strict=True)
    sparsify(
        net,
        mask={f"weights.{i}": torch.stack(masks) for i, masks in enumerate(layers)},
        include=["weights.*"],
        beta=settings.beta,
        parametrization="plain" if settings.method == "plain" else "sign-in",
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=MOMENTUM)
    steps_per_epoch = len(labels) // BATCH
    last = problem.epochs * steps_per_epoch
    peak = WARMUP * last
    weights, parameters = list(sparse_weights(net).values()), list(net.parameters())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    step = 0
    for epoch in range(problem.epochs):
        rescales = settings.method == "signin" and epoch > 0 and epoch % settings.rescale_every == 0
        if rescales and epoch < settings.rescale_until * problem.epochs:
            rescale_(net, optimizers=[optimizer], momentum=settings.momentum)
        orders = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
        for batch in orders[:, : steps_per_epoch * BATCH].split(BATCH, dim=1):
            step += 1
            factor = step / peak if step <= peak else (last - step) / (last - peak)
            optimizer.param_groups[0]["lr"] = settings.lr * factor
            optimizer.zero_grad()
            # Summed over seeds: each network has the gradient of its own mean loss.
            logits = net(inputs[batch].transpose(1, 2))
            (F.cross_entropy(logits, labels[batch], reduction="sum") / BATCH).backward()
            add_frobenius_decay_(weights, DECAY, parameters)
            optimizer.step()
    return net


@torch.no_grad()
def accuracies(net: StackedMLP, inputs: Tensor, labels: Tensor) -> list[float]:
    """Accuracy of each network, in percent."""
    logits = net(inputs.t().expand(len(net.biases[0]), *inputs.t().shape))
    return ((logits.argmax(1) == labels).float().mean(1) * 100).tolist()
