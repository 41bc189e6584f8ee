"""What it costs that dense storage masks θ and its gradient: a product, and whole training steps, by the bare m ⊙ w.

    python -m benchmarks.mask_cost

One thread, the variants interleaved, medians of the ratio of each round. "and" is what the package does; the others
are ways to mask a product that it does not take. Bare training steps have dense storage that does not mask.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.overhead.networks import NETWORKS, OPTIMIZERS, Optimizer
from lightning_signin import plain_view, sparsify
from lightning_signin.core.masked_product import masked_product
from lightning_signin.core.weights import sparse_weights
from lightning_signin.recipes.models import ResNet20

SIZES = (90_000, 2_359_296, 12_582_912)
ROWS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "MLP 12288-1024-1024-1000": (NETWORKS["mlp"], (3, 64, 64), (2, 128)),
    "ResNet-20": (lambda: ResNet20(3), (3, 32, 32), (8, 128)),
}
SPARSITY, ROUNDS = 0.4, 40


def products(size: int) -> dict[str, Callable[[], Tensor]]:
    m, w, keep = torch.randn(size), torch.randn(size), torch.rand(size) > SPARSITY
    bits, ones, off, zero = torch.where(keep, -1, 0).int(), keep.float(), ~keep, torch.zeros(())
    return {
        "m * w": lambda: m * w,
        "and": lambda: masked_product(m, w, bits),
        "mul_ by floats": lambda: (m * w).mul_(ones),
        "mul_ by bools": lambda: (m * w).mul_(keep),
        "masked_fill_": lambda: (m * w).masked_fill_(off, 0),
        "where": lambda: torch.where(keep, m * w, zero),
    }


def bare(values: Tensor, times: Tensor | None = None, *, lend: bool = False) -> Tensor:
    """The product, unmasked."""
    return values if times is None else values * times


def make_step(make: Callable[[], nn.Module], optimizer: Optimizer, x: Tensor, masked: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    net = sparsify(make(), sparsity=SPARSITY, storage="dense")
    with plain_view(net):
        stepper = optimizer(net.parameters())
    for weight in sparse_weights(net).values() if not masked else ():
        weight.storage.unpack = bare  # type: ignore[method-assign]
    y = torch.zeros(len(x), dtype=torch.long)

    def step() -> None:
        stepper.zero_grad()
        F.cross_entropy(net(x), y).backward()
        stepper.step()

    return step


def ratios(variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The time of each over that of the first."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS + 3):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))
    return {
        name: statistics.median(own / other for own, other in zip(times[3:], first[3:], strict=True))
        for name, times in taken.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        print(f"{size:,} entries:", {name: round(ratio, 2) for name, ratio in ratios(products(size)).items()})
    print("| network | samples | optimizer | masked / bare |\n|---|---|---|---|")
    for name, (make, shape, batches) in ROWS.items():
        for batch in batches:
            for called, optimizer in OPTIMIZERS.items():
                x = torch.randn(batch, *shape)
                steps = {str(masked): make_step(make, optimizer, x, masked) for masked in (False, True)}
                print(f"| {name} | {batch} | {called} | {ratios(steps)['True']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
