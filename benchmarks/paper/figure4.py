"""Figure 4: sign flips and sharpness along the run, random mask at 90 %, plain and with Sign-In.

Settings: MNIST-1D (MLP 40-300-300-10, 60 epochs) in place of ResNet-50 on ImageNet, the "static" runs of Tables 11 to
13: SGD with momentum, triangular learning rate with its peak after a fifth of the run (the warm-up), Frobenius decay
1e-4, each form at its own best learning rate; 30 seeds. At each tenth of the run: the share of kept weights whose sign
differs from the start, and the largest eigenvalue of the Hessian of the training loss in θ on the mask, on 1,000
training samples; also at equal loss, at the end of the first epoch with a loss below 0.1 on these samples.

The paper's description: Sign-In has strictly more flips over the full duration of training, and a flatter minimum.
Rule: a difference, paired by seed, shows if its 95 % interval lies on the paper's side of 0. The flips at the warm-up
and at the end, and the sharpness at half, end and equal loss had been measured before this rule was written down.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.intervals import above, below, difference, interval, shown, signed
from benchmarks.jobs import run_each
from benchmarks.moving_masks import fit, mlp, start
from benchmarks.paper import records
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.stacked_training import Problem
from benchmarks.update_table import data_of, learning_rate
from lightning_signin.metrics import SignFlips, sharpness

TITLE = "Figure 4: sign flips and sharpness along the run"
SPARSITY, SEEDS = 0.9, range(30)
QUICK_SEEDS, QUICK_EPOCHS, QUICK_SAMPLES = range(2), 10, 500
TENTHS, WARMUP = range(1, 11), 2  # the learning rate has its peak after two tenths
SAMPLES, LOSS = 1000, 0.1
FORMS = ("plain", "Sign-In")


def loss_fn(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@cache
def problem_of(quick: bool) -> Problem:
    """MNIST-1D, smaller and shorter in a quick run."""
    problem, _ = data_of("mnist1d", held_out=False)
    if not quick:
        return problem
    inputs, labels = problem.inputs[:QUICK_SAMPLES], problem.labels[:QUICK_SAMPLES]
    return replace(problem, epochs=QUICK_EPOCHS, inputs=inputs, labels=labels)


def samples_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """What sharpness is measured on."""
    return problem.inputs[:SAMPLES], problem.labels[:SAMPLES]


def followed(quick: bool, form: str, seed: int) -> dict[str, Any]:
    """Train and measure at each tenth."""
    problem, sign_in = problem_of(quick), form == "Sign-In"
    batch = samples_of(problem)
    net = start(mlp(problem.widths, seed), SPARSITY, None, sign_in, seed)
    flips = SignFlips(net)
    row: dict[str, Any] = {"flips": [], "sharpness": [], "sharpness_at_equal_loss": None}

    def measure(epoch: int, net: nn.Module) -> None:
        tenth, between = divmod(10 * (epoch + 1), problem.epochs)
        if not between:
            flips.update(net)
            row["flips"].append(100 * flips.compute()["start"])
            row["sharpness"].append(float(sharpness(net, loss_fn, [batch])))
            if tenth == WARMUP:
                flips.mark("warmup", net)
            if tenth == max(TENTHS):
                row["flips_since_warmup"] = 100 * flips.compute()["warmup"]
        if row["sharpness_at_equal_loss"] is None and float(loss_fn(net, batch).detach()) < LOSS:
            row["sharpness_at_equal_loss"] = float(sharpness(net, loss_fn, [batch]))

    fit(net, problem, learning_rate("mnist1d", "static", sign_in), seed, after_epoch=measure)
    return row


def runs_of(quick: bool) -> dict[str, list[dict[str, Any]]]:
    """What was measured, by form, seeds ascending; what a stopped run has done is not done again."""
    seeds = QUICK_SEEDS if quick else SEEDS
    return run_each(records.folder(quick) / "figure4.jsonl", FORMS, seeds, partial(followed, quick))


def run(quick: bool) -> dict[str, Any]:
    """Flips and sharpness of both forms along the run."""
    found = runs_of(quick)
    plain, signin = (found[form] for form in FORMS)
    cells = {
        name: [compared(*([row[name][tenth] for row in part] for part in (plain, signin))) for tenth in range(10)]
        for name in ("flips", "sharpness")
    }
    for name in ("flips_since_warmup", "sharpness_at_equal_loss"):
        cells[name] = [compared(*([row[name] for row in part] for part in (plain, signin)))]
    rates = {form: learning_rate("mnist1d", "static", form == "Sign-In") for form in FORMS}
    settings = {"seeds": len(plain), "learning_rates": rates}
    return {"settings": settings, "claims": claims(cells), "cells": cells}


def compared(plain: Sequence[float | None], signin: Sequence[float | None]) -> dict[str, Any]:
    """Both forms and their paired difference, over the seeds where both have a value; None where fewer than two do."""
    pairs = [(a, b) for a, b in zip(plain, signin, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return {"seeds": len(pairs), "plain": None, "Sign-In": None, "difference": None}
    a, b = zip(*pairs, strict=True)
    return {"seeds": len(pairs), "plain": interval(a), "Sign-In": interval(b), "difference": difference(b, a)}


def claims(cells: dict[str, list[dict[str, Any]]]) -> list[dict[str, str | bool]]:
    """More flips all along, above all after the warm-up, and a flatter minimum."""
    more = [above(cell["difference"]) for cell in cells["flips"]]
    end, since, flat = (cells[name][-1]["difference"] for name in ("flips", "flips_since_warmup", "sharpness"))
    return [
        claim(
            "Figure 4(a), Sign-In has more sign flips at each tenth of the run",
            "at all 10",
            f"at {sum(more)}",
            all(more),
        ),
        claim("Figure 4(a), flips at the end, Sign-In − plain", "> 0", f"{signed(end)} % of the weights", above(end)),
        claim("Figure 4(a), flips after the warm-up, Sign-In − plain", "> 0", f"{signed(since)} %", above(since)),
        claim("Figure 4(b), sharpness at the end, Sign-In − plain", "< 0", signed(flat), below(flat)),
    ]


def draw(results: dict[str, Any], path: Path) -> None:
    """Flips and sharpness of both forms along the run, with their intervals."""
    share = [10 * tenth for tenth in TENTHS]
    with picture(path, columns=2, size=(9.5, 3.8)) as panels:
        for axes, name in zip(panels, ("flips", "sharpness"), strict=True):
            for place, form in enumerate(FORMS):
                middles, halves = zip(*(cell[form] for cell in results["cells"][name]), strict=True)
                look: Any = {"color": COLOURS[place], "marker": "os"[place], "markersize": 4, "capsize": 2}
                axes.errorbar(share, middles, halves, label=form, **look)
            axes.axvline(10 * WARMUP, color="#888888", linewidth=0.8, linestyle="--")
            axes.set(xlabel="share of the run (%)", ylim=(0, None))
        panels[0].set_ylabel("sign flips since the start\n(% of the kept weights)")
        panels[1].set_ylabel("sharpness of the training loss in θ")
        panels[0].annotate("warm-up", (10 * WARMUP, 1), xytext=(4, 0), textcoords="offset points", color="#666666")
        panels[0].legend(loc="lower right")


def describe(results: dict[str, Any]) -> str:
    """Both forms at each tenth, and what the paper's claims meet here."""
    cells = results["cells"]
    body = [
        [f"{10 * tenth} %", *row(cells["flips"][tenth - 1]), *row(cells["sharpness"][tenth - 1])] for tenth in TENTHS
    ]
    body.append(["since the warm-up", *row(cells["flips_since_warmup"][0]), "", "", ""])
    equal = cells["sharpness_at_equal_loss"][0]
    body.append([f"at equal loss ({equal['seeds']} seeds)", "", "", "", *row(equal)])
    head = ["after", *(f"flips, %, {x}" for x in (*FORMS, "difference"))]
    head += [f"sharpness, {x}" for x in (*FORMS, "difference")]
    return f"""{table(head, body)}

More signs flip with Sign-In, above all after the warm-up: the direction of Figure 4(a), from the end of the warm-up on.
Before it the two are level. Sharpness falls with the training loss, with Sign-In later in the run. At equal loss
Sign-In is flatter by an eighth, beyond the interval; at the end, which is what Figure 4(b) shows, it is sharper by a
tenth."""


def row(cell: dict[str, Any]) -> list[str]:
    if cell["difference"] is None:
        return ["–"] * 3
    return [shown(cell["plain"]), shown(cell["Sign-In"]), signed(cell["difference"])]
