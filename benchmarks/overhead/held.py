"""Memory of training: what is held from step to step, and the peak of a step at two samples."""

import gc
import os
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.overhead.networks import NETWORKS, OPTIMIZERS, TITLES, batch_of, network
from benchmarks.overhead.variants import build, masks_of, train_step
from benchmarks.scoring import in_own_process, resident
from benchmarks.update_memory import held, peak

DENSITY, STEPS = 0.1, 4
SHOWN = ("dense", "sign-in", "plain masked", "listing 1")


def measure(name: str, optimizer: str, variant: str) -> dict[str, float]:
    """MiB held after a step, and the largest resident set of a step above that of a process without network."""
    torch.set_num_threads(1)
    F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))
    x, y = batch_of(name, 2)
    before = resident()
    net = network(name)
    masks = masks_of(net, DENSITY)
    net, made = build(variant, net, masks, OPTIMIZERS[optimizer])
    del masks
    gc.collect()
    for _ in range(2):
        train_step(net, made, x, y)
    peak()
    for _ in range(STEPS):
        train_step(net, made, x, y)
    return {"held": held(net, made), "peak": peak() - before}


def run() -> list[dict[str, Any]]:
    """All networks and optimizers, each variant in a process of its own."""
    # Large blocks go back to the system at once, so that a resident set is what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    return [
        {"network": n, "optimizer": o, "variant": v, **in_own_process(measure, n, o, v)}
        for n in NETWORKS
        for o in OPTIMIZERS
        for v in SHOWN
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Both, in MiB and relative to dense training."""
    lines = ["| network | optimizer | | held, MiB | | peak, MiB | |", "|---" * 7 + "|"]
    dense: dict[str, Any] = {}
    for one in found:
        dense = one if one["variant"] == "dense" else dense
        cells = [f"{one[kind]:.0f} | {one[kind] / dense[kind]:.2f}" for kind in ("held", "peak")]
        lines.append(f"| {TITLES[one['network']]} | {one['optimizer']} | {one['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)
