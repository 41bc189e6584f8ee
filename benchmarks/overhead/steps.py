"""Training steps of all variants, in turn in one process: medians of the ratio to the dense step of the same round."""

import gc
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

import torch

from benchmarks.overhead.networks import BATCHES, NETWORKS, OPTIMIZERS, TITLES, batch_of, network
from benchmarks.overhead.variants import VARIANTS, build, masks_of, train_step

ROUNDS = 12, 4  # of small and of usual batches
SOME = ("dense", "sign-in", "whole weights", "plain masked", "listing 1")  # where all variants would take too long
SLOW = ("resnet50", "deit-small", "decoder")  # seconds a step at their usual batch: an optimizer hardly counts
# The share of dense training that a step may take, by network, samples and density: with SGD on one thread, and with
# all else the same.
BARS = {
    ("mlp", 2, 0.1): 0.42,
    ("mlp", 2, 0.05): 0.25,
    ("mlp", 128, 0.1): 0.52,
    ("mlp", 128, 0.05): 0.32,
    ("deit-small", 2, 0.1): 0.65,
    ("deit-small", 2, 0.05): 0.50,
    ("deit-small", 16, 0.1): 0.82,
    ("deit-small", 16, 0.05): 0.60,
    ("resnet50", 2, 0.1): 0.88,
    ("decoder", 1, 0.1): 0.52,
    ("decoder", 1, 0.05): 0.36,
}
BAR = 1.02  # elsewhere: no slower than with whole weights


@dataclass(frozen=True)
class Row:
    """What is timed."""

    network: str
    optimizer: str
    samples: int
    density: float
    threads: int
    variants: tuple[str, ...]


def rows(quick: bool) -> list[Row]:
    """All of the grid, the cheaper ones first."""
    names = ("mlp",) if quick else tuple(NETWORKS)
    found = []
    for name, optimizer in product(names, OPTIMIZERS):
        small, usual = BATCHES[name]
        found.append(Row(name, optimizer, small, 0.1, 1, tuple(VARIANTS)))
        found += [Row(name, optimizer, small, density, 1, SOME[:3]) for density in (0.2, 0.05)]
        found.append(Row(name, optimizer, small, 0.1, 2, SOME[:3]))
        if optimizer == "sgd" or name not in SLOW:
            found.append(Row(name, optimizer, usual, 0.1, 1, SOME))
            found.append(Row(name, optimizer, usual, 0.05, 1, SOME[:3]))
    return sorted(found, key=lambda row: (row.samples > 2, row.samples > 16 and row.network != "mlp"))


def measure(row: Row) -> dict[str, Any]:
    """Milliseconds of the dense step, the optimizer's share of it, and the ratio of every variant."""
    torch.set_num_threads(row.threads)
    net = network(row.network)
    x, y = batch_of(row.network, row.samples)
    masks = masks_of(net, row.density)
    built = {variant: build(variant, net, masks, OPTIMIZERS[row.optimizer]) for variant in row.variants}
    for made in built.values():
        train_step(*made, x, y), train_step(*made, x, y)
    gc.disable()
    rounds = ROUNDS[row.samples > 2]
    times = [{variant: train_step(*made, x, y) for variant, made in built.items()} for _ in range(rounds)]
    gc.enable()
    ratios = {variant: median(one[variant][0] / one["dense"][0] for one in times) for variant in row.variants}
    share = median(one["dense"][1] / one["dense"][0] for one in times)
    return {
        "row": asdict(row),
        "dense_ms": 1e3 * median(one["dense"][0] for one in times),
        "optimizer_share": share,
        "ratios": ratios,
        "rounds": rounds,
    }


def table(found: list[dict[str, Any]]) -> str:
    """One line a row; the floor is the dense step without its optimizer."""
    head = ["network", "optimizer", "samples", "density", "threads", "dense, ms", "floor", *list(VARIANTS)[1:], "bars"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in found:
        row, ratios = one["row"], one["ratios"]
        cells = [TITLES[row["network"]], row["optimizer"], row["samples"], row["density"], row["threads"]]
        cells += [f"{one['dense_ms']:.0f}", f"{1 - one['optimizer_share']:.2f}"]
        cells += [f"{ratios[v]:.2f}" if v in ratios else "" for v in list(VARIANTS)[1:]]
        lines.append(f"| {' | '.join(map(str, [*cells, missed(one)]))} |")
    return "\n".join(lines)


def missed(one: dict[str, Any]) -> str:
    """The bars that a row does not meet."""
    row, ratios = one["row"], one["ratios"]
    own = ratios["sign-in"]
    bars = {"whole weights": BAR * ratios["whole weights"]}
    if bar := BARS.get((row["network"], row["samples"], row["density"])):
        bars["dense"] = bar
    if "listing 1" in ratios:
        bars["listing 1"] = ratios["listing 1"] * (0.85 if row["network"] == "mlp" else 1)
    over = [f"{name}: {own:.3f} > {bar:.3f}" for name, bar in bars.items() if own > bar]
    return "; ".join(over) or "met"
