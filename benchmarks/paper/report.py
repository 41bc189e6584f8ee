"""The page: every number beside the paper's, from the stored results alone, so that none is typed by hand."""

import os
from collections.abc import Iterable
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

from benchmarks.paper import records
from benchmarks.paper.counts import table

PAGE = Path(__file__).parent / "README.md"


def write_page(experiments: Iterable[str], quick: bool) -> Path:
    """Write the page of the full run beside the scripts, that of a quick run beside its results."""
    path = records.folder(quick) / "README.md" if quick else PAGE
    found = {name: record for name in experiments if (record := records.read(name, quick)) is not None}
    pictures = os.path.relpath(records.folder(quick), path.parent)
    sections = [section(name, record, pictures) for name, record in found.items()]
    path.write_text("\n\n".join([opening(found, quick), *sections]) + "\n")
    return path


def opening(found: dict[str, dict[str, Any]], quick: bool) -> str:
    """What the page is, where it was measured, and every claim in one table."""
    claims = [claim for record in found.values() for claim in record.get("claims", [])]
    rows = [[claim["claim"], claim["paper"], claim["here"], "yes" if claim["holds"] else "**no**"] for claim in claims]
    machines = sorted({_machine(record["environment"]) for record in found.values()})
    size = "quick" if quick else "full"
    return f"""# The paper beside this package

Gadhikar, Jacobs, Zhou, Burkholz: "Sign-In to the Lottery: Reparameterizing Sparse Training", NeurIPS 2025,
arXiv:2504.12801. Written by `python -m benchmarks.paper --{size}` from the raw results in `benchmarks/results`; a run
that has its row there is not run again. Each section begins with its settings and its rule of success, which were
written down before the run; a rule that was not, and what a first look changed or added, says so. The factors m ⊙ w
are the package's own: `tests/benchmarks/test_paper_benchmarks.py` holds these batches against `sparsify` and SGD.
Counts have 95 % Wilson intervals, in percent.

Measured with {"; ".join(machines)}.

{sum(claim["holds"] for claim in claims)} of {len(claims)} claims agree:

{table(["claim", "paper", "here", "agrees"], rows)}"""


def section(name: str, record: dict[str, Any], pictures: str) -> str:
    """The title, the settings, the picture and the findings of one script."""
    script = import_module(f"benchmarks.paper.{name}")
    settings = cleandoc(script.__doc__ or "")
    return f"## {script.TITLE}\n\n{settings}\n\n![{name}]({pictures}/{name}.png)\n\n{script.describe(record)}"


def _machine(environment: dict[str, Any]) -> str:
    versions = f"Python {environment['python']}, torch {environment['torch']}"
    return f"{versions}, {environment['platform']}, threads: {environment['threads']}"
