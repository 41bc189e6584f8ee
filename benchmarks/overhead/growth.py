"""Cost by the number of weights, up to a thousand million: layers of 4096 × 1024 without bias, at 90 %, one thread."""

import math
import time
from typing import Any

import torch
from torch import nn

from benchmarks.overhead.networks import OPTIMIZERS
from benchmarks.scoring import in_own_process, resident
from benchmarks.update_memory import held, peak
from lightning_signin import rescale_, sparsify

LAYERS = (1, 4, 16, 64, 239)  # the last has 1.002e9 weights
SHAPE, SPARSITY = (1024, 4096), 0.9  # inputs, outputs


class Layers(nn.Module):
    """Layers beside each other, each with an input of its own: one weight is whole at a time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*SHAPE, bias=False, device="meta") for _ in range(count))
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            parameter.detach().normal_(std=1 / math.sqrt(SHAPE[0]))


def measure(count: int) -> dict[str, float]:
    """Seconds of `sparsify`, a step, a rescale and a state dict (weight by weight), and memory in bytes a weight."""
    torch.set_num_threads(1)
    net = Layers(count)
    weights = count * SHAPE[0] * SHAPE[1]
    before = resident()
    peak()
    found = {"weights": float(weights), "sparsify": seconds(lambda: sparsify(net, sparsity=SPARSITY))}
    found["extra"] = (peak() - before) * 2**20 / weights
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    x = torch.randn(2, SHAPE[0])

    def step() -> None:
        optimizer.zero_grad()
        for layer in net.layers:
            layer(x).square().mean().backward()
        optimizer.step()

    step()
    found |= {"step": seconds(step), "rescale": seconds(lambda: rescale_(net))}
    found["state_dict"] = seconds(lambda: [layer.state_dict() for layer in net.layers])
    found["held"] = held(net, optimizer) * 2**20 / weights
    return found


def seconds(action: object) -> float:
    """Of one call."""
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


def run() -> list[dict[str, Any]]:
    """A process for each size."""
    return [in_own_process(measure, count) for count in LAYERS]  # type: ignore[arg-type]


def table(found: list[dict[str, Any]]) -> str:
    """Nanoseconds a weight: even where cost is linear."""
    lines = ["| weights | sparsify | step | rescale | state_dict | held, B | extra while sparsifying, B |"]
    lines.append("|---" * 7 + "|")
    for one in found:
        times = [f"{1e9 * one[kind] / one['weights']:.2f}" for kind in ("sparsify", "step", "rescale", "state_dict")]
        lines.append(f"| {one['weights']:.2e} | {' | '.join(times)} | {one['held']:.2f} | {one['extra']:.2f} |")
    return "\n".join(lines)
