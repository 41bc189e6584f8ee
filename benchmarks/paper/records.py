"""Raw results as JSON beside the environment they were measured in; a quick run never writes over a full one."""

import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import torch

import lightning_signin

RESULTS = Path(__file__).parent.parent / "results" / "paper"


def folder(quick: bool) -> Path:
    """Where results and pictures of a run stand."""
    path = RESULTS / "quick" if quick else RESULTS
    path.mkdir(parents=True, exist_ok=True)
    return path


def environment() -> dict[str, Any]:
    """What could move a number: versions, machine, threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_signin": lightning_signin.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def write(name: str, results: dict[str, Any], quick: bool) -> None:
    """Store the results of one script."""
    record = {"quick": quick, "environment": environment(), **results}
    path = folder(quick) / f"{name}.json"
    unfinished = path.with_suffix(".part")
    text = json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False)
    innermost_lists_on_one_line = re.sub(
        r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text
    )
    unfinished.write_text(innermost_lists_on_one_line + "\n")
    unfinished.replace(path)


def read(name: str, quick: bool) -> dict[str, Any] | None:
    """The stored results of one script; None if it has not run."""
    path = folder(quick) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
