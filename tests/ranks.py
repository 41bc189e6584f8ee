"""Scripts of this folder that start ranks, in a process of their own: it must look like no rank itself."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_ranks(module: str, *arguments: object, timeout: int = 240) -> None:
    """Run a module of the project to its end, which has to be a good one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_RANK"))}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=timeout, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
