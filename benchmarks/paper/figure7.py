"""Figure 7 on two cores: where signs flip, layer by layer, with AC/DC, AC/DC + Sign-In, and on a reinitialized mask.

The runs are those of Table 8: AC/DC and AC/DC + Sign-In from the same start, and plain training on the AC/DC mask from
another start. Flips are counted from the start to the warm-up (a fifth of the run, where the learning rate has its
peak), from there to the end, and from the start to the end, as shares of a layer's weights that are kept then. The MLPs
have three layers; the later ones are the second and the third. 30 seeds.

Rule, before the run: "Sign-In enables more sign flips after the warm-up in later layers" agrees in a layer if the
difference AC/DC + Sign-In − AC/DC from the warm-up to the end, paired by seed, is above 0 with its 95 % Student
interval. "AC/DC finds its signs up to the warm-up" agrees in a layer if its flips before are so above those after.
"""

from pathlib import Path
from typing import Any

from benchmarks.intervals import above, difference, interval, signed
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.learned_masks import REINITIALIZED, TASKS, rates_of, runs_of

TITLE = "Figure 7: flips by layer"
STAGES = {"start_to_warmup": "start → warm-up", "warmup": "warm-up → end", "start": "start → end"}
RUNS = ("AC/DC", "AC/DC + Sign-In", REINITIALIZED)
ORDINALS = ("first", "second", "third")


def run(quick: bool) -> dict[str, Any]:
    """Shares in percent of every seed, by task, run, stage and layer."""
    found = runs_of(quick)
    flips: dict[str, dict[str, dict[str, list[list[float]]]]] = {
        task: {
            name: {
                stage: [
                    [100 * run["flips"][name][stage][layer] for run in runs] for layer in runs[0]["flips"][name][stage]
                ]
                for stage in STAGES
            }
            for name in RUNS
        }
        for task, runs in found.items()
    }
    claims = []
    for task, shares in flips.items():
        for layer, ordinal in list(enumerate(ORDINALS))[1:]:
            after = difference(shares["AC/DC + Sign-In"]["warmup"][layer], shares["AC/DC"]["warmup"][layer])
            before = difference(shares["AC/DC"]["start_to_warmup"][layer], shares["AC/DC"]["warmup"][layer])
            for what, more in (
                ("warm-up → end, AC/DC + Sign-In − AC/DC", after),
                ("AC/DC, before − after the warm-up", before),
            ):
                claims.append(
                    claim(f"Figure 7, {TASKS[task]}, {ordinal} layer: {what}", "> 0", signed(more), above(more))
                )
    settings = {"rates": {task: rates_of(task) for task in flips}}
    return {"settings": settings, "claims": claims, "flips": flips}


def draw(results: dict[str, Any], path: Path) -> None:
    """A row of pictures a task, a column a stage."""
    tasks = results["flips"]
    with picture(path, len(tasks), 3, (12, 0.6 + 2.7 * len(tasks))) as axes:
        for place, (task, stage) in enumerate((task, stage) for task in tasks for stage in STAGES):
            for position, name in enumerate(RUNS):
                middles, halves = zip(*map(interval, tasks[task][name][stage]), strict=True)
                x = [layer + 0.26 * (position - 1) for layer in range(len(middles))]
                axes[place].bar(x, middles, 0.26, yerr=halves, color=COLOURS[position], capsize=2, label=name)
            axes[place].set_xticks(range(len(ORDINALS)), ORDINALS)
            axes[place].set_title(f"{TASKS[task]}\n{STAGES[stage]}", fontsize=10)
            axes[place].set(xlabel="layer", ylabel="flipped (%)" if place % 3 == 0 else "")
        axes[2].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def describe(results: dict[str, Any]) -> str:
    """Flips in percent of a layer's kept weights."""
    body = []
    for task, shares in results["flips"].items():
        for name in RUNS:
            for stage, shown in STAGES.items():
                cells = [f"{middle:.1f} ± {half:.1f}" for middle, half in map(interval, shares[name][stage])]
                body.append([TASKS[task], name, shown, *cells])
    return f"Flips, % of a layer's kept weights:\n\n{table(['task', 'run', 'stage', *ORDINALS], body)}"
