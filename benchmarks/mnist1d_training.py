"""Many small networks side by side: the training loop of `benchmarks.mnist1d_table`.

The networks of several seeds are stacked in one tensor a layer, (seeds, out, in), and trained by one batched matrix
product. Masks, factors and rescales are elementwise, so the package's own functions act on the stack as they act on
one network (`tests/test_mnist1d_benchmark.py` compares them).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin import rescale_, sparsify
from lightning_signin.masks import build_masks
from lightning_signin.optimizers import add_frobenius_decay_
from lightning_signin.weights import sparse_weights

WIDTHS, KINDS = (40, 300, 300, 10), ("weight", "bias")
BATCH, EPOCHS, WARMUP = 100, 60, 0.2  # the learning rate rises linearly for 20 % of the steps, then falls to 0
DECAY, MOMENTUM = 1e-4, 0.9  # Table 5: Frobenius decay of θ for every method, no decay of anything else


@dataclass(frozen=True)
class Settings:
    """One method at one learning rate.

    Attributes:
        method: "plain" (θ on a mask), "mw" (m ⊙ w, never rescaled) or "signin".
        rescale_every: p, in epochs.
        rescale_until: T₂, as a fraction of the epochs.
        momentum: What a rescale does to the momentum.
        beta: β.
    """

    method: str
    sparsity: float
    lr: float
    rescale_every: int = 5
    rescale_until: float = 0.5
    momentum: str = "keep"
    beta: float = 1.0


class StackedMLP(nn.Module):
    """One MLP a seed, each with the start that a single network gets from ``torch.manual_seed(seed)``."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__()
        singles = [self._single(seed) for seed in seeds]
        stacks = [[torch.stack([net[i].get_parameter(k).data for net in singles]) for i in range(3)] for k in KINDS]
        self.weights, self.biases = (nn.ParameterList(map(nn.Parameter, stack)) for stack in stacks)

    @staticmethod
    def _single(seed: int) -> list[nn.Linear]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(WIDTHS)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (seeds, 10, batch) for inputs (seeds, 40, batch): with features first, gradients come contiguous."""
        for layer in range(3):
            bias = self.biases[layer].unsqueeze(2)
            x = torch.baddbmm(bias, getattr(self.weights, str(layer)), x)
            x = x.relu() if layer < 2 else x
        return x


def train(settings: Settings, seeds: list[int], inputs: Tensor, labels: Tensor) -> StackedMLP:
    """Train one network a seed; the seed decides start, mask and batches, the same for every method."""
    net = StackedMLP(seeds)
    shapes = {f"weights.{i}": weight for i, weight in enumerate(net.weights)}
    single = [build_masks({k: w[0] for k, w in shapes.items()}, sparsity=settings.sparsity, seed=s) for s in seeds]
    sparsify(
        net,
        mask={name: torch.stack([masks[name] for masks in single]) for name in shapes},
        include=["weights.*"],
        beta=settings.beta,
        reparameterize=settings.method != "plain",
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.lr, momentum=MOMENTUM)
    steps_per_epoch = len(labels) // BATCH
    peak, last = WARMUP * EPOCHS * steps_per_epoch, EPOCHS * steps_per_epoch
    weights, parameters = list(sparse_weights(net).values()), list(net.parameters())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    step = 0
    for epoch in range(EPOCHS):
        rescales = settings.method == "signin" and epoch > 0 and epoch % settings.rescale_every == 0
        if rescales and epoch < settings.rescale_until * EPOCHS:
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
