"""What Sign-In adds to a method: paired cells, their table beside the paper's, their picture (Tables 7, 11 to 13)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.intervals import above, difference, interval, points, shown, signed
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture

TASKS = {"mnist1d": "MNIST-1D", "mnist5000": "MNIST, 5,000 images"}
Pair = tuple[float, float]  # without and with Sign-In
FORMS = ("plain", "with Sign-In")
CHANCE = 15.0  # percent: all tasks have ten classes
UNBOUNDED = 10.0  # points: an interval wider than this, of diverged runs, does not stretch the picture
Paper = Mapping[str, Mapping[str, Mapping[float, Pair]]]  # by data set, method and sparsity


def cell(
    problem: str, method: str, sparsity: float, plain: Sequence[float], signin: Sequence[float], rates: Pair
) -> dict[str, Any]:
    """Accuracies without and with Sign-In at these learning rates, and their paired difference.

    "others" is the difference of the seeds where neither ended at chance, if there are two or more and not all.

    Returns:
        One cell of the table, as plain values for JSON.
    """
    learned = [pair for pair in zip(plain, signin, strict=True) if min(pair) >= CHANCE]
    return {
        "problem": problem,
        "method": method,
        "sparsity": sparsity,
        "learning_rates": rates,
        "plain": interval(plain),
        "Sign-In": interval(signin),
        "difference": difference(signin, plain),
        "seeds": len(plain),
        "at_chance": [sum(accuracy < CHANCE for accuracy in accuracies) for accuracies in (plain, signin)],
        "others": interval([b - a for a, b in learned]) if 1 < len(learned) < len(plain) else None,
    }


def claims(label: str, cells: Sequence[Mapping[str, Any]], paper: Paper) -> list[dict[str, str | bool]]:
    """That Sign-In is ahead, in every cell that the paper has."""
    found = []
    for one in cells:
        numbers = [methods.get(one["method"], {}).get(one["sparsity"]) for methods in paper.values()]
        if gains := [points(pair[1] - pair[0]) for pair in numbers if pair]:
            what = f"{label}, {TASKS[one['problem']]}, {one['method']}, {one['sparsity']:.0%}: Sign-In − plain"
            ahead = one["difference"]
            found.append(claim(what, f"> 0 ({', '.join(gains)})", signed(ahead), above(ahead)))
    return found


def at_chance(cells: Sequence[Mapping[str, Any]]) -> str:
    """Which cells have runs that ended there, but for those where almost all did, and what the other seeds say."""
    found = []
    for one in cells:
        if one["others"] is not None:
            lost = [f"{n} of {one['seeds']} {form}" for n, form in zip(one["at_chance"], FORMS, strict=True) if n]
            where = f"{one['method']} at {one['sparsity']:.0%} on {TASKS[one['problem']]}"
            found.append(f"{where}, {' and '.join(lost)} (the other seeds: {signed(tuple(one['others']))})")
    return f"Runs that ended at chance, and widen their intervals: {'; '.join(found) or 'none'}."


def draw(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Paired differences with their intervals, a panel a problem, a colour a sparsity."""
    methods, sparsities = (list(dict.fromkeys(one[key] for one in cells)) for key in ("method", "sparsity"))
    step = 0.8 / len(sparsities)
    with picture(path, columns=2, size=(10.5, 1.2 + 0.42 * len(methods))) as panels:
        for axes, (problem, title) in zip(panels, TASKS.items(), strict=True):
            axes.axvline(0, color="#888888", linewidth=0.8)
            for place, sparsity in enumerate(sparsities):
                chosen = {c["method"]: c for c in cells if (c["problem"], c["sparsity"]) == (problem, sparsity)}
                middles, halves = zip(*(one["difference"] for one in chosen.values()), strict=True)
                y = [methods.index(name) + step * (place - (len(sparsities) - 1) / 2) for name in chosen]
                look: Any = {"fmt": "os^D"[place], "color": COLOURS[place], "capsize": 2, "markersize": 4}
                axes.errorbar(middles, y, xerr=halves, label=f"{sparsity:.0%}", **look)
            axes.set_yticks(range(len(methods)), methods if axes is panels[0] else [""] * len(methods))
            ends = [
                middle + side * half
                for one in cells
                for middle, half in [one["difference"]]
                for side in (-1.1, 1.1)
                if one["problem"] == problem and half < UNBOUNDED
            ]
            axes.set(title=title, xlabel="Sign-In − plain (points of accuracy)", xlim=(min(ends), max(ends)))
            axes.set_ylim(len(methods) - 0.4, -0.6)
        panels[1].legend(title="sparsity", loc="center left", bbox_to_anchor=(1, 0.5))


def markdown(cells: Sequence[Mapping[str, Any]], paper: Paper) -> str:
    """Every method and sparsity: the paper's numbers, ours, bold where the interval leaves out 0."""
    methods, sparsities = (list(dict.fromkeys(one[key] for one in cells)) for key in ("method", "sparsity"))
    by_key = {(one["problem"], one["method"], one["sparsity"]): one for one in cells}
    body = [
        [
            method,
            f"{sparsity:.0%}",
            *(of_paper(there.get(method, {}).get(sparsity)) for there in paper.values()),
            *(
                compared(by_key[problem, method, sparsity]) if (problem, method, sparsity) in by_key else ""
                for problem in TASKS
            ),
            seeds_of(one for one in cells if (one["method"], one["sparsity"]) == (method, sparsity)),
        ]
        for method, sparsity in product(methods, sparsities)
    ]
    return table(["method", "sparsity", *(f"paper, {name}" for name in paper), *TASKS.values(), "seeds"], body)


def seeds_of(cells: Iterable[Mapping[str, Any]]) -> str:
    """How many, of every task where they differ."""
    return ", ".join(dict.fromkeys(str(one["seeds"]) for one in cells))


def of_paper(pair: Pair | None) -> str:
    """A cell of the paper, if it has one."""
    return f"{pair[0]:.2f} → {pair[1]:.2f} ({points(pair[1] - pair[0])})" if pair else ""


def compared(one: Mapping[str, Any]) -> str:
    """A cell of the table."""
    gain = signed(tuple(one["difference"]))
    if abs(one["difference"][0]) > one["difference"][1]:
        gain = f"**{gain}**"
    return f"{shown(one['plain'])} → {shown(one['Sign-In'])} ({gain})"
