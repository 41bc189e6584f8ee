"""Figure 6: one neuron at d = 5 from the four sign cases, overparameterized, without and with Sign-In.

Settings: those of Table 6 for the two overparameterized rows (η = 0.01, β = 1, n = 200, w ~ N(0, I), balanced), to T
= 200, with 100 other starts; the picture has the first five of each case in the plane of w₁ and a.

The paper's description: together, overparameterization and Sign-In recover all cases. Success: as in Table 6.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.counts import agrees, claim, shown, table
from benchmarks.paper.drawing import draw_phase_plane, picture
from benchmarks.paper.single_neuron import CASES, METHODS, Setting, recovered, run_method
from benchmarks.paper.table6 import PAPER

TITLE = "Figure 6: one neuron, d = 5"
SETTING, TIME, QUICK_TIME, POINTS, DRAWN = Setting(runs=100, n=200, rate=0.01, seed=6), 200, 50, 120, 5
PANELS = ("Overparam", "Overparam + Sign-In")


def run(quick: bool) -> dict[str, Any]:
    """Paths of (w₁, a) of the first starts, and counts of all."""
    last = SETTING.steps(QUICK_TIME if quick else TIME)
    moments = sorted({0, *(round(last ** (i / POINTS)) for i in range(POINTS + 1))})
    found: dict[str, Any] = {"settings": {**SETTING.written(), "T": TIME}, "paths": {}, "counts": {}, "claims": []}
    found["waiting"] = {}
    for name in PANELS:
        history = run_method(METHODS[name], SETTING, moments, f"figure 6: {name}")
        points = torch.stack([history.w[:, :DRAWN, :, 0], history.a[:, :DRAWN]], dim=3).permute(2, 1, 0, 3)
        found["paths"][name] = {
            case: [[[round(x, 5) for x in point] for point in line] for line in lines.tolist()]
            for case, lines in zip(CASES, points, strict=True)
        }
        found["counts"][name] = dict(zip(CASES, recovered(history)[-1].sum(0).tolist(), strict=True))
        waiting = (history.a[-1] > 0) & (history.w[-1, ..., 0] < 0)
        found["waiting"][name] = dict(zip(CASES, waiting.sum(0).tolist(), strict=True))
        for (case, count), paper in zip(found["counts"][name].items(), PAPER[name], strict=True):
            holds = agrees(count, SETTING.runs, paper)
            found["claims"].append(claim(f"Figure 6, {name}, {case}", str(paper), shown(count, SETTING.runs), holds))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """The two planes."""
    with picture(path, columns=2, size=(13, 5.4)) as panels:
        for axes, name in zip(panels, PANELS, strict=True):
            draw_phase_plane(axes, results["paths"][name], name, reach=4.2)
        panels[1].legend(title="start ○, end ■", loc="center left", bbox_to_anchor=(1.02, 0.5))


def describe(results: dict[str, Any]) -> str:
    """The counts beside the paper's words."""
    rows = [
        [name, *(f"{p} · {shown(count, SETTING.runs)}" for p, count in zip(PAPER[name], cells.values(), strict=True))]
        for name, cells in results["counts"].items()
    ]
    waiting = " + ".join(str(count) for count in results["waiting"][PANELS[1]].values())
    return f"""Paper · recovered here [95 % interval, %]:

{table(["", *CASES], rows)}

Without Sign-In, paths from a < 0 end at w₁ < 0 just below a = 0. With it they cross a = 0; those that cross it at w₁
< 0 wait there until w₁ follows: first Sign-In's flip of a, then overparameterization's flip of w₁, the order that
Appendix F describes. At this T {waiting} runs still wait at a > 0, w₁ < 0; Table 6 has ten times the T."""
