"""Figure 3(a): one neuron at d = 1 in the plane of w and a, with gradient flow and with Sign-In gradient flow.

Settings: balanced starts with |a| = |w| = 0.5, 1, 1.5 in each sign case, one data set of n = 200, η = 0.002 for the
flow, to T = 100; Sign-In with β₁ = 2, β₂ = 1 (Theorem 5.2; the text gives none for the figure). Plain starts are kept
on |a| = |w|, as in Table 6.

The paper's description: both fail from w ≤ 0; Sign-In succeeds from w > 0, gradient flow fails there when a < 0; what
fails goes to a function that is constantly 0. Success: a > 0 and |a·w − 1| ≤ 0.05 for each of the three starts.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import draw_phase_plane, picture
from benchmarks.paper.single_neuron import CASES, METHODS, Setting, make_data, recovered
from benchmarks.paper.student import Data, make_forms, train

TITLE = "Figure 3(a): one neuron, d = 1"
SIZES, SETTING, TIME, QUICK_TIME, POINTS = (0.5, 1.0, 1.5), Setting(runs=1, n=200, rate=0.002, seed=3), 100, 40, 160
PANELS = {"Sparse": "Gradient flow", "Sign-In": "Sign-In gradient flow"}
PAPER = {"Sparse": (1, 0, 0, 0), "Sign-In": (1, 1, 0, 0)}


def run(quick: bool) -> dict[str, Any]:
    """Paths of (w, a) and recovered starts, by method and sign case."""
    one = make_data(SETTING, 1)
    data = Data(one.inputs.repeat(len(SIZES), 1, 1), one.targets.repeat(len(SIZES), 1), apart=True)
    signs = torch.tensor(list(CASES.values()), dtype=torch.float64)
    start = torch.tensor(SIZES, dtype=torch.float64)[:, None, None] * signs
    a, w = start[..., 0], start[..., 1:]
    last = SETTING.steps(QUICK_TIME if quick else TIME)
    moments = sorted({0, *(round(last ** (i / POINTS)) for i in range(POINTS + 1))})
    found: dict[str, Any] = {"settings": {**SETTING.written(), "T": TIME, "sizes": SIZES}, "paths": {}, "counts": {}}
    for name in PANELS:
        method = METHODS[name]
        forms, plain = make_forms(method.parametrization, a, w, method.betas), method.parametrization == "plain"
        history = train(data, a, w, forms, SETTING.rate, moments, balanced=plain, label=f"figure 3a: {name}")
        points = torch.stack([history.w[..., 0], history.a], dim=3).permute(2, 1, 0, 3)
        found["paths"][name] = {case: _rounded(lines) for case, lines in zip(CASES, points, strict=True)}
        found["counts"][name] = dict(zip(CASES, recovered(history)[-1].sum(0).tolist(), strict=True))
    found["claims"] = [
        claim(
            f"Figure 3(a), {PANELS[name]}",
            "; ".join(case for case, paper in zip(CASES, papers, strict=True) if paper),
            "; ".join(case for case, count in found["counts"][name].items() if count == len(SIZES)),
            [count == len(SIZES) * paper for count, paper in zip(found["counts"][name].values(), papers, strict=True)]
            == [True] * len(CASES),
        )
        for name, papers in PAPER.items()
    ]
    return found


def _rounded(lines: torch.Tensor) -> list[list[list[float]]]:
    return [[[round(x, 5) for x in point] for point in line] for line in lines.tolist()]


def draw(results: dict[str, Any], path: Path) -> None:
    """The two planes."""
    with picture(path, columns=2, size=(13, 5.4)) as panels:
        for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
            draw_phase_plane(axes, results["paths"][name], title, reach=2.2)
        panels[1].legend(title="start ○, end ■", loc="center left", bbox_to_anchor=(1.02, 0.5))


def describe(results: dict[str, Any]) -> str:
    """What the picture shows, beside the paper's words."""
    rows = [
        [
            PANELS[name],
            *(f"{p} · {count} of {len(SIZES)}" for p, count in zip(PAPER[name], cells.values(), strict=True)),
        ]
        for name, cells in results["counts"].items()
    ]
    return f"""Paper · recovered here:

{table(["", *CASES], rows)}

As described. Left, paths from a < 0, w > 0 go straight into the origin along a = −w, and those from w < 0 creep
towards it. Right, paths from a < 0, w > 0 bend off to the side of a > −w and reach the teacher; from w < 0 they stop
at a = 0 with w below 0, since a is the faster here: the function is constantly 0 as described, the parameters are not
at the origin."""
