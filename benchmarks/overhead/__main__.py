"""What sparse training costs beside dense training.

    python -m benchmarks.overhead steps     # training steps: 15 to 20 minutes on one idle core
    python -m benchmarks.overhead held      # memory, held and at the peak of a step
    python -m benchmarks.overhead growth    # cost by the number of weights, to 1e9
    python -m benchmarks.overhead once      # rescale, sparsify, import, compiling
    python -m benchmarks.overhead report    # the tables, as Markdown

Raw results stand in ``benchmarks/results/overhead``; steps that are there are not timed again. Run it alone: two busy
programs on two cores spoil every ratio.
"""

import json
import multiprocessing
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.jobs import read_rows
from benchmarks.overhead import growth, held, once, steps

RESULTS = Path(__file__).parents[1] / "results" / "overhead"
STAGES = {"held": held, "growth": growth, "once": once}


def time_steps(path: Path) -> None:
    """Add a line for each row, from a process of its own."""
    done = [row["row"] for row in read_rows(path)]
    left = [row for row in steps.rows(quick=False) if json.loads(json.dumps(asdict(row))) not in done]
    for row in tqdm(left, desc="steps"):
        with multiprocessing.get_context("spawn").Pool(1) as pool, path.open("a") as file:
            file.write(json.dumps(pool.apply(steps.measure, (row,))) + "\n")


def main() -> None:
    stage = sys.argv[1] if len(sys.argv) == 2 else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if stage == "steps":
        time_steps(RESULTS / "steps.jsonl")
    elif stage in STAGES:
        (RESULTS / f"{stage}.json").write_text(json.dumps(STAGES[stage].run(), indent=1) + "\n")
    elif stage == "report":
        print(steps.table(read_rows(RESULTS / "steps.jsonl")))
        for name, module in STAGES.items():
            if (path := RESULTS / f"{name}.json").exists():
                print(f"\n{module.table(json.loads(path.read_text()))}")
    else:
        sys.exit(f"usage: python -m benchmarks.overhead steps|{'|'.join(STAGES)}|report")


if __name__ == "__main__":
    main()
