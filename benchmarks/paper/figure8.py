"""Figure 8 on two cores: how sparse every layer is in the masks of Table 8, at 90 % for the whole network.

The masks of the runs of Table 8, in the order of their layers; mean of 30 seeds.

Rule, before the run, as the paper explains its accuracies: in the mask of SNIP, and in that of SynFlow, the first layer
is more than 90 % sparse or a later one more than 99 %; in RigL's the first layer is at most 90 % and no later one more
than 99 %. Each agrees if it is so for the means over the seeds.
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.figure7 import ORDINALS
from benchmarks.paper.learned_masks import MASKS, TASKS, runs_of

TITLE = "Figure 8: layers of the masks"
STARVED, BALANCED = ("SNIP", "SynFlow"), "RigL"
FIRST, LATER = 90, 99  # percent: a first layer above this and a later one above this are too sparse


def run(quick: bool) -> dict[str, Any]:
    """Sparsities in percent of every seed by task, mask and layer."""
    found = runs_of(quick)
    sparsities: dict[str, dict[str, list[list[float]]]] = {
        task: {
            mask: [
                [100 * run["masks"][mask]["sparsity"][layer] for run in runs]
                for layer in runs[0]["masks"][mask]["sparsity"]
            ]
            for mask in MASKS
        }
        for task, runs in found.items()
    }
    claims = []
    for task, masks in sparsities.items():
        for mask in (*STARVED, BALANCED):
            layers = [mean(values) for values in masks[mask]]
            starved = layers[0] > FIRST or max(layers[1:]) > LATER
            paper = f"first layer > {FIRST} % or a later one > {LATER} %" if mask in STARVED else "neither"
            here = ", ".join(f"{value:.1f}" for value in layers)
            claims.append(claim(f"Figure 8, {TASKS[task]}: {mask}", paper, f"{here} %", starved == (mask in STARVED)))
    return {"settings": {"seeds": len(next(iter(found.values())))}, "claims": claims, "sparsities": sparsities}


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars by layer, one colour a mask."""
    tasks = results["sparsities"]
    with picture(path, 1, len(tasks), (2 + 4.5 * len(tasks), 3.8)) as axes:
        for place, (task, masks) in enumerate(tasks.items()):
            for position, mask in enumerate(MASKS):
                x = [layer + 0.14 * (position - 2.5) for layer in range(len(ORDINALS))]
                axes[place].bar(x, [mean(v) for v in masks[mask]], 0.14, color=COLOURS[position], label=mask)
            axes[place].set_xticks(range(len(ORDINALS)), ORDINALS)
            axes[place].set(xlabel="layer", ylabel="sparsity (%), none: dense", title=TASKS[task], ylim=(0, 100))
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))


def describe(results: dict[str, Any]) -> str:
    """Means and standard deviations."""
    body = [
        [TASKS[task], mask, *(f"{mean(values):.1f} ± {stdev(values):.1f}" for values in layers)]
        for task, masks in results["sparsities"].items()
        for mask, layers in masks.items()
    ]
    head = ["task", "mask", *(f"{ordinal} layer" for ordinal in ORDINALS)]
    return f"Sparsity, %, mean ± standard deviation over the seeds:\n\n{table(head, body)}"
