"""Commands that start ranks, in a process of their own: it must look like no rank itself, and end whatever happens."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from random import SystemRandom

import pytest

ROOT = Path(__file__).parent.parent
OF_RANKS = ("PL_", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_")


def free_port() -> int:
    """One that the system gives to nobody else in the seconds until the ranks meet there."""
    while True:
        port = SystemRandom().randrange(20_000, 32_000)  # below what Linux hands out by itself, to gloo for example
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port


def output_of(command: list[str], folder: Path, timeout: int = 240, **environment: str) -> str:
    """Run a command to its end, which has to be a good one, and return what it printed.

    When it takes too long, every process that it started says where it hangs, and is ended.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    ours = {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, cwd=folder, env=kept | ours | environment, **pipes)
    try:
        printed, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        _, said = process.communicate()
        pytest.fail(f"{command} did not end in {timeout} s:\n{said[-20_000:]}")
    assert process.returncode == 0, said[-3000:]
    return printed


def run_ranks(module: str, *arguments: object, timeout: int = 240) -> None:
    """Run a module of the project."""
    output_of([sys.executable, "-m", module, *map(str, arguments)], ROOT, timeout)
