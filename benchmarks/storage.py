"""Where compact storage is faster than dense: a training step of one weight m ⊙ w, by density.

    python -m benchmarks.storage

One thread, the two storages interleaved, medians of the ratio of each pair. A step makes θ, sends a gradient of θ
back to the factors and lets SGD with momentum update them. Also printed: bytes of parameters, gradients, momentum and
index, compact over dense.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_signin import sparsify
from lightning_signin.core.weights import sparse_weights

SHAPES = {"conv 512×512×3×3": (512, 4608), "linear 1024×1024": (1024, 1024), "linear 300×300": (300, 300)}
DENSITIES = (0.05, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8)
PAIRS = 40


def make_step(shape: tuple[int, int], density: float, storage: str) -> Callable[[], None]:
    layer = nn.Linear(shape[1], shape[0], bias=False)
    sparsify(layer, sparsity=1 - density, storage=storage)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    gradient = torch.randn(shape)

    def step() -> None:
        optimizer.zero_grad()
        layer.weight.backward(gradient)
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def relative_bytes(shape: tuple[int, int], density: float) -> float:
    layer = sparsify(nn.Linear(shape[1], shape[0], bias=False), sparsity=1 - density, storage="compact")
    (weight,) = sparse_weights(layer).values()
    active, size = weight.storage.active, shape[0] * shape[1]
    return (3 * 2 * 4 + 4) * active / ((3 * 2 * 4 + 4) * size)


def main() -> None:
    torch.set_num_threads(1)
    print("| weight | density | time, compact / dense | bytes, compact / dense |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        for density in DENSITIES:
            compact, dense = (make_step(shape, density, storage) for storage in ("compact", "dense"))
            for _ in range(5):
                compact(), dense()
            ratio = statistics.median(seconds(compact) / seconds(dense) for _ in range(PAIRS))
            print(f"| {name} | {density} | {ratio:.2f} | {relative_bytes(shape, density):.2f} |")


if __name__ == "__main__":
    main()
