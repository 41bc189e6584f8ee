"""Run every script of the paper's tables, figures and theorems, then write the page: `python -m benchmarks.paper`.

    python -m benchmarks.paper --quick            # minutes: fewer values, shorter runs; results in results/paper/quick
    python -m benchmarks.paper --full             # what the page here shows; runs that have a row are not run again
    python -m benchmarks.paper --full table2      # only some of them
    python -m benchmarks.paper --full --report    # pictures and page anew, from the stored results

A script is a module here with TITLE, ``run(quick) -> dict`` (its raw results, with "settings", and "claims" for the
page's first table), ``draw(results, path)`` and ``describe(results) -> str``; its docstring states settings and the
rule of success, and stands on the page too. `EXPERIMENTS` is the order.
"""

import argparse
import time
from importlib import import_module

from benchmarks.paper import records
from benchmarks.paper.report import write_page

EXPERIMENTS = (
    "table2",
    "table6",
    "sensitivity",
    "failure_case",
    "theorem51",
    "theorem52",
    "theorem54",
    "figure3a",
    "figure5",
    "figure6",
    "table14",
    "table1",
    "table7",
    "table8",
    "table9",
    "vit",
    "table11",
    "table15",
    "table16",
    "resnet20",
    "figure1",
    "figure4",
    "figure7",
    "figure8",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description="The paper beside this package.")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="under ten minutes")
    size.add_argument("--full", action="store_true", help="everything, at the paper's size")
    parser.add_argument("--report", action="store_true", help="run nothing, only draw and write the page")
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"some of: {', '.join(EXPERIMENTS)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.only) - set(EXPERIMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Choose from: {', '.join(EXPERIMENTS)}.")
    for name in chosen.only or EXPERIMENTS:
        script = import_module(f"benchmarks.paper.{name}")
        if not chosen.report:
            start = time.perf_counter()
            records.write(name, script.run(chosen.quick), chosen.quick)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        results = records.read(name, chosen.quick)
        if results is not None:
            script.draw(results, records.folder(chosen.quick) / f"{name}.png")
    print(write_page(EXPERIMENTS, chosen.quick))


if __name__ == "__main__":
    main()
