"""Figure 1: when signs flip, on masks that are learned, on the same masks from scratch, and on a random mask.

Settings: MNIST-1D (MLP 40-300-300-10, 60 epochs, 90 % sparse) in place of ResNet-50 on ImageNet, with the runs of Table
1: a network becomes sparse by AC/DC, GMP (the paper has STR) or RigL, each at its learning rate of Tables 11 to 13; its
final mask is trained from a fresh start at the rate of "static"; the random mask is the plain run of Figure 4. 30
seeds. The share is that of the finally kept weights whose sign differs between two moments: the start, the end of the
warm-up (a fifth of the run, where the learning rate has its peak; the paper's is a tenth), the end. A weight that is 0
because RigL's mask left it out then has no sign and counts as not flipped. Beside it, the sharpness at the end, as in
Figure 4.

The paper's description: about half of the signs flip from start to end with all three methods; most of them up to the
warm-up; few after it, whereas from scratch many flip after it, on each of these masks and on the random one; and in
Figure 4(b) the three methods end flatter than the random mask. Rule, before the run: "about half" is 40 to 60 %; a
difference, paired by seed, shows if its 95 % interval lies on the paper's side of 0. The random mask was known.
"""

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.intervals import above, below, difference, interval, shown, signed
from benchmarks.jobs import run_each
from benchmarks.moving_masks import fit, mlp, rule_of, start
from benchmarks.paper import records
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.figure4 import QUICK_SEEDS, SPARSITY, WARMUP, loss_fn, problem_of, runs_of, samples_of
from benchmarks.sign_table import FRESH, METHODS
from benchmarks.stacked_training import Problem
from benchmarks.update_table import learning_rate
from lightning_signin import effective_weights, masks, sparsify
from lightning_signin.core.functional import sign_flips
from lightning_signin.metrics import sharpness
from lightning_signin.updates import UpdateRule

TITLE = "Figure 1: when signs flip"
STAGES = {
    "start → end": ("start", "end"),
    "start → warm-up": ("start", "warm-up"),
    "warm-up → end": ("warm-up", "end"),
}
NAMES = {"acdc": "AC/DC", "gmp": "GMP", "rigl": "RigL"}
SCRATCH = {method: f"{name}'s mask from scratch" for method, name in NAMES.items()}
RANDOM = "random mask"
SEEDS = range(30)
ABOUT_HALF = (40, 60)

Moments = dict[str, dict[str, Tensor]]


def both(quick: bool, method: str, seed: int) -> dict[str, dict[str, float]]:
    """One method and its mask from scratch."""
    problem = problem_of(quick)
    rule = rule_of(method, problem)
    net = start(mlp(problem.widths, seed), SPARSITY, rule, sign_in=False, seed=seed)
    learned, found = followed(net, problem, rule, method, seed)
    fresh = sparsify(mlp(problem.widths, seed + FRESH), mask=found, parametrization="plain")
    scratch, _ = followed(fresh, problem, None, "static", seed + FRESH)
    return {"learned": learned, "scratch": scratch}


