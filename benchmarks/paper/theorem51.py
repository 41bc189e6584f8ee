"""Theorem 5.1: at d = 1 plain gradient flow recovers the teacher from a > 0, w > 0 alone.

Settings: balanced starts |a| = |w|, w ~ N(0, 1), 100 runs a sign case, n = 200 ("sufficiently many": one positive
sample is enough), gradient descent with the small step η = 0.002 for the flow, to T = 200. |a| = |w| is kept exactly,
as the flow keeps it (see Table 6 for what rounding does). Beside it, starts that are one percent off balance, which
the theorem says nothing about: they show on which side of what the exact start lies.

Success: a > 0 and |a·w − 1| ≤ 0.05. A case agrees at ≥ 95 or ≤ 5 of 100.
"""

from pathlib import Path
from typing import Any

from benchmarks.paper.counts import agrees, claim, shown, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.single_neuron import CASES, Setting, make_data, make_start, recovered
from benchmarks.paper.student import make_forms, train

TITLE = "Theorem 5.1: sparse training without Sign-In"
SETTING, TIME, QUICK_TIME = Setting(runs=100, n=200, rate=0.002, seed=51), 200, 40
BALANCES = {"1 % less a": 0.99, "balanced, as in the theorem": 1.0, "1 % more a": 1.01}
PAPER = (1, 0, 0, 0)


def run(quick: bool) -> dict[str, Any]:
    """Counts by balance and sign case."""
    data, (a, w) = make_data(SETTING, 1), make_start(SETTING, 1, list(CASES.values()))
    moments = [SETTING.steps(QUICK_TIME if quick else TIME)]
    counts = {}
    for name, ratio in BALANCES.items():
        forms, label = make_forms("plain", a, w), f"theorem 5.1: {name}"
        history = train(data, ratio * a, w, forms, SETTING.rate, moments, balanced=ratio == 1, label=label)
        counts[name] = dict(zip(CASES, recovered(history)[0].sum(0).tolist(), strict=True))
    exact = next(counts[name] for name, ratio in BALANCES.items() if ratio == 1)
    claims = [
        claim(f"Theorem 5.1, {case}", str(paper), shown(count, SETTING.runs), agrees(count, SETTING.runs, paper))
        for (case, count), paper in zip(exact.items(), PAPER, strict=True)
    ]
    return {"settings": {**SETTING.written(), "T": TIME, "balances": BALANCES}, "claims": claims, "counts": counts}


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of every case and balance."""
    with picture(path, size=(7.5, 3.6)) as (axes,):
        for position, (name, counts) in enumerate(results["counts"].items()):
            places = [group + 0.27 * (position - 1) for group in range(len(CASES))]
            bars = axes.bar(places, counts.values(), 0.25, color=COLOURS[position], label=name)
            axes.bar_label(bars)
        axes.set_xticks(range(len(CASES)), CASES)
        axes.set(xlabel="start", ylabel="runs of 100 that recovered", ylim=(0, 110))
        axes.legend()


def describe(results: dict[str, Any]) -> str:
    """The claim beside the counts."""
    rows = [
        [name, *(shown(count, SETTING.runs) for count in counts.values())] for name, counts in results["counts"].items()
    ]
    return f"""Paper: {", ".join(f"{case}: {p}" for case, p in zip(CASES, PAPER, strict=True))}.

{table(["start", *CASES], rows)}

The theorem holds for balanced starts. The case a < 0, w > 0 is on the edge: a² − w² is kept by the flow, so with |a|
a hair smaller than w, a reaches 0 first, changes its sign and the teacher is recovered; with |a| a hair larger, w
reaches 0 first and the neuron is dead; in balance neither does, and both end at the origin. So a start only has to
favour a: Sign-In does that by speed."""