def followed(
    net: nn.Module, problem: Problem, rule: UpdateRule | None, method: str, seed: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Train a sparse network: what is read of the run, in percent of the finally kept weights, and the final mask."""
    moments: Moments = {"start": effective_weights(net)}
    kept: dict[str, Tensor] = {}
    found: dict[str, float] = {}

    def note(epoch: int, net: nn.Module) -> None:
        if epoch + 1 == problem.epochs // 5:
            moments["warm-up"] = effective_weights(net)
        if epoch + 1 == problem.epochs:
            moments["end"] = effective_weights(net)
            kept.update(masks(net))
            found["sharpness"] = float(sharpness(net, loss_fn, [samples_of(problem)]))

    fit(net, problem, learning_rate("mnist1d", method, False), seed, rule, SPARSITY, note)
    found |= {name: flipped(moments[a], moments[b], kept) for name, (a, b) in STAGES.items()}
    found["no sign at the start"] = share(kept, {name: moments["start"][name] == 0 for name in kept})
    return found, kept


def flipped(before: dict[str, Tensor], after: dict[str, Tensor], kept: dict[str, Tensor]) -> float:
    """Percent of the kept weights whose sign differs."""
    flips = sum(int(sign_flips(before[name][mask], after[name][mask])) for name, mask in kept.items())
    return 100 * flips / sum(int(mask.sum()) for mask in kept.values())


def share(kept: dict[str, Tensor], which: dict[str, Tensor]) -> float:
    """Percent of the kept weights that are among these."""
    number = sum(int((mask & which[name]).sum()) for name, mask in kept.items())
    return 100 * number / sum(int(mask.sum()) for mask in kept.values())


def run(quick: bool) -> dict[str, Any]:
    """The shares of every seed; what a stopped run has done is not done again."""
    seeds = QUICK_SEEDS if quick else SEEDS
    found = run_each(records.folder(quick) / "figure1.jsonl", METHODS, seeds, partial(both, quick))
    runs = {
        names[method]: [run[kind] for run in found[method]]
        for kind, names in (("learned", NAMES), ("scratch", SCRATCH))
        for method in METHODS
    }
    runs[RANDOM] = [
        {
            "start → end": run["flips"][-1],
            "start → warm-up": run["flips"][WARMUP - 1],
            "warm-up → end": run["flips_since_warmup"],
            "no sign at the start": 0.0,
            "sharpness": run["sharpness"][-1],
        }
        for run in runs_of(quick)["plain"][: len(seeds)]
    ]
    cells = {name: {read: interval([r[read] for r in rows]) for read in rows[0]} for name, rows in runs.items()}
    return {"settings": {"seeds": list(seeds)}, "claims": claims(runs), "cells": cells}


def claims(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, str | bool]]:
    """Half of the signs, early, and stable after the warm-up; not so from scratch; flatter."""

    def of(name: str, read: str) -> list[float]:
        return [run[read] for run in runs[name]]

    early, late = "start → warm-up", "warm-up → end"
    found = []
    for method, name in NAMES.items():
        middle, half = interval(of(name, "start → end"))
        about_half = ABOUT_HALF[0] <= middle <= ABOUT_HALF[1]
        found.append(
            claim(f"Figure 1, {name}: flips start → end", "≈ 50 %", f"{middle:.1f} ± {half:.1f} %", about_half)
        )
        more = difference(of(name, early), of(name, late))
        found.append(claim(f"Figure 1, {name}: flips up to the warm-up − after", "> 0", signed(more), above(more)))
        for other in (SCRATCH[method], RANDOM):
            more = difference(of(other, late), of(name, late))
            what = f"Figure 1, flips after the warm-up, {other} − {name}"
            found.append(claim(what, "> 0", signed(more), above(more)))
        less = difference(of(name, "sharpness"), of(RANDOM, "sharpness"))
        found.append(claim(f"Figure 4(b), sharpness, {name} − random mask", "< 0", signed(less), below(less)))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Three bars a run, as in the paper."""
    cells = results["cells"]
    with picture(path, size=(9.5, 4.2)) as [axes]:
        for place, stage in enumerate(STAGES):
            middles, halves = zip(*(cell[stage] for cell in cells.values()), strict=True)
            x = [position + 0.27 * (place - 1) for position in range(len(cells))]
            axes.bar(x, middles, 0.25, yerr=halves, capsize=2, color=COLOURS[(0, 1, 2)[place]], label=stage)
        labels = [
            name.replace("'s mask ", "'s mask\n").replace(" mask", "\nmask", name.startswith("random"))
            for name in cells
        ]
        axes.set_xticks(range(len(cells)), labels)
        axes.grid(visible=False, axis="x")
        axes.set(ylabel="flips (% of the finally kept weights)", ylim=(0, None))
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def describe(results: dict[str, Any]) -> str:
    """Every share with its interval, and the sharpness beside."""
    reads = [*STAGES, "no sign at the start", "sharpness"]
    body = [[name, *(shown(tuple(cell[read])) for read in reads)] for name, cell in results["cells"].items()]
    return f"""{table(["", *reads], body)}

Flips in percent, mean ± 95 % interval. As in the paper, AC/DC and GMP flip most of their signs up to the warm-up, and
from scratch more signs flip after it, on each learned mask and on the random one. Of the size of the effect: with AC/DC
a fifth of the weights still flips after the warm-up, which is not stable, and only about four points less than on its
mask from scratch; GMP is stable. Where it differs: from start to end GMP and RigL flip far less than half. Half of
RigL's final weights have no sign at the start, of those that have one 28 % flip, and its mask moves up to three
quarters of the run. At the end GMP and RigL are flatter than the random mask, AC/DC is not."""
